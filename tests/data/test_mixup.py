"""Mixup: each view equals timm's mixup of it, with one draw for all views."""
import numpy as np
import pytest
import torch
from timm.data import FastCollateMixup, Mixup
from torch.utils.data import DataLoader

from a2aug_timm.data.mixup import CollateMixedViews, MixupOfViews

KWARGS = [
    dict(mixup_alpha=1.), dict(mixup_alpha=0., cutmix_alpha=1.), dict(mixup_alpha=1., cutmix_alpha=1., mode='elem'),
    dict(mixup_alpha=0.5, cutmix_alpha=1., mode='pair'), dict(mixup_alpha=1., cutmix_minmax=(0.2, 0.8))]


@pytest.mark.parametrize('kwargs', [*KWARGS, dict(mixup_alpha=1., cutmix_alpha=1., mode='half')])
def test_each_collated_view_equals_timms_and_all_share_the_targets(kwargs):
    kwargs = dict(kwargs, num_classes=10, label_smoothing=0.1)
    generator = torch.Generator().manual_seed(0)
    batch = [(tuple(torch.randint(256, (3, 8, 8), dtype=torch.uint8, generator=generator) for _ in range(3)), i % 10)
             for i in range(6)]
    for seed in range(10):
        np.random.seed(seed)
        images, target = CollateMixedViews(**kwargs)([(tuple(v.clone() for v in views), y) for views, y in batch])
        for i, mixed in enumerate(images.chunk(3)):
            np.random.seed(seed)
            alone, expected = FastCollateMixup(**kwargs)([(views[i].clone(), y) for views, y in batch])
            assert torch.equal(mixed, alone) and torch.equal(target, expected)


@pytest.mark.parametrize('kwargs', KWARGS)
def test_mixing_on_the_device_equals_timms_for_each_view(kwargs):
    kwargs = dict(kwargs, num_classes=10)
    images, target = torch.randn(12, 3, 8, 8), torch.arange(6)
    for seed in range(10):
        np.random.seed(seed)
        mixed, soft = MixupOfViews(2, **kwargs)(images.clone(), target)
        for one, view in zip(mixed.chunk(2), images.chunk(2), strict=True):
            np.random.seed(seed)
            alone, expected = Mixup(**kwargs)(view.clone(), target)
            torch.testing.assert_close(one, alone)
            torch.testing.assert_close(soft, expected)


def test_running_workers_stop_mixing_when_mixup_is_disabled():
    collate = CollateMixedViews(mixup_alpha=1., num_classes=12)
    items = [((torch.zeros(1, 2, 2, dtype=torch.uint8),) * 2, i) for i in range(12)]
    loader = DataLoader(items, batch_size=12, num_workers=1, collate_fn=collate, persistent_workers=True)
    assert (next(iter(loader))[1].max(1).values < 0.9).any()
    collate.mixup_enabled = False
    assert (next(iter(loader))[1].max(1).values > 0.9).all()
