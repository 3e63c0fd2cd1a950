"""N views of each image in one view-major batch: datasets, collate and seeding for timm's loader."""
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import IterableImageDataset
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from .policies import MultiPolicyRandAugment
from .skipping import SkippingDataset


class SeededImage(NamedTuple):
    """A decoded image and the key that all random draws of its views are seeded with."""
    image: Image.Image
    key: str


class ViewTransform:
    """N views of one image: the base transform, then each policy, then the transform to a tensor.

    Args:
        stages: timm's three: base, what follows the policies, and to tensor.
        policies: The N fixed candidate policies.
        independent_crops: Give each view a base transform (crop, flip) of its own instead of one shared draw.

    Source: A²-Aug §4.2.
    """

    def __init__(
            self,
            stages: Sequence[Callable],
            policies: MultiPolicyRandAugment,
            independent_crops: bool = False,
    ):
        self.stages = tuple(stages)
        self.policies = policies
        self.independent_crops = independent_crops

    def __call__(self, seeded: SeededImage) -> tuple[Any, ...]:
        base, after_policy, to_tensor = self.stages
        with _seeded(seeded.key):
            if self.independent_crops:
                views = tuple(transform(base(seeded.image)) for transform in self.policies.transforms)
            else:
                views = self.policies(base(seeded.image))
            return tuple(to_tensor(after_policy(view)) for view in views)


class MultiViewDataset(SkippingDataset):
    """N views of each image of a data set.

    An item is ``((view_1, …, view_N), target)``. It depends on ``(seed, epoch, index)`` alone, not on the worker
    that makes it, so a resumed run sees what an uninterrupted one would have seen. ``transform`` is a
    ``ViewTransform``; without one an item is ``(SeededImage, target)``, for a transform that follows.

    Args:
        dataset: Map-style dataset of ``(Pillow image, target)``.
        image_mode: Pillow mode that every image is converted to; None leaves it as it is.
        indices: The images of it that count; all if not given.
        seed: Seed of all random draws. Ranks share it: they differ in the indices that they are given.
        repeats: The sampler gives an index several times an epoch. Each time is drawn anew, by the worker's count of
            items, so ranks need seeds of their own.
    """

    def __init__(
            self,
            dataset: Dataset,
            image_mode: str | None = None,
            indices: Sequence[int] | None = None,
            seed: int | str = 0,
            repeats: bool = False,
    ):
        super().__init__(dataset, image_mode, indices)
        self.seed = seed
        self.repeats = repeats
        self._epoch = get_context('spawn').Value('q', 0)
        self._counted = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Select the draws of an epoch, in this process and in workers that already run."""
        self._epoch.value = epoch

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self._load(index)
        epoch = self._epoch.value
        key = f'{self.seed}/{epoch}/{index}'
        if self.repeats:
            self._counted = (epoch, self._counted[1] + 1 if self._counted[0] == epoch else 1)
            key += f'/{_worker_id()}/{self._counted[1]}'
        seeded = SeededImage(image, key)
        return seeded if self.transform is None else self.transform(seeded), target


class MultiViewStream(IterableDataset):
    """N views of each image of a stream, as ``MultiViewDataset`` of a map-style data set.

    An item depends on seed, epoch, worker and its number in the worker's part of the stream.

    Args:
        dataset: timm's dataset of a ``wds/``, ``tfds/`` or ``hfids/`` stream.
        seed: Seed of all random draws; each rank needs its own.
    """

    def __init__(self, dataset: IterableImageDataset, seed: int | str = 0):
        self.dataset = dataset
        self.seed = seed
        self.transform: ViewTransform | None = None
        self._epoch = get_context('spawn').Value('q', 0)

    def set_epoch(self, epoch: int) -> None:
        """Select the draws of an epoch, in this process and in workers that already run."""
        self._epoch.value = epoch
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        epoch, worker = self._epoch.value, _worker_id()
        for number, (image, target) in enumerate(self.dataset):
            yield self.transform(SeededImage(image, f'{self.seed}/{epoch}/{worker}/{number}')), target


def _worker_id() -> int:
    worker = get_worker_info()
    return 0 if worker is None else worker.id


@contextmanager
def _seeded(key: str) -> Iterator[None]:
    """Seed the three global generators that timm's and torchvision's transforms draw from.

    Without workers they are also the generators of the training process, which gets them back as they were.
    """
    in_worker = get_worker_info() is not None
    before = None if in_worker else (random.getstate(), np.random.get_state(), torch.get_rng_state())
    digest = hashlib.sha256(key.encode()).digest()
    random.seed(digest)
    np.random.seed(list(digest[:16]))
    # torch.manual_seed() would seed the GPUs' generators too.
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], 'little'))
    try:
        yield
    finally:
        if before is not None:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])


def collate_views(batch: Sequence[tuple[tuple[torch.Tensor, ...], Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack items of N views into a view-major batch, ``[N*B, C, H, W]``, and their targets, ``[B]``.

    Rows ``[i*B, (i+1)*B)`` are view ``i`` of the ``B`` images. Each view is written once, in a worker straight
    into shared memory.
    """
    num_views = len(batch[0][0])
    images = default_collate([views[i] for i in range(num_views) for views, _ in batch])
    return images, default_collate([target for _, target in batch])


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell data set and sampler of a loader, where they want to know, which epoch begins."""
    for name in ('dataset', 'batch_sampler', 'sampler'):
        if hasattr(part := getattr(loader, name, None), 'set_epoch'):
            part.set_epoch(epoch)
