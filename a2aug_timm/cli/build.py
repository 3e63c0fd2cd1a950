"""From arguments to objects: device, model with branches, data sets, loaders, task, optimizer, mixed precision."""
import argparse
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm import utils
from timm.data import Mixup, create_loader
from timm.layers import convert_sync_batchnorm
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, TrainingTask
from torch import nn

from ..branches import convert_multi_branch_bn
from ..checkpoint import check_weights, load_weights, read_checkpoint, state_dict_of
from ..datasets import create_dataset, names_of_classes
from ..mixup import CollateMixedViews, CollateMixup, MixupOfViews
from ..policies import MultiPolicyRandAugment
from ..task import A2AugTask
from ..views import MultiViewDataset, SkippingDataset, collate_views
from .checks import is_mixed

_logger = logging.getLogger(__name__)


def init_device(args: argparse.Namespace) -> torch.device:
    """Join the other ranks, take this rank's device and seed it."""
    device = utils.init_distributed_device(args)
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    utils.random_seed(args.seed, args.rank)
    _logger.info('Rank %d of %d on %s', args.rank, args.world_size, device)
    return device


def build_model(args: argparse.Namespace, checkpoint: dict[str, Any] | None, device: torch.device) -> nn.Module:
    """Pretrained weights, then branches, then SyncBatchNorm: the order in which each sees what it needs."""
    is_fresh = checkpoint is None
    overlay = dict(file=args.pretrained_path, num_classes=-1) if args.pretrained_path and is_fresh else None
    try:
        model = timm.create_model(
            args.model,
            pretrained=bool(args.pretrained or args.pretrained_path) and is_fresh,
            pretrained_cfg_overlay=overlay,
            in_chans=args.in_chans or (args.input_size[0] if args.input_size else None),
            num_classes=args.num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            drop_block_rate=args.drop_block,
            global_pool=args.gp,
            bn_momentum=args.bn_momentum,
            bn_eps=args.bn_eps,
            **args.model_kwargs,
        )
    except TypeError as error:  # an argument that this architecture does not take
        raise ValueError(f'{args.model}: {error}') from error
    if overlay is not None:
        _check_pretrained(args.pretrained_path, model)
    initial = _read_initial(args) if args.initial_checkpoint and is_fresh else None
    # Plain weights start all branches; those of a multi-branch run are a branch's own.
    has_branches = initial is not None and _num_branches(initial) > 1
    if initial is not None and not has_branches:
        load_weights(model, initial, args.initial_checkpoint, use_ema=None)
    if args.a2aug_branches > 1 and not args.a2aug_shared_bn:
        convert_multi_branch_bn(model, args.a2aug_branches)
    if has_branches:
        load_weights(model, initial, args.initial_checkpoint, use_ema=None)
    if not is_fresh:
        check_weights(model, state_dict_of(checkpoint), args.resume)
    model.to(device=device, memory_format=torch.channels_last if args.channels_last else None)
    return convert_sync_batchnorm(model) if args.distributed and args.sync_bn else model


def _read_initial(args: argparse.Namespace) -> dict[str, Any]:
    path = Path(args.initial_checkpoint)
    return read_checkpoint(path / 'model.safetensors' if path.is_dir() else path)


def _num_branches(checkpoint: dict[str, Any]) -> int:
    run = checkpoint.get('a2aug', {})
    return 1 if run.get('shared_bn') else run.get('num_branches', 1)


def _check_pretrained(path: str, model: nn.Module) -> None:
    """timm adapts head and stem and so takes any file; refuse what it would take nothing or the wrong things of."""
    checkpoint = read_checkpoint(path)
    if _num_branches(checkpoint) > 1:
        raise ValueError(f"'{path}' holds {_num_branches(checkpoint)} branches; export one of them first")
    if not state_dict_of(checkpoint, use_ema=None).keys() & model.state_dict().keys():
        raise ValueError(f"'{path}' holds no weights of {type(model).__name__}")


def build_datasets(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        num_classes: int,
) -> tuple[SkippingDataset, SkippingDataset | None]:
    """Train and validation images, the former with N views of each where there are branches."""
    mode = args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L')
    kwargs = dict(
        class_map=args.class_map, download=args.dataset_download, batch_size=args.batch_size, input_img_mode=mode)
    images = create_dataset(args.dataset, args.data_dir, args.train_split, is_training=True, seed=args.seed, **kwargs)
    names = names_of_classes(images)
    if names and len(names) > num_classes:
        raise ValueError(f'the data has {len(names)} classes, the model {num_classes}; give --num-classes')
    eval_set = None
    if args.val_split:
        eval_set = SkippingDataset(
            create_dataset(args.dataset, args.data_dir, args.val_split, class_names=names, **kwargs), mode)
    if args.a2aug_branches == 1:
        return SkippingDataset(images, mode), eval_set
    policies = MultiPolicyRandAugment(
        args.a2aug_policies, data_config['input_size'][-2:], mean=data_config['mean'],
        interpolation=args.train_interpolation, color_jitter=args.color_jitter)
    _logger.info('Policies: %s', ' '.join(policies.policies))
    return MultiViewDataset(
        images, policies, mode, seed=args.seed, independent_crops=args.a2aug_independent_crops), eval_set


