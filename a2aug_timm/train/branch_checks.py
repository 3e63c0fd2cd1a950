"""Checks of the flags of A²-Aug: contradictions, flags that branches refuse, policies.

Nothing in this file changes an argument.
"""
import argparse
import importlib.util

from ..cli.checks import dataset_kind, flag, warn
from ..data.policies import check_policies, is_known_to_timm, sample_beside
from .arguments.with_branches import REFUSED

# Pairs that exclude each other, and why.
_EXCLUSIVE = {
    ('a2aug_shared_bn', 'a2aug_norm'): 'shared batch norm leaves the branches nothing of their own',
    ('a2aug_independent', 'a2aug_norm'): 'separate networks share no norm of any kind',
    ('a2aug_independent', 'a2aug_shared_bn'): 'separate networks share no batch norm',
    ('a2aug_ensemble_weight', 'a2aug_ensemble'): 'an average ensemble has nothing to learn',
    ('a2aug_mu_lr_scale', 'a2aug_ensemble'): 'an average ensemble has nothing to learn',
    ('a2aug_logit_scale', 'a2aug_no_logit_norm'): 'logits that are not normalised have no scale',
    ('a2aug_branch_sizes', 'train_img_sizes'): 'each branch has one size',
    ('a2aug_branch_sizes', 'a2aug_shared_bn'): 'shared batch norm takes its statistics over all views together',
    ('a2aug_sequential', 'a2aug_shared_bn'): 'shared batch norm takes its statistics over all views together',
}


def refuse_branch_flags(args: argparse.Namespace, changed: set[str]) -> None:
    """Refuse the flags of branches in plain training. Raises ``ValueError``."""
    if args.a2aug_policies:
        raise ValueError(f'{len(args.a2aug_policies)} policies need --a2aug-branches {len(args.a2aug_policies)}; '
                         'plain training takes one policy with --aa')
    for name in sorted(changed):
        if name.startswith('a2aug_'):
            raise ValueError(f'{flag(name)} needs --a2aug-branches 2 or more')


def check_branch_flags(args: argparse.Namespace, changed: set[str]) -> None:
    """Check the flags of a run with two branches or more. Raises ``ValueError``."""
    for name, instead in REFUSED.items():
        is_used = name.startswith('color') and (
            args.aa is not None and is_known_to_timm(args.aa) or any('3a' in policy for policy in args.a2aug_policies))
        if name in changed and not is_used:
            raise ValueError(f'{flag(name)} contradicts --a2aug-branches {args.a2aug_branches}; {instead}')
    for pair, reason in _EXCLUSIVE.items():
        if changed.issuperset(pair):
            raise ValueError(f'{flag(pair[0])} and {flag(pair[1])} do not go together: {reason}')
    if args.torchcompile == 'eager' and (args.a2aug_sequential or args.grad_checkpointing):
        raise ValueError('--torchcompile eager cannot compute activations again; use aot_eager or inductor')
    if args.a2aug_op_backend == 'opencv' and importlib.util.find_spec('cv2') is None:
        raise ValueError('--a2aug-op-backend opencv needs OpenCV: pip install opencv-python-headless')
    _check_branch_sizes(args)
    _check_policies(args, changed)
    _check_views(args, changed)


def _check_branch_sizes(args: argparse.Namespace) -> None:
    sizes = args.a2aug_branch_sizes
    if sizes is None:
        return
    if len(sizes) != args.a2aug_branches:
        raise ValueError(f'--a2aug-branch-sizes takes a size for each of {args.a2aug_branches} branches, got '
                         f'{len(sizes)}')
    images = args.input_size[1:] if args.input_size else [args.img_size]
    if set(images) != {max(sizes)}:
        raise ValueError(f'--a2aug-branch-sizes needs images of {max(sizes)} pixels, the largest of the sizes, but '
                         f'images have {"x".join(map(str, images))}; leave the image size out')


def _check_policies(args: argparse.Namespace, changed: set[str]) -> None:
    policies = args.a2aug_policies
    if len(policies) != args.a2aug_branches:
        raise ValueError(f'--a2aug-branches {args.a2aug_branches} needs as many policies, got {len(policies)}')
    if args.aa is not None and policies[0] != args.aa:
        raise ValueError(f'--aa {args.aa} is the policy of branch 0, but --a2aug-policies begins with {policies[0]}')
    sizes = args.a2aug_branch_sizes or [None] * len(policies)
    for size in set(sizes):  # branches of two sizes may share a policy
        check_policies([policy for policy, own in zip(policies, sizes, strict=True) if own == size])
    seed = args.seed if args.a2aug_seed is None else args.a2aug_seed
    for name in ('a2aug_seed', 'a2aug_space', 'a2aug_num_layers', 'a2aug_magnitudes'):
        if name in changed and policies != sample_beside(
                args.aa, args.a2aug_branches, seed, args.a2aug_num_layers, args.a2aug_magnitudes):
            raise ValueError(f'{flag(name)} samples policies, but --a2aug-policies names them')


def _check_views(args: argparse.Namespace, changed: set[str]) -> None:
    num_views, num_branches = args.a2aug_views, args.a2aug_branches
    if num_views > num_branches:
        raise ValueError(f'--a2aug-views {num_views} is more than the {num_branches} branches')
    if args.a2aug_anchor_share is not None and num_views == num_branches:
        raise ValueError('--a2aug-anchor-share needs --a2aug-views below the number of branches; every step trains all')
    if num_views < num_branches and args.resplit:
        raise ValueError('--resplit spares the first view from erasing, but --a2aug-views changes that view per step')
    if num_views < num_branches and dataset_kind(args.dataset, args.data_dir) in ('wds/', 'tfds/', 'hfids/'):
        raise ValueError(f'--a2aug-views {num_views} needs images in any order, which --dataset {args.dataset} does '
                         'not give')
    if args.a2aug_start_epoch >= args.epochs:
        raise ValueError(f'--a2aug-start-epoch {args.a2aug_start_epoch} is not before the end, --epochs {args.epochs}; '
                         'no branch but the first would be trained')
    if args.a2aug_batch == 'views' and min(args.train_batch_sizes or [args.batch_size]) < num_views:
        raise ValueError(f'--batch-size {args.batch_size} of views holds no image in {num_views} views')
    if num_views == 1:
        for name in ('a2aug_kl_weight', 'a2aug_ensemble_weight', 'a2aug_no_logit_norm', 'a2aug_logit_scale',
                     'a2aug_ensemble', 'a2aug_mu_lr_scale', 'a2aug_sequential'):
            if name in changed:
                warn(f'{flag(name)} has no effect with --a2aug-views 1, which trains with the cross-entropy alone')
