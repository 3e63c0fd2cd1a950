"""Data of a training run: data sets, mixup and loaders from the arguments."""
import argparse
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.data import IterableImageDataset, Mixup, NaFlexMixup, create_loader
from timm.data.random_erasing import RandomErasing
from torch import nn
from torch.utils.data import Dataset

from ..cli.resolve import dtype_of
from ..data.cutout import Cutout
from ..data.datasets import create_dataset, is_stream, names_of_classes
from ..data.draw import BranchDraw
from ..data.holdout import split_training_images
from ..data.loader import Prefetch, create_train_loader, split_dataset
from ..data.mixup import CollateMixedViews, CollateMixup, MixupOfViews
from ..data.skipping import SkippingDataset
from ..data.views import MultiViewDataset, MultiViewStream, collate_views
from ..engine.process import Process
from .checks import is_mixed
from .naflex import build_naflex_eval_loader, build_naflex_loader
from .resolve import num_images_of
from .transforms import build_transforms, transform_settings

_logger = logging.getLogger(__name__)


class Datasets(NamedTuple):
    """Images of a run.

    Attributes:
        train: Training images; with branches, a data set of N views.
        eval: Images that choose branch and epoch: those held out, or the validation split; None without either.
        test: Images of the validation split where others are held out; they are evaluated once, at the end.
    """
    train: Dataset[Any]
    eval: Dataset[Any] | None
    test: Dataset[Any] | None


def build_datasets(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        num_classes: int,
        rank: int = 0,
) -> Datasets:
    """Open the images that the flags name.

    Raises:
        ValueError: The data is not there, or has more classes than the model.
    """
    mode = args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L')
    kwargs = dict(
        class_map=args.class_map, download=args.dataset_download, batch_size=args.batch_size, input_img_mode=mode,
        input_key=args.input_key, target_key=args.target_key, trust_remote_code=args.dataset_trust_remote_code)
    images = create_dataset(
        args.dataset, args.data_dir, args.train_split, is_training=True, seed=args.seed,
        repeats=args.epoch_repeats, num_samples=args.train_num_samples, **kwargs)
    names = names_of_classes(images)
    if names and len(names) > num_classes:
        raise ValueError(f'the data has {len(names)} classes, the model {num_classes}; give --num-classes')
    eval_set = test_set = None
    if args.val_split:
        eval_set = create_dataset(
            args.dataset, args.data_dir, args.val_split, class_names=names, num_samples=args.val_num_samples, **kwargs)
        eval_set = eval_set if is_stream(eval_set) else SkippingDataset(eval_set, mode)
    indices, held = split_training_images(images, args.holdout, args.train_subset)
    if held is not None:
        eval_set, test_set = SkippingDataset(images, mode, held), eval_set
    return Datasets(_training_set(args, images, mode, indices, rank), eval_set, test_set)


def _training_set(
        args: argparse.Namespace,
        images: Any,
        mode: str,
        indices: list[int] | None,
        rank: int,
) -> Dataset[Any]:
    if args.a2aug_branches == 1:
        return images if is_stream(images) else SkippingDataset(images, mode, indices)
    rank_seed = f'{args.seed}/{rank}'
    if is_stream(images):
        return MultiViewStream(images, rank_seed)
    # Where an image comes more than once in an epoch, it may come to several ranks.
    repeats = bool(args.aug_repeats or args.train_img_sizes and (
        args.train_batches_per_epoch or args.train_size_schedule == 'progressive'))
    return MultiViewDataset(images, mode, indices, rank_seed if repeats else args.seed, repeats)


def build_loaders(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        model: nn.Module,
        process: Process,
        datasets: Datasets,
        collate: Callable[..., Any] | None,
) -> tuple[Any, Any, Any]:
    """Build the loaders of ``Datasets``; with branches, batches are view-major.

    Raises:
        ValueError: A batch is larger than the training set, or the model cannot take the batches.
    """
    images = dict(
        mean=data_config['mean'], std=data_config['std'], num_workers=args.workers, pin_memory=args.pin_mem,
        device=process.device, distributed=process.is_distributed, use_prefetcher=not args.no_prefetcher,
        img_dtype=dtype_of(args.model_dtype) or torch.float32)
    eval_settings = {**{name: data_config[name] for name in ('interpolation', 'crop_pct', 'crop_mode')}, **images}
    if args.naflex_loader:
        images = {**transform_settings(args, data_config), **images, 'channels': data_config['input_size'][0]}
        eval_settings['channels'] = data_config['input_size'][0]
        loader = build_naflex_loader(args, model, process, datasets.train, collate, images)
        return loader, *(build_naflex_eval_loader(args, model, one, eval_settings) for one in datasets[1:])
    loader = _build_train_loader(args, data_config, process, datasets.train, collate)
    eval_settings['input_size'] = data_config['input_size']
    return loader, *(_build_eval_loader(args, process, one, eval_settings) for one in datasets[1:])


