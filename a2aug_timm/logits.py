"""Logits of the branches: one view of each image per branch in training, the same images for all in evaluation."""
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .branches import num_branches_of, select_branch
from .upstream import OptimizedModule, call_after_backward, mark_dynamic


def joint_logits(
        model: nn.Module,
        images: torch.Tensor,
        num_branches: int,
        sizes: Sequence[int] | None = None,
        sequential: bool = False,
        branches: Sequence[int] | None = None,
) -> torch.Tensor:
    """Logits of all views, for training.

    Args:
        model: A model with branches, which has drawn ``branches``, or a plain one that all views go through.
        num_branches: ``N``.
        sizes: Resolution of each of the ``N`` branches; the views are then resized and run branch by branch.
        sequential: Keep the activations of one branch at a time. Backward computes those of all but the last branch
            again. Statistics of batch norms move once, and dropout repeats its draw.
        branches: The ``V`` drawn branches, ascending (default: all).

    Shape:
        View-major ``[V*B, C, H, W]`` -> ``[V*B, K]``.
    """
    if sizes is None and not sequential:
        return model(images)
    branches = range(num_branches) if branches is None else branches
    logits = []
    for branch, view in zip(branches, images.chunk(len(branches)), strict=True):
        size = None if sizes is None else sizes[branch]
        # Backward starts with the last branch, so its activations may stay: at that time they are the only ones.
        is_kept = not sequential or branch == branches[-1]
        run = _logits_of_view if is_kept else partial(checkpoint, _logits_of_view, use_reentrant=False)
        logits.append(run(model, view, branch, size))
        _select_in_backward(model, branch, logits[-1])
    return torch.cat(logits)


def _logits_of_view(model: nn.Module, view: torch.Tensor, branch: int, size: int | None) -> torch.Tensor:
    with select_branch(model, branch) if num_branches_of(model) > 1 else nullcontext():
        return model(resize(view, size))


def _select_in_backward(model: nn.Module, branch: int, logits: torch.Tensor) -> None:
    """Select a branch when backward reaches its logits, since its activations may have to be computed again: all of
    them, or those that gradient checkpointing in the model has not kept.
    """
    if torch.compiler.is_compiling() or not logits.requires_grad or num_branches_of(model) == 1:
        return  # compiled code has its branch built in

    def select(_: torch.Tensor) -> None:
        call_after_backward(partial(select_branch, model, None))
        select_branch(model, branch)

    logits.register_hook(select)


def branch_logits(
        model: nn.Module,
        images: torch.Tensor,
        sizes: Sequence[int] | None = None,
        branches: Sequence[int] | None = None,
) -> torch.Tensor:
    """Logits of every branch for the same images, each with its own norms; for eval.

    Args:
        sizes: Resolution of each branch; ignored for a plain model.
        branches: Indices of the branches (default: all); ignored for a plain model.

    Shape:
        ``[B, C, H, W]`` -> ``[N, B, K]``, or as many as there are ``branches``; a plain model is one branch.
    """
    num_branches = num_branches_of(model)
    if num_branches == 1:
        return _main_logits(model, images).unsqueeze(0)
    if isinstance(model, OptimizedModule):
        mark_dynamic(images, 0)  # or a smaller last batch would compile again
    logits = []
    for branch in range(num_branches) if branches is None else branches:
        with select_branch(model, branch):
            logits.append(_main_logits(model, resize(images, sizes[branch] if sizes else None)))
    return torch.stack(logits)


def _main_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = model(images)
    # Models with several heads return a tuple, their main logits first.
    logits = output[0] if isinstance(output, (tuple, list)) else output
    # A CUDA graph, which some modes compile to, writes the logits of all branches to the same memory.
    return logits.clone() if isinstance(model, OptimizedModule) else logits


def resize(images: torch.Tensor, size: int | None) -> torch.Tensor:
    """Images at the resolution of a branch, ``[B, C, H, W]`` -> ``[B, C, size, size]``; None keeps their size."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    dtype = torch.promote_types(images.dtype, torch.float32)  # no kernel filters half precision on the CPU
    return F.interpolate(images.to(dtype), (size, size), mode='bilinear', antialias=True).to(images.dtype)
