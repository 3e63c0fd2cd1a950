"""Checkpoints that a kill cannot break: atomic writes, the best k, and everything that a resume needs."""
import argparse
import json
import operator
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from timm.models import clean_state_dict
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

# What timm's plateau schedule remembers between epochs; timm's others are functions of the epoch alone.
_PLATEAU_STATE = ('best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch')
# Settings of an optimizer's parameter groups, which no optimizer changes by itself.
_SETTINGS = ('weight_decay', 'momentum', 'dampening', 'nesterov', 'betas', 'eps', 'lr_scale')


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes ``path`` in one step if the block ends well."""
    path = Path(path)
    # A name that no killed process can have left: a file of its own, never an inode that another name shares.
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        yield temporary
        with open(temporary, 'rb+') as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process was writing in a folder."""
    for path in Path(folder).glob('.*.tmp'):
        path.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ours or of timm's onto the CPU.

    A ``.safetensors`` file becomes a dict of its ``state_dict`` and of the JSON values of its metadata.

    Raises:
        ValueError: No file there, not a checkpoint, or a pickle that is more than tensors and primitives; nothing of
            it was run.
    """
    if not os.path.isfile(path):
        raise ValueError(f"there is no checkpoint '{path}'")
    if Path(path).suffix == '.safetensors':
        return _read_safetensors(path)
    try:
        # timm's own training checkpoints hold their arguments as a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        is_code = re.search(r'(?i)unsupported (global|class)|reduce', str(error))
        if is_code and isinstance(error, pickle.UnpicklingError):
            raise ValueError(f"'{path}' holds more than tensors and primitives and was not loaded") from error
        raise ValueError(f"'{path}' is not a checkpoint or is damaged") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds no dict of tensors")
    return checkpoint


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"'{path}' is not a safetensors file or is damaged") from error
    values = {key: json.loads(metadata[key]) for key in ('config', 'metadata') if key in metadata}
    return {'state_dict': state_dict, **values}


def state_dict_of(checkpoint: dict[str, Any], use_ema: bool | None = False) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint, under the keys that timm knows, or the dict itself.

    Args:
        use_ema: The EMA's weights or not; None takes them where there are some, as timm's loaders do.

    Raises:
        ValueError: EMA weights are asked for and there are none, or there are no weights.
    """
    ema = next((checkpoint[key] for key in ('state_dict_ema', 'model_ema') if checkpoint.get(key) is not None), None)
    if use_ema and ema is None:
        raise ValueError('the checkpoint holds no EMA weights')
    if use_ema is False or ema is None:
        state_dict = next((checkpoint[key] for key in ('state_dict', 'model') if key in checkpoint), checkpoint)
    else:
        state_dict = ema
    if not isinstance(state_dict, dict) or not state_dict or not all(
            isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError('the checkpoint holds no state_dict')
    return clean_state_dict(state_dict)


def check_weights(model: nn.Module, state_dict: dict[str, torch.Tensor], source: str) -> None:
    """Raise ``ValueError``, naming the first key that is missing, left over or of another shape, if weights do not fit.
    """
    own = model.state_dict()
    odd = sorted(own.keys() ^ state_dict.keys())
    if odd:
        side = 'lacks' if odd[0] in own else 'has an unknown'
        raise ValueError(f"'{source}' does not fit the model: it {side} '{odd[0]}' ({len(odd)} such keys)")
    for key, value in own.items():
        if value.shape != state_dict[key].shape:
            raise ValueError(f"'{source}' does not fit the model: '{key}' is {list(state_dict[key].shape)}, "
                             f'the model needs {list(value.shape)}')


def load_weights(
        model: nn.Module,
        checkpoint: dict[str, Any],
        source: str,
        use_ema: bool | None = False,
) -> None:
    """Load a checkpoint's weights into a model that they fit exactly; see ``state_dict_of`` and ``check_weights``."""
    state_dict = state_dict_of(checkpoint, use_ema)
    check_weights(model, state_dict, source)
    model.load_state_dict(state_dict)


def training_state(
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Scheduler | None,
        loss_scaler: Any = None,
) -> dict[str, Any]:
    """Entries of a checkpoint that hold a run's tensors, under timm's names."""
    state = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True), 'optimizer': optimizer.state_dict()}
    if loss_scaler is not None:
        state[loss_scaler.state_dict_key] = loss_scaler.state_dict()
    if plateau := _plateau_of(lr_scheduler):
        state['plateau'] = {name: getattr(plateau, name) for name in _PLATEAU_STATE}
        state['plateau_restore_lr'] = lr_scheduler.restore_lr  # under the noise
    return state


