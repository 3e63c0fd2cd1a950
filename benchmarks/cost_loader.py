"""The loader: views a second from JPEG files, against timm's loader of one view and its AugMixDataset."""
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cost_table import Line, compare
from PIL import Image
from timm.data import AugMixDataset, create_dataset, create_loader
from torchvision.transforms import Compose

from a2aug_timm import MultiPolicyRandAugment
from a2aug_timm.data.policies.opencv_ops import array_to_tensor
from a2aug_timm.data.views import BranchTransform, MultiViewDataset, ViewTransform, collate_views

POLICY = 'rand-m9-n2-p1.0'
NUM_IMAGES, BATCH, NUM_VIEWS = 384, 32, 3


def lines(args: Any) -> Iterator[Line]:
    """All lines of this part; ``args`` are those of cost.py. Batches are uint8: normalising is the device's work."""
    folder = Path(tempfile.mkdtemp())
    try:
        write_images(folder)
        loaders = {
            'timm': _loader(args, images_of(folder)),
            'augmix': _loader(args, AugMixDataset(images_of(folder), num_splits=NUM_VIEWS), num_aug_splits=NUM_VIEWS),
            'pillow': _views(args, folder, 'pillow'),
            'opencv': _views(args, folder, 'opencv')}
        runs = {name: lambda loader=loader: read(loader) for name, loader in loaders.items()}
        times = compare(runs, args.rounds, torch.device('cpu'))
    finally:
        shutil.rmtree(folder)
    views = {'timm': 1, 'augmix': NUM_VIEWS, 'pillow': NUM_VIEWS, 'opencv': NUM_VIEWS}

    def faster(one: str, other: str) -> list[float]:
        return [ratio * views[one] / views[other] for ratio in times(other, one)]

    where = f'500x375 JPEG to 224, {args.workers} workers, {POLICY}, N={NUM_VIEWS}'
    for backend, of_one, of_augmix in (('pillow', 1.7, 1.2), ('opencv', 2.5, 1.2)):
        what = f'views a second, {backend}'
        yield Line(what, "timm's loader, images a second", where, faster(backend, 'timm'), at_least=of_one)
        yield Line(what, "timm's AugMixDataset, whose first split is not augmented", where,
                   faster(backend, 'augmix'), at_least=of_augmix)


def write_images(folder: Path) -> None:
    """Smooth random images with some noise, about 80 KB each."""
    generator = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        coarse = Image.fromarray(generator.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.BICUBIC)) + generator.integers(-12, 13, (375, 500, 3))
        path = folder / 'train' / str(i % 4) / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def images_of(folder: Path) -> Any:
    return create_dataset('', root=str(folder), split='train')


def _loader(args: Any, dataset: Any, **kwargs: Any) -> Any:
    return create_loader(
        dataset, (3, 224, 224), BATCH, is_training=True, num_workers=args.workers, device=torch.device('cpu'),
        pin_memory=False, persistent_workers=args.workers > 0, interpolation='bilinear',
        **{'auto_augment': POLICY, **kwargs})


def _views(args: Any, folder: Path, backend: str) -> Any:
    dataset = MultiViewDataset(images_of(folder), 'RGB')
    loader = _loader(args, dataset, num_aug_splits=NUM_VIEWS, collate_fn=collate_views, auto_augment=None,
                     color_jitter=None)
    base, _, to_tensor = dataset.transform
    policies = MultiPolicyRandAugment(
        [POLICY] * NUM_VIEWS, interpolation='bilinear', allow_equal=True, op_backend=backend)
    if backend == 'opencv':
        base, to_tensor = Compose([base, np.asarray]), array_to_tensor
    dataset.transform = ViewTransform(base, [BranchTransform(policy) for policy in policies.transforms], to_tensor)
    return loader


def read(loader: Any) -> None:
    for _ in loader.loader:  # what timm's prefetcher takes from
        pass
