"""Batch norm of N branches on the CPU, each writing its rows of one output, so that nothing is put together after."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def joint_batch_norm(x: torch.Tensor, norms: Sequence[_BatchNorm]) -> torch.Tensor:
    """Rows ``[i*B, (i+1)*B)`` of a view-major batch through batch norm ``i``, in training.

    Equal to ``torch.cat([norm(view) for norm, view in zip(norms, x.chunk(N))])``, which copies the batch once more in
    either direction.

    Args:
        x: ``[N*B, C, …]``.
        norms: ``N`` batch norms for which ``is_joint`` holds; their running statistics move.
    """
    norms[0]._check_input_dim(x)
    F._verify_batch_size([len(x) // len(norms), *x.shape[1:]])
    factors = [_advance(norm) for norm in norms]
    return _JointBatchNorm.apply(
        x, factors, norms[0].eps, *(getattr(norm, name) for name in (
            'weight', 'bias', 'running_mean', 'running_var') for norm in norms))


def is_joint(x: torch.Tensor, norms: Sequence[nn.Module]) -> bool:
    """Whether ``joint_batch_norm`` can stand for norms of torch or timm in training; it is for the CPU alone, where it
    was measured, and leaves timm's activation out.
    """
    return x.device.type == 'cpu' and not torch.compiler.is_compiling() and all(
        type(norm) in _KINDS and norm.training and norm.track_running_stats
        and (norm.weight is None or norm.weight.dtype == x.dtype) for norm in norms)


def _advance(norm: _BatchNorm) -> float:
    """Count a batch; the share of its statistics in the running ones."""
    if norm.num_batches_tracked is None:
        return norm.momentum
    norm.num_batches_tracked.add_(1)
    return 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


class _JointBatchNorm(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factors: list[float], eps: float, *tensors: torch.Tensor) -> torch.Tensor:
        num_branches = len(factors)
        weights, biases, means, variances = (
            tensors[start:start + num_branches] for start in range(0, 4 * num_branches, num_branches))
        out = torch.empty_like(x)
        # Of each branch and channel, as the kernel keeps them for backward.
        statistics = x.new_empty(2, num_branches, x.shape[1])
        for branch, (view, rows) in enumerate(zip(x.chunk(num_branches), out.chunk(num_branches), strict=True)):
            torch.native_batch_norm(
                view, weights[branch], biases[branch], means[branch], variances[branch], True, factors[branch], eps,
                out=(rows, statistics[0, branch], statistics[1, branch]))
        ctx.save_for_backward(x, statistics, *weights)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, statistics, *weights = ctx.saved_tensors
        num_branches = len(weights)
        grad_x = None if torch.is_grad_enabled() or not ctx.needs_input_grad[0] else torch.empty_like(x)
        of_views, of_weights, of_biases = [], [], []
        for branch, (view, rows) in enumerate(zip(x.chunk(num_branches), grad.chunk(num_branches), strict=True)):
            mask = [ctx.needs_input_grad[i] for i in (0, 3 + branch, 3 + num_branches + branch)]
            of_view, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                rows, view, weights[branch], None, None, statistics[0, branch], statistics[1, branch], True, ctx.eps,
                mask)
            of_weights.append(of_weight if mask[1] else None)
            of_biases.append(of_bias if mask[2] else None)
            if grad_x is None:  # second derivatives need a graph, which nothing may be written into
                of_views.append(of_view)
            else:
                grad_x.chunk(num_branches)[branch].copy_(of_view)
            del of_view  # before the next branch needs its room
        if ctx.needs_input_grad[0] and grad_x is None:
            grad_x = torch.cat(of_views)
        return grad_x, None, None, *of_weights, *of_biases, *[None] * (2 * num_branches)
