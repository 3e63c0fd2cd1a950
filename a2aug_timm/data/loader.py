"""Loader of training batches: timm's samplers, collates and prefetcher around transforms that are handed in."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.data import AugMixDataset, IterableImageDataset
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import MultiEpochsDataLoader, PrefetchLoader, fast_collate
from timm.data.random_erasing import RandomErasing
from timm.data.scheduled_sampler import ScheduledBatchSampler, ScheduledTransformDataset
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
)
from torch.utils.data import default_collate as torch_collate
from torchvision.transforms import Compose

from ..upstream import worker_init
from .draw import BranchDraw, DrawnBatches


@dataclass(frozen=True)
class Prefetch:
    """Settings of timm's prefetcher, which normalises batches on their device.

    Attributes:
        mean: Per-channel mean in 0..1.
        std: Per-channel standard deviation in 0..1.
        channels: Number of channels.
        device: Device of the batches.
        dtype: Dtype of the images.
        erasing: Random erasing of normalised images.
        cutout: Last transform of normalised images.
    """
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    erasing: RandomErasing | None = None
    cutout: Callable[..., Any] | None = None

    def wrap(self, loader: DataLoader[Any]) -> PrefetchLoader:
        """Wrap a loader of uint8 batches."""
        wrapped = PrefetchLoader(
            loader, mean=self.mean, std=self.std, channels=self.channels, device=self.device, img_dtype=self.dtype)
        parts = [part for part in (self.erasing, self.cutout) if part is not None]
        last: Any = Compose(parts) if len(parts) > 1 else next(iter(parts), None)
        wrapped.random_erasing = last
        return wrapped


def create_train_loader(
        dataset: Any,
        transforms: Sequence[Callable[..., Any]],
        *,
        batch_size: int,
        collate: Callable[..., Any] | None = None,
        num_workers: int = 1,
        prefetch: Prefetch | None = None,
        is_distributed: bool = False,
        num_repeats: float = 0,
        size_schedule: dict[str, Any] | None = None,
        draw: BranchDraw | None = None,
        keeps_running: bool = False,
        worker_seeding: str = 'all',
        pin_memory: bool = False,
) -> Any:
    """Create the loader of training batches, with the draws of timm's ``create_loader``.

    Args:
        dataset: Images; its ``transform`` is set, or in an ``AugMixDataset`` its three stages.
        transforms: One transform, or one per image size of the schedule.
        collate: Collate of a batch (default: timm's, or torch's without prefetcher).
        prefetch: Settings of timm's prefetcher; None normalises in the workers.
        num_repeats: Draws of each image per epoch, spread over the ranks.
        size_schedule: Arguments of timm's ``ScheduledBatchSampler``, for batches of several image sizes.
        draw: Draw of the branches of each batch, for data sets of views.
        keeps_running: Use timm's loader that keeps running between epochs.
        worker_seeding: ``all`` or ``part``, as in timm.
    """
    sampler = _create_sampler(dataset, is_distributed, num_repeats)
    if size_schedule is None:
        dataset.transform, = transforms
    else:
        dataset.transform = None
        dataset = ScheduledTransformDataset(dataset, transforms)
    batches = _create_batches(dataset, sampler, batch_size, size_schedule, draw)
    images = getattr(dataset, 'dataset', dataset)
    if isinstance(images, IterableImageDataset):  # which counts its images by its workers
        images.set_loader_cfg(num_workers=num_workers)
    loader = (MultiEpochsDataLoader if keeps_running else DataLoader)(
        dataset, num_workers=num_workers, collate_fn=collate or (fast_collate if prefetch else torch_collate),
        pin_memory=pin_memory, worker_init_fn=partial(worker_init, worker_seeding=worker_seeding),
        persistent_workers=num_workers > 0, **batches)
    return loader if prefetch is None else prefetch.wrap(loader)


def _create_batches(
        dataset: Any,
        sampler: Sampler[Any] | None,
        batch_size: int,
        size_schedule: dict[str, Any] | None,
        draw: BranchDraw | None,
) -> dict[str, Any]:
    """Arguments of torch's loader that say which images form a batch."""
    is_stream = isinstance(dataset, IterableDataset)
    if is_stream:
        if draw is not None:
            dataset.draw = draw
        return dict(batch_size=batch_size, drop_last=True)
    if size_schedule is None and draw is None:
        return dict(batch_size=batch_size, shuffle=sampler is None, sampler=sampler, drop_last=True)
    sampler = sampler or RandomSampler(dataset)
    if size_schedule is None:
        batches: Any = BatchSampler(sampler, batch_size, drop_last=True)
    else:
        batches = ScheduledBatchSampler(sampler, drop_last=True, **size_schedule)
    return dict(batch_sampler=batches if draw is None else DrawnBatches(batches, draw))


def split_dataset(dataset: Dataset[Any], num_splits: int) -> Dataset[Any]:
    """Data set of timm's augmentation splits, one clean and the others augmented; the data set itself without."""
    return AugMixDataset(dataset, num_splits=num_splits) if num_splits else dataset


def _create_sampler(dataset: Any, is_distributed: bool, num_repeats: float) -> Sampler[Any] | None:
    if not is_distributed or isinstance(dataset, IterableDataset):
        return None
    return RepeatAugSampler(dataset, num_repeats=num_repeats) if num_repeats else DistributedSampler(dataset)
