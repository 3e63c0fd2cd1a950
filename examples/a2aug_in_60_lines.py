"""A²-Aug in a plain PyTorch loop: train with three policies at once and keep the best branch as a plain model.

    pip install -e ".[demo]" && python examples/a2aug_in_60_lines.py

The data are scikit-learn's handwritten digits, so nothing is downloaded.
"""
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomResizedCrop, Resize
from torchvision.transforms.functional import to_tensor

from a2aug_timm import A2AugLoss, MultiPolicyRandAugment, convert_multi_branch_bn, extract_branch, select_branch
from a2aug_timm.data.datasets import DigitsDataset

POLICIES = ('none', 'rand-m5-n1-p1.0-mmax30-tpublished', 'rand-m9-n2-p1.0-mmax30-tpublished')
N = len(POLICIES)


class Views(Dataset):
    """``N`` views of each training image: cropped once, then augmented by each policy."""

    def __init__(self):
        self.images = DigitsDataset('train', RandomResizedCrop(32, scale=(0.7, 1.0)))
        self.augment = MultiPolicyRandAugment(POLICIES, img_size=32, mean=[0.3])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image, target = self.images[index]
        return torch.stack([to_tensor(view) for view in self.augment(image)]), target


@torch.no_grad()
def accuracy(model, loader):
    """Share of the images that a model in eval mode classifies correctly."""
    hits = [model(images).argmax(dim=1) == target for images, target in loader]
    return torch.cat(hits).float().mean().item()


def train(num_epochs=5, lr=0.1):
    """Train jointly, and return the accuracy of each branch and the best branch as a plain timm model."""
    loader = DataLoader(Views(), batch_size=64, shuffle=True, drop_last=True)
    held_out = DataLoader(DigitsDataset('validation', Compose([Resize(32), to_tensor])), batch_size=360)
    model = convert_multi_branch_bn(timm.create_model('test_resnet', in_chans=1, num_classes=10), N)
    loss = A2AugLoss(N, nn.CrossEntropyLoss())  # it holds the weights μ of the ensemble, which are learned too
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, num_epochs * len(loader))
    for epoch in range(num_epochs):
        model.train()
        for views, target in loader:  # [B, N, C, H, W], [B]
            view_major = views.transpose(0, 1).flatten(0, 1)  # [N*B, C, H, W]: rows [i*B, (i+1)*B) are view i
            terms = loss(model(view_major), target)
            optimizer.zero_grad()
            terms['loss'].backward()
            optimizer.step()
            schedule.step()
        model.eval()
        accuracies = []
        for branch in range(N):
            with select_branch(model, branch):
                accuracies.append(accuracy(model, held_out))
        branches = ', '.join(f'{share:.1%}' for share in accuracies)
        print(f'epoch {epoch}: loss {terms["loss"].item():.2f}, accuracy of each branch {branches}')
    return accuracies, extract_branch(model, accuracies.index(max(accuracies)))


if __name__ == '__main__':
    train()
