"""Checks of validate.py before any work: flags that exclude each other, missing packages and files.

Nothing in this file changes an argument.
"""
import argparse
from importlib.util import find_spec
from pathlib import Path

import timm
import torch

from ..cli.checks import check_common, check_model, dataset_kind, flag, warn
from ..data.datasets import check_split
from ..upstream import compile_modes

_COMPILERS = ('torchscript', 'torchcompile', 'aot_autograd')
# Flag -> the flags of which it needs at least one to have an effect.
_NEEDS = {
    'amp_dtype': ('amp',),
    'torchcompile_mode': ('torchcompile',),
    'fuser': ('torchscript', 'aot_autograd'),
    'naflex_max_seq_len': ('naflex_loader',),
    'use_ema': ('checkpoint',),
    'results_format': ('results_file',),
}
# Flag -> the flags that it excludes.
_EXCLUDES = {
    'checkpoint': ('pretrained',),
    'valid_labels': ('real_labels',),
    'naflex_loader': ('crop_pct', 'crop_mode', 'crop_border_pixels', 'img_size', 'input_size', 'use_train_size',
                      'test_pool', 'channels_last', 'tf_preprocessing', 'torchscript', 'aot_autograd'),
    'tf_preprocessing': ('no_prefetcher', 'crop_pct', 'crop_mode', 'crop_border_pixels', 'input_img_mode'),
}


def check_validate(args: argparse.Namespace, explicit: set[str], entries: list[tuple[str, str]]) -> None:
    """Check the resolved arguments of validate.py, and warn of flags without effect. Raises ``ValueError``.

    Args:
        entries: Models and checkpoints that the command line names, see ``list_entries``.
    """
    for name, _ in entries:
        check_model(name)
    check_common(args, explicit)
    _check_combinations(args, explicit)
    _check_merge(args, explicit)
    _check_compilation(args)
    _check_packages(args)
    _check_files(args)
    _check_device(args)
    check_split(args.dataset, args.data_dir, args.split, allow_no_split=True)


def _check_combinations(args: argparse.Namespace, explicit: set[str]) -> None:
    for name, needed in _NEEDS.items():
        if name in explicit and getattr(args, name) and not any(getattr(args, other) for other in needed):
            warn(f"{flag(name)} has no effect without {' or '.join(map(flag, needed))}")
    for name, excluded in _EXCLUDES.items():
        for other in excluded if getattr(args, name) else ():
            if getattr(args, other) not in (None, False, ''):
                raise ValueError(f'{flag(other)} does not go with {flag(name)}')
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise ValueError(f'--amp needs a model in float32; leave out --amp or --model-dtype {args.model_dtype}')
    if args.fast_norm and not timm.layers.fast_norm.has_apex and (not args.amp or args.torchscript):
        warn('--fast-norm has no effect without --amp, nor with --torchscript')
    if args.tf_preprocessing and dataset_kind(args.dataset, args.data_dir) not in ('a folder', 'a tar file'):
        raise ValueError(f'--tf-preprocessing reads the bytes of images in a folder, not {args.dataset}')


def _check_merge(args: argparse.Namespace, explicit: set[str]) -> None:
    for name in ('merge_images', 'merge_data_dir'):
        if name in explicit and args.branch != 'merged':
            warn(f'{flag(name)} has no effect without --branch merged')


def _check_compilation(args: argparse.Namespace) -> None:
    given = [flag(name) for name in _COMPILERS if getattr(args, name)]
    if len(given) > 1:  # a config file can hold what the parser refuses on a command line
        raise ValueError(f"{' and '.join(given)} exclude each other")
    if not args.torchcompile:
        return
    backends = torch.compiler.list_backends(exclude_tags=())
    if args.torchcompile not in backends:
        raise ValueError(f"--torchcompile has no backend '{args.torchcompile}'; this torch has {', '.join(backends)}")
    if args.torchcompile_mode is None:
        return
    if args.torchcompile != 'inductor':
        warn(f'--torchcompile-mode has no effect on the backend {args.torchcompile}')
        return
    modes = compile_modes()
    if args.torchcompile_mode not in modes:
        raise ValueError(f"--torchcompile-mode must be one of {', '.join(modes)}, got '{args.torchcompile_mode}'")


def _check_packages(args: argparse.Namespace) -> None:
    for name, package, install in (
            ('metrics_avg', 'sklearn', 'scikit-learn'), ('tf_preprocessing', 'tensorflow', 'tensorflow-cpu'),
            ('aot_autograd', 'functorch', 'a torch with functorch')):
        if getattr(args, name) and find_spec(package) is None:
            raise ValueError(f'{flag(name)} needs {package}, which is not there: install {install}')


def _check_files(args: argparse.Namespace) -> None:
    for name in ('real_labels', 'valid_labels'):
        path = getattr(args, name)
        if path and not Path(path).is_file():
            raise ValueError(f"there is no file '{path}' ({flag(name)})")
    if args.valid_labels:
        read_valid_labels(args.valid_labels)
    if args.results_file and not Path(args.results_file).resolve().parent.is_dir():
        raise ValueError(f"there is no folder for --results-file '{args.results_file}'")


def read_valid_labels(path: str) -> list[int]:
    """Read class indices, one per line.

    Raises:
        ValueError: A line is not an index, or an index occurs twice.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]
    for line in lines:
        if not line.isdecimal():
            raise ValueError(f"'{path}' must hold one class index per line, not '{line}'")
    labels = [int(line) for line in lines]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"'{path}' holds {'a class index twice' if labels else 'no class index'}")
    return labels


def _check_device(args: argparse.Namespace) -> None:
    if args.num_gpu > 1:
        num_gpus = torch.cuda.device_count() if args.device in ('cuda', 'cuda:0') else 0
        if args.num_gpu > num_gpus:
            raise ValueError(f'--num-gpu {args.num_gpu} needs as many GPUs, --device {args.device} has {num_gpus}')
        # The threads of DataParallel share what one of them compiled, and know no autocast but float16.
        for name in ('torchcompile', 'aot_autograd'):
            if getattr(args, name):
                raise ValueError(f'--num-gpu {args.num_gpu} and {flag(name)} do not go together')
        if args.amp and args.amp_dtype == 'bfloat16':
            raise ValueError(f'--num-gpu {args.num_gpu} and --amp-dtype bfloat16 do not go together; take '
                             '--model-dtype bfloat16')
