"""Digits, and the results of validation computed by hand."""
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_loader
from torch.utils.data import Dataset

from a2aug_timm.data.datasets import DigitsDataset, create_dataset
from a2aug_timm.data.skipping import SkippingDataset

CPU = torch.device('cpu')
DIGITS = ['--dataset', 'sklearn/digits', '--device', 'cpu', '-j', '0']
INPUT = dict(input_size=(1, 32, 32), mean=(0.3,), std=(0.35,), interpolation='bilinear', crop_pct=0.95)
# The same for checkpoints that do not tell it.
PLAIN = ['--model', 'test_resnet', '--num-classes', '10', '--input-size', '1', '32', '32', '--mean', '0.3', '--std',
         '0.35', '--interpolation', 'bilinear', '--crop-pct', '0.95']


def write_digits(folder, classes, count):
    """A folder of the first handwritten digits of each class."""
    digits = DigitsDataset('validation')
    for label in classes:
        (folder / str(label)).mkdir(parents=True)
        for index in [i for i, target in enumerate(digits.targets) if target == label][:count]:
            Image.fromarray(digits.images[index]).save(folder / str(label) / f'{index}.png')


def images_of(source, size=32, **kwargs):
    """All images and targets of a data set or folder, normalised as the run does."""
    dataset = source
    if not isinstance(source, Dataset):
        dataset = SkippingDataset(create_dataset('', str(source), 'validation', allow_no_split=True), 'L')
    kwargs = {**INPUT, 'input_size': (1, size, size), 'use_prefetcher': True, **kwargs}
    (images, target), = create_loader(dataset, batch_size=2000, num_workers=0, device=CPU, **kwargs)
    return images, target


@torch.inference_mode()
def logits_of(models, mu, images):
    """Logits of each branch and of the ensemble."""
    logits = torch.stack([model(images).float() for model in models])
    return torch.cat([logits, (mu.view(-1, 1, 1) * logits).sum(0, keepdim=True)])


def check(results, logits, target):
    """Hold results against logits; in batches of another size one image may fall to the other side."""
    assert len(results) == len(logits)
    abs = 100 / len(target) + 1e-3
    for result, one in zip(results, logits, strict=True):
        hits = one.topk(5).indices == target[:, None]
        assert result['top1'] == pytest.approx(100 * hits[:, :1].any(1).float().mean().item(), abs=abs)
        assert result['top5'] == pytest.approx(100 * hits.any(1).float().mean().item(), abs=abs)
        assert result['top1_err'] == pytest.approx(100 - result['top1'])
        assert result['loss'] == pytest.approx(F.cross_entropy(one, target).item(), abs=1e-3)
