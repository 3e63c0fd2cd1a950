"""Resuming a run: the arguments that it takes from its checkpoint, and those that may not contradict it."""
import argparse
from pathlib import Path
from typing import Any

from ..cli.checks import flag
from ..cli.resolve import replaced
from ..data.policies import sample_beside
from ..engine.record import has_record, record_of

# Values that a checkpoint fixes: another value would be another run.
_FIXED_BY_CHECKPOINT = (
    'model', 'num_classes', 'in_chans', 'gp', 'model_kwargs', 'eval_metric', 'a2aug_branches', 'a2aug_policies',
    'a2aug_norm', 'a2aug_shared_bn', 'a2aug_independent', 'a2aug_branch_sizes', 'a2aug_ensemble',
    'a2aug_mu_lr_scale', 'a2aug_start_epoch', 'split_bn', 'holdout', 'val_split')
# Values that belong to one invocation rather than to the run.
_OF_INVOCATION = {'data', 'local_rank', 'resume', 'no_resume_opt', 'start_epoch', 'device', 'is_lr_computed'}
# Weights that a run started from; a resumed run does not load them again.
_STARTING_WEIGHTS = {'pretrained', 'pretrained_path', 'initial_checkpoint'}
_NOT_ADOPTED = _OF_INVOCATION | _STARTING_WEIGHTS
_SEARCH_SPACE = {'a2aug_seed', 'a2aug_space', 'a2aug_num_layers', 'a2aug_magnitudes'}


def adopt_run(args: argparse.Namespace, explicit: set[str], checkpoint: dict[str, Any]) -> argparse.Namespace:
    """Take over the arguments of the run that is resumed, except those that the command line sets."""
    record = record_of(checkpoint, args.resume)
    if record is None:  # a checkpoint of timm's own script holds no arguments of ours
        return args
    kept = explicit | _NOT_ADOPTED | ({'data_dir'} if 'data' in explicit else set())
    adopted = {name: value for name, value in checkpoint['args'].items() if name not in kept and hasattr(args, name)}
    if record.is_lr_computed and 'lr' not in explicit:
        adopted['lr'] = None  # computed from --lr-base again
    return replaced(args, **adopted)


def check_resume(args: argparse.Namespace, explicit: set[str], checkpoint: dict[str, Any]) -> None:
    """Raise ``ValueError`` if the command line contradicts what the checkpoint fixes."""
    if not has_record(checkpoint):  # a checkpoint of timm's own script tells its architecture alone
        if args.a2aug_branches > 1:
            raise ValueError(f"'{args.resume}' holds a plain run; start from its weights with --initial-checkpoint")
        _check_fixed(args, explicit, {'model': checkpoint.get('arch', args.model)})
        return
    saved = checkpoint['args']
    _check_fixed(args, explicit, saved)
    if 'opt' in explicit and saved['opt'] != args.opt and not args.no_resume_opt:
        raise ValueError(f'--opt {args.opt} cannot use the state of {saved["opt"]}; add --no-resume-opt')
    if explicit & _SEARCH_SPACE and 'a2aug_policies' not in explicit and saved['a2aug_policies']:
        seed = args.seed if args.a2aug_seed is None else args.a2aug_seed
        policies = sample_beside(
            args.aa, args.a2aug_branches, seed, args.a2aug_num_layers, args.a2aug_magnitudes)
        if policies != saved['a2aug_policies']:
            raise ValueError(f"the search space flags sample {_shown(policies)}, which contradicts the checkpoint's "
                             f"{_shown(saved['a2aug_policies'])}")


def args_of_run(args: argparse.Namespace, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments that describe a run, by name; a resumed run keeps the weights that it started from."""
    saved = (checkpoint or {}).get('args')
    start = {name: saved[name] for name in _STARTING_WEIGHTS & saved.keys()} if isinstance(saved, dict) else {}
    return {name: value for name, value in vars(args).items() if name not in _OF_INVOCATION} | start


def folder_of_run(args: argparse.Namespace, explicit: set[str], checkpoint: dict[str, Any] | None) -> Path | None:
    """Folder that a resumed run continues in, or None for a new one.

    A run continues in its own folder unless it restarts from before its end, or the command line names another one.
    """
    if checkpoint is None or not has_record(checkpoint) or args.start_epoch is not None:
        return None
    path = Path(args.resume)
    named = output_of(args) / args.experiment
    is_renamed = explicit & {'output', 'experiment'} and named.resolve() != path.parent.resolve()
    is_end = path.name == 'last.pth.tar' or path.name.startswith('recovery-')
    return path.parent if is_end and not is_renamed else None


def output_of(args: argparse.Namespace) -> Path:
    """Folder of runs."""
    return Path(args.output or 'output/train')


def _check_fixed(args: argparse.Namespace, explicit: set[str], saved: dict[str, Any]) -> None:
    for name in _FIXED_BY_CHECKPOINT:
        if name in explicit and name in saved and getattr(args, name) != saved[name]:
            raise ValueError(f'{flag(name)} {_shown(getattr(args, name))} contradicts the checkpoint, which has '
                             f'{_shown(saved[name])}')


def _shown(value: Any) -> str:
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
