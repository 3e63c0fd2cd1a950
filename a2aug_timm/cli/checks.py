"""What a command line must satisfy before any work: ranges, contradictions, the policies, and a resumed run's word."""
import argparse
import difflib
import math
import os
from typing import Any

import timm
import torch
from timm.optim import list_optimizers

from ..datasets import check_dataset
from ..policies import check_policies, parse_policy, sample_policies

# Closed ranges; None is no upper bound.
_RANGES: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys((
        'batch_size', 'validation_batch_size', 'epochs', 'grad_accum_steps', 'log_interval', 'val_interval', 'log_freq',
        'checkpoint_hist', 'num_classes', 'in_chans', 'img_size', 'input_size', 'recount', 'lr_base_size',
        'lr_cycle_limit'), (1, None)),
    **dict.fromkeys((
        'workers', 'start_epoch', 'lr', 'lr_base', 'warmup_lr', 'min_lr', 'weight_decay', 'warmup_epochs', 'clip_grad',
        'mixup', 'cutmix', 'mixup_off_epoch',
        'cooldown_epochs', 'patience_epochs', 'decay_rate', 'color_jitter', 'ratio', 'a2aug_ensemble_weight',
        'a2aug_kl_weight'), (0, None)),
    **dict.fromkeys((
        'smoothing', 'drop', 'drop_path', 'drop_block', 'reprob', 'hflip', 'vflip', 'color_jitter_prob',
        'grayscale_prob', 'gaussian_blur_prob', 'scale', 'momentum', 'model_ema_decay', 'bn_momentum', 'crop_pct',
        'lr_noise', 'cutmix_minmax', 'mixup_prob', 'mixup_switch_prob'), (0, 1)),
    **dict.fromkeys(('lr_cycle_mul', 'decay_epochs', 'opt_eps', 'bn_eps', 'std'), (1e-12, None)),
}
_INTERPOLATIONS = ('', 'bilinear', 'bicubic', 'nearest', 'box', 'hamming', 'lanczos')
_ONE_OF = {
    'amp_dtype': ('float16', 'bfloat16'), 'clip_mode': ('norm', 'value', 'agc'), 'dist_bn': ('broadcast', 'reduce', ''),
    'remode': ('const', 'rand', 'pixel'), 'eval_metric': ('top1', 'top5', 'loss'), 'results_format': ('csv', 'json'),
    'mixup_mode': ('batch', 'pair', 'elem', 'half'),
    'train_crop_mode': (None, 'rrc', 'rkrc', 'rkrr'), 'crop_mode': (None, 'center', 'squash', 'border'),
    'sched': ('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'none'),
    'lr_base_scale': ('', 'linear', 'sqrt'), 'interpolation': _INTERPOLATIONS,
    'train_interpolation': ('random', *_INTERPOLATIONS),
}
_LENGTHS = {'scale': 2, 'ratio': 2, 'opt_betas': 2, 'cutmix_minmax': 2}
# What a checkpoint fixes: another value is another run.
_FIXED_BY_CHECKPOINT = (
    'model', 'num_classes', 'in_chans', 'gp', 'model_kwargs', 'eval_metric', 'a2aug_branches', 'a2aug_policies',
    'a2aug_shared_bn', 'a2aug_ensemble')
# What belongs to one invocation rather than to the run.
NOT_OF_THE_RUN = {
    'data', 'local_rank', 'resume', 'no_resume_opt', 'start_epoch', 'device', 'pretrained', 'pretrained_path',
    'initial_checkpoint'}


def check_common(args: argparse.Namespace, explicit: set[str]) -> None:
    """Values, model, data and device of either script; raises ``ValueError``."""
    args.data_dir = args.data_dir or args.data
    args.data = None
    _check_values(args)
    check_model(args.model)
    check_dataset(args.dataset, args.data_dir)
    try:
        torch.device(args.device)
    except RuntimeError as error:
        raise ValueError(f"there is no device '{args.device}'") from error
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        if 'device' in explicit:
            raise ValueError(f'there is no GPU for --device {args.device}')
        args.device = 'cpu'


def _check_values(args: argparse.Namespace) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(args, name, None)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not least <= one <= (math.inf if most is None else most):
                bounds = f'at least {least:g}' if most is None else f'between {least:g} and {most:g}'
                raise ValueError(f'{flag(name)} must be {bounds}, got {one}')
    for name, choices in _ONE_OF.items():
        value = getattr(args, name, choices[0])
        if value not in choices:
            raise ValueError(f"{flag(name)} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    for name, length in _LENGTHS.items():
        value = getattr(args, name, None)
        if value is not None and len(value) != length:
            raise ValueError(f'{flag(name)} takes {length} values, got {len(value)}')


def check_model(name: str) -> None:
    """Raise ``ValueError`` if timm has no such model, with the nearest name."""
    source, model = timm.models.parse_model_name(name)
    if source == 'local-dir' and not os.path.isfile(os.path.join(model, 'config.json')):
        raise ValueError(f"there is no exported model in '{model}'")
    if source is None and not timm.is_model(model):
        nearest = difflib.get_close_matches(model, timm.list_models(), n=1)
        raise ValueError(f"timm has no model '{name}'" + (f", did you mean '{nearest[0]}'?" if nearest else ''))


def check_train(args: argparse.Namespace, explicit: set[str], defaults: dict[str, Any]) -> None:
    """All that train.py refuses before any work; fills in the policies. Raises ``ValueError``."""
    check_common(args, explicit)
    if args.opt.lower() not in list_optimizers():
        raise ValueError(f"timm has no optimizer '{args.opt}'")
    for name in ('pretrained_path', 'initial_checkpoint'):
        path = getattr(args, name)
        if path and not os.path.exists(path):
            raise ValueError(f"there is no checkpoint '{path}' ({flag(name)})")
    if args.sched == 'plateau' and args.sched_on_updates:
        raise ValueError('--sched plateau steps on epochs; leave --sched-on-updates out')
    if args.sync_bn and args.device == 'cpu':
        raise ValueError('--sync-bn needs a GPU; batch norm cannot be synchronised on the CPU')
    if args.a2aug_branches < 1:
        raise ValueError(f'--a2aug-branches must be at least 1, got {args.a2aug_branches}')
    if args.aa:
        parse_policy(args.aa)
    _check_mixup(args, defaults)
    if args.a2aug_branches == 1:
        _refuse_branch_flags(args, defaults)
    else:
        _check_branch_flags(args, defaults)


def is_mixed(args: argparse.Namespace) -> bool:
    """Whether mixup or cutmix is on."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _check_mixup(args: argparse.Namespace, defaults: dict[str, Any]) -> None:
    if not is_mixed(args):
        for name in ('mixup_prob', 'mixup_switch_prob', 'mixup_mode', 'mixup_off_epoch'):
            if getattr(args, name) != defaults[name]:
                raise ValueError(f'{flag(name)} has no effect without --mixup, --cutmix or --cutmix-minmax')
    elif args.batch_size % 2:
        raise ValueError(f'mixup pairs images: --batch-size must be even, got {args.batch_size}')
    elif args.mixup_mode == 'half' and args.no_prefetcher:
        raise ValueError('--mixup-mode half mixes while collating; leave --no-prefetcher out')


def _refuse_branch_flags(args: argparse.Namespace, defaults: dict[str, Any]) -> None:
    if args.a2aug_policies:
        raise ValueError(f'{len(args.a2aug_policies)} policies need --a2aug-branches {len(args.a2aug_policies)}; '
                         'plain training takes one policy with --aa')
    for name in vars(args):
        if name.startswith('a2aug_') and getattr(args, name) != defaults[name]:
            raise ValueError(f'{flag(name)} needs --a2aug-branches 2 or more')


def _check_branch_flags(args: argparse.Namespace, defaults: dict[str, Any]) -> None:
    for name, instead in (('aa', 'give one policy a branch with --a2aug-policies'),
                          ('no_aug', 'train with --a2aug-branches 1'),
                          ('color_jitter', 'policies replace it, as --aa does'),
                          ('color_jitter_prob', 'policies replace it, as --aa does')):
        is_3_augment = name.startswith('color') and any('3a' in policy for policy in args.a2aug_policies or ())
        if getattr(args, name) != defaults[name] and not is_3_augment:
            raise ValueError(f'{flag(name)} contradicts --a2aug-branches {args.a2aug_branches}; {instead}')
    if args.a2aug_no_logit_norm and args.a2aug_logit_scale != defaults['a2aug_logit_scale']:
        raise ValueError('--a2aug-logit-scale has no effect with --a2aug-no-logit-norm')
    if args.a2aug_ensemble == 'average' and args.a2aug_ensemble_weight != defaults['a2aug_ensemble_weight']:
        raise ValueError('--a2aug-ensemble-weight has no effect with --a2aug-ensemble average, which has nothing to '
                         'learn')
    if args.dataset.split('/')[0].lower() in ('wds', 'tfds', 'hfids'):
        raise ValueError(f"--dataset {args.dataset} is read as a stream, which branches cannot use; use a folder, a "
                         'torch/ or an hfds/ data set')
    args.a2aug_policies = _resolve_policies(args, defaults)


def _resolve_policies(args: argparse.Namespace, defaults: dict[str, Any]) -> list[str]:
    # The seed that sampled them stays with the policies, so that args.yaml can be given as a config file.
    seed = args.seed if args.a2aug_seed is None else args.a2aug_seed
    policies = args.a2aug_policies
    if policies is None:
        args.a2aug_seed = seed
        return sample_policies(args.a2aug_branches, seed, args.a2aug_num_layers, args.a2aug_magnitudes)
    if len(policies) != args.a2aug_branches:
        raise ValueError(f'--a2aug-branches {args.a2aug_branches} needs as many policies, got {len(policies)}')
    check_policies(policies)
    for name in ('a2aug_seed', 'a2aug_num_layers', 'a2aug_magnitudes'):
        if getattr(args, name) != defaults[name] and policies != sample_policies(
                args.a2aug_branches, seed, args.a2aug_num_layers, args.a2aug_magnitudes):
            raise ValueError(f'{flag(name)} samples policies, but --a2aug-policies names them')
    return policies


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
    for name, value in saved.items():
        if name not in explicit and name not in NOT_OF_THE_RUN and hasattr(args, name):
            setattr(args, name, value)
    if saved['lr_base_scale'] and 'lr' not in explicit:
        args.lr = None  # it was computed from --lr-base, and is again
    samples = explicit & {'a2aug_seed', 'a2aug_num_layers', 'a2aug_magnitudes'} and 'a2aug_policies' not in explicit
    if samples and saved['a2aug_policies']:
        seed = args.seed if args.a2aug_seed is None else args.a2aug_seed
        policies = sample_policies(args.a2aug_branches, seed, args.a2aug_num_layers, args.a2aug_magnitudes)
        if policies != saved['a2aug_policies']:
            raise ValueError(f"the search space flags sample {_shown(policies)}, which contradicts the checkpoint's "
                             f"{_shown(saved['a2aug_policies'])}")


def _check_fixed(args: argparse.Namespace, explicit: set[str], saved: dict[str, Any]) -> None:
    for name in _FIXED_BY_CHECKPOINT:
        if name in explicit and name in saved and getattr(args, name) != saved[name]:
            raise ValueError(f"{flag(name)} {_shown(getattr(args, name))} contradicts the checkpoint, which has "
                             f"{_shown(saved[name])}")


def flag(name: str) -> str:
    """Name of an argument as a user writes it."""
    return '--' + name.replace('_', '-')


def _shown(value: Any) -> str:
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
