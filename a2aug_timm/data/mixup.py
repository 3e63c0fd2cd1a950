"""timm's mixup and cutmix with one draw of λ, box and partner for all views of an image."""
from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any

import torch
from timm.data import FastCollateMixup, Mixup


class CollateMixup(FastCollateMixup):
    """timm's mixup in the collate, with a switch that also reaches workers that are already running."""

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

    The views are stacked as channels, so that one draw of timm's mixup applies to all of them.

    Shape:
        Items of V views ``[C, H, W]`` -> ``[V*B, C, H, W]``, view-major, and soft targets ``[B, K]``.
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
    """timm's mixup of a view-major batch on its device, with one draw for all views of an image.

    Args:
        num_views: Number of views per image; None takes it from each batch, for runs in which it changes.
        kwargs: The arguments of timm's ``Mixup``.

    Shape:
        ``[V*B, C, H, W]`` and targets ``[B]`` -> the same shape and soft targets ``[B, K]``.
    """

    def __init__(self, num_views: int | None = None, **kwargs: Any):
        self.num_views = num_views
        self.mixup = Mixup(**kwargs)

    @property
    def mixup_enabled(self) -> bool:
        return self.mixup.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        self.mixup.mixup_enabled = enabled

    def __call__(self, images: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_views = self.num_views or len(images) // len(target)
        images = images.unflatten(0, (num_views, -1)).transpose(0, 1).flatten(1, 2)
        images, target = self.mixup(images, target)
        return _view_major(images, num_views), target


def _view_major(images: torch.Tensor, num_views: int) -> torch.Tensor:
    """``[B, V*C, H, W]`` -> ``[V*B, C, H, W]``."""
    return images.unflatten(1, (num_views, -1)).transpose(0, 1).flatten(0, 1)
