"""The merged model of a checkpoint: the mean of its branches."""
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..engine.record import CheckpointRecord, require_record
from ..merge import estimate_statistics, merge_branches
from .folder import export_model
from .load import load_branches


def load_merged(
        checkpoint: dict[str, Any],
        source: str,
        loader: Iterable[Any],
        device: torch.device | str,
        use_ema: bool | None = None,
) -> tuple[nn.Module, int]:
    """Build the plain model in float32 that is the mean of a checkpoint's branches.

    Args:
        checkpoint: As ``read_checkpoint`` returned it.
        source: Path of the checkpoint, for error messages.
        loader: Training images for the running statistics, see ``estimate_statistics``.
        device: Device that computes them.
        use_ema: Whether to take the EMA weights (default: those that the run judged).

    Returns:
        The model, in eval mode on the CPU, and the number of images that its statistics were estimated on.

    Raises:
        ValueError: The checkpoint has no branches that can be merged, or see ``load_branches``.
    """
    record = require_record(checkpoint, source)
    _check_mergeable(record, source)
    model = merge_branches(load_branches(checkpoint, source, use_ema)).to(device).eval()
    num_images = estimate_statistics(model, loader, device)
    return model.cpu(), num_images


def export_merged(record: CheckpointRecord, model: nn.Module, num_images: int, folder: str | Path) -> None:
    """Export a merged model with all that the record of its checkpoint says of it.

    Args:
        record: Record of the checkpoint.
        model: The model, as ``load_merged`` returned it.
        num_images: Number of images that its statistics were estimated on.
        folder: Created if missing.
    """
    export_model(
        model, folder, data_config=record.data_config_of(0), label_names=record.config.get('label_names'),
        metadata={'branch': 'merged', 'policies': record.policies, 'num_merge_images': num_images, 'metrics': None,
                  'epoch': record.epoch})


def _check_mergeable(record: CheckpointRecord, source: str) -> None:
    if record.num_branches == 1:
        raise ValueError(f"there is nothing to merge in '{source}'; it holds a plain run")
    if record.own == 'nothing':
        raise ValueError(f"there is nothing to merge in '{source}'; its branches share all norms")
    if len(set(record.branch_sizes or ())) > 1:
        raise ValueError(f"the branches of '{source}' cannot be merged, since they have images of different sizes")
