"""Views of each image in one view-major batch: data sets, collate and seeding for timm's loader."""
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
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from .draw import BranchDraw, DrawnIndex
from .policies.published_ops import identity
from .skipping import SkippingDataset


class SeededImage(NamedTuple):
    """A decoded image, the key that seeds all random draws of its views, and the branches to make views for.

    ``branches`` is ascending; None means all of them.
    """
    image: Image.Image
    key: str
    branches: tuple[int, ...] | None = None


class BranchTransform(NamedTuple):
    """The part of an image's transform that belongs to one branch: its policy, then what follows the policy."""
    policy: Callable[..., Any]
    after: Callable[..., Any] = identity


class ViewTransform:
    """One view of an image per branch: the base transform, the branch's own part, then the transform to a tensor.

    Views of branches that are not drawn are not computed. The base transform draws its random numbers first, then the
    policies in ascending order of their branches, then what follows the policies, view by view.

    Args:
        base: Transform of the decoded image that all views share (crop, flip).
        branches: The part of each of the N branches.
        to_tensor: Transform of each view to a tensor.
        independent_crops: Give each view its own draw of the base transform instead of one shared draw.

    Source: A²-Aug §4.2.
    """

    def __init__(
            self,
            base: Callable[..., Any],
            branches: Sequence[BranchTransform],
            to_tensor: Callable[..., Any],
            independent_crops: bool = False,
    ):
        self.base = base
        self.branches = tuple(branches)
        self.to_tensor = to_tensor
        self.independent_crops = independent_crops

    def __call__(self, seeded: SeededImage) -> tuple[Any, ...]:
        drawn = self.branches if seeded.branches is None else [self.branches[i] for i in seeded.branches]
        with _seeded(seeded.key):
            if self.independent_crops:
                views = [branch.policy(self.base(seeded.image)) for branch in drawn]
            else:
                image = self.base(seeded.image)
                views = [branch.policy(image) for branch in drawn]
            return tuple(self.to_tensor(branch.after(view)) for branch, view in zip(drawn, views, strict=True))

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.base}, {list(self.branches)}, {self.to_tensor})'


class MultiViewDataset(SkippingDataset):
    """Views of each image of a map-style data set, one per branch.

    An item is ``((view_1, …, view_N), target)``. It depends on ``(seed, epoch, index)`` alone, not on the worker
    that makes it, so a resumed run sees what an uninterrupted run would have seen. A ``DrawnIndex`` in the place of an
    index gives the views of its branches alone. ``transform`` is a ``ViewTransform``; without one an item is
    ``(SeededImage, target)``, for a transform that is applied later.

    Args:
        dataset: Map-style data set of ``(Pillow image, target)``.
        image_mode: Pillow mode that every image is converted to; None leaves the mode unchanged.
        indices: Subset of indices to use (default: all).
        seed: Seed of all random draws. All ranks share it, since they get different indices.
        repeats: The sampler gives an index several times per epoch. Each time is drawn anew, by the worker's count of
            items, so each rank needs its own seed.
    """

    def __init__(
            self,
            dataset: Any,
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
        """Select the draws of an epoch, in this process and in workers that are already running."""
        self._epoch.value = epoch

    def __getitem__(self, index: int | DrawnIndex) -> tuple[Any, Any]:
        index, branches = index if isinstance(index, DrawnIndex) else (index, None)
        image, target = self._load(index)
        epoch = self._epoch.value
        key = f'{self.seed}/{epoch}/{index}'
        if self.repeats:
            self._counted = (epoch, self._counted[1] + 1 if self._counted[0] == epoch else 1)
            key += f'/{_worker_id()}/{self._counted[1]}'
        seeded = SeededImage(image, key, branches)
        return seeded if self.transform is None else self.transform(seeded), target


class MultiViewStream(IterableDataset[tuple[Any, Any]]):
    """Views of each image of a stream, as ``MultiViewDataset`` makes them of a map-style data set.

    An item depends on the seed, the epoch, the worker and the item's number in the worker's part of the stream.

    Args:
        dataset: timm's data set of a ``wds/``, ``tfds/`` or ``hfids/`` stream.
        seed: Seed of all random draws; each rank needs its own.
    """

    def __init__(self, dataset: IterableImageDataset, seed: int | str = 0):
        self.dataset = dataset
        self.seed = seed
        self.transform: ViewTransform | None = None
        self._draw: BranchDraw | None = None
        self._epoch = get_context('spawn').Value('q', 0)

    @property
    def draw(self) -> BranchDraw | None:
        """The draw of the branches to make views for; None means all of them.

        Raises:
            ValueError: A draw is set that differs between the steps of an epoch.
        """
        return self._draw

    @draw.setter
    def draw(self, draw: BranchDraw | None) -> None:
        if draw is not None and not draw.is_full:
            # A worker of a stream never learns which step its batch is for.
            raise ValueError(f'a stream of images has no indices that could carry the draw of {draw.num_views} of '
                             f'{draw.num_branches} branches; train all branches in every step, or use a map-style data '
                             'set')
        self._draw = draw

    def set_epoch(self, epoch: int) -> None:
        """Select the draws of an epoch, in this process and in workers that are already running."""
        self._epoch.value = epoch
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        epoch, worker = self._epoch.value, _worker_id()
        branches = None if self.draw is None else self.draw.branches(epoch, step=0, num_steps=1)
        transform = self.transform
        assert transform is not None, 'the loader sets the transform'
        for number, (image, target) in enumerate(self.dataset):
            yield transform(SeededImage(image, f'{self.seed}/{epoch}/{worker}/{number}', branches)), target


def _worker_id() -> int:
    worker = get_worker_info()
    return 0 if worker is None else worker.id


@contextmanager
def _seeded(key: str) -> Iterator[None]:
    """Seed the three global generators that timm's and torchvision's transforms draw from.

    Without workers these are the generators of the training process, whose state is restored afterwards.
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
    """Stack items of V views into a view-major batch, ``[V*B, C, H, W]``, and their targets, ``[B]``.

    Rows ``[i*B, (i+1)*B)`` are view ``i`` of the ``B`` images, that of the i-th drawn branch. Each view is written
    once, in a worker directly into shared memory.
    """
    num_views = len(batch[0][0])
    images = default_collate([views[i] for i in range(num_views) for views, _ in batch])
    return images, default_collate([target for _, target in batch])


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the data set and the samplers of a loader which epoch begins, where they have a ``set_epoch``."""
    for name in ('dataset', 'batch_sampler', 'sampler'):
        part: Any = getattr(loader, name, None)
        if hasattr(part, 'set_epoch'):
            part.set_epoch(epoch)
