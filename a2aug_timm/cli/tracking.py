"""What a run sends or draws beside its folder's files: wandb, and pictures of batches."""
import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.utils import save_image

from ..checkpoint import atomic_write


def start_wandb(args: argparse.Namespace, run_args: dict[str, Any], name: str) -> Callable[[dict[str, Any]], None]:
    """Begin a wandb run, or go on with one; returns what takes the rows of the summary."""
    import wandb
    run = wandb.init(
        project=args.wandb_project, name=name, config=run_args, tags=args.wandb_tags,
        resume='must' if args.wandb_resume_id else None, id=args.wandb_resume_id or None)
    return run.log


def save_batch(images: torch.Tensor, num_views: int, path: Path) -> None:
    """Draw a batch: its first 32 images, a row a view, or a plain batch whole, as a square."""
    columns = min(32, len(images) // num_views) if num_views > 1 else math.ceil(len(images) ** 0.5)
    if num_views > 1:
        images = images.unflatten(0, (num_views, -1))[:, :columns].flatten(0, 1)
    with atomic_write(path) as temporary:
        save_image(images.float(), temporary, format='jpeg', nrow=columns, padding=0, normalize=True)
