"""One epoch of training and one pass of evaluation, ignorant of the method: task, loader and optimizer come in."""
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.task import TrainingTask
from timm.utils import accuracy, dispatch_clip_grad
from torch import distributed as dist

Autocast = Callable[[], AbstractContextManager]


class Averages:
    """Running means of a task's loss terms, kept on the device; reading them is the only synchronisation."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def update(self, terms: dict[str, torch.Tensor], count: int) -> None:
        for name, value in terms.items():
            value = value.detach() * count
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += count

    def read(self) -> dict[str, float]:
        """Means over all ranks; a term of N values becomes ``name_0 … name_{N-1}``. Every rank must call this."""
        means = {}
        for name, value in self._sums.items():
            value = value / self._count
            if dist.is_initialized():
                dist.all_reduce(value)
                value = value / dist.get_world_size()
            if value.ndim == 0:
                means[name] = value.item()
            else:
                means.update((f'{name}_{i}', item) for i, item in enumerate(value.tolist()))
        return means


class FiniteLossGuard:
    """Remembers on the device the first step whose loss was not finite; ``check`` reads it.

    Raises:
        FloatingPointError: From ``check``, on every rank at once, naming the step.
    """

    def __init__(self, epoch: int, device: torch.device):
        self._epoch = epoch
        self._first_bad = torch.full((), torch.iinfo(torch.int64).max, device=device)

    def update(self, loss: torch.Tensor, step: int) -> None:
        bad = torch.where(torch.isfinite(loss.detach()), torch.iinfo(torch.int64).max, step)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def check(self) -> None:
        if dist.is_initialized():
            dist.all_reduce(self._first_bad, op=dist.ReduceOp.MIN)
        step = self._first_bad.item()
        if step < torch.iinfo(torch.int64).max:
            raise FloatingPointError(f'the loss is not finite at epoch {self._epoch}, step {step}')


def train_one_epoch(
        task: TrainingTask,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        epoch: int,
        device: torch.device,
        lr_scheduler: Any = None,
        autocast: Autocast = nullcontext,
        loss_scaler: Any = None,
        grad_accum_steps: int = 1,
        clip_grad: float | None = None,
        clip_mode: str = 'norm',
        channels_last: bool = False,
        log_interval: int = 50,
        on_update: Callable[[int, dict[str, float] | None, float, float], None] = lambda *_: None,
) -> dict[str, float]:
    """Train for one pass over the loader.

    Args:
        on_update: Called after every optimizer step with its number, the mean loss terms of the epoch so far (at log
            steps, else None), the images a second since the last log step, and the learning rate that the step had.

    Returns:
        Mean loss terms of the epoch over all ranks.

    Raises:
        FloatingPointError: The loss was not finite; raised at the next log step, the step is named.
    """
    task.get_trainable_module().train()
    averages, guard = Averages(), FiniteLossGuard(epoch, device)
    num_batches = len(loader)
    num_updates_per_epoch = -(-num_batches // grad_accum_steps)
    num_updates = epoch * num_updates_per_epoch
    num_images, since = 0, time.perf_counter()
    optimizer.zero_grad()
    for batch, (images, target) in enumerate(loader):
        update = batch // grad_accum_steps
        is_last = batch == num_batches - 1
        accum_steps = min(grad_accum_steps, num_batches - update * grad_accum_steps)
        need_update = is_last or (batch + 1) % grad_accum_steps == 0
        images, target = to_device(images, target, device, channels_last)

        with nullcontext() if need_update else task.no_sync():
            with autocast():
                result = task(images, target)
            loss = result['loss']
            _backward(
                loss / accum_steps if accum_steps > 1 else loss, task, optimizer, loss_scaler=loss_scaler,
                clip_grad=clip_grad, clip_mode=clip_mode, need_update=need_update)
        averages.update({name: value for name, value in result.items() if name != 'output'}, len(target))
        guard.update(loss, update)
        num_images += len(target)
        if not need_update:
            continue

        num_updates += 1
        optimizer.zero_grad()
        task.update_ema(step=num_updates)
        is_log_step = update % log_interval == 0 or is_last
        terms = None
        if is_log_step:
            guard.check()
            terms = averages.read()
        rate = num_images * (dist.get_world_size() if dist.is_initialized() else 1) / (time.perf_counter() - since)
        on_update(update, terms, rate, mean_lr(optimizer))
        if lr_scheduler is not None:
            lr_scheduler.step_update(num_updates=num_updates)
        if is_log_step:
            num_images, since = 0, time.perf_counter()
    if hasattr(optimizer, 'sync_lookahead'):
        optimizer.sync_lookahead()
    return averages.read()


def mean_lr(optimizer: torch.optim.Optimizer) -> float:
    """Mean learning rate of the parameter groups."""
    rates = [group['lr'] for group in optimizer.param_groups]
    return sum(rates) / len(rates)


def _backward(
        loss: torch.Tensor,
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        *,
        loss_scaler: Any,
        clip_grad: float | None,
        clip_mode: str,
        need_update: bool,
) -> None:
    second_order = getattr(optimizer, 'is_second_order', False)
    parameters = None if clip_grad is None else task.get_clip_parameters(exclude_head='agc' in clip_mode)
    if loss_scaler is not None:
        loss_scaler(
            loss, optimizer, clip_grad=clip_grad, clip_mode=clip_mode, parameters=parameters,
            create_graph=second_order, need_update=need_update)
        return
    loss.backward(create_graph=second_order)
    if need_update:
        if clip_grad is not None:
            dispatch_clip_grad(parameters, value=clip_grad, mode=clip_mode)
        optimizer.step()


@torch.inference_mode()
def evaluate(
        predict: Callable[[torch.Tensor], torch.Tensor],
        mu: torch.Tensor,
        loader: Any,
        *,
        device: torch.device,
        autocast: Autocast = nullcontext,
        channels_last: bool = False,
        on_batch: Callable[[int], None] = lambda _: None,
) -> list[dict[str, float]]:
    """Evaluate every branch and their ensemble on the same images.

    Args:
        predict: ``[B, C, H, W]`` -> logits ``[N, B, K]`` of a network in eval mode.
        mu: Weights of the branches in the ensemble, ``[N]``.
        on_batch: Called after every batch with its number.

    Returns:
        ``top1`` and ``top5`` in percent and the cross-entropy ``loss``, a dict a branch, then one of the ensemble if
        there are two branches or more. Over all ranks.
    """
    sums, count = None, 0
    for batch, (images, target) in enumerate(loader):
        images, target = to_device(images, target, device, channels_last)
        with autocast():
            logits = predict(images)
        logits = logits.float()
        if len(logits) > 1:
            ensemble = torch.einsum('n,nbk->bk', mu.to(logits), logits)
            logits = torch.cat([logits, ensemble.unsqueeze(0)])
        metrics = torch.stack([
            torch.stack([F.cross_entropy(one, target), *accuracy(one, target, topk=(1, 5))]) for one in logits])
        sums = metrics * len(target) + (0 if sums is None else sums)
        count += len(target)
        on_batch(batch)
    totals = torch.cat([sums.flatten().double(), torch.tensor([count], dtype=torch.float64, device=device)])
    if dist.is_initialized():
        dist.all_reduce(totals)
    means = (totals[:-1] / totals[-1]).view_as(sums).tolist()
    return [dict(zip(('loss', 'top1', 'top5'), row, strict=True)) for row in means]


def to_device(
        images: torch.Tensor,
        target: torch.Tensor,
        device: torch.device,
        channels_last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a batch where it is not there already, as it is without timm's prefetcher."""
    images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images, target
