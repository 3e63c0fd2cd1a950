"""Decisions of a training run: every value that the command line leaves open is decided here, once."""
import argparse
from typing import Any

from ..cli.checks import flag
from ..cli.resolve import import_device_modules, replaced, resolve_common
from ..data.policies import SPACES, sample_beside
from ..engine.record import has_record
from .resume import adopt_run

# timm's length of the final decay of these schedules, a share of all epochs.
_DECAY_SHARE = {'wsd': 0.2, 'rsqrt': 0.2}


def resolve(
        args: argparse.Namespace,
        explicit: set[str],
        checkpoint: dict[str, Any] | None = None,
) -> argparse.Namespace:
    """Complete the arguments of a run; the given arguments stay as they are.

    Args:
        args: Arguments as parsed.
        explicit: Names of those that the command line or the config file set.
        checkpoint: Checkpoint of the run to resume.

    Raises:
        ValueError: Two names of one flag, too few policies in the search space, or an unknown device module.
    """
    import_device_modules(args.device_modules)
    if checkpoint is not None:
        args = adopt_run(args, explicit, checkpoint)
    args = resolve_common(args, explicit)
    if args.drop_connect is not None and args.drop_path is not None:
        raise ValueError('--drop-connect is the old name of --drop-path; leave it out')
    args = replaced(
        args,
        aa=None if args.aa == 'none' and args.a2aug_branches == 1 else args.aa,
        drop_path=args.drop_path if args.drop_connect is None else args.drop_connect,
        drop_connect=None,
        decay_epochs=_decay_epochs(args, explicit, is_resumed=checkpoint is not None and has_record(checkpoint)),
        eval_metric=args.eval_metric if args.val_split or args.holdout is not None else 'loss',
        img_size=_img_size(args))
    return _with_policies(args, explicit) if args.a2aug_branches > 1 else args


def resolve_lr(args: argparse.Namespace, batch_size: float, num_processes: int) -> argparse.Namespace:
    """Decide the learning rate: the given one, or ``--lr-base`` scaled with the images of an update.

    Args:
        batch_size: Mean number of images per batch and process.
        num_processes: Number of processes.
    """
    if args.lr:
        return replaced(args, is_lr_computed=False)
    num_views = args.a2aug_views if args.a2aug_batch == 'views' else 1  # counted as --batch-size is
    ratio = batch_size * num_views * num_processes * args.grad_accum_steps / args.lr_base_size
    scale = args.lr_base_scale
    if not scale:
        scale = 'sqrt' if any(name in args.opt.lower() for name in ('ada', 'lamb')) else 'linear'
    lr = args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)
    return replaced(args, lr=lr, lr_base_scale=scale, is_lr_computed=True)


def _decay_epochs(args: argparse.Namespace, explicit: set[str], is_resumed: bool) -> float:
    is_given = 'decay_epochs' in explicit or (is_resumed and 'sched' not in explicit)
    return args.decay_epochs if is_given else _DECAY_SHARE.get(args.sched, args.decay_epochs)


def num_images_of(args: argparse.Namespace, batch_size: int) -> int:
    """Images per batch of a size that ``--a2aug-batch`` counts in images or views."""
    return batch_size // args.a2aug_views if args.a2aug_batch == 'views' else batch_size


def _img_size(args: argparse.Namespace) -> int | None:
    """Images are loaded at the largest size of the branches and resized to the others."""
    if args.a2aug_branch_sizes and not args.input_size and args.img_size is None:
        return max(args.a2aug_branch_sizes)
    return args.img_size


def _with_policies(args: argparse.Namespace, explicit: set[str]) -> argparse.Namespace:
    """Decide the policies of the branches and the number of views per step.

    ``--aa`` is the policy of branch 0, the anchor. The others are named, or sampled from the search space.
    """
    args = replaced(args, a2aug_views=args.a2aug_branches if args.a2aug_views is None else args.a2aug_views)
    if args.a2aug_space is not None:
        num_layers, magnitudes = map(list, SPACES[args.a2aug_space])
        for name, values in (('a2aug_num_layers', num_layers), ('a2aug_magnitudes', magnitudes)):
            if name in explicit and getattr(args, name) != values:
                raise ValueError(f'{flag(name)} contradicts --a2aug-space {args.a2aug_space}; leave one of them out')
        args = replaced(args, a2aug_num_layers=num_layers, a2aug_magnitudes=magnitudes)
    if args.a2aug_policies is not None:
        is_short = args.aa is not None and len(args.a2aug_policies) == args.a2aug_branches - 1
        return replaced(args, a2aug_policies=[args.aa, *args.a2aug_policies]) if is_short else args
    # The seed stays with the policies, so that args.yaml is a valid config file.
    seed = args.seed if args.a2aug_seed is None else args.a2aug_seed
    policies = sample_beside(args.aa, args.a2aug_branches, seed, args.a2aug_num_layers, args.a2aug_magnitudes)
    return replaced(args, a2aug_seed=seed, a2aug_policies=policies)
