"""Logits of N branches: of N views of each image for training, of the same images for evaluation."""
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import OptimizedModule
from torch.utils.checkpoint import checkpoint

from .branches import num_branches_of, select_branch


def joint_logits(
        model: nn.Module,
        images: torch.Tensor,
        num_branches: int,
        sizes: Sequence[int] | None = None,
        sequential: bool = False,
) -> torch.Tensor:
    """Logits of all views, for training.

    Args:
        model: A model with branches, or a plain one that all views go through.
        num_branches: ``N``.
        sizes: Resolution of each branch, whose views are then resized and run branch by branch.
        sequential: Keep the activations of one branch at a time; those of all but the last are computed again when
            backward comes to them. Statistics of batch norms move once, and dropout draws again what it drew.

    Shape:
        View-major ``[N*B, C, H, W]`` -> ``[N*B, K]``.
    """
    if sizes is None and not sequential:
        return model(images)
    logits = []
    for branch, (view, size) in enumerate(zip(
            images.chunk(num_branches), sizes or [None] * num_branches, strict=True)):
        # Backward comes to the last branch first, whose activations may stay: they are the only ones.
        is_kept = not sequential or branch == num_branches - 1
        run = _logits_of_view if is_kept else partial(checkpoint, _logits_of_view, use_reentrant=False)
        logits.append(run(model, view, branch, size))
        _select_in_backward(model, branch, logits[-1])
    return torch.cat(logits)


def _logits_of_view(model: nn.Module, view: torch.Tensor, branch: int, size: int | None) -> torch.Tensor:
    with select_branch(model, branch) if num_branches_of(model) > 1 else nullcontext():
        return model(resize(view, size))


def _select_in_backward(model: nn.Module, branch: int, logits: torch.Tensor) -> None:
    """Select a branch when backward comes to its logits, since activations may have to be computed again: all of the
    branch's, or those that gradient checkpointing inside of the model has not kept.
    """
    if torch.compiler.is_compiling() or not logits.requires_grad or num_branches_of(model) == 1:
        return  # compiled activations know their branch

    def select(_: torch.Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(partial(select_branch, model, None))
        select_branch(model, branch)

    logits.register_hook(select)


def branch_logits(model: nn.Module, images: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
    """Logits of every branch for the same images, each branch with its own norms; for eval.

    Args:
        sizes: Resolution of each branch; a plain model takes the images as they are.

    Shape:
        ``[B, C, H, W]`` -> ``[N, B, K]``; a plain model is one branch.
    """
    num_branches = num_branches_of(model)
    if num_branches == 1:
        return _main_logits(model, images).unsqueeze(0)
    if isinstance(model, OptimizedModule):
        torch._dynamo.maybe_mark_dynamic(images, 0)  # a last batch of another size is no reason to compile again
    logits = []
    for branch, size in enumerate(sizes or [None] * num_branches):
        with select_branch(model, branch):
            logits.append(_main_logits(model, resize(images, size)))
    return torch.stack(logits)


def _main_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = model(images)
    # Models with several heads answer with a tuple, their main logits first.
    logits = output[0] if isinstance(output, (tuple, list)) else output
    # A CUDA graph, which some modes compile to, answers in memory that the next branch's answer is written to.
    return logits.clone() if isinstance(model, OptimizedModule) else logits


def resize(images: torch.Tensor, size: int | None) -> torch.Tensor:
    """Images at the resolution of a branch, ``[B, C, H, W]`` -> ``[B, C, size, size]``; None leaves them."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    dtype = torch.promote_types(images.dtype, torch.float32)  # no kernel filters half precision on the CPU
    return F.interpolate(images.to(dtype), (size, size), mode='bilinear', antialias=True).to(images.dtype)
