"""Training objects of a run: task, optimizer, schedule, mixed precision, compilation."""
import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm import utils
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import (
    ClassificationTask,
    DistillationTeacher,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from torch import nn

from ..cli.config import user_error_from
from ..cli.resolve import dtype_of
from ..engine.epoch import Autocast
from ..engine.process import Process
from ..task import A2AugDistillationTask, A2AugTask
from .checks import is_mixed
from .naflex import build_naflex_loss_scale
from .resolve import num_images_of


def build_task(
        args: argparse.Namespace,
        model: nn.Module,
        data_config: dict[str, Any],
        process: Process,
) -> TrainingTask:
    """Build the task: timm's classification or distillation, or A²-Aug's joint training; with an EMA if asked for."""
    criterion = _create_loss(args).to(process.device)
    common: dict[str, Any] = dict(device=process.device, dtype=dtype_of(args.model_dtype), verbose=process.is_primary)
    teacher = None
    if args.kd_model_name:
        with user_error_from(RuntimeError, KeyError, AssertionError, what=f'--kd-model-name {args.kd_model_name}'):
            teacher = _create_teacher(args, model, data_config, process.device)
    if args.torchscript:
        model = torch.jit.script(model)
    if args.a2aug_branches > 1:
        task: TrainingTask = _a2aug_task(args, model, teacher, criterion, common)
    elif teacher is not None:
        task = _distillation_task(args, model, teacher, criterion, common)
    else:
        task = ClassificationTask(model, criterion, **common)
    if args.model_ema:
        # A name rather than a torch.device, as in timm's script: timm then moves and averages tensor by tensor.
        device: Any = 'cpu' if args.model_ema_force_cpu else None
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, device=device)
    return task


def _create_loss(args: argparse.Namespace) -> nn.Module:
    if args.jsd_loss:
        return create_classification_loss('jsd', jsd_splits=args.aug_splits, smoothing=args.smoothing)
    return create_classification_loss(
        'bce' if args.bce_loss else 'ce', smoothing=args.smoothing, soft_targets=is_mixed(args),
        bce_sum=args.bce_sum, bce_target_thresh=args.bce_target_thresh, pos_weight=args.bce_pos_weight)


def _create_teacher(
        args: argparse.Namespace,
        model: nn.Module,
        data_config: dict[str, Any],
        device: torch.device,
) -> DistillationTeacher:
    """Create the pretrained teacher, which undoes the student's normalisation of images and applies its own."""
    # timm's tasks take the architecture's normalisation for the images'.
    student: Any = model
    student.pretrained_cfg = {**student.pretrained_cfg, 'mean': data_config['mean'], 'std': data_config['std']}
    teacher = DistillationTeacher(
        args.kd_model_name, student.num_classes, student.in_chans, device=device, dtype=dtype_of(args.model_dtype))
    for name in ('mean_kd', 'std_kd'):
        value = getattr(teacher, name)
        if value.shape[1] != student.in_chans:  # as timm adapts it for other numbers of channels
            setattr(teacher, name, value.mean().expand(1, student.in_chans, 1, 1).clone())
    return teacher


def _a2aug_task(
        args: argparse.Namespace,
        model: nn.Module,
        teacher: DistillationTeacher | None,
        criterion: nn.Module,
        common: dict[str, Any],
) -> A2AugTask:
    loss_kwargs = dict(
        ensemble=args.a2aug_ensemble, ensemble_weight=args.a2aug_ensemble_weight, kl_weight=args.a2aug_kl_weight,
        logit_norm=not args.a2aug_no_logit_norm, logit_scale=args.a2aug_logit_scale,
        reduction=args.a2aug_loss_reduction)
    common = dict(loss_kwargs=loss_kwargs, branch_sizes=args.a2aug_branch_sizes, sequential=args.a2aug_sequential,
                  num_views=args.a2aug_views, starts_late=args.a2aug_start_epoch > 0, **common)
    if teacher is None:
        return A2AugTask(model, criterion, args.a2aug_branches, **common)
    return A2AugDistillationTask(
        model, teacher, criterion, args.a2aug_branches, temperature=args.kd_temperature,
        distill_loss_weight=args.distill_loss_weight, task_loss_weight=args.task_loss_weight, **common)


