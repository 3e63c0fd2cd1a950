"""Data sets by timm's names, and one that needs no download: scikit-learn's handwritten digits."""
import os
from typing import Any

import numpy as np
import timm.data
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from ..upstream import EVAL_SYNONYMS, TORCH_DATASETS, TRAIN_SYNONYMS
from .torchvision_datasets import DATASETS, create_torchvision_dataset

_KINDS = ('torch', 'hfds', 'hfids', 'tfds', 'wds')
_SPLITS = (*TRAIN_SYNONYMS, *EVAL_SYNONYMS)

_NUM_VALIDATION_DIGITS = 360


class DigitsDataset(Dataset[tuple[Any, Any]]):
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


def prefix_of(name: str) -> str:
    """Prefix of a data set's name, ``torch``, ``hfds``, …; empty where timm reads a folder or a tar file."""
    return name.lower().partition('/')[0] if '/' in name else ''


def check_dataset(name: str, root: str | None, download: bool = False) -> None:
    """Raise ``ValueError`` if a data set obviously cannot be read, before anything else is done.

    Args:
        download: torchvision's data sets make their folder when they are downloaded.
    """
    kind = prefix_of(name)
    if kind not in ('', *_KINDS) and name != 'sklearn/digits':
        raise ValueError(f"there is no data set '{name}'; a name begins with {'/, '.join(_KINDS)}/, and a folder "
                         'needs none')
    if name == 'sklearn/digits' or (not root and kind in ('hfds', 'hfids', 'tfds')):  # these have a cache of their own
        return
    if kind == 'wds' and root and ('://' in root or root.startswith('pipe:')):
        return
    if not root:
        raise ValueError('no data: give --data-dir FOLDER, and --dataset for anything but a folder of class folders')
    if not os.path.exists(root) and not (download and kind == 'torch'):
        raise ValueError(f"there is no data folder '{root}'")


def create_dataset(
        name: str,
        root: str | None,
        split: str,
        *,
        class_names: list[str] | None = None,
        allow_no_split: bool = False,
        **kwargs: Any,
) -> Dataset[Any]:
    """A data set by timm's name (``torch/…``, a folder if empty), of torchvision's that timm lacks, or our digits.

    Args:
        root: Folder of the data.
        split: Name of the split; in a folder of class folders, of the sub-folder.
        class_names: Classes in the order of their index, where another split or a model has set them.
        allow_no_split: Take a folder that has class folders and no splits for the split.
        kwargs: Other arguments of ``timm.data.create_dataset``.

    Raises:
        ValueError: The data is not there, has no such split, or has other classes.
    """
    check_dataset(name, root, kwargs.get('download', False))
    torchvision_name = name.lower().removeprefix('torch/')
    if name == 'sklearn/digits':
        dataset: Dataset[Any] = DigitsDataset(split)
    elif name.lower().startswith('torch/') and torchvision_name in DATASETS:
        try:
            dataset = create_torchvision_dataset(torchvision_name, root, split, kwargs.get('download', False))
        except (RuntimeError, OSError, ImportError) as error:
            raise ValueError(f"cannot read data set '{name}', split '{split}': {error}") from error
    else:
        check_split(name, root, split, allow_no_split)
        try:
            dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
            own = names_of_classes(dataset)
            is_folder = hasattr(getattr(dataset, 'reader', None), 'class_to_idx') and not kwargs.get('class_map')
            if class_names and own and own != class_names and is_folder and set(own) <= set(class_names):
                # A split without images of some class must not shift the indices of the others.
                class_map = {label: index for index, label in enumerate(class_names)}
                dataset = timm.data.create_dataset(name, root=root, split=split, **{**kwargs, 'class_map': class_map})
        except (RuntimeError, AssertionError, OSError, ImportError) as error:
            raise ValueError(f"cannot read data set '{name or root}', split '{split}': {error}") from error
    own = names_of_classes(dataset)
    if class_names and own and not set(own) <= set(class_names):
        odd = sorted(set(own) - set(class_names))
        raise ValueError(f"split '{split}' has classes that are not known: {', '.join(odd[:5])}")
    return dataset


def is_stream(dataset: Dataset[Any]) -> bool:
    """Whether images come in an order of the data set's own (``wds/``, ``tfds/``, ``hfids/``)."""
    return isinstance(dataset, IterableDataset)


def check_split(name: str, root: str | None, split: str, allow_no_split: bool = False) -> None:
    """Raise ``ValueError`` where timm would silently take the whole folder, or the test images, for a split."""
    kind = prefix_of(name)
    if kind == 'torch' and name.lower().removeprefix('torch/') in TORCH_DATASETS and split not in (*_SPLITS, 'test'):
        raise ValueError(f"'{name}' has the splits train and validation, not '{split}'")
    is_folder = not kind or name.lower() in ('torch/image_folder', 'torch/folder')
    if not is_folder or root is None or not os.path.isdir(root):
        return
    synonyms = next((names for names in (TRAIN_SYNONYMS, EVAL_SYNONYMS) if split in names), ())
    if any(os.path.isdir(os.path.join(root, folder)) for folder in (split.split('[')[0], *synonyms)):
        return
    if not allow_no_split or any(os.path.isdir(os.path.join(root, folder)) for folder in _SPLITS):
        raise ValueError(f"the data folder '{root}' has no split '{split}'")


def names_of_classes(dataset: Dataset[Any]) -> list[str] | None:
    """Name of each class in the order of its index, if the data set, or the one that it wraps, knows them."""
    dataset = getattr(dataset, 'dataset', dataset)
    class_to_idx = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None)
    if class_to_idx and sorted(class_to_idx.values()) == list(range(len(class_to_idx))):
        return sorted(class_to_idx, key=class_to_idx.get)
    classes = getattr(dataset, 'classes', None)
    return [str(name) for name in classes] if classes else None
