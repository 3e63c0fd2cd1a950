"""Export folders: one branch as a plain timm model, which timm loads without this package."""
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.utils import unwrap_model
from torch import nn

from ..branches import extract_branch, num_branches_of
from ..engine.files import atomic_write
from ..engine.record import CheckpointRecord
from .config import model_config


def export_branch(
        model: nn.Module,
        branch: int,
        folder: str | Path,
        *,
        data_config: dict[str, Any] | None = None,
        label_names: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
) -> None:
    """Write one branch as a plain timm model: ``model.safetensors``, ``config.json`` and ``checkpoint.pth.tar``.

    Each file is replaced in one step and describes itself, so the folder loads whenever the process is killed.

    Args:
        model: Multi-branch model, or a plain one as branch 0.
        branch: Index of the branch.
        folder: Created if missing.
        data_config: Preprocessing of the images, see ``model_config``.
        label_names: Name of each class.
        metadata: JSON values that describe the branch (policy, μ, metrics). The top-1 of the metrics also becomes the
            checkpoint's ``metric``, by which timm ranks.

    Raises:
        ValueError: There is no such branch.
    """
    if num_branches_of(model) > 1:
        plain = extract_branch(model, branch)
    elif branch != 0:
        raise ValueError(f'there is no branch {branch}; a plain model is branch 0')
    else:
        plain = unwrap_model(model)
    export_model(plain, folder, data_config=data_config, label_names=label_names,
                 metadata={**(metadata or {}), 'branch': branch})


def export_model(
        model: nn.Module,
        folder: str | Path,
        *,
        data_config: dict[str, Any] | None = None,
        label_names: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
) -> None:
    """Write a plain model as ``export_branch`` does; the metadata are written as they are.

    Args:
        model: Plain model that ``timm.create_model`` built.
        folder: Created if missing.
        data_config: Preprocessing of the images, see ``model_config``.
        label_names: Name of each class.
        metadata: JSON values that describe the model.
    """
    metadata = metadata or {}
    config = model_config(model, data_config, label_names)
    # A copy of each tensor, since safetensors takes neither strided nor shared ones.
    state_dict = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    checkpoint = {'arch': config['architecture'], 'state_dict': state_dict, 'config': config, 'metadata': metadata}
    metrics = metadata.get('metrics')
    if isinstance(metrics, dict) and 'top1' in metrics:
        # timm's avg_checkpoints.py leaves out a checkpoint without a metric, and takes the largest for the best.
        checkpoint['metric'] = metrics['top1']

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / 'config.json') as path:
        path.write_text(json.dumps(config, indent=2), encoding='utf-8')
    with atomic_write(folder / 'checkpoint.pth.tar') as path:
        torch.save(checkpoint, path)
    with atomic_write(folder / 'model.safetensors') as path:
        # `save_file` writes through a temporary file of its own, which a kill would leave in the folder.
        path.write_bytes(safetensors.torch.save(state_dict, metadata={
            'format': 'pt', 'config': json.dumps(config), 'metadata': json.dumps(metadata)}))


def export_recorded_branch(record: CheckpointRecord, model: nn.Module, branch: int, folder: str | Path) -> None:
    """Export a branch with all that the record of its checkpoint says of it; see ``export_branch``."""
    export_branch(
        model, branch, folder, data_config=record.data_config_of(branch),
        label_names=record.config.get('label_names'), metadata=record.metadata(branch))


def load_line(architecture: str, folder: str | Path) -> str:
    """The line of Python that loads an export; it imports this package where timm lacks the architecture."""
    is_timms = timm.model_entrypoint(architecture).__module__.startswith('timm.')
    return ('' if is_timms else 'import a2aug_timm; ') + f"timm.create_model('local-dir:{folder}', pretrained=True)"
