"""Checks of a training run before any work: contradictions, flags without effect, packages and files that are missing.

Nothing in this file changes an argument.
"""
import argparse
import importlib.util
import os

from timm.optim import list_optimizers
from timm.utils.distributed import is_distributed_env

from ..cli.checks import check_common, check_model, dataset_kind, flag, warn, warn_without
from ..data.policies import is_known_to_timm
from .branch_checks import check_branch_flags, refuse_branch_flags
from .resolve import num_images_of

# Flag -> the flags that have no effect without it.
_NEEDED = {
    'bce_loss': ('bce_sum', 'bce_target_thresh', 'bce_pos_weight'),
    'train_img_sizes': (
        'train_batch_sizes', 'train_size_probs', 'train_size_schedule', 'train_size_schedule_spread',
        'train_size_random_mix', 'train_batches_per_epoch', 'variable_batch_loss_scale'),
    'naflex_loader': (
        'naflex_train_seq_lens', 'naflex_max_seq_len', 'naflex_patch_sizes', 'naflex_patch_size_probs',
        'naflex_loss_scale', 'naflex_patchify_channels_first'),
    'kd_model_name': (
        'kd_distill_type', 'kd_loss_type', 'distill_loss_weight', 'task_loss_weight', 'kd_temperature',
        'kd_student_feature_dim', 'kd_teacher_feature_dim', 'kd_token_distill_type'),
    'layer_decay': ('layer_decay_min_scale', 'layer_decay_no_opt_scale'),
    'torchcompile': ('torchcompile_mode',),
    'log_wandb': ('wandb_project', 'wandb_tags', 'wandb_resume_id'),
    'reprob': ('resplit', 'remode', 'recount'),
    'amp': ('amp_dtype',),
    'model_ema': ('model_ema_force_cpu', 'model_ema_decay', 'model_ema_warmup'),
    'clip_grad': ('clip_mode',),
    'lr_noise': ('lr_noise_pct', 'lr_noise_std'),
}
_MIXING = ('mixup_prob', 'mixup_switch_prob', 'mixup_mode', 'mixup_off_epoch')
# Pairs that exclude each other.
_EXCLUSIVE = (
    ('torchscript', 'torchcompile'), ('torchscript', 'kd_model_name'),
    ('torchscript', 'sync_bn'), ('split_bn', 'sync_bn'), ('aug_splits', 'no_aug'),
    ('naflex_loader', 'train_img_sizes'), ('naflex_loader', 'use_multi_epochs_loader'), ('naflex_loader', 'aug_splits'),
    ('train_img_sizes', 'use_multi_epochs_loader'), ('train_img_sizes', 'aug_splits'), ('resplit', 'no_prefetcher'),
    ('jsd_loss', 'bce_loss'), ('naflex_loader', 'torchscript'),
    ('naflex_loader', 'train_crop_mode'), ('naflex_loader', 'cutout'), ('cutout', 'no_aug'), ('cutout', 'aug_splits'),
    ('naflex_loader', 'save_images'), ('naflex_loader', 'cutmix_minmax'), ('naflex_loader', 'mixup_mode'),
    ('naflex_loader', 'aug_repeats'), ('naflex_loader', 'channels_last'), ('naflex_loader', 'resplit'))


def check_train(args: argparse.Namespace, explicit: set[str], changed: set[str]) -> None:
    """Check the resolved arguments of a run, and warn of flags without effect. Raises ``ValueError``.

    Args:
        explicit: Names of the arguments that the command line or the config file set.
        changed: Names of those that differ from their defaults.
    """
    check_model(args.model)
    check_common(args, explicit)
    _check_optimizer(args)
    _check_files(args)
    _check_policy(args, changed)
    if args.a2aug_branches > 1:
        check_branch_flags(args, changed)
    else:
        refuse_branch_flags(args, changed)
    _check_together(args, changed)
    _check_crop(args, changed)
    _check_mixup(args, changed)
    _check_loading(args, changed)
    warn_without(changed, _NEEDED)


