"""timm's NaFlex loaders: patches at their images' own aspect, batches of many sequence lengths; plain training only."""
import argparse
import logging
from collections.abc import Callable
from typing import Any

import torch
from timm.data import NaFlexMixup, create_naflex_loader
from torch import distributed as dist
from torch import nn
from torch.utils.data import Dataset

_logger = logging.getLogger(__name__)


def build_naflex_loaders(
        args: argparse.Namespace,
        model: nn.Module,
        train_set: Dataset,
        eval_set: Dataset | None,
        mixup: NaFlexMixup | None,
        transform: dict[str, Any],
        eval_transform: dict[str, Any],
        common: dict[str, Any],
) -> tuple[Any, Any]:
    """Loaders of training and validation patches.

    Args:
        transform: How a training image becomes a tensor; ``eval_transform`` a validation image.
        common: What both loaders share.

    Raises:
        ValueError: The model does not take patches of any size.
    """
    if not hasattr(model, 'get_patch_size'):
        raise ValueError(f'--naflex-loader needs a NaFlex model, not {type(model).__name__}; timm builds many ViTs as '
                         'one with --model-kwargs use_naflex=True')
    patch_size = model.get_patch_size()
    common = {**common, 'patchify_channels_last': not args.naflex_patchify_channels_first}
    sizes = {'patch_size': patch_size}
    if args.naflex_patch_sizes:
        sizes = {'patch_size_choices': args.naflex_patch_sizes, 'patch_size_choice_probs': args.naflex_patch_size_probs}
    loader = create_naflex_loader(
        train_set, batch_size=args.batch_size, is_training=True, train_seq_lens=args.naflex_train_seq_lens,
        mixup_fn=mixup, rank=args.rank, world_size=args.world_size, worker_seeding=args.worker_seeding,
        **sizes, **transform, **common)
    if eval_set is None:
        return loader, None
    return loader, create_naflex_loader(
        eval_set, batch_size=args.validation_batch_size or args.batch_size, patch_size=patch_size,
        max_seq_len=args.naflex_max_seq_len, **eval_transform, **common)


def build_naflex_loss_scale(args: argparse.Namespace, device: torch.device) -> Callable[[int], float] | None:
    """Weight of a batch's gradient by its number of images, on this rank and over all of them."""
    power = {'none': 0., 'sqrt': 0.5, 'linear': 1.}[args.naflex_loss_scale]
    if power == 0 and not args.distributed:
        return None

    def scale(batch_size: int) -> float:
        local = (batch_size / args.batch_size) ** power
        if not args.distributed:
            return local
        total = torch.tensor(float(batch_size), device=device)
        dist.all_reduce(total)
        return local * args.world_size * batch_size / total.item()

    return scale
