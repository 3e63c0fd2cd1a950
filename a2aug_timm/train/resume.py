"""What a run that is resumed takes from its checkpoint, and what may not contradict it."""
import argparse
from typing import Any

from ..cli.checks import flag
from ..data.policies import SPACES, sample_policies

# What a checkpoint fixes: another value is another run.
_FIXED_BY_CHECKPOINT = (
    'model', 'num_classes', 'in_chans', 'gp', 'model_kwargs', 'eval_metric', 'a2aug_branches', 'a2aug_policies',
    'a2aug_norm', 'a2aug_shared_bn', 'a2aug_independent', 'a2aug_branch_sizes', 'a2aug_ensemble',
    'a2aug_mu_lr_scale', 'split_bn', 'holdout', 'val_split')
# What belongs to one invocation rather than to the run.
_NOT_OF_THE_RUN = {'data', 'local_rank', 'resume', 'no_resume_opt', 'start_epoch', 'device'}
# What a run began with is behind it when it is resumed.
_BEGINNING = {'pretrained', 'pretrained_path', 'initial_checkpoint'}
_NOT_ADOPTED = _NOT_OF_THE_RUN | _BEGINNING


def adopt_run(args: argparse.Namespace, explicit: set[str], checkpoint: dict[str, Any]) -> None:
    """Take the arguments of a run that is resumed, but for those that the command line sets.

    Raises:
        ValueError: The command line contradicts what the checkpoint fixes.
    """
    if 'a2aug' not in checkpoint:  # a checkpoint of timm's own script knows its architecture alone
        if args.a2aug_branches > 1:
            raise ValueError(f"'{args.resume}' holds a plain run; start from its weights with --initial-checkpoint")
        _check_fixed(args, explicit, {'model': checkpoint.get('arch', args.model)})
        return
    saved = checkpoint['args']
    _check_fixed(args, explicit, saved)
    if 'opt' in explicit and saved['opt'] != args.opt and not args.no_resume_opt:
        raise ValueError(f"--opt {args.opt} cannot take over the state of {saved['opt']}; add --no-resume-opt")
    is_moved = {'data_dir'} if 'data' in explicit else set()
    for name, value in saved.items():
        if name not in explicit | is_moved | _NOT_ADOPTED and hasattr(args, name):
            setattr(args, name, value)
    if checkpoint['a2aug'].get('is_lr_computed') and 'lr' not in explicit:
        args.lr = None  # it is computed from --lr-base again
    if 'a2aug_space' in explicit and args.a2aug_space:
        args.a2aug_num_layers, args.a2aug_magnitudes = map(list, SPACES[args.a2aug_space])
    search_space = {'a2aug_seed', 'a2aug_space', 'a2aug_num_layers', 'a2aug_magnitudes'}
    samples = explicit & search_space and 'a2aug_policies' not in explicit
    if samples and saved['a2aug_policies']:
        seed = args.seed if args.a2aug_seed is None else args.a2aug_seed
        policies = sample_policies(args.a2aug_branches, seed, args.a2aug_num_layers, args.a2aug_magnitudes)
        if policies != saved['a2aug_policies']:
            raise ValueError(f"the search space flags sample {_shown(policies)}, which contradicts the checkpoint's "
                             f"{_shown(saved['a2aug_policies'])}")


def args_of_run(args: argparse.Namespace, checkpoint: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments that describe a run, by name; of one that is resumed also what it began with."""
    saved = (checkpoint or {}).get('args')
    began = {name: saved[name] for name in _BEGINNING & saved.keys()} if isinstance(saved, dict) else {}
    return {name: value for name, value in vars(args).items() if name not in _NOT_OF_THE_RUN} | began


def _check_fixed(args: argparse.Namespace, explicit: set[str], saved: dict[str, Any]) -> None:
    for name in _FIXED_BY_CHECKPOINT:
        if name in explicit and name in saved and getattr(args, name) != saved[name]:
            raise ValueError(f"{flag(name)} {_shown(getattr(args, name))} contradicts the checkpoint, which has "
                             f"{_shown(saved[name])}")


def _shown(value: Any) -> str:
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
