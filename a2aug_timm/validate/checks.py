"""What validate.py refuses before any work: ranges, missing packages and files, flags that exclude each other."""
import argparse
from importlib.util import find_spec
from pathlib import Path

import timm
import torch

from ..cli.checks import check_common, check_dataset_flags, check_model, dataset_kind, flag
from ..data.datasets import check_split

_AT_LEAST = {'num_gpu': 1, 'num_samples': 1, 'naflex_max_seq_len': 1, 'crop_border_pixels': 0}
_ONE_OF = {
    'model_dtype': (None, 'float32', 'float16', 'bfloat16'),
    # nvfuser, which timm names too, has left TorchScript before the oldest torch that is supported.
    'fuser': ('', 'te', 'old', 'legacy'),
}
_COMPILERS = ('torchscript', 'torchcompile', 'aot_autograd')
# A flag, what it needs at least one of, where it would else be ignored.
_NEEDS = {
    'amp_dtype': ('amp',),
    'torchcompile_mode': ('torchcompile',),
    'fuser': ('torchscript', 'aot_autograd'),
    'naflex_max_seq_len': ('naflex_loader',),
    'use_ema': ('checkpoint',),
    'results_format': ('results_file',),
}
# A flag, and what it makes impossible or would ignore.
_EXCLUDES = {
    'checkpoint': ('pretrained',),
    'valid_labels': ('real_labels',),
    'naflex_loader': ('crop_pct', 'crop_mode', 'crop_border_pixels', 'img_size', 'input_size', 'use_train_size',
                      'test_pool', 'channels_last', 'tf_preprocessing', 'torchscript', 'aot_autograd'),
    'tf_preprocessing': ('no_prefetcher', 'crop_pct', 'crop_mode', 'crop_border_pixels', 'input_img_mode'),
}


def check_validate(args: argparse.Namespace, explicit: set[str], entries: list[tuple[str, str]]) -> None:
    """All that validate.py refuses before any work. Raises ``ValueError``.

    Args:
        entries: Models and checkpoints that the command line names, see ``list_entries``.
    """
    model = args.model
    args.model = entries[0][0]
    check_common(args, explicit)
    args.model = model
    for name, _ in entries:
        check_model(name)
    _check_values(args)
    _check_combinations(args, explicit)
    _check_compilation(args)
    _check_packages(args)
    _check_files(args)
    _check_device(args)
    check_dataset_flags(args)
    check_split(args.dataset, args.data_dir, args.split, allow_no_split=True)


def _check_values(args: argparse.Namespace) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f'{flag(name)} must be at least {least}, got {value}')
    for name, choices in _ONE_OF.items():
        value = getattr(args, name)
        if value not in choices:
            raise ValueError(f"{flag(name)} must be one of {', '.join(map(str, filter(None, choices)))}, got {value!r}")


def _check_combinations(args: argparse.Namespace, explicit: set[str]) -> None:
    for name, needed in _NEEDS.items():
        if name in explicit and getattr(args, name) and not any(getattr(args, other) for other in needed):
            raise ValueError(f"{flag(name)} has no effect without {' or '.join(map(flag, needed))}")
    for name, excluded in _EXCLUDES.items():
        for other in excluded if getattr(args, name) else ():
            if getattr(args, other) not in (None, False, ''):
                raise ValueError(f'{flag(other)} does not go with {flag(name)}')
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise ValueError(f'--amp needs a model in float32; leave out --amp or --model-dtype {args.model_dtype}')
    if args.fast_norm and not timm.layers.fast_norm.has_apex and (not args.amp or args.torchscript):
        raise ValueError('--fast-norm has no effect without --amp, nor with --torchscript')
    if args.tf_preprocessing and dataset_kind(args.dataset, args.data_dir) not in ('a folder', 'a tar file'):
        raise ValueError(f'--tf-preprocessing reads the bytes of images in a folder, not {args.dataset}')


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
        raise ValueError(f'--torchcompile-mode has no effect on the backend {args.torchcompile}')
    modes = list(torch._inductor.list_mode_options())
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
    """Class indices, one a line.

    Raises:
        ValueError: A line is no index, or an index comes twice.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]
    for line in lines:
        if not line.isdecimal():
            raise ValueError(f"'{path}' must hold a class index a line, not '{line}'")
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
