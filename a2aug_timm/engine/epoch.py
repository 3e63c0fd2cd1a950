"""One epoch of training and one pass of evaluation; neither knows the method, only task, loader and optimizer."""
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.task import TrainingTask
from timm.utils import accuracy, dispatch_clip_grad
from torch import distributed as dist

from .meters import Averages, FiniteLossGuard, wide

Autocast = Callable[[], AbstractContextManager]


class OptimizerStep:
    """Forward pass, backward pass and update of a task: scaling, clipping, EMA and schedule, in timm's order.

    Args:
        task: The task to train.
        optimizer: Optimizer of its parameters.
        autocast: Mixed precision of the forward pass.
        loss_scale: Function from the number of images of a batch to the weight of its gradient.
        lr_scheduler: timm scheduler, stepped at every update.
        loss_scaler: timm's scaler, for float16.
        clip_grad: Value at which gradients are clipped; ``clip_mode`` is ``norm``, ``value`` or ``agc``.
    """

    def __init__(
            self,
            task: TrainingTask,
            optimizer: torch.optim.Optimizer,
            *,
            autocast: Autocast = nullcontext,
            loss_scale: Callable[[int], float | torch.Tensor] | None = None,
            lr_scheduler: Any = None,
            loss_scaler: Any = None,
            clip_grad: float | None = None,
            clip_mode: str = 'norm',
    ):
        self.task = task
        self.optimizer = optimizer
        self.autocast = autocast
        self.loss_scale = loss_scale
        self.lr_scheduler = lr_scheduler
        self.loss_scaler = loss_scaler
        self.clip_grad = clip_grad
        self.clip_mode = clip_mode

    @property
    def lr(self) -> float:
        """Mean learning rate of the parameter groups."""
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return sum(rates) / len(rates)

    def accumulate(
            self,
            images: torch.Tensor,
            target: torch.Tensor,
            accum_steps: int,
            need_update: bool,
    ) -> dict[str, torch.Tensor]:
        """Add the gradients of one of ``accum_steps`` batches, update after the last, and return the task's terms."""
        with nullcontext() if need_update else self.task.no_sync():
            with self.autocast():
                terms = self.task(images, target)
            loss = terms['loss'] / accum_steps if accum_steps > 1 else terms['loss']
            self._backward(loss if self.loss_scale is None else loss * self.loss_scale(len(target)), need_update)
        return terms

    def _backward(self, loss: torch.Tensor, need_update: bool) -> None:
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
        """After an update: clear gradients, and step EMA and schedule to the given number of updates."""
        self.optimizer.zero_grad()
        self.task.update_ema(step=num_updates)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step_update(num_updates=num_updates)

    def end_epoch(self) -> None:
        """Tell timm's Lookahead that the epoch ends, as timm's script does.

        It synchronizes the weights that have gradients; after ``finish`` there are none.
        """
        if hasattr(self.optimizer, 'sync_lookahead'):
            self.optimizer.sync_lookahead()


class TrainedEpoch(NamedTuple):
    """Result of an epoch of training.

    Attributes:
        terms: Mean loss terms over all ranks.
        num_images: Rows of targets over all ranks; all views of an image share one, timm's splits have one each.
        seconds: Time from the request of the first batch to the end of the last update.
    """
    terms: dict[str, float]
    num_images: int
    seconds: float


class Update(NamedTuple):
    """One update of the parameters, the argument of ``on_update``.

    Attributes:
        number: Number of the update within the epoch.
        images: The last batch, as the network received it.
        terms: Mean loss terms of the epoch so far at log steps, else None.
        rate: Images per second since the last log step, over all ranks.
        lr: Learning rate of the update.
    """
    number: int
    images: torch.Tensor
    terms: dict[str, float] | None
    rate: float
    lr: float


@dataclass
class Hooks:
    """Functions to call during an epoch.

    Attributes:
        on_update: Called after every update.
        log_interval: Updates between two log steps; the loss is read at these alone.
        on_recovery: Called with the number of an update after which the parameters are safe to store.
        recovery_interval: Updates between two such calls; 0 means none.
        on_batch: Called with the number of each batch within the epoch, before the task computes the batch.
    """
    on_update: Callable[[Update], None] = lambda _: None
    log_interval: int = 50
    on_recovery: Callable[[int], None] = lambda _: None
    recovery_interval: int = 0
    on_batch: Callable[[int], None] = lambda _: None


