"""Class-balanced parts of the training images: a holdout for the choice of the branch, or a subset to train on."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from timm.data import ImageDataset
from torch.utils.data import Dataset

from ..upstream import LABEL_ATTRIBUTES


def split_training_images(
        dataset: Dataset[Any],
        holdout: int | float | None,
        subset: int | float | None,
) -> tuple[list[int] | None, list[int] | None]:
    """Split training images as ``--holdout`` and ``--train-subset`` say; see ``hold_out`` and ``take_subset``.

    Returns:
        Indices of the images to train on (None for all) and of those held out (None without a holdout).

    Raises:
        ValueError: There are not enough images, or the data set has no list of their classes.
    """
    indices = held = None
    if holdout is not None:
        indices, held = hold_out(targets_of(dataset), holdout)
    if subset is not None:
        indices = take_subset(targets_of(dataset), subset, indices)
    return indices, held


def hold_out(targets: Sequence[int], size: int | float) -> tuple[list[int], list[int]]:
    """Split the images into two parts, each with the class proportions of the whole.

    The split is the same in every run and on every rank, so runs with different seeds are judged on the same images.

    Args:
        targets: Class of each image.
        size: Number of images to hold out; below 1, their share.

    Returns:
        Indices of the images for training and of those held out, both ascending.

    Raises:
        ValueError: No image would be held out, or a class would have no image left for training.

    Source: AutoAugment (arXiv:1805.09501) holds out 5,000 of CIFAR's training images; the paper chooses on its
    validation images.
    """
    classes = np.asarray(targets)
    num_held = _count(classes, size)
    if not 0 < num_held < len(classes):
        raise ValueError(f'{num_held} of {len(classes)} training images cannot be held out')
    held = _draw(classes, num_held)
    if set(classes[held]) - set(classes[~held]):
        raise ValueError(f'holding out {num_held} of {len(classes)} training images leaves a class without any')
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def take_subset(targets: Sequence[int], size: int | float, indices: Sequence[int] | None = None) -> list[int]:
    """Indices of a part of the images with the class proportions of the whole, the same in every run.

    Args:
        targets: Class of each image.
        size: Number of images to take; below 1, their share.
        indices: Subset of indices to take from (default: all).

    Raises:
        ValueError: There are not enough images, or a class would have none.
    """
    candidates = np.arange(len(targets)) if indices is None else np.asarray(indices)
    classes = np.asarray(targets)[candidates]
    num_taken = _count(classes, size)
    if not 0 < num_taken <= len(classes):
        raise ValueError(f'{num_taken} of {len(classes)} training images cannot be taken')
    taken = _draw(classes, num_taken)
    if set(classes) - set(classes[taken]):
        raise ValueError(f'taking {num_taken} of {len(classes)} training images leaves a class without any')
    return list(candidates[taken].tolist())


def _count(targets: np.ndarray, size: int | float) -> int:
    return round(size * len(targets)) if size < 1 else int(size)


def _draw(targets: np.ndarray, size: int) -> np.ndarray:
    """Mask of a class-balanced part."""
    labels, counts = np.unique(targets, return_counts=True)
    exact = counts * size / len(targets)
    quotas = exact.astype(int)
    # The largest remainders get the images that rounding down has left.
    for i in np.argsort(quotas - exact, kind='stable')[:size - quotas.sum()]:
        quotas[i] += 1
    generator = np.random.default_rng(0)
    drawn = np.zeros(len(targets), dtype=bool)
    for label, quota in zip(labels, quotas, strict=True):
        drawn[generator.permutation(np.flatnonzero(targets == label))[:quota]] = True
    return drawn


def targets_of(dataset: Dataset[Any]) -> list[int]:
    """Class of each image of a map-style data set, read without decoding images.

    Raises:
        ValueError: The data set has no list of them.
    """
    if isinstance(dataset, ImageDataset):
        reader = dataset.reader
        if hasattr(reader, 'label_key'):  # a data set of Hugging Face
            return list(reader.dataset[reader.label_key])
        targets = getattr(reader, 'targets', None)
        return [sample[1] for sample in reader.samples] if targets is None else list(targets)
    for name in LABEL_ATTRIBUTES:
        if hasattr(dataset, name):
            return [int(target) for target in getattr(dataset, name)]
    raise ValueError(f'{type(dataset).__name__} has no list of the classes of its images, which a class-balanced part '
                     'of them needs')
