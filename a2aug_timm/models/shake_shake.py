"""Shake-Shake residual networks for CIFAR.

Source: Gastaldi, "Shake-Shake regularization", https://arxiv.org/abs/1705.07485, and its code,
https://github.com/xgastaldi/shake-shake (models/shakeshake.lua, models/shakeshakeblock.lua).
"""
from collections import OrderedDict
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional as F

from .cifar_network import CifarNetwork, Stage, build_network, cifar_cfg
from .shake import ShakeShake

__all__ = ['ShakeShakeNet']


class ShiftedShortcut(nn.Module):
    """A strided shortcut in two halves; the second sees the image shifted by one pixel, so it samples other pixels.

    Shape:
        ``[B, in_chs, H, W]`` -> ``[B, out_chs, H / stride, W / stride]``.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        # A strided 1x1 convolution equals the 1x1 pooling and the convolution of the author's code.
        self.conv1 = nn.Conv2d(in_chs, out_chs // 2, 1, stride, bias=False)
        self.conv2 = nn.Conv2d(in_chs, out_chs // 2, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(out_chs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The shift is to the right and down, as in the author's code; Fast AutoAugment's is to the left and up.
        shifted = F.pad(x, (1, -1, 1, -1))
        return self.norm(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1))


class ShakeBlock(nn.Module):
    """A shortcut and two residuals mixed by Shake-Shake; all but an identity shortcut take ``relu(x)``.

    Shape:
        ``[B, in_chs, H, W]`` -> ``[B, out_chs, H / stride, W / stride]``.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        self.residual1 = _residual(in_chs, out_chs, stride)
        self.residual2 = _residual(in_chs, out_chs, stride)
        self.shake = ShakeShake()
        self.shortcut = ShiftedShortcut(in_chs, out_chs, stride) if in_chs != out_chs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(x)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.shake(self.residual1(activated), self.residual2(activated))


def _residual(in_chs: int, out_chs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False),
        norm1=BatchNormAct2d(out_chs),
        conv2=nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False),
        norm2=nn.BatchNorm2d(out_chs),
    ))


class ShakeShakeNet(CifarNetwork):
    """A Shake-Shake-Image ResNet with two residuals per block, ``depth`` 2x ``base_width`` d.

    Parameters with 10 classes and 3 channels, and the published figures: 26 2x32d 2,923,162 (2.9 M), 26 2x96d
    26,192,922 (26.2 M).

    Args:
        depth: Number of layers, 6n + 2 for n blocks per stage.
        base_width: Number of channels of the first stage; the next two have 2 and 4 times as many.
        in_chans: Number of input channels.
        kwargs: Arguments of ``CifarNetwork``.

    Raises:
        ValueError: There is no network of this depth or width.
    """

    def __init__(
            self,
            depth: int,
            base_width: int,
            in_chans: int = 3,
            **kwargs: Any,
    ):
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f'the depth of a Shake-Shake ResNet is 6n + 2, got {depth}')
        if base_width % 2:
            raise ValueError(
                f'the width of a Shake-Shake ResNet must be even, since shortcuts halve it, got {base_width}')
        channels = [base_width, 2 * base_width, 4 * base_width]
        stages = []
        for in_chs, out_chs, stride in zip([16, *channels], channels, (1, 2, 2), strict=False):
            stages.append(Stage(
                ShakeBlock(in_chs, out_chs, stride),
                *(ShakeBlock(out_chs, out_chs, 1) for _ in range((depth - 2) // 6 - 1))))
        stem = OrderedDict(conv=nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False), norm=nn.BatchNorm2d(16))
        super().__init__(
            stem=nn.Sequential(stem), stages=stages, norm=nn.ReLU(), channels=channels, fan='fan_out',
            in_chans=in_chans, **kwargs)


default_cfgs = generate_default_cfgs({
    'shake_shake26_2x32d': cifar_cfg(),
    'shake_shake26_2x96d': cifar_cfg(),
})


@register_model
def shake_shake26_2x32d(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    return build_network(
        ShakeShakeNet, 'shake_shake26_2x32d', pretrained, **{**dict(depth=26, base_width=32), **kwargs})


@register_model
def shake_shake26_2x96d(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    return build_network(
        ShakeShakeNet, 'shake_shake26_2x96d', pretrained, **{**dict(depth=26, base_width=96), **kwargs})
