"""From arguments to images: data sets, policies, mixup, loaders."""
import argparse
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from timm.data import AugMixDataset, IterableImageDataset, Mixup, NaFlexMixup, create_loader
from torch import nn
from torch.utils.data import Dataset

from ..data.datasets import create_dataset, is_stream, names_of_classes
from ..data.holdout import hold_out, take_subset, targets_of
from ..data.mixup import CollateMixedViews, CollateMixup, MixupOfViews
from ..data.skipping import SkippingDataset
from ..data.views import MultiViewDataset, MultiViewStream, collate_views
from .checks import is_mixed
from .model import model_dtype
from .naflex import build_naflex_eval_loader, build_naflex_loader
from .transforms import extend_transforms, transform_settings

_logger = logging.getLogger(__name__)


class Datasets(NamedTuple):
    """Images of a run; ``train`` is ready to become N views of each where there are branches.

    Attributes:
        eval: On which branch and epoch are chosen: those held out, or the validation split; None without either.
        test: Those of the validation split where others are held out, to be reported once.
    """
    train: Dataset
    eval: Dataset | None
    test: Dataset | None


def build_datasets(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        num_classes: int,
) -> Datasets:
    """Open the images that the flags name."""
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
    eval_set = test_set = indices = None
    if args.val_split:
        eval_set = create_dataset(
            args.dataset, args.data_dir, args.val_split, class_names=names, num_samples=args.val_num_samples, **kwargs)
        eval_set = eval_set if is_stream(eval_set) else SkippingDataset(eval_set, mode)
    if args.holdout is not None:
        indices, held = hold_out(targets_of(images), args.holdout)
        eval_set, test_set = SkippingDataset(images, mode, held), eval_set
    if args.train_subset is not None:
        indices = take_subset(targets_of(images), args.train_subset, indices)
    return Datasets(_training_set(args, images, mode, indices), eval_set, test_set)


def _training_set(
        args: argparse.Namespace,
        images: Dataset,
        mode: str,
        indices: list[int] | None,
) -> Dataset:
    if args.a2aug_branches == 1:
        return images if is_stream(images) else SkippingDataset(images, mode, indices)
    rank_seed = f'{args.seed}/{args.rank}'
    if is_stream(images):
        return MultiViewStream(images, rank_seed)
    # Where an image comes more than once in an epoch, it may come to several ranks.
    repeats = bool(args.aug_repeats or args.train_batches_per_epoch or args.train_size_schedule == 'progressive')
    return MultiViewDataset(images, mode, indices, rank_seed if repeats else args.seed, repeats)


def build_loaders(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        model: nn.Module,
        device: torch.device,
        datasets: Datasets,
        collate: Callable | None,
) -> tuple[Any, Any, Any]:
    """timm's loaders of ``Datasets``; with branches, view-major batches and no augmentation beside the policies'."""
    train_set = datasets.train
    common = dict(
        mean=data_config['mean'], std=data_config['std'], num_workers=args.workers, pin_memory=args.pin_mem,
        device=device, distributed=args.distributed, use_prefetcher=not args.no_prefetcher,
        img_dtype=model_dtype(args) or torch.float32)
    transform = transform_settings(args, data_config)
    eval_transform = {name: data_config[name] for name in ('interpolation', 'crop_pct', 'crop_mode')}
    if args.naflex_loader:
        common['channels'] = data_config['input_size'][0]
        loader = build_naflex_loader(args, model, train_set, collate, {**transform, **common})
        eval_settings = {**eval_transform, **common}
        return loader, *(build_naflex_eval_loader(args, model, images, eval_settings) for images in datasets[1:])
    common['input_size'] = data_config['input_size']
    is_joint = args.a2aug_branches > 1
    is_scheduled = args.train_img_sizes is not None
    loader = create_loader(
        AugMixDataset(train_set, num_splits=args.aug_splits) if args.aug_splits else train_set,
        batch_size=args.batch_size,
        is_training=True,
        # timm refuses splits of scheduled sizes, whose transforms _use_policies() replaces.
        num_aug_splits=args.aug_splits or (args.a2aug_branches if is_joint and not is_scheduled else 0),
        num_aug_repeats=args.aug_repeats,
        re_split=args.resplit,
        worker_seeding=args.worker_seeding,
        use_multi_epochs_loader=args.use_multi_epochs_loader,
        collate_fn=collate,
        input_size_choices=args.train_img_sizes,
        batch_size_choices=args.train_batch_sizes,
        batch_choice_weights=args.train_size_probs,
        batch_choice_seed=args.seed,
        batch_choice_schedule=args.train_size_schedule,
        batch_schedule_epochs=args.epochs if args.train_size_schedule == 'progressive' else None,
        batch_schedule_spread=args.train_size_schedule_spread,
        batch_schedule_random_mix=args.train_size_random_mix,
        num_batches=args.train_batches_per_epoch,
        **transform,
        **common,
    )
    if not len(loader):
        raise ValueError(f'--batch-size {args.batch_size} on {args.world_size} device(s) is more than the '
                         f'{len(train_set)} training images')
    if isinstance(train_set, MultiViewStream):
        train_set.dataset.set_loader_cfg(num_workers=args.workers)
    extend_transforms(args, data_config, train_set, loader, transform)
    return loader, *(_build_eval_loader(args, images, {**eval_transform, **common}) for images in datasets[1:])


def _build_eval_loader(args: argparse.Namespace, images: Dataset | None, settings: dict[str, Any]) -> Any:
    if images is None:
        return None
    if args.distributed and isinstance(images, IterableImageDataset):
        # Each worker of each rank pads its share of a stream.
        settings = {**settings, 'num_workers': min(2, args.workers)}
    return create_loader(images, batch_size=args.validation_batch_size or args.batch_size, **settings)


def build_mixup(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        num_classes: int,
) -> tuple[Callable | None, Callable | None]:
    """What collates a batch (None is timm's choice), and what mixes it on its device where the collate does not."""
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
    return (collate_views, MixupOfViews(args.a2aug_branches, **kwargs)) if is_joint else (None, Mixup(**kwargs))
