"""Checkpoints: reading them without running code, loading their weights, and the state that a resume needs."""
import argparse
import json
import os
import pickle
import re
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
