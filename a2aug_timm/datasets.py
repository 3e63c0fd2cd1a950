"""Data sets by timm's names, and one that needs no download: scikit-learn's handwritten digits."""
import os
from typing import Any

import numpy as np
import timm.data
from PIL import Image
from torch.utils.data import Dataset

_NUM_VALIDATION_DIGITS = 360


class DigitsDataset(Dataset):
    """scikit-learn's 1,797 handwritten digits as grayscale images of 8x8 pixels.

    The validation split is a fixed, class-balanced 360 of them; the package has no split of its own.

    Args:
        split: ``train`` or ``validation``.
        transform: Applied to the Pillow image.

    Source: UCI "Optical Recognition of Handwritten Digits", test part.
    """

    def __init__(self, split: str = 'train', transform: Any = None):
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise ValueError('sklearn/digits needs scikit-learn: pip install -e ".[demo]"') from error
        if split not in ('train', 'validation'):
            raise ValueError(f"sklearn/digits has the splits train and validation, not '{split}'")
        digits = load_digits()
        parts = train_test_split(
            digits.images, digits.target, test_size=_NUM_VALIDATION_DIGITS, stratify=digits.target, random_state=0)
        images, targets = parts[::2] if split == 'train' else parts[1::2]
        # The scans have 17 gray levels, 0 to 16.
        self.images = np.round(images * (255 / 16)).astype(np.uint8)
        self.targets = targets.tolist()
        self.classes = [str(digit) for digit in digits.target_names]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index])
        return image if self.transform is None else self.transform(image), self.targets[index]


def check_dataset(name: str, root: str | None) -> None:
    """Raise ``ValueError`` if a data set obviously cannot be read, before anything else is done."""
    if name == 'sklearn/digits':
        return
    if not root:
        raise ValueError('no data: give --data-dir FOLDER, and --dataset for anything but a folder of class folders')
    if not os.path.exists(root):
        raise ValueError(f"there is no data folder '{root}'")


def create_dataset(name: str, root: str | None, split: str, **kwargs: Any) -> Dataset:
    """A data set by timm's name (``torch/…``, a folder if empty) or ``sklearn/digits``.

    Args:
        root: Folder of the data.
        split: Name of the split; in a folder of class folders, of the sub-folder.
        kwargs: Other arguments of ``timm.data.create_dataset``.

    Raises:
        ValueError: The data is not there, or has no such split.
    """
    check_dataset(name, root)
    if name == 'sklearn/digits':
        return DigitsDataset(split)
    try:
        return timm.data.create_dataset(name, root=root, split=split, **kwargs)
    except (RuntimeError, AssertionError, FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"cannot read data set '{name or root}', split '{split}': {error}") from error


def class_names(dataset: Dataset) -> list[str] | None:
    """Name of each class in the order of its index, if the data set knows them."""
    class_to_idx = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None)
    if class_to_idx and sorted(class_to_idx.values()) == list(range(len(class_to_idx))):
        return sorted(class_to_idx, key=class_to_idx.get)
    classes = getattr(dataset, 'classes', None)
    return [str(name) for name in classes] if classes else None