def load_training_state(
        checkpoint: dict[str, Any],
        task: TrainingTask,
        optimizer: torch.optim.Optimizer | None,
        lr_scheduler: Scheduler | None,
        loss_scaler: Any = None,
) -> None:
    """Restore what ``training_state`` returned; EMA weights once ``task`` has an EMA.

    Args:
        optimizer: None leaves the optimizer, its scaler and the schedule as they are.
    """
    task.load_checkpoint_state(state_dict_of(checkpoint), checkpoint.get('task_state'))
    if task.has_ema():
        ema = '_ema' if checkpoint.get('state_dict_ema') is not None else ''
        task.load_checkpoint_state(
            state_dict_of(checkpoint, use_ema=bool(ema)), checkpoint.get(f'task_state{ema}'), ema=True)
    if optimizer is None:
        return
    if 'optimizer' in checkpoint:
        # A plateau's learning rate is what it has come to; other schedules set it, and without one it is a setting.
        names = _SETTINGS if _plateau_of(lr_scheduler) else (*_SETTINGS, 'lr', 'initial_lr')
        _load_optimizer(optimizer, checkpoint['optimizer'], names)
    if loss_scaler is not None and loss_scaler.state_dict_key in checkpoint:
        loss_scaler.load_state_dict(checkpoint[loss_scaler.state_dict_key])
    if plateau := _plateau_of(lr_scheduler):
        for name, value in checkpoint.get('plateau', {}).items():
            setattr(plateau, name, value)
        lr_scheduler.restore_lr = checkpoint.get('plateau_restore_lr')


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Load an optimizer's state and keep its own settings."""
    fresh = [dict(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise ValueError(f'the optimizer of the checkpoint does not fit this one ({error}); leave it behind with '
                         '--no-resume-opt') from error
    for group, own in zip(optimizer.param_groups, fresh, strict=True):
        group.update({name: own[name] for name in settings if name in own})


def _plateau_of(lr_scheduler: Scheduler | None) -> ReduceLROnPlateau | None:
    inner = getattr(lr_scheduler, 'lr_scheduler', None)
    return inner if isinstance(inner, ReduceLROnPlateau) else None


class CheckpointKeeper:
    """Keeps ``last``, the best k and ``model_best`` of a run, under timm's names.

    Args:
        folder: The run's folder.
        max_history: ``k``, at least 1.
        decreasing: The metric is better when lower.
    """

    def __init__(self, folder: str | Path, max_history: int = 10, decreasing: bool = False):
        self.folder = Path(folder)
        self.max_history = max_history
        self.better = operator.lt if decreasing else operator.gt
        self.best_metric: float | None = None
        self.best_epoch: int | None = None
        self._kept: list[tuple[str, float]] = []

    def is_best(self, metric: float) -> bool:
        """Whether a metric is better than all that were saved."""
        return self.best_metric is None or self.better(metric, self.best_metric)

    def save(self, state: dict[str, Any], epoch: int, metric: float) -> bool:
        """Write the checkpoint of an epoch and return whether it is the best so far."""
        is_best = self.is_best(metric)
        if is_best:
            self.best_metric, self.best_epoch = metric, epoch
        name = f'checkpoint-{epoch}.pth.tar'
        kept = [item for item in self._kept if item[0] != name]
        # A stable sort: of equals the earlier epoch stays.
        kept = sorted([*kept, (name, metric)], key=lambda item: item[1], reverse=self.better is operator.gt)
        dropped = {item[0] for item in [*self._kept, *kept[self.max_history:]]}
        self._kept = kept[:self.max_history]
        state = {**state, **self._state(epoch), 'metric': metric}

        # `last` is replaced at the end: after a kill before that, the epoch is repeated and its files written again.
        with atomic_write(self.folder / 'last.pth.tar') as path:
            torch.save(state, path)
            if (name, metric) in self._kept:
                _link(path, self.folder / name)
            if is_best:
                _link(path, self.folder / 'model_best.pth.tar')
        for name in dropped - {item[0] for item in self._kept}:
            (self.folder / name).unlink(missing_ok=True)
        return is_best

    def save_recovery(self, state: dict[str, Any], path: Path, epoch: int) -> None:
        """Write a checkpoint from the middle of an epoch, which a resume begins again."""
        with atomic_write(path) as temporary:
            torch.save({**state, **self._state(epoch - 1)}, temporary)

    def _state(self, epoch: int) -> dict[str, Any]:
        keeper = {'best_metric': self.best_metric, 'best_epoch': self.best_epoch, 'kept': self._kept}
        return {'epoch': epoch, 'version': 2, 'keeper': keeper}

    def load(self, checkpoint: dict[str, Any], start_epoch: int) -> None:
        """Continue with the best metric and the kept files of a checkpoint, as far as they are of earlier epochs."""
        keeper = checkpoint.get('keeper')
        if keeper is None:
            return
        if keeper['best_epoch'] is not None and keeper['best_epoch'] < start_epoch:
            self.best_metric, self.best_epoch = keeper['best_metric'], keeper['best_epoch']
        earlier = {f'checkpoint-{epoch}.pth.tar' for epoch in range(start_epoch)}
        self._kept = [(name, metric) for name, metric in keeper['kept'] if name in earlier]

    def take_from(self, folder: Path) -> None:
        """Copy the kept files of another folder; what is not there is not kept, and no best where that is missing."""
        self._kept = [(name, metric) for name, metric in self._kept if (folder / name).exists()]
        for name, _ in self._kept:
            copy(folder / name, self.folder / name)
        if all(name != f'checkpoint-{self.best_epoch}.pth.tar' for name, _ in self._kept):
            self.best_metric = self.best_epoch = None

    def restore_best(self) -> Path | None:
        """Make ``model_best`` the best epoch's again, which a kill may have left ahead of ``last``, and return it."""
        best, path = self.folder / f'checkpoint-{self.best_epoch}.pth.tar', self.folder / 'model_best.pth.tar'
        if self.best_epoch is None or not best.exists():
            return None
        _link(best, path)
        return path


def copy(source: Path, target: Path) -> None:
    """Copy a file in one step."""
    with atomic_write(target) as path:
        shutil.copyfile(source, path)


def _link(source: Path, target: Path) -> None:
    with atomic_write(target) as path:
        try:
            os.link(source, path)
        except OSError:
            shutil.copyfile(source, path)
