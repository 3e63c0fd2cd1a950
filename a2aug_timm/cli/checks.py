"""Checks of the flags that train.py and validate.py share: model, data set, device, and flags without effect.

Ranges and choices are the flags' own types, so they are not checked here. Nothing in this file changes an argument.
"""
import argparse
import difflib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence

import timm
import torch
from timm.utils.distributed import world_info_from_env

from ..data.datasets import check_dataset, prefix_of

_logger = logging.getLogger(__name__)

# Flags of the data, and the kinds of data set that use them. A label or image field that is ignored would train on
# other data than the user asked for; the other flags only have no effect.
_FIELDS = {'class_map', 'input_key', 'target_key'}
_NUM_SAMPLES = {'num_samples', 'train_num_samples', 'val_num_samples'}
_USED_BY: dict[str, set[str]] = {
    'a folder': {'class_map', 'input_key'},
    'a tar file': {'class_map'},
    'sklearn/digits': set(),
    'torch/': {'dataset_download'},
    'hfds/': {*_FIELDS, 'dataset_trust_remote_code'},
    'hfids/': {*_FIELDS, 'dataset_trust_remote_code', 'dataset_download', 'epoch_repeats', *_NUM_SAMPLES},
    'tfds/': {*_FIELDS, 'dataset_download', 'epoch_repeats'},
    'wds/': {*_FIELDS, 'epoch_repeats', *_NUM_SAMPLES},
}
# torchvision's readers that download nothing: ImageFolder, and ImageNet, whose license requires a login.
_WITHOUT_DOWNLOAD = ('torch/image_folder', 'torch/folder', 'torch/imagenet')


def flag(name: str) -> str:
    """Name of an argument as a user writes it."""
    return '--' + name.replace('_', '-')


def warn(message: str) -> None:
    """Log a warning on the first rank alone."""
    if world_info_from_env()[1] == 0:
        _logger.warning(message)


def warn_without(changed: Iterable[str], needs: Mapping[str, Sequence[str]]) -> None:
    """Warn of each flag that has no effect because the flag that it belongs to is not given.

    Args:
        changed: Names of the arguments that differ from their defaults.
        needs: Argument -> the arguments that have no effect without it.
    """
    changed = set(changed)
    for needed, names in needs.items():
        for name in names:
            if name in changed and needed not in changed:
                warn(f'{flag(name)} has no effect without {flag(needed)}')


def check_common(args: argparse.Namespace, explicit: set[str]) -> None:
    """Check data set and device. Raises ``ValueError``."""
    check_dataset(args.dataset, args.data_dir, args.dataset_download)
    check_dataset_flags(args)
    check_device(args.device)
    warn_of_emulation(args)


def check_device(name: str) -> None:
    """Raise ``ValueError`` if torch has no such device."""
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no device '{name}'") from error
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'there is no GPU for --device {name}')


def warn_of_emulation(args: argparse.Namespace) -> None:
    """Warn that mixed precision on this CPU is emulated, which makes it slower than float32."""
    capability = torch.backends.cpu.get_cpu_capability()
    if args.amp and args.device == 'cpu' and capability in ('DEFAULT', 'NO AVX', 'AVX2'):
        warn(f'--amp is emulated on this processor ({capability}) and several times slower than float32; leave it out')


def check_model(name: str) -> None:
    """Raise ``ValueError`` if timm has no such model, with the nearest name."""
    source, model = timm.models.parse_model_name(name)
    if source == 'local-dir' and not os.path.isfile(os.path.join(model, 'config.json')):
        raise ValueError(f"there is no exported model in '{model}'")
    if source is None and not timm.is_model(model):
        nearest = difflib.get_close_matches(model, timm.list_models(), n=1)
        raise ValueError(f"timm has no model '{name}'" + (f", did you mean '{nearest[0]}'?" if nearest else ''))


def check_dataset_flags(args: argparse.Namespace) -> None:
    """Check that the kind of data set uses the flags that are given.

    Raises:
        ValueError: A flag of labels or image fields would be ignored.
    """
    kind = dataset_kind(args.dataset, args.data_dir)
    for name in sorted(set().union(*_USED_BY.values())):
        is_used = name in _USED_BY[kind] and not (
            name == 'dataset_download' and args.dataset.lower() in _WITHOUT_DOWNLOAD)
        if getattr(args, name, None) and not is_used:
            users = ', '.join(kind for kind, names in _USED_BY.items() if name in names)
            message = f'{flag(name)} has no effect on {args.dataset or kind}; it is for {users}'
            if name in _FIELDS:
                raise ValueError(message)
            warn(message)


def dataset_kind(name: str, root: str | None) -> str:
    """Kind of data set that timm would read: ``a folder``, ``a tar file``, or the prefix of the data set's name."""
    prefix = f'{prefix_of(name)}/'
    if name == 'sklearn/digits' or prefix in _USED_BY:
        return name if name == 'sklearn/digits' else prefix
    return 'a tar file' if root and root.endswith('.tar') else 'a folder'
