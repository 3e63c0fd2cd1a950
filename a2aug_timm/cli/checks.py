"""What the command line of either script must satisfy before any work: values, model, data, device."""
import argparse
import difflib
import math
import os

import timm
import torch
from PIL import Image

from ..data.datasets import check_dataset, prefix_of

# Closed ranges; None is no upper bound.
_RANGES: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys((
        'batch_size', 'validation_batch_size', 'epochs', 'grad_accum_steps', 'log_interval', 'val_interval', 'log_freq',
        'checkpoint_hist', 'train_img_sizes', 'train_batch_sizes', 'train_batches_per_epoch', 'kd_student_feature_dim',
        'kd_teacher_feature_dim', 'train_num_samples', 'val_num_samples', 'num_classes', 'in_chans', 'img_size',
        'input_size', 'recount', 'lr_base_size', 'lr_cycle_limit', 'a2aug_branch_sizes'), (1, None)),
    **dict.fromkeys((
        'workers', 'start_epoch', 'lr', 'lr_base', 'warmup_lr', 'min_lr', 'weight_decay', 'warmup_epochs', 'clip_grad',
        'mixup', 'cutmix', 'mixup_off_epoch', 'recovery_interval', 'cutout', 'crop_padding',
        'aug_repeats', 'aug_splits', 'tta', 'epoch_repeats',
        'train_size_probs', 'train_size_schedule_spread', 'layer_decay_min_scale', 'bce_pos_weight',
        'cooldown_epochs', 'patience_epochs', 'decay_rate', 'color_jitter', 'a2aug_ensemble_weight',
        'a2aug_kl_weight', 'a2aug_mu_lr_scale'), (0, None)),
    **dict.fromkeys((
        'smoothing', 'drop', 'drop_path', 'drop_block', 'reprob', 'hflip', 'vflip', 'color_jitter_prob',
        'grayscale_prob', 'gaussian_blur_prob', 'scale', 'momentum', 'model_ema_decay', 'bn_momentum',
        'lr_noise', 'cutmix_minmax', 'train_size_random_mix', 'bce_target_thresh', 'drop_connect',
        'mixup_prob', 'mixup_switch_prob'), (0, 1)),
    **dict.fromkeys((
        'lr_cycle_mul', 'decay_epochs', 'opt_eps', 'bn_eps', 'std', 'layer_decay', 'kd_temperature', 'ratio'),
        (1e-12, None)),
    'crop_pct': (1e-12, 1),
}
_INTERPOLATIONS = ('', 'bilinear', 'bicubic', 'nearest', 'box', 'hamming', 'lanczos')
_ONE_OF = {
    'amp_dtype': ('float16', 'bfloat16'), 'clip_mode': ('norm', 'value', 'agc'), 'dist_bn': ('broadcast', 'reduce', ''),
    'remode': ('const', 'rand', 'pixel'), 'eval_metric': ('top1', 'top5', 'loss'), 'results_format': ('csv', 'json'),
    'model_dtype': (None, 'float32', 'float16', 'bfloat16'), 'fuser': ('', 'te', 'old', 'legacy', 'nvfuser', 'nvf'),
    'worker_seeding': ('all', 'part'), 'input_img_mode': (None, *Image.MODES), 'kd_loss_type': ('kl',),
    'mixup_mode': ('batch', 'pair', 'elem', 'half'),
    'train_crop_mode': (None, 'rrc', 'rkrc', 'rkrr', 'pad'), 'crop_mode': (None, 'center', 'squash', 'border'),
    'sched': (
        'cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'constant', 'none'),
    'lr_base_scale': ('', 'linear', 'sqrt'), 'interpolation': _INTERPOLATIONS,
    'train_interpolation': ('random', *_INTERPOLATIONS),
}
# Adan has three betas.
_LENGTHS = {'scale': (2,), 'ratio': (2,), 'opt_betas': (2, 3), 'cutmix_minmax': (2,)}


def check_common(args: argparse.Namespace, explicit: set[str]) -> None:
    """Values, model, data and device of either script; raises ``ValueError``."""
    args.data_dir = args.data_dir or args.data
    args.data = None
    _check_values(args)
    check_model(args.model)
    check_dataset(args.dataset, args.data_dir, args.dataset_download)
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
                raise ValueError(f'{flag(name)} must be {_in_words(least, most)}, got {one}')
    for name, choices in _ONE_OF.items():
        value = getattr(args, name, choices[0])
        if value not in choices:
            raise ValueError(f"{flag(name)} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    for name, lengths in _LENGTHS.items():
        value = getattr(args, name, None)
        if value is not None and len(value) not in lengths:
            raise ValueError(f'{flag(name)} takes {" or ".join(map(str, lengths))} values, got {len(value)}')


def _in_words(least: float, most: float | None) -> str:
    """A range of ``_RANGES``, where a bound of almost 0 leaves 0 out."""
    is_open = 0 < least < 1
    if most is not None and not is_open:
        return f'between {least:g} and {most:g}'
    lower = 'above 0' if is_open else f'at least {least:g}'
    return lower if most is None else f'{lower} and at most {most:g}'


def check_model(name: str) -> None:
    """Raise ``ValueError`` if timm has no such model, with the nearest name."""
    source, model = timm.models.parse_model_name(name)
    if source == 'local-dir' and not os.path.isfile(os.path.join(model, 'config.json')):
        raise ValueError(f"there is no exported model in '{model}'")
    if source is None and not timm.is_model(model):
        nearest = difflib.get_close_matches(model, timm.list_models(), n=1)
        raise ValueError(f"timm has no model '{name}'" + (f", did you mean '{nearest[0]}'?" if nearest else ''))


def flag(name: str) -> str:
    """Name of an argument as a user writes it."""
    return '--' + name.replace('_', '-')


_EVERYWHERE = {'class_map', 'input_key', 'target_key'}
_NUM_SAMPLES = {'num_samples', 'train_num_samples', 'val_num_samples'}
_USED_BY = {
    'a folder': {'class_map', 'input_key'},
    'a tar file': {'class_map'},
    'sklearn/digits': set(),
    'torch/': {'dataset_download'},
    'hfds/': {*_EVERYWHERE, 'dataset_trust_remote_code'},
    'hfids/': {*_EVERYWHERE, 'dataset_trust_remote_code', 'dataset_download', 'epoch_repeats', *_NUM_SAMPLES},
    'tfds/': {*_EVERYWHERE, 'dataset_download', 'epoch_repeats'},
    'wds/': {*_EVERYWHERE, 'epoch_repeats', *_NUM_SAMPLES},
}
# torchvision's readers that load nothing: ImageFolder, and ImageNet, which its license keeps behind a login.
_WITHOUT_DOWNLOAD = ('torch/image_folder', 'torch/folder', 'torch/imagenet')


def check_dataset_flags(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for a flag that the kind of data set could not use."""
    kind = dataset_kind(args.dataset, args.data_dir)
    for name in sorted(set().union(*_USED_BY.values())):
        is_used = name in _USED_BY[kind] and not (
            name == 'dataset_download' and args.dataset.lower() in _WITHOUT_DOWNLOAD)
        if getattr(args, name, None) and not is_used:
            users = ', '.join(kind for kind, names in _USED_BY.items() if name in names)
            raise ValueError(f"--{name.replace('_', '-')} has no effect on {args.dataset or kind}; it is for {users}")


def dataset_kind(name: str, root: str | None) -> str:
    """What timm would read: ``a folder``, ``a tar file``, or the prefix of the data set's name."""
    prefix = f'{prefix_of(name)}/'
    if name == 'sklearn/digits' or prefix in _USED_BY:
        return name if name == 'sklearn/digits' else prefix
    return 'a tar file' if root and root.endswith('.tar') else 'a folder'