def train_one_epoch(
        step: OptimizerStep,
        loader: Any,
        *,
        epoch: int,
        device: torch.device,
        mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        grad_accum_steps: int = 1,
        channels_last: bool = False,
        dtype: torch.dtype | None = None,
        hooks: Hooks | None = None,
) -> TrainedEpoch:
    """Train for one pass over the loader.

    Args:
        mix: Mixup of a batch on its device, if the loader does not mix.
        dtype: Dtype of the images, if the loader does not set it.

    Raises:
        FloatingPointError: The loss was not finite; raised at the next log or recovery step with the number of the
            first such step.
    """
    step.task.get_trainable_module().train()
    hooks, averages, guard = hooks or Hooks(), Averages(), FiniteLossGuard(epoch, device)
    num_batches = len(loader)
    num_updates = epoch * -(-num_batches // grad_accum_steps)
    num_images, num_before, since = 0, 0, time.perf_counter()
    start, world_size = since, dist.get_world_size() if dist.is_initialized() else 1
    step.optimizer.zero_grad()
    for batch, (images, target) in enumerate(loader):
        update = batch // grad_accum_steps
        is_last = batch == num_batches - 1
        need_update = is_last or (batch + 1) % grad_accum_steps == 0
        accum_steps = min(grad_accum_steps, num_batches - update * grad_accum_steps)
        images, target = to_device(images, target, device, channels_last, dtype)
        if mix is not None:
            images, target = to_device(*mix(images, target), device, channels_last, dtype)  # mixing changes the layout
        hooks.on_batch(batch)
        terms = step.accumulate(images, target, accum_steps, need_update)
        averages.update({name: value for name, value in terms.items() if name != 'output'}, len(target))
        guard.update(terms['loss'], update)
        num_images += len(target)
        if not need_update:
            continue

        lr = step.lr
        step.finish(num_updates := num_updates + 1)
        is_log_step = update % hooks.log_interval == 0 or is_last
        is_recovery_step = hooks.recovery_interval > 0 and (update + 1) % hooks.recovery_interval == 0
        if is_log_step or is_recovery_step:
            guard.check()
        rate = (num_images - num_before) * world_size / (time.perf_counter() - since)
        hooks.on_update(Update(update, images, averages.read() if is_log_step else None, rate, lr))
        if is_recovery_step:
            hooks.on_recovery(update)
        if is_log_step:
            num_before, since = num_images, time.perf_counter()
    step.end_epoch()
    terms = averages.read()  # waits for the device
    return TrainedEpoch(terms, num_images * world_size, time.perf_counter() - start)


@torch.inference_mode()
def evaluate(
        predict: Callable[[torch.Tensor], torch.Tensor],
        mu: torch.Tensor,
        loader: Any,
        *,
        device: torch.device,
        autocast: Autocast = nullcontext,
        channels_last: bool = False,
        dtype: torch.dtype | None = None,
        meters: Sequence[Any] = (),
        on_batch: Callable[[int], None] = lambda _: None,
) -> list[dict[str, float]]:
    """Evaluate every branch and their ensemble on the same images.

    Args:
        predict: Function from the loader's images to the logits ``[N, B, K]`` of a network in eval mode.
        mu: Weights of the branches in the ensemble, ``[N]``.
        dtype: Dtype of the images, if the loader does not set it.
        meters: Other metrics, of this rank alone: ``update(logits, target)`` gets every batch, with the logits of the
            ensemble last, and ``read()`` returns a dict for each branch and the ensemble.
        on_batch: Called after every batch with its number.

    Returns:
        ``top1`` and ``top5`` in percent and the cross-entropy ``loss`` over all ranks: one dict per branch, then one
        of the ensemble if there are two branches or more. A meter's value of the same name replaces them.

    Raises:
        ValueError: The loader has no images.
    """
    sums, count, mu = None, 0, mu.to(device, torch.float32)
    # timm's sampler repeats images so that all ranks get the same number; the images of this rank come first.
    num_own = getattr(getattr(loader, 'sampler', None), 'num_valid_samples', None)
    for batch, (images, target) in enumerate(loader):
        images, target = to_device(images, target, device, channels_last, dtype)
        with autocast():
            logits = predict(images)
        target = target if num_own is None else target[:max(0, num_own - count)]
        logits = logits[:, :len(target)].float()
        if len(logits) > 1:
            ensemble = (mu.view(-1, 1, 1) * logits).sum(dim=0)
            logits = torch.cat([logits, ensemble.unsqueeze(0)])
        if sums is None:
            sums = wide(torch.zeros(len(logits), 3, device=device))
        if len(target):
            sums += wide(_loss_and_accuracies(logits, target)) * len(target)
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


def _loss_and_accuracies(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, top-1 and top-5 of each branch, ``[N, 3]``."""
    return torch.stack([
        torch.stack([F.cross_entropy(one, target), *accuracy(one, target, topk=(1, 5))]) for one in logits])


def to_device(
        images: torch.Tensor | dict[str, torch.Tensor],
        target: torch.Tensor,
        device: torch.device,
        channels_last: bool,
        dtype: torch.dtype | None,
) -> tuple[torch.Tensor | dict[str, torch.Tensor], torch.Tensor]:
    """Move a batch to the device, unless timm's prefetcher has already moved it."""
    target = target.to(device, non_blocking=True)
    if isinstance(images, dict):  # patches and their positions, from a NaFlex loader
        return {name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for name, value in images.items()}, target
    images = images.to(device, dtype, non_blocking=True)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images, target
