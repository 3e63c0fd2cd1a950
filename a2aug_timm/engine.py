"""One epoch of training and one pass of evaluation, ignorant of the method: task, loader and optimizer come in."""
import time
from collections.abc import Callable, Sequence
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
            value = wide(value.detach()) * count
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


def wide(value: torch.Tensor) -> torch.Tensor:
    """Float64, in which timm's meters sum on the host, where the device has it."""
    return value if value.device.type == 'mps' else value.double()


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


class OptimizerStep:
    """Backward pass and update of a task: scaling, clipping, EMA and schedule, in timm's order.

    Args:
        task: The task that is trained.
        optimizer: Optimizer of its parameters.
        lr_scheduler: timm scheduler, told of every update.
        loss_scaler: timm's scaler, for float16.
        clip_grad: Clip gradients at this value; ``clip_mode`` is ``norm``, ``value`` or ``agc``.
    """

    def __init__(
            self,
            task: TrainingTask,
            optimizer: torch.optim.Optimizer,
            *,
            lr_scheduler: Any = None,
            loss_scaler: Any = None,
            clip_grad: float | None = None,
            clip_mode: str = 'norm',
    ):
        self.task = task
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.loss_scaler = loss_scaler
        self.clip_grad = clip_grad
        self.clip_mode = clip_mode

    @property
    def lr(self) -> float:
        """Mean learning rate of the parameter groups."""
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return sum(rates) / len(rates)

    def backward(self, loss: torch.Tensor, need_update: bool) -> None:
        """Accumulate gradients and, at the end of an accumulation, update the parameters."""
        second_order = getattr(self.optimizer, 'is_second_order', False)
        parameters = None
        if self.clip_grad is not None:
            parameters = self.task.get_clip_parameters(exclude_head='agc' in self.clip_mode)
        if self.loss_scaler is not None:
            self.loss_scaler(
                loss, self.optimizer, clip_grad=self.clip_grad, clip_mode=self.clip_mode, parameters=parameters,
                create_graph=second_order, need_update=need_update)
            return
        loss.backward(create_graph=second_order)
        if need_update:
            if parameters is not None:
                dispatch_clip_grad(parameters, value=self.clip_grad, mode=self.clip_mode)
            self.optimizer.step()

    def finish(self, num_updates: int) -> None:
        """After an update: clear gradients, move EMA and schedule on to the given number of updates."""
        self.optimizer.zero_grad()
        self.task.update_ema(step=num_updates)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step_update(num_updates=num_updates)

    def end_epoch(self) -> None:
        """After the last update of an epoch, timm's Lookahead joins its two sets of weights."""
        if hasattr(self.optimizer, 'sync_lookahead'):
            self.optimizer.sync_lookahead()


