"""timm's mixup and cutmix where one draw of λ, box and partner holds for all views of an image."""
from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any

import torch
from timm.data import FastCollateMixup, Mixup


class CollateMixup(FastCollateMixup):
    """timm's mixup in the collate, with a switch that workers which already run obey too."""

    def __init__(self, **kwargs: Any):
        self._enabled = get_context('spawn').Value('b', 1)
        super().__init__(**kwargs)

    @property
    def mixup_enabled(self) -> bool:
        return bool(self._enabled.value)

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self._enabled.value = enabled


class CollateMixedViews(CollateMixup):
    """``collate_views`` with mixup.

    The views are stacked as channels, where one draw of timm's reaches all of them.

    Shape:
        Items of N views ``[C, H, W]`` -> ``[N*B, C, H, W]``, view-major, and soft targets ``[B, K]``.
    """

    def __call__(
            self,
            batch: Sequence[tuple[tuple[torch.Tensor, ...], Any]],
            _: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_views = len(batch[0][0])
        images, target = super().__call__([(torch.cat(views), target) for views, target in batch])
        return _view_major(images, num_views), target


class MixupOfViews:
    """timm's mixup of a batch on its device: view-major ``[N*B, C, H, W]`` and ``[B]`` -> the same and ``[B, K]``."""

    def __init__(self, num_views: int, **kwargs: Any):
        self.num_views = num_views
        self.mixup = Mixup(**kwargs)

    @property
    def mixup_enabled(self) -> bool:
        return self.mixup.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self.mixup.mixup_enabled = enabled

    def __call__(self, images: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.unflatten(0, (self.num_views, -1)).transpose(0, 1).flatten(1, 2)
        images, target = self.mixup(images, target)
        return _view_major(images, self.num_views), target


def _view_major(images: torch.Tensor, num_views: int) -> torch.Tensor:
    """``[B, N*C, H, W]`` -> ``[N*B, C, H, W]``."""
    return images.unflatten(1, (num_views, -1)).transpose(0, 1).flatten(0, 1)
