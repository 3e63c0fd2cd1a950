"""The frame of the CIFAR networks: stem, three stages and a classifier, with timm's interface."""
from typing import Any, Literal

import torch
from timm.layers import ClassifierHead, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq
from torch import nn

from ..upstream import feature_take_indices

# Statistics of CIFAR-10's training images, as in AutoAugment's code (tensorflow/models,
# research/autoaugment/data_utils.py).
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


def cifar_cfg(**kwargs: Any) -> dict[str, Any]:
    """timm's description of a ``CifarNetwork``; ``kwargs`` replace or add fields."""
    return {
        'url': '', 'num_classes': 10, 'input_size': (3, 32, 32), 'pool_size': (8, 8), 'fixed_input_size': False,
        'crop_pct': 1., 'interpolation': 'bicubic', 'mean': CIFAR_MEAN, 'std': CIFAR_STD,
        'first_conv': 'stem.conv', 'classifier': 'head.fc', **kwargs,
    }


class Stage(nn.Sequential):
    """A sequence of blocks; gradient checkpointing recomputes their activations in the backward pass."""

    def __init__(self, *blocks: nn.Module):
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self, x)
        for block in self:
            x = block(x)
        return x


class CifarNetwork(nn.Module):
    """A residual network for images of about 32 pixels: a stem, three stages at strides 1, 2 and 4, a classifier.

    The weights of convolutions start from He et al.'s normal distribution, the classifier's bias at 0.

    Args:
        stem: Layers before the first stage; its convolution is named ``conv``.
        stages: The three stages.
        norm: Layers after the last stage.
        channels: Number of channels after each stage.
        fan: The variance of a convolution's initial weights is 2 / fan, with ``fan_in`` or ``fan_out`` for the fan.
        num_classes: Number of classes; 0 returns pooled features.
        in_chans: Number of channels of the images.
        global_pool: Type of pooling, see ``timm.layers.SelectAdaptivePool2d``; '' for none.
        drop_rate: Dropout before the classifier.

    Shape:
        ``[B, in_chans, H, W]`` -> ``[B, num_classes]``; H and W are at least 4.
    """

    def __init__(
            self,
            *,
            stem: nn.Sequential,
            stages: list[Stage],
            norm: nn.Module,
            channels: list[int],
            fan: Literal['fan_in', 'fan_out'],
            num_classes: int = 10,
            in_chans: int = 3,
            global_pool: str = 'avg',
            drop_rate: float = 0.,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = channels[-1]
        self.feature_info = [
            dict(num_chs=num_chs, reduction=2 ** i, module=f'stages.{i}') for i, num_chs in enumerate(channels)]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self.head.num_features
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity='relu')
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            'stem': r'^stem',
            'blocks': r'^stages\.(\d+)' if coarse else [(r'^stages\.(\d+)\.(\d+)', None), (r'^norm', (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Outputs of the stages, and that of ``forward_features``; the arguments are those of timm's models.

        Shape:
            ``[B, in_chans, H, W]`` -> per stage ``[B, C, H / stride, W / stride]``.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'feature maps are NCHW, not {output_fmt}')
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            if stop_early and i > max_index:
                break
            x = stage(x)
            if i in take_indices:
                intermediates.append(self.norm(x) if norm and i == len(self.stages) - 1 else x)
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Remove the layers after the last of the stages at ``indices``, and return the indices."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[:max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def build_network(network: type[CifarNetwork], variant: str, pretrained: bool, **kwargs: Any) -> CifarNetwork:
    """Build a registered network as timm builds its own."""
    model: CifarNetwork = build_model_with_cfg(
        network, variant, pretrained, feature_cfg=dict(out_indices=(0, 1, 2), flatten_sequential=True), **kwargs)
    return model
