"""A branch as an ordinary timm model: written as a folder that timm loads, and built again from what it says.

As a program: ``python -m a2aug_timm.export CHECKPOINT --branch best|i|all -o FOLDER``.
"""
import json
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models._hub import save_config_for_hf
from timm.utils import unwrap_model
from torch import nn

from ..branches import create_branches, extract_branch, networks_of, num_branches_of
from ..engine.checkpoint import check_weights, read_checkpoint, state_dict_of
from ..engine.files import atomic_write


def model_config(
        model: nn.Module,
        data_config: dict[str, Any] | None = None,
        label_names: list[str] | None = None,
) -> dict[str, Any]:
    """Describe a timm model in the schema of timm's ``config.json``: all that is needed to build it again.

    Args:
        model: Plain or multi-branch model that ``timm.create_model`` built.
        data_config: ``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``.
        label_names: Name of each class.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.json'
        extra = {'label_names': list(label_names)} if label_names else {}
        network = networks_of(unwrap_model(model))[0]
        save_config_for_hf(network, path, model_config=extra, data_config=data_config)
        config = json.loads(path.read_text(encoding='utf-8'))
    # transformers refuses a class count that is given twice.
    config.get('model_args', {}).pop('num_classes', None)
    if config['architecture'] == 'fbnetc_100':
        # timm builds it with another epsilon for `pretrained=True`, which is how an export is loaded.
        epsilon = next(module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        config['model_args'] = {'bn_eps': epsilon, **config.get('model_args', {})}
    return config


def build_model(config: dict[str, Any], num_branches: int = 1, own: str = 'bn') -> nn.Module:
    """Build the model that ``model_config`` described, without its weights.

    Args:
        num_branches: ``N``; 1 is a plain model.
        own: What each branch has of its own, see ``create_branches``.

    Raises:
        ValueError: This timm has no such architecture.
    """
    if not timm.is_model(config['architecture']):
        raise ValueError(f"this timm {timm.__version__} has no model '{config['architecture']}'")
    pretrained_cfg = {**config['pretrained_cfg'], 'architecture': config['architecture'],
                      'num_classes': config['num_classes']}
    return create_branches(lambda: timm.create_model(
        config['architecture'], pretrained_cfg=pretrained_cfg, num_classes=config['num_classes'],
        **config.get('model_args', {})), num_branches, own)


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

    Each file is replaced in one step, and each tells alone what it holds, so a kill never leaves a folder that does
    not load.

    Args:
        model: Multi-branch model, or a plain one as branch 0.
        branch: Index of the branch.
        folder: Created if it is not there.
        data_config: Preprocessing of the images, see ``model_config``.
        label_names: Name of each class.
        metadata: JSON values that say where the branch comes from (policy, μ, metrics). The top-1 of the metrics also
            becomes the checkpoint's ``metric``, by which timm ranks.

    Raises:
        ValueError: There is no such branch.
    """
    if num_branches_of(model) > 1:
        plain = extract_branch(model, branch)
    elif branch != 0:
        raise ValueError(f'there is no branch {branch}; a plain model is branch 0')
    else:
        plain = unwrap_model(model)
    config = model_config(plain, data_config, label_names)
    metadata = {**(metadata or {}), 'branch': branch}
    # A copy of each, since safetensors takes neither strided nor shared tensors.
    state_dict = {key: value.detach().cpu().contiguous().clone() for key, value in plain.state_dict().items()}
    checkpoint = {'arch': config['architecture'], 'state_dict': state_dict, 'config': config, 'metadata': metadata}
    metrics = metadata.get('metrics')
    if isinstance(metrics, dict) and 'top1' in metrics:
        # timm's avg_checkpoints.py leaves out a checkpoint that has no metric, and takes the largest for the best.
        checkpoint['metric'] = metrics['top1']

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / 'config.json') as path:
        path.write_text(json.dumps(config, indent=2), encoding='utf-8')
    with atomic_write(folder / 'checkpoint.pth.tar') as path:
        torch.save(checkpoint, path)
    with atomic_write(folder / 'model.safetensors') as path:
        safetensors.torch.save_file(state_dict, path, metadata={
            'format': 'pt', 'config': json.dumps(config), 'metadata': json.dumps(metadata)})


