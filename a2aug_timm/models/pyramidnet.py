"""Pyramidal residual networks with ShakeDrop, for CIFAR.

Source: Han et al., "Deep Pyramidal Residual Networks", CVPR 2017, https://arxiv.org/abs/1610.02915, and its code,
https://github.com/jhkim89/PyramidNet (addpyramidnet.lua); with ShakeDrop, https://arxiv.org/abs/1802.02375.
"""
import math
from collections import OrderedDict
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional as F

from .cifar_network import CifarNetwork, Stage, build_network, cifar_cfg
from .shake import ShakeDrop

__all__ = ['PyramidNet']


class PyramidBottleneck(nn.Module):
    """A bottleneck with a norm, and no activation, at both ends; its shortcut is padded with channels of zeros.

    Shape:
        ``[B, in_chs, H, W]`` -> ``[B, 4 * mid_chs, H / stride, W / stride]``.
    """

    def __init__(self, in_chs: int, mid_chs: int, stride: int, drop_prob: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, mid_chs, 1, bias=False)
        self.norm2 = BatchNormAct2d(mid_chs)
        self.conv2 = nn.Conv2d(mid_chs, mid_chs, 3, stride, 1, bias=False)
        self.norm3 = BatchNormAct2d(mid_chs)
        self.conv3 = nn.Conv2d(mid_chs, 4 * mid_chs, 1, bias=False)
        self.norm4 = nn.BatchNorm2d(4 * mid_chs)
        self.shake_drop = ShakeDrop(drop_prob)
        # The convolution rounds the half of an odd side up.
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.num_zeros = 4 * mid_chs - in_chs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.conv1(self.norm1(x))
        residual = self.conv2(self.norm2(residual))
        residual = self.norm4(self.conv3(self.norm3(residual)))
        return F.pad(self.pool(x), (0, 0, 0, 0, 0, self.num_zeros)) + self.shake_drop(residual)


class PyramidNet(CifarNetwork):
    """PyramidNet-``depth`` (α = ``widening``) of bottlenecks; every block adds the same number of channels.

    With 10 classes and 3 channels, depth 272 and widening 200 give 26,210,842 parameters, of which 25,999,968 are
    weights of convolutions and the classifier; the authors' table says 26.0 M.

    Args:
        depth: Number of layers, 9n + 2 for n blocks per stage.
        widening: Number of channels that all blocks together add to the 16 of the stem; a block's output has 4 times
            as many channels.
        shake_drop_prob: ``1 - p_L`` of ShakeDrop, the probability that the last block's residual is scaled; block l
            of L has l / L of it.
        in_chans: Number of input channels.
        kwargs: Arguments of ``CifarNetwork``.

    Raises:
        ValueError: There is no network of this depth.
    """

    def __init__(
            self,
            depth: int,
            widening: float,
            shake_drop_prob: float = 0.5,
            in_chans: int = 3,
            **kwargs: Any,
    ):
        if depth < 11 or depth % 9 != 2:
            raise ValueError(f'the depth of a PyramidNet of bottlenecks is 9n + 2, got {depth}')
        num_blocks = (depth - 2) // 9
        total = 3 * num_blocks
        in_chs, channels, stages = 16, [], []
        for first in range(0, total, num_blocks):
            blocks: list[nn.Module] = []
            for i in range(first + 1, first + num_blocks + 1):
                mid_chs = math.floor(16 + i * widening / total + 0.5)
                stride = 2 if first and not blocks else 1
                blocks.append(PyramidBottleneck(in_chs, mid_chs, stride, shake_drop_prob * i / total))
                in_chs = 4 * mid_chs
            stages.append(Stage(*blocks))
            channels.append(in_chs)
        stem = OrderedDict(conv=nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False), norm=nn.BatchNorm2d(16))
        super().__init__(
            stem=nn.Sequential(stem), stages=stages, norm=BatchNormAct2d(in_chs), channels=channels, fan='fan_out',
            in_chans=in_chans, **kwargs)


default_cfgs = generate_default_cfgs({
    'pyramidnet20_a30_shakedrop': cifar_cfg(),
    'pyramidnet272_a200_shakedrop': cifar_cfg(),
})


@register_model
def pyramidnet20_a30_shakedrop(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    """A small network for tests; it is not in the paper."""
    return build_network(
        PyramidNet, 'pyramidnet20_a30_shakedrop', pretrained, **{**dict(depth=20, widening=30), **kwargs})


@register_model
def pyramidnet272_a200_shakedrop(pretrained: bool = False, **kwargs: Any) -> CifarNetwork:
    return build_network(
        PyramidNet, 'pyramidnet272_a200_shakedrop', pretrained, **{**dict(depth=272, widening=200), **kwargs})
