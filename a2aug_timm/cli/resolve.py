"""Decisions about the flags that train.py and validate.py share."""
import argparse
import importlib
from typing import Any

import torch


def replaced(args: argparse.Namespace, **values: Any) -> argparse.Namespace:
    """A copy of the arguments with other values."""
    return argparse.Namespace(**{**vars(args), **values})


def resolve_common(args: argparse.Namespace, explicit: set[str]) -> argparse.Namespace:
    """Decide the data folder and the device: without a GPU, the default device becomes the CPU."""
    is_cpu = args.device.startswith('cuda') and 'device' not in explicit and not torch.cuda.is_available()
    return replaced(args, data_dir=args.data_dir or args.data, data=None, device='cpu' if is_cpu else args.device)


def import_device_modules(names: list[str] | None) -> None:
    """Import the modules that make other devices known to torch.

    Raises:
        ValueError: A module cannot be imported.
    """
    for name in names or ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--device-modules: cannot import '{name}': {error}") from error


def dtype_of(name: str | None) -> torch.dtype | None:
    """torch's dtype of a name; None without one."""
    return getattr(torch, name) if name else None
