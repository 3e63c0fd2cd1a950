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
from timm.scheduler.plateau_lr import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from torch import nn

from .fields import check_fields, fits, shown

# State of timm's plateau schedule between epochs; timm's other schedules are functions of the epoch alone.
_PLATEAU_STATE = ('best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch')
# Settings of an optimizer's parameter groups; no optimizer changes them by itself.
_SETTINGS = ('weight_decay', 'momentum', 'dampening', 'nesterov', 'betas', 'eps', 'lr_scale')


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this package or of timm onto the CPU, without running any code in it.

    A ``.safetensors`` file becomes a dict of its ``state_dict`` and the JSON values ``config`` and ``metadata``.

    Raises:
        ValueError: The file is missing, is not a checkpoint, is damaged, or holds more than tensors and primitives.
    """
    if not os.path.isfile(path):
        raise ValueError(f"there is no checkpoint '{path}'")
    if Path(path).suffix == '.safetensors':
        return _read_safetensors(path)
    try:
        # timm's own training checkpoints hold their arguments as a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file can raise anything in the unpickler
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
    try:
        values = {key: json.loads(metadata[key]) for key in ('config', 'metadata') if key in metadata}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata of '{path}' is not JSON") from error
    return {'state_dict': state_dict, **values}


def state_dict_of(checkpoint: dict[str, Any], use_ema: bool | None = False) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint: the entry under one of timm's keys, or the dict itself.

    Args:
        checkpoint: As ``read_checkpoint`` returned it.
        use_ema: Whether to take the EMA weights; None takes them if there are any, as timm's loaders do.

    Raises:
        ValueError: The EMA weights are asked for and missing, or there are no weights.
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
    """Check that weights fit a model exactly.

    Args:
        model: The model that is to take them.
        state_dict: The weights.
        source: Path of their file, for error messages.

    Raises:
        ValueError: A key is missing, unknown or of another shape; the message names the first.
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
    """Load a checkpoint's weights into a model, which they must fit; see ``state_dict_of`` and ``check_weights``."""
    state_dict = state_dict_of(checkpoint, use_ema)
    check_weights(model, state_dict, source)
    model.load_state_dict(state_dict)


def training_state(
        task: TrainingTask,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Scheduler | None,
        loss_scaler: Any = None,
) -> dict[str, Any]:
    """Entries of a checkpoint that hold the state of a run's training, under timm's names."""
    state = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True), 'optimizer': optimizer.state_dict()}
    if loss_scaler is not None:
        state[loss_scaler.state_dict_key] = loss_scaler.state_dict()
    if isinstance(lr_scheduler, PlateauLRScheduler):
        state['plateau'] = {name: getattr(lr_scheduler.lr_scheduler, name) for name in _PLATEAU_STATE}
        state['plateau_restore_lr'] = lr_scheduler.restore_lr  # the learning rates without their noise
    return state


def load_training_state(
        checkpoint: dict[str, Any],
        task: TrainingTask,
        optimizer: torch.optim.Optimizer | None,
        lr_scheduler: Scheduler | None,
        loss_scaler: Any = None,
) -> None:
    """Restore what ``training_state`` returned.

    Args:
        checkpoint: As ``read_checkpoint`` returned it.
        task: Also takes the EMA weights if it has an EMA, or the plain weights in their place.
        optimizer: None leaves the optimizer, the loss scaler and the schedule as they are.
        lr_scheduler: Only a plateau schedule has a state.
        loss_scaler: timm's scaler of mixed precision.

    Raises:
        ValueError: The checkpoint holds no weights, or the state of another optimizer or schedule.
    """
    task.load_checkpoint_state(state_dict_of(checkpoint), checkpoint.get('task_state'))
    if task.has_ema():
        ema = '_ema' if checkpoint.get('state_dict_ema') is not None else ''
        task.load_checkpoint_state(
            state_dict_of(checkpoint, use_ema=bool(ema)), checkpoint.get(f'task_state{ema}'), ema=True)
    if optimizer is None:
        return
    if 'optimizer' in checkpoint:
        # The learning rate is state of a plateau schedule alone; other schedules compute it, and without a schedule
        # it is a setting.
        names = _SETTINGS if isinstance(lr_scheduler, PlateauLRScheduler) else (*_SETTINGS, 'lr', 'initial_lr')
        _load_optimizer(optimizer, checkpoint['optimizer'], names)
    if loss_scaler is not None and loss_scaler.state_dict_key in checkpoint:
        loss_scaler.load_state_dict(checkpoint[loss_scaler.state_dict_key])
    if isinstance(lr_scheduler, PlateauLRScheduler) and 'plateau' in checkpoint:
        _load_plateau(lr_scheduler, checkpoint['plateau'], checkpoint.get('plateau_restore_lr'))


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Load the state of an optimizer, and leave its settings as they are."""
    fresh = [dict(group) for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise ValueError(f'the optimizer of the checkpoint does not fit this one ({error}); leave it behind with '
                         '--no-resume-opt') from error
    for group, own in zip(optimizer.param_groups, fresh, strict=True):
        group.update({name: own[name] for name in settings if name in own})


def _load_plateau(lr_scheduler: PlateauLRScheduler, state: Any, restore_lr: Any) -> None:
    """Load the state of a plateau schedule; other names in it are refused, as they would set any attribute."""
    check_fields(state, dict.fromkeys(_PLATEAU_STATE, float), "the entry 'plateau' of the checkpoint")
    for name in _PLATEAU_STATE:
        setattr(lr_scheduler.lr_scheduler, name, state[name])
    if not fits(restore_lr, list[float] | None):
        raise ValueError(f"the entry 'plateau_restore_lr' of the checkpoint is damaged: {shown(restore_lr)}")
    lr_scheduler.restore_lr = restore_lr
