"""Tracking of a run: command and versions, wandb, pictures of batches."""
import argparse
import math
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torchvision.utils import save_image

from ..engine.files import atomic_write


def command_and_versions(command: Sequence[str] | None = None) -> list[str]:
    """Command (default: that of this process), time, and versions of Python and the libraries."""
    versions = f'torch {torch.__version__}, timm {timm.__version__}, torchvision {torchvision.__version__}'
    now = f'{datetime.now():%Y-%m-%d %H:%M}'
    return [shlex.join(command or _typed_command()), f'{now}, Python {platform.python_version()}, {versions}']


def _typed_command() -> list[str]:
    """This process's command line; Python replaces ``-m a2aug_timm.train`` in ``sys.argv`` by a path."""
    program = Path(sys.argv[0])
    if program.name == '__main__.py':
        return ['python', '-m', f'a2aug_timm.{program.parent.name}', *sys.argv[1:]]
    return sys.argv


def start_wandb(args: argparse.Namespace, run_args: dict[str, Any], name: str) -> Callable[[dict[str, Any]], None]:
    """Start or resume a wandb run, and return the function that logs a row of the summary."""
    import wandb
    run = wandb.init(
        project=args.wandb_project, name=name, config=run_args, tags=args.wandb_tags,
        resume='must' if args.wandb_resume_id else None, id=args.wandb_resume_id or None)
    return run.log


def save_batch(images: torch.Tensor, num_views: int, path: Path) -> None:
    """Draw a batch: one row per view of the first 32 images, or a whole plain batch as a square."""
    columns = min(32, len(images) // num_views) if num_views > 1 else math.ceil(len(images) ** 0.5)
    if num_views > 1:
        images = images.unflatten(0, (num_views, -1))[:, :columns].flatten(0, 1)
    with atomic_write(path) as temporary:
        save_image(images.float(), temporary, format='jpeg', nrow=columns, padding=0, normalize=True)