def is_mixed(args: argparse.Namespace) -> bool:
    """Whether mixup or cutmix is on."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def _check_optimizer(args: argparse.Namespace) -> None:
    if args.opt.lower().removeprefix('lookahead_') not in list_optimizers():
        raise ValueError(f"timm has no optimizer '{args.opt}'")
    if args.opt_betas is not None and len(args.opt_betas) not in (2, 3):  # Adan has three
        raise ValueError(f'--opt-betas takes 2 or 3 values, got {len(args.opt_betas)}')
    if args.sched == 'plateau' and args.sched_on_updates:
        raise ValueError('--sched plateau steps on epochs; leave --sched-on-updates out')
    if args.decay_milestones != sorted(args.decay_milestones):
        raise ValueError(f'--decay-milestones must ascend, got {args.decay_milestones}')
    if args.sync_bn and args.device == 'cpu':
        raise ValueError('--sync-bn needs a GPU; batch norm cannot be synchronised on the CPU')


def _check_files(args: argparse.Namespace) -> None:
    for name in ('pretrained_path', 'initial_checkpoint'):
        path = getattr(args, name)
        if path and not os.path.exists(path):
            raise ValueError(f"there is no checkpoint '{path}' ({flag(name)})")
    if args.log_wandb and importlib.util.find_spec('wandb') is None:
        raise ValueError('--log-wandb needs wandb: pip install wandb')
    if args.kd_model_name:
        check_model(args.kd_model_name)


def _check_policy(args: argparse.Namespace, changed: set[str]) -> None:
    if args.aa and not is_known_to_timm(args.aa):
        for name in ('naflex_loader', 'aug_splits', 'no_aug'):
            if name in changed:
                raise ValueError(f"--aa {args.aa} is not one of timm's policies, which {flag(name)} needs")


def _check_together(args: argparse.Namespace, changed: set[str]) -> None:
    for pair in _EXCLUSIVE:
        if changed.issuperset(pair):
            raise ValueError(f'{flag(pair[0])} and {flag(pair[1])} do not go together; leave one of them out')
    if args.aug_splits == 1:
        raise ValueError('--aug-splits 1 splits nothing; give 2 or more')
    if args.jsd_loss and not args.aug_splits:
        raise ValueError('--jsd-loss compares the splits of a batch; add --aug-splits')
    if args.split_bn and not (args.aug_splits or args.resplit):
        raise ValueError('--split-bn needs a batch that is split, by --aug-splits or --resplit')
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise ValueError(f'--amp needs float32 weights; leave --model-dtype {args.model_dtype} out')
    if args.wandb_resume_id and not args.resume:
        raise ValueError('--wandb-resume-id continues a wandb run; give the checkpoint of the run with --resume')


def _check_crop(args: argparse.Namespace, changed: set[str]) -> None:
    if args.train_crop_mode != 'pad':
        if 'crop_padding' in changed:
            warn('--crop-padding has no effect without --train-crop-mode pad')
        return
    if args.no_aug:
        raise ValueError('--no-aug and --train-crop-mode pad do not go together; leave one of them out')
    for name in ('scale', 'ratio'):
        if name in changed:
            warn(f'{flag(name)} has no effect with --train-crop-mode pad')


def _check_mixup(args: argparse.Namespace, changed: set[str]) -> None:
    if not is_mixed(args):
        for name in _MIXING:
            if name in changed:
                warn(f'{flag(name)} has no effect without --mixup, --cutmix or --cutmix-minmax')
        return
    for size in args.train_batch_sizes or [args.batch_size]:
        if num_images_of(args, size) % 2:
            raise ValueError(f'mixup pairs images: a batch must hold an even number, got {num_images_of(args, size)}')
    if args.mixup_mode == 'half' and args.no_prefetcher:
        raise ValueError('--mixup-mode half mixes while collating; leave --no-prefetcher out')
    if args.jsd_loss:
        raise ValueError('--jsd-loss takes class indices; leave mixup and cutmix out')
    if args.aug_splits and not args.no_prefetcher:
        raise ValueError('mixup of --aug-splits needs --no-prefetcher')


def _check_loading(args: argparse.Namespace, changed: set[str]) -> None:
    is_stream = dataset_kind(args.dataset, args.data_dir) in ('wds/', 'tfds/', 'hfids/')
    for name in ('holdout', 'train_subset', 'train_img_sizes', 'naflex_loader'):
        if is_stream and getattr(args, name):
            raise ValueError(f'{flag(name)} needs images in any order, which --dataset {args.dataset} does not give')
    sizes = args.train_img_sizes or ()
    for name in ('train_batch_sizes', 'train_size_probs'):
        if sizes and name in changed and len(getattr(args, name)) != len(sizes):
            raise ValueError(f'{flag(name)} takes a value for each of the {len(sizes)} --train-img-sizes, got '
                             f'{len(getattr(args, name))}')
    if args.naflex_patch_size_probs and len(args.naflex_patch_size_probs) != len(args.naflex_patch_sizes or ()):
        raise ValueError('--naflex-patch-size-probs takes a value for each of --naflex-patch-sizes')
    if args.aug_repeats and (is_stream or not is_distributed_env()):
        raise ValueError('--aug-repeats spreads the draws of an image over several processes; start them with '
                         'distributed_train.sh, on a data set that is no stream')
    if args.tta > 1:
        raise ValueError("--tta averages the outputs of repeated images, and timm's loaders repeat none; leave it out")
