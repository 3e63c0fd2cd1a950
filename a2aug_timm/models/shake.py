"""Shake-Shake and ShakeDrop: random factors per image that differ between the forward and the backward pass."""
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import nn


class _Scale(torch.autograd.Function):
    """``x * forward_scale`` with the gradient of ``x * backward_scale``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward_scale: torch.Tensor, backward_scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(backward_scale)
        return x * forward_scale

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        backward_scale, = ctx.saved_tensors
        return grad * backward_scale, None, None


def _uniform(x: torch.Tensor) -> torch.Tensor:
    """A random number in [0, 1) per image of ``x``, ``[B, 1, 1, 1]``.

    The factors of both passes are drawn in the forward pass, since gradient checkpointing repeats its draws.
    """
    return torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)


@register_notrace_module
class ShakeShake(nn.Module):
    """A random mean of two residuals: ``α·a + (1 - α)·b`` in the forward pass, with β for α in the backward pass.

    In training, α and β are uniform in [0, 1] and independent for each image (the paper's Shake-Shake-Image). In eval,
    both are 0.5, their mean. TorchScript supports eval only.

    Shape:
        Two ``[B, C, H, W]`` -> ``[B, C, H, W]``.

    Source: Gastaldi, "Shake-Shake regularization", https://arxiv.org/abs/1705.07485, §2.1 and Table 1.
    """

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self._shake(a, b)
        return 0.5 * (a + b)

    @torch.jit.unused
    def _shake(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        alpha, beta = _uniform(a), _uniform(a)
        return _Scale.apply(a, alpha, beta) + _Scale.apply(b, 1 - alpha, 1 - beta)


@register_notrace_module
class ShakeDrop(nn.Module):
    """A residual that is scaled at random, with ``drop_prob``: by α in the forward and by β in the backward pass.

    In training, the decision, α in [-1, 1] and β in [0, 1] are drawn per image, as in AutoAugment's code
    (tensorflow/models, research/autoaugment/shake_drop.py), whose settings the paper's experiments share. The code of
    ShakeDrop's authors draws the decision per batch and the factors per element; that of Fast AutoAugment draws the
    factors per image. In eval, the residual is scaled by the expectation, ``1 - drop_prob``. TorchScript supports eval
    only.

    Args:
        drop_prob: Probability that the residual is scaled, ``1 - p_l`` in the paper.

    Shape:
        ``[B, C, H, W]`` -> ``[B, C, H, W]``.

    Source: Yamada et al., "ShakeDrop Regularization for Deep Residual Learning", https://arxiv.org/abs/1802.02375.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self._shake(x)
        return (1 - self.drop_prob) * x

    @torch.jit.unused
    def _shake(self, x: torch.Tensor) -> torch.Tensor:
        keep = _uniform(x) >= self.drop_prob
        alpha, beta = 2 * _uniform(x) - 1, _uniform(x)
        return _Scale.apply(x, torch.where(keep, 1, alpha), torch.where(keep, 1, beta))

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'