def train_one_epoch(
        step: OptimizerStep,
        loader: Any,
        *,
        epoch: int,
        device: torch.device,
        autocast: Autocast = nullcontext,
        mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        grad_accum_steps: int = 1,
        channels_last: bool = False,
        log_interval: int = 50,
        on_update: Callable[[int, dict[str, float] | None, float, float], None] = lambda *_: None,
) -> dict[str, float]:
    """Train for one pass over the loader.

    Args:
        mix: Mixup of a batch on its device, where the loader has not mixed it.
        on_update: Called after every update with its number, the mean loss terms of the epoch so far (at log steps,
            else None), the images a second since the last log step, and the learning rate of the update.

    Returns:
        Mean loss terms of the epoch over all ranks.

    Raises:
        FloatingPointError: The loss was not finite; raised at the next log step, the step is named.
    """
    step.task.get_trainable_module().train()
    averages, guard = Averages(), FiniteLossGuard(epoch, device)
    num_batches = len(loader)
    num_updates = epoch * -(-num_batches // grad_accum_steps)
    num_images, since = 0, time.perf_counter()
    step.optimizer.zero_grad()
    for batch, (images, target) in enumerate(loader):
        update = batch // grad_accum_steps
        is_last = batch == num_batches - 1
        need_update = is_last or (batch + 1) % grad_accum_steps == 0
        accum_steps = min(grad_accum_steps, num_batches - update * grad_accum_steps)
        images, target = to_device(images, target, device, channels_last)
        if mix is not None:
            images, target = mix(images, target)
        with nullcontext() if need_update else step.task.no_sync():
            with autocast():
                terms = step.task(images, target)
            step.backward(terms['loss'] / accum_steps if accum_steps > 1 else terms['loss'], need_update)
        averages.update({name: value for name, value in terms.items() if name != 'output'}, len(target))
        guard.update(terms['loss'], update)
        num_images += len(target)
        if not need_update:
            continue

        is_log_step = update % log_interval == 0 or is_last
        if is_log_step:
            guard.check()
        rate = num_images * (dist.get_world_size() if dist.is_initialized() else 1) / (time.perf_counter() - since)
        on_update(update, averages.read() if is_log_step else None, rate, step.lr)
        if is_log_step:
            num_images, since = 0, time.perf_counter()
        step.finish(num_updates := num_updates + 1)
    step.end_epoch()
    return averages.read()


@torch.inference_mode()
def evaluate(
        predict: Callable[[torch.Tensor], torch.Tensor],
        mu: torch.Tensor,
        loader: Any,
        *,
        device: torch.device,
        autocast: Autocast = nullcontext,
        channels_last: bool = False,
        meters: Sequence[Any] = (),
        on_batch: Callable[[int], None] = lambda _: None,
) -> list[dict[str, float]]:
    """Evaluate every branch and their ensemble on the same images.

    Args:
        predict: Images as the loader gives them -> logits ``[N, B, K]`` of a network in eval mode.
        mu: Weights of the branches in the ensemble, ``[N]``.
        meters: Other metrics, of this rank alone: ``update(logits, target)`` meets every batch, with the ensemble's
            logits last, and ``read()`` gives a dict for each branch and the ensemble.
        on_batch: Called after every batch with its number.

    Returns:
        ``top1`` and ``top5`` in percent and the cross-entropy ``loss``, a dict a branch, then one of the ensemble if
        there are two branches or more. Over all ranks. What a meter gives under the same name replaces it.

    Raises:
        ValueError: The loader gives no images.
    """
    sums, count = None, 0
    # timm's sampler repeats images so that all ranks get equally many; this rank's own come first.
    num_own = getattr(getattr(loader, 'sampler', None), 'num_valid_samples', None)
    for batch, (images, target) in enumerate(loader):
        images, target = to_device(images, target, device, channels_last)
        with autocast():
            logits = predict(images)
        target = target if num_own is None else target[:max(0, num_own - count)]
        logits = logits[:, :len(target)].float()
        if len(logits) > 1:
            ensemble = torch.einsum('n,nbk->bk', mu.to(logits), logits)
            logits = torch.cat([logits, ensemble.unsqueeze(0)])
        if sums is None:
            sums = wide(torch.zeros(len(logits), 3, device=device))
        if len(target):
            metrics = torch.stack([
                torch.stack([F.cross_entropy(one, target), *accuracy(one, target, topk=(1, 5))]) for one in logits])
            sums += wide(metrics) * len(target)
            for meter in meters:
                meter.update(logits, target)
        count += len(target)
        on_batch(batch)
    if sums is None:
        raise ValueError('there are no images to evaluate')
    totals = torch.cat([sums.flatten(), torch.tensor([count], dtype=sums.dtype, device=device)])
    if dist.is_initialized():
        dist.all_reduce(totals)
    means = (totals[:-1] / totals[-1]).view_as(sums).tolist()
    results = [dict(zip(('loss', 'top1', 'top5'), row, strict=True)) for row in means]
    for read in [meter.read() for meter in meters]:
        results = [{**result, **extra} for result, extra in zip(results, read, strict=True)]
    return results


def to_device(
        images: torch.Tensor | dict[str, torch.Tensor],
        target: torch.Tensor,
        device: torch.device,
        channels_last: bool,
) -> tuple[torch.Tensor | dict[str, torch.Tensor], torch.Tensor]:
    """Move a batch where it is not there already, as it is without timm's prefetcher."""
    target = target.to(device, non_blocking=True)
    if isinstance(images, dict):  # patches and their places, of a NaFlex loader
        return {name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for name, value in images.items()}, target
    images = images.to(device, non_blocking=True)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images, target