def _distillation_task(
        args: argparse.Namespace,
        model: nn.Module,
        teacher: DistillationTeacher,
        criterion: nn.Module,
        common: dict[str, Any],
) -> TrainingTask:
    common = dict(
        student_model=model, teacher_model=teacher, criterion=criterion,
        distill_loss_weight=args.distill_loss_weight, task_loss_weight=args.task_loss_weight, **common)
    if args.kd_distill_type == 'logit':
        return LogitDistillationTask(loss_type=args.kd_loss_type, temperature=args.kd_temperature, **common)
    if args.kd_distill_type == 'token':
        return TokenDistillationTask(
            distill_type=args.kd_token_distill_type, temperature=args.kd_temperature, **common)
    return FeatureDistillationTask(
        student_feature_dim=args.kd_student_feature_dim, teacher_feature_dim=args.kd_teacher_feature_dim, **common)


def compile_task(args: argparse.Namespace, task: TrainingTask) -> None:
    """Compile the task if ``--torchcompile`` asks for it, before DDP wraps it."""
    if not args.torchcompile:
        return
    task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
    task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)


def build_optimizer(
        args: argparse.Namespace,
        task: TrainingTask,
        num_updates: int,
) -> tuple[torch.optim.Optimizer, Any, int]:
    """Build optimizer and schedule, and count the epochs.

    Args:
        num_updates: Updates per epoch.

    Raises:
        ValueError: timm refuses a setting.
    """
    module = task.get_trainable_module()
    assert module is not None
    with user_error_from(TypeError, AssertionError, what=f'--opt {args.opt}'):
        optimizer = create_optimizer_v2(module, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    if isinstance(task, A2AugTask):
        _scale_lr_of_mu(optimizer, task, args.a2aug_mu_lr_scale, is_scheduled=args.sched != 'none')
    with user_error_from(TypeError, AssertionError, what=f'--sched {args.sched}'):
        lr_scheduler, num_epochs = create_scheduler_v2(
            optimizer, **scheduler_kwargs(args, decreasing_metric=args.eval_metric == 'loss'),
            updates_per_epoch=num_updates)
    return optimizer, lr_scheduler, num_epochs


def _scale_lr_of_mu(optimizer: torch.optim.Optimizer, task: A2AugTask, scale: float, is_scheduled: bool) -> None:
    """Give μ a parameter group of its own, whose learning rate is a multiple of the one it had."""
    if scale == 1:
        return
    mu = task.mu_logits
    group = next(group for group in optimizer.param_groups if any(one is mu for one in group['params']))
    group['params'] = [one for one in group['params'] if one is not mu]
    of_mu = {**group, 'params': [mu]}
    if is_scheduled:
        of_mu['lr_scale'] = scale * group.get('lr_scale', 1.)  # timm's schedulers multiply by it
    else:
        of_mu['lr'] = scale * group['lr']
    optimizer.add_param_group(of_mu)


def mean_batch_size(args: argparse.Namespace, loader: Any) -> float:
    """Mean number of images per batch, which ``--train-batch-sizes`` may vary."""
    return loader.batch_sampler.average_batch_size if args.train_img_sizes else num_images_of(args, args.batch_size)


def build_loss_scale(
        args: argparse.Namespace,
        loader: Any,
        process: Process,
) -> Callable[[int], float | torch.Tensor] | None:
    """Build the weight of a batch's gradient from its number of images; None where all batches weigh the same."""
    if args.naflex_loader:
        return build_naflex_loss_scale(args, process)
    if args.variable_batch_loss_scale == 'none':
        return None
    reference = mean_batch_size(args, loader)
    power = {'sqrt': 0.5, 'linear': 1.}[args.variable_batch_loss_scale]
    return lambda batch_size: (batch_size / reference) ** power


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


def build_amp(args: argparse.Namespace, device: torch.device) -> tuple[Autocast, Any]:
    """Build the autocast of the forward pass, and the loss scaler that float16 on a GPU needs."""
    if not args.amp:
        return nullcontext, None
    autocast = partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))
    is_scaled = device.type == 'cuda' and args.amp_dtype == 'float16'
    return autocast, utils.NativeScaler(device=device.type) if is_scaled else None