def _build_train_loader(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        process: Process,
        images: Any,
        collate: Callable[..., Any] | None,
) -> Any:
    loader = create_train_loader(
        split_dataset(images, args.aug_splits), build_transforms(args, data_config),
        batch_size=num_images_of(args, args.batch_size), draw=build_draw(args),
        collate=collate, num_workers=args.workers, pin_memory=args.pin_mem, worker_seeding=args.worker_seeding,
        prefetch=None if args.no_prefetcher else _prefetch(args, data_config, process.device),
        is_distributed=process.is_distributed, num_repeats=args.aug_repeats,
        size_schedule=_size_schedule(args) if args.train_img_sizes else None,
        keeps_running=args.use_multi_epochs_loader)
    if not len(loader):
        raise ValueError(f'--batch-size {args.batch_size} on {process.world_size} device(s) is more than the '
                         f'{len(images)} training images')
    if args.a2aug_branches > 1 or args.aa:
        _logger.info('Policies: %s', ' '.join(args.a2aug_policies or [args.aa]))
    return loader


def build_draw(args: argparse.Namespace) -> BranchDraw | None:
    """Build the draw of the branches of each step; None where every step trains all branches."""
    if args.a2aug_branches == 1:
        return None
    draw = BranchDraw(
        args.a2aug_branches, args.a2aug_views, args.seed, args.a2aug_anchor_share, args.a2aug_start_epoch)
    return None if draw.is_full and not draw.start_epoch else draw


def _prefetch(args: argparse.Namespace, data_config: dict[str, Any], device: torch.device) -> Prefetch:
    erasing = None
    if args.reprob > 0 and not args.no_aug:
        # Without splits, --resplit leaves the first half of a batch as it is.
        num_splits = (args.aug_splits or (args.a2aug_branches if args.a2aug_branches > 1 else 2)) if args.resplit else 0
        erasing = RandomErasing(
            args.reprob, mode=args.remode, max_count=args.recount, num_splits=num_splits, device=device)
    return Prefetch(
        data_config['mean'], data_config['std'], data_config['input_size'][0], device,
        dtype_of(args.model_dtype) or torch.float32, erasing, Cutout(args.cutout) if args.cutout else None)


def _size_schedule(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of timm's sampler of batches that have one of several image sizes each."""
    return dict(
        batch_sizes=[num_images_of(args, size) for size in (
            args.train_batch_sizes or [args.batch_size] * len(args.train_img_sizes))],
        choice_weights=args.train_size_probs, seed=args.seed, num_batches=args.train_batches_per_epoch,
        choice_schedule=args.train_size_schedule,
        schedule_epochs=args.epochs if args.train_size_schedule == 'progressive' else None,
        schedule_spread=args.train_size_schedule_spread, schedule_random_mix=args.train_size_random_mix)


def _build_eval_loader(
        args: argparse.Namespace,
        process: Process,
        images: Any,
        settings: dict[str, Any],
) -> Any:
    if images is None:
        return None
    if process.is_distributed and isinstance(images, IterableImageDataset):
        # Each worker of each rank pads its share of a stream.
        settings = {**settings, 'num_workers': min(2, args.workers)}
    return create_loader(images, batch_size=args.validation_batch_size or args.batch_size, **settings)


def build_mixup(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        num_classes: int,
) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """Build the collate of a batch (None is timm's), and the mixup on the device where the collate does not mix."""
    is_joint = args.a2aug_branches > 1
    if not is_mixed(args):
        return collate_views if is_joint else None, None
    for size in args.train_img_sizes or data_config['input_size'][-2:]:
        if args.cutmix_minmax and int(size * args.cutmix_minmax[0]) >= int(size * args.cutmix_minmax[1]):
            raise ValueError(f'--cutmix-minmax leaves no box to draw in images of {size} pixels')
    kwargs = dict(
        mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
        num_classes=num_classes)
    if args.naflex_loader:
        kwargs = {name: kwargs[name] for name in kwargs.keys() - {'cutmix_minmax', 'mode'}}
        return NaFlexMixup(mixup_off_epoch=args.mixup_off_epoch, **kwargs), None
    if not args.no_prefetcher:
        return (CollateMixedViews if is_joint else CollateMixup)(**kwargs), None
    return (collate_views, MixupOfViews(**kwargs)) if is_joint else (None, Mixup(**kwargs))