def build_loaders(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        device: torch.device,
        train_set: SkippingDataset,
        eval_set: SkippingDataset | None,
        collate: Callable | None,
) -> tuple[Any, Any]:
    """timm's loaders; with branches, view-major batches and no augmentation beside the policies'."""
    is_joint = args.a2aug_branches > 1
    common = dict(
        input_size=data_config['input_size'], mean=data_config['mean'], std=data_config['std'],
        num_workers=args.workers, pin_memory=args.pin_mem, device=device, distributed=args.distributed,
        use_prefetcher=not args.no_prefetcher)
    interpolation = args.train_interpolation
    if args.no_aug or not interpolation:
        interpolation = data_config['interpolation']
    loader = create_loader(
        train_set,
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=None if is_joint else args.color_jitter,
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob,
        gaussian_blur_prob=args.gaussian_blur_prob,
        auto_augment=None if is_joint else args.aa,
        num_aug_splits=args.a2aug_branches if is_joint else 0,
        interpolation=interpolation,
        collate_fn=collate,
        **common,
    )
    if not len(loader):
        raise ValueError(f'--batch-size {args.batch_size} on {args.world_size} device(s) is more than the '
                         f'{len(train_set)} training images')
    eval_loader = None
    if eval_set is not None:
        eval_loader = create_loader(
            eval_set, batch_size=args.validation_batch_size or args.batch_size,
            interpolation=data_config['interpolation'], crop_pct=data_config['crop_pct'],
            crop_mode=data_config['crop_mode'], **common)
    return loader, eval_loader


def build_mixup(args: argparse.Namespace, num_classes: int) -> tuple[Callable | None, Callable | None]:
    """What collates a batch (None is timm's choice), and what mixes it on its device where the collate does not."""
    is_joint = args.a2aug_branches > 1
    if not is_mixed(args):
        return collate_views if is_joint else None, None
    kwargs = dict(
        mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
        num_classes=num_classes)
    if not args.no_prefetcher:
        return (CollateMixedViews if is_joint else CollateMixup)(**kwargs), None
    return (collate_views, MixupOfViews(args.a2aug_branches, **kwargs)) if is_joint else (None, Mixup(**kwargs))


def build_task(args: argparse.Namespace, model: nn.Module, device: torch.device) -> TrainingTask:
    """timm's classification or A²-Aug's joint training, with an EMA if it is asked for."""
    criterion = create_classification_loss(smoothing=args.smoothing, soft_targets=is_mixed(args)).to(device)
    verbose = utils.is_primary(args)
    if args.a2aug_branches == 1:
        task = ClassificationTask(model, criterion, device=device, verbose=verbose)
    else:
        task = A2AugTask(
            model, criterion, args.a2aug_branches, loss_kwargs=_loss_kwargs(args), device=device, verbose=verbose)
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
                       device='cpu' if args.model_ema_force_cpu else None)
    return task


def _loss_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    return dict(
        ensemble=args.a2aug_ensemble, ensemble_weight=args.a2aug_ensemble_weight, kl_weight=args.a2aug_kl_weight,
        logit_norm=not args.a2aug_no_logit_norm, logit_scale=args.a2aug_logit_scale,
        reduction=args.a2aug_loss_reduction)


def build_optimizer(
        args: argparse.Namespace,
        task: TrainingTask,
        loader: Any,
) -> tuple[torch.optim.Optimizer, Any, int]:
    """Optimizer, schedule and number of epochs; the learning rate scales with images, not with views."""
    if not args.lr:
        ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
        if not args.lr_base_scale:
            args.lr_base_scale = 'sqrt' if any(name in args.opt.lower() for name in ('ada', 'lamb')) else 'linear'
        args.lr = args.lr_base * (ratio ** 0.5 if args.lr_base_scale == 'sqrt' else ratio)
    optimizer = create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    lr_scheduler, num_epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(args, decreasing_metric=args.eval_metric == 'loss'),
        updates_per_epoch=-(-len(loader) // args.grad_accum_steps))
    return optimizer, lr_scheduler, num_epochs


def start_schedule(
        args: argparse.Namespace,
        lr_scheduler: Any,
        start_epoch: int,
        num_updates: int,
        metric: float | None,
) -> None:
    """Move the schedule to the first epoch that is trained."""
    if lr_scheduler is not None and start_epoch > 0:
        lr_scheduler.step(start_epoch, metric)
        if args.sched_on_updates:
            lr_scheduler.step_update(start_epoch * num_updates)


def build_amp(args: argparse.Namespace, device: torch.device) -> tuple[Callable, Any]:
    """Autocast of the forward pass, and the loss scaler that float16 on a GPU needs."""
    if not args.amp:
        return nullcontext, None
    autocast = partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))
    is_scaled = device.type == 'cuda' and args.amp_dtype == 'float16'
    return autocast, utils.NativeScaler(device=device.type) if is_scaled else None
