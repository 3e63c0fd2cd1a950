"""timm's NaFlex loaders, for plain training: patches at the aspect of their image, batches of several lengths."""
import argparse
import logging
from collections.abc import Callable
from typing import Any

import torch
from timm.data import create_naflex_loader
from torch import distributed as dist
from torch import nn
from torch.utils.data import Dataset

from ..engine.process import Process

_logger = logging.getLogger(__name__)


def build_naflex_loader(
        args: argparse.Namespace,
        model: nn.Module,
        process: Process,
        train_set: Dataset[Any],
        mixup: Callable[..., Any] | None,
        settings: dict[str, Any],
) -> Any:
    """Build the loader of training patches.

    Args:
        settings: Transform and device settings, as timm's loaders name them.

    Raises:
        ValueError: The model does not take patches of any size.
    """
    if not hasattr(model, 'get_patch_size'):
        raise ValueError(f'--naflex-loader needs a NaFlex model, not {type(model).__name__}; timm builds many ViTs as '
                         'one with --model-kwargs use_naflex=True')
    network: Any = model
    sizes: dict[str, Any] = {'patch_size': network.get_patch_size()}
    if args.naflex_patch_sizes:
        sizes = {'patch_size_choices': args.naflex_patch_sizes, 'patch_size_choice_probs': args.naflex_patch_size_probs}
    return create_naflex_loader(
        train_set, batch_size=args.batch_size, is_training=True, train_seq_lens=args.naflex_train_seq_lens,
        mixup_fn=mixup, rank=process.rank, world_size=process.world_size, worker_seeding=args.worker_seeding,
        patchify_channels_last=not args.naflex_patchify_channels_first, **sizes, **settings)


def build_naflex_eval_loader(
        args: argparse.Namespace,
        model: nn.Module,
        images: Dataset[Any] | None,
        settings: dict[str, Any],
) -> Any:
    """Build the loader of validation patches; None without images. ``settings`` are as for training."""
    if images is None:
        return None
    network: Any = model
    return create_naflex_loader(
        images, batch_size=args.validation_batch_size or args.batch_size, patch_size=network.get_patch_size(),
        patchify_channels_last=not args.naflex_patchify_channels_first, max_seq_len=args.naflex_max_seq_len, **settings)


def build_naflex_loss_scale(
        args: argparse.Namespace,
        process: Process,
) -> Callable[[int], float | torch.Tensor] | None:
    """Build the weight of a batch's gradient from its number of images, on this rank and over all ranks."""
    power = {'none': 0., 'sqrt': 0.5, 'linear': 1.}[args.naflex_loss_scale]
    if power == 0 and not process.is_distributed:
        return None

    def scale(batch_size: int) -> float | torch.Tensor:
        local = (batch_size / args.batch_size) ** power
        if not process.is_distributed:
            return local
        total = torch.tensor(float(batch_size), device=process.device)
        dist.all_reduce(total)
        return local * process.world_size * batch_size / total

    return scale
