"""torchvision's data sets that the methods before A²-Aug use and timm's ``torch/`` names lack."""
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets import STL10, SVHN, EuroSAT, Flowers102


class EuroSATSplit(EuroSAT):
    """EuroSAT, which has no split of its own: every fifth image of each class is for validation, 5,400 of 27,000.

    Args:
        split: ``train`` or ``validation``.
        kwargs: Of torchvision's ``EuroSAT``.
    """
    samples: list[tuple[str, int]]

    def __init__(self, split: str, **kwargs: Any):
        super().__init__(**kwargs)
        seen = [0] * len(self.classes)
        kept = []
        for path, target in self.samples:
            if (seen[target] % 5 == 4) == (split == 'validation'):
                kept.append((path, target))
            seen[target] += 1
        self.samples = self.imgs = kept
        self.targets = [target for _, target in kept]


# Name after `torch/` -> class, and its split for each of ours. What has no validation images is validated on its test
# images, as the published figures are.
DATASETS: dict[str, tuple[Callable[..., Dataset[Any]], dict[str, str]]] = {
    'svhn': (SVHN, {'train': 'train', 'validation': 'test', 'test': 'test', 'extra': 'extra'}),
    'stl10': (STL10, {'train': 'train', 'validation': 'test', 'test': 'test'}),
    'flowers102': (Flowers102, {'train': 'train', 'validation': 'val', 'test': 'test'}),
    'eurosat': (EuroSATSplit, {'train': 'train', 'validation': 'validation'}),
}


def create_torchvision_dataset(name: str, root: str | None, split: str, download: bool = False) -> Dataset[Any]:
    """One of ``DATASETS``.

    Raises:
        ValueError: It has no such split.
        RuntimeError: It is not in ``root``.
    """
    kind, splits = DATASETS[name]
    if split not in splits:
        raise ValueError(f"'torch/{name}' has the splits {', '.join(splits)}, not '{split}'")
    return kind(root=root, split=splits[split], download=download)
