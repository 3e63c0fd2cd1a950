"""Models of an evaluation: each model that the command line names becomes plain models, one per branch."""
import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.layers import set_layer_config
from timm.utils import natural_key
from torch import nn

from ..branches import extract_branch
from ..cli.checks import flag
from ..cli.config import user_error_from
from ..cli.training_images import training_batches
from ..engine.checkpoint import load_weights, read_checkpoint
from ..engine.record import CheckpointRecord, record_of
from ..export import create_from_config, load_branches, load_merged, read_config

# timm's pretrained weights that are not ImageNet-1k classifiers.
_NO_IMAGENET_CLASSIFIER = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']


@dataclass
class Branches:
    """Models to evaluate on the same images: the selected branches of a run, or one plain model.

    Attributes:
        models: One plain model per branch, all of one architecture.
        rows: Description of each: ``model``, and for a branch ``branch``, ``policy`` and ``mu``; for merged branches
            ``num_merge_images``, the number of images that their statistics were estimated on.
        label_names: Names of the classes, where the checkpoint holds them.
        num_branches: Number of branches of the checkpoint.
        sizes: Image size of each model, where they differ.
    """
    models: list[nn.Module]
    rows: list[dict[str, Any]]
    label_names: list[str] | None = None
    num_branches: int = 1
    sizes: list[int] | None = None


def list_entries(model: str, checkpoint: str) -> tuple[list[tuple[str, str]], bool]:
    """List the pairs of model name and checkpoint (empty for none) to evaluate, and whether several were asked for.

    An export folder is one checkpoint; any other folder stands for each checkpoint in it.

    Raises:
        ValueError: There is no checkpoint in the folder, or the names and checkpoints do not go together.
    """
    folder = Path(checkpoint)
    if checkpoint and folder.is_dir():
        if _is_export(folder):
            return [(model, checkpoint)], False
        files = [str(path) for path in folder.iterdir() if path.is_file() and not path.name.startswith('.')
                 and path.name.endswith(('.pth.tar', '.pth', '.safetensors'))]
        if not files:
            raise ValueError(f"there is no checkpoint in the folder '{checkpoint}'")
        return [(model, path) for path in sorted(files, key=natural_key)], True
    names = _names_of(model)
    if names is None:
        return [(model, checkpoint)], False
    if checkpoint:
        raise ValueError(f'--checkpoint {checkpoint} is of one model, but --model {model} names {len(names)}')
    return [(name, '') for name in names], True


def _is_export(folder: Path) -> bool:
    return (folder / 'config.json').is_file() and (folder / 'model.safetensors').is_file()


def _names_of(model: str) -> list[str] | None:
    """Model names that ``all``, a wildcard or a file stands for; None for a plain name."""
    if model == 'all':
        return timm.list_models(pretrained=True, exclude_filters=_NO_IMAGENET_CLASSIFIER)
    if ':' in model or timm.is_model(model):  # local-dir: and hf-hub: name one
        return None
    if names := timm.list_models(model, pretrained=True):
        return names
    if os.path.isfile(model):
        with open(model, encoding='utf-8') as file:
            names = [line.strip() for line in file if line.strip()]
        if not names:
            raise ValueError(f"the file '{model}' names no model")
        return names
    if set(model) & set('*?['):
        raise ValueError(f"timm has no pretrained model like '{model}'")
    return None


def load(args: argparse.Namespace, explicit: set[str], is_one_of_several: bool = False) -> Branches:
    """Build and load the models that ``--model``, ``--checkpoint`` and ``--branch`` name.

    Args:
        is_one_of_several: Accept a plain model with ``--branch all``, as its only branch.

    Raises:
        ValueError: The checkpoint does not fit what the command line says, or cannot be read.
    """
    with set_layer_config(scriptable=args.torchscript or None):
        branches = _load(args, explicit, is_one_of_several)
    return branches


def _load(args: argparse.Namespace, explicit: set[str], is_one_of_several: bool) -> Branches:
    if not args.checkpoint:
        _refuse_branch(args, explicit, is_one_of_several)
        return Branches([_create(args, pretrained=True)], [{'model': args.model}])
    path = Path(args.checkpoint)
    if path.is_dir():
        path = path / 'model.safetensors'
    checkpoint = read_checkpoint(path)
    if record := record_of(checkpoint, str(path)):
        return _load_run(args, explicit, checkpoint, record, str(path))
    _refuse_branch(args, explicit, is_one_of_several)
    return _load_plain(args, explicit, checkpoint, path)


