"""Wide residual networks with pre-activation, for CIFAR.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146, and its code,
https://github.com/szagoruyko/wide-residual-networks (models/wide-resnet.lua). timm's own ``wide_resnet50_2`` is
another network: it has bottlenecks and is for ImageNet.
"""
from collections import OrderedDict
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models import generate_default_cfgs, register_model
from torch import nn

from .cifar_network import CifarNetwork, Stage, build_network, cifar_cfg

__all__ = ['WideResNet']


class PreActBlock(nn.Module):
    """``x + conv2(relu(norm2(conv1(a))))`` with ``a = relu(norm1(x))``.

    Where the number of channels changes, a projection of ``a`` takes the place of ``x``.

    Shape:
        ``[B, in_chs, H, W]`` -> ``[B, out_chs, H / stride, W / stride]``.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        self.norm1 = BatchNormAct2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.norm2 = BatchNormAct2d(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False) if in_chs != out_chs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.conv2(self.norm2(self.conv1(activated)))


class WideResNet(CifarNetwork):
    """WRN-``depth``-``width_factor``, a wide residual network.

    Parameters with 10 classes and 3 channels, and the figures of the paper's table: WRN-40-2 2,243,546 (2.2 M),
    WRN-28-10 36,479,194 (36.5 M). Not in the table: WRN-16-2 691,674, WRN-10-1 77,850.

    Args:
        depth: Number of layers, 6n + 4 for n blocks per stage.
        width_factor: The stages have 16, 32 and 64 times this many channels, rounded.
        in_chans: Number of input channels.
        kwargs: Arguments of ``CifarNetwork``.

    Raises:
        ValueError: There is no network of this depth.
    """

    def __init__(
            self,
            depth: int,
            width_factor: float,
            in_chans: int = 3,
            **kwargs: Any,
    ):
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f'the depth of a wide ResNet is 6n + 4, got {depth}')
        channels = [round(width * width_factor) for width in (16, 32, 64)]
        stages = []
        for in_chs, out_chs, stride in zip([16, *channels], channels, (1, 2, 2), strict=False):
            stages.append(Stage(
                PreActBlock(in_chs, out_chs, stride),
                *(PreActBlock(out_chs, out_chs, 1) for _ in range((depth - 4) // 6 - 1))))
        super().__init__(
            stem=nn.Sequential(OrderedDict(conv=nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False))),
            stages=stages, norm=BatchNormAct2d(channels[-1]), channels=channels, fan='fan_in',
            in_chans=in_chans, **kwargs)


default_cfgs = generate_default_cfgs({
    'wide_resnet10_1': cifar_cfg(),
    'wide_resnet16_2': cifar_cfg(),
    'wide_resnet28_10': cifar_cfg(),
    'wide_resnet40_2': cifar_cfg(),
})


@register_model
def wide_resnet10_1(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    return build_network(WideResNet, 'wide_resnet10_1', pretrained, **{**dict(depth=10, width_factor=1), **kwargs})


@register_model
def wide_resnet16_2(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    return build_network(WideResNet, 'wide_resnet16_2', pretrained, **{**dict(depth=16, width_factor=2), **kwargs})


@register_model
def wide_resnet28_10(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    return build_network(WideResNet, 'wide_resnet28_10', pretrained, **{**dict(depth=28, width_factor=10), **kwargs})


@register_model
def wide_resnet40_2(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    return build_network(WideResNet, 'wide_resnet40_2', pretrained, **{**dict(depth=40, width_factor=2), **kwargs})