def load_line(architecture: str, folder: str | Path) -> str:
    """The line of Python that loads an export; a network of this package is known to timm once it is imported."""
    is_timms = timm.model_entrypoint(architecture).__module__.startswith('timm.')
    return ('' if is_timms else 'import a2aug_timm; ') + f"timm.create_model('local-dir:{folder}', pretrained=True)"


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The ``model_config`` that a weight file carries, or that lies beside it; None if there is neither.

    Raises:
        ValueError: The file is not there, or is no weight file.
    """
    config = read_checkpoint(path).get('config')
    beside = Path(path).with_name('config.json')
    if config is None and beside.is_file():
        config = json.loads(beside.read_text(encoding='utf-8'))
        # Other libraries write a config.json too.
        if not isinstance(config, dict) or not {'architecture', 'num_classes', 'pretrained_cfg'} <= config.keys():
            return None
    return config


def load_branches(checkpoint: dict[str, Any], source: str, use_ema: bool | None = None) -> nn.Module:
    """Build the model of one of our checkpoints, with all its branches and weights.

    Args:
        use_ema: EMA weights or not; None takes those that the run judged.

    Raises:
        ValueError: The checkpoint is not one of ours, or holds no EMA weights.
    """
    run = checkpoint.get('a2aug')
    if run is None:
        raise ValueError(f"'{source}' is not a checkpoint of a2aug_timm's train.py")
    if not {'own', 'branch_sizes'} <= run.keys():
        raise ValueError(f"'{source}' was written by another version of a2aug_timm")
    model = build_model(run['config'], run['num_branches'], run['own'])
    weights = state_dict_of(checkpoint, run['judged_ema'] if use_ema is None else use_ema)
    # Of timm's split batch norm the norms of the other splits serve training alone.
    weights = {key: value for key, value in weights.items() if '.aux_bn.' not in key}
    check_weights(model, weights, source)
    model.load_state_dict(weights)
    return model


def export_branch_of(run: dict[str, Any], model: nn.Module, branch: int, folder: str | Path) -> None:
    """``export_branch`` with what a checkpoint's entry ``a2aug`` says of its run and this branch."""
    data_config = run['data_config']
    if run['branch_sizes']:
        size = run['branch_sizes'][branch]
        data_config = {**data_config, 'input_size': (data_config['input_size'][0], size, size)}
    export_branch(
        model, branch, folder, data_config=data_config, label_names=run['config'].get('label_names'),
        metadata=branch_metadata(run, branch))


def resolve_branches(branch: str, run: dict[str, Any], model: nn.Module) -> list[int]:
    """Indices that ``best``, ``all`` or a number mean for a checkpoint.

    Raises:
        ValueError: There is no such branch.
    """
    num_branches = num_branches_of(model)
    if branch == 'best':
        return [run.get('best_branch') or 0]
    if branch == 'all':
        return list(range(num_branches))
    if not branch.isdecimal() or int(branch) >= num_branches:
        raise ValueError(f"there is no branch '{branch}'; this checkpoint has branches 0 to {num_branches - 1}, "
                         "'best' and 'all'")
    return [int(branch)]


def branch_metadata(run: dict[str, Any], branch: int) -> dict[str, Any]:
    """What an export says of its branch: policy (all of them where batch norm was shared), μ, metrics, epoch."""
    metrics = run['metrics'][branch] if run['metrics'] else None
    if run['own'] == 'nothing':
        return {'policies': run['policies'], 'metrics': metrics, 'epoch': run['epoch']}
    return {'policy': run['policies'][branch], 'mu': run['mu'][branch], 'metrics': metrics, 'epoch': run['epoch']}