def _load_run(
        args: argparse.Namespace,
        explicit: set[str],
        checkpoint: dict[str, Any],
        record: CheckpointRecord,
        source: str,
) -> Branches:
    _check_config(args, explicit, record.config)
    if args.branch == 'merged':
        return _load_merged(args, explicit, checkpoint, record, source)
    model = load_branches(checkpoint, source, use_ema=True if args.use_ema else None)
    num_branches = record.num_model_branches
    branches = record.resolve(args.branch)
    rows = [{'model': record.config['architecture'], 'branch': branch, 'policy': record.policy_of(branch),
             'mu': record.mu[branch] if num_branches > 1 else 1.} for branch in branches]
    # Plain models, since fusing, scripting or compiling a multi-branch network would fix the norms of one branch.
    models = [extract_branch(model, branch) for branch in branches] if num_branches > 1 else [model]
    sizes = _sizes_of(args, explicit, record, branches)
    for row, size in zip(rows, sizes or (), strict=False):
        row['img_size'] = size
    return Branches(models, rows, record.config.get('label_names'), num_branches, sizes)


def _load_merged(
        args: argparse.Namespace,
        explicit: set[str],
        checkpoint: dict[str, Any],
        record: CheckpointRecord,
        source: str,
) -> Branches:
    batches = training_batches(
        checkpoint.get('args') or {}, record.data_config_of(0), args.merge_images, data_dir=args.merge_data_dir,
        data_dir_flag='--merge-data-dir', device=args.device, num_workers=args.workers)
    model, num_images = load_merged(checkpoint, source, batches, args.device, use_ema=True if args.use_ema else None)
    row = {'model': record.config['architecture'], 'branch': 'merged', 'policy': None, 'num_merge_images': num_images}
    return Branches(
        [model], [row], record.config.get('label_names'), record.num_branches, _sizes_of(args, explicit, record, [0]))


def _sizes_of(
        args: argparse.Namespace,
        explicit: set[str],
        record: CheckpointRecord,
        branches: list[int],
) -> list[int] | None:
    if not record.branch_sizes:
        return None
    for name in ('img_size', 'input_size', 'test_pool'):
        if name in explicit and getattr(args, name):
            raise ValueError(f'{flag(name)} has no effect; each branch of the checkpoint has images of a size of its '
                             'own. Export the branch to measure it at another')
    return [record.branch_sizes[branch] for branch in branches]


def _load_plain(
        args: argparse.Namespace,
        explicit: set[str],
        checkpoint: dict[str, Any],
        path: Path,
) -> Branches:
    config = read_config(path)
    if config is not None:
        _check_config(args, explicit, config)
        model = create_from_config(config)
    else:
        model = _create(args)
    load_weights(model, checkpoint, str(path), args.use_ema)
    row = {'model': config['architecture'] if config else args.model}
    if policy := checkpoint.get('metadata', {}).get('policy'):
        row['policy'] = policy
    return Branches([model], [row], (config or {}).get('label_names'))


def _create(args: argparse.Namespace, pretrained: bool = False) -> nn.Module:
    in_chans = args.in_chans or (args.input_size[0] if args.input_size else None)
    with user_error_from(
            TypeError, AssertionError, RuntimeError, KeyError, IndexError, AttributeError, ImportError,
            what=f'--model {args.model}'):
        return timm.create_model(
            args.model, pretrained=pretrained, num_classes=args.num_classes, in_chans=in_chans, global_pool=args.gp,
            **args.model_kwargs)


def _refuse_branch(args: argparse.Namespace, explicit: set[str], is_one_of_several: bool) -> None:
    allowed = ('best', 'all') if is_one_of_several else ('best',)
    if 'branch' in explicit and args.branch not in allowed:
        raise ValueError(f"there is no branch '{args.branch}'; '{args.checkpoint or args.model}' is a plain model")


def _check_config(args: argparse.Namespace, explicit: set[str], config: dict[str, Any]) -> None:
    for name, value in (('model', config['architecture']), ('num_classes', config['num_classes'])):
        given = getattr(args, name)
        if name in explicit and str(given).split('.')[0] != str(value):
            raise ValueError(f'{flag(name)} {given} contradicts the checkpoint, which has {value}')
    for name in ('gp', 'model_kwargs'):
        if name in explicit:
            raise ValueError(f'{flag(name)} has no effect; the checkpoint says how its model was built')
