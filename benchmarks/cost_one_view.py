"""One view per step (``--a2aug-views 1``) against plain training on as many images: step, memory, loader."""
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from cost_loader import BATCH, POLICY, images_of, read, write_images
from cost_steps import Steps
from cost_table import Line, compare
from timm.data import create_transform

from a2aug_timm import MultiPolicyRandAugment
from a2aug_timm.data.draw import BranchDraw
from a2aug_timm.data.loader import Prefetch, create_train_loader
from a2aug_timm.data.skipping import SkippingDataset
from a2aug_timm.data.views import BranchTransform, MultiViewDataset, ViewTransform, collate_views

NUM_BRANCHES = 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lines(args: Any) -> Iterator[Line]:
    """All lines of this part; ``args`` are those of cost.py."""
    for model, size in args.models:
        yield from _steps(Steps(model, size, args.batch, torch.device(args.device), True, False, args.rounds))
    yield _loader(args)


def _steps(bench: Steps) -> Iterator[Line]:
    plain, one_view = bench.step(1, 1), _drawing(bench)
    ratios = compare({'one view': one_view, 'plain': plain}, bench.rounds, bench.device)
    where, against = f'{bench.where}, N={NUM_BRANCHES}, V=1', f'plain step of {bench.batch} images'
    yield Line('one-view step', against, where, ratios('one view', 'plain'), at_most=1.05)
    yield Line('one-view step, peak memory', against, where, [bench.peak(one_view) / bench.peak(plain)], at_most=1.02)


def _drawing(bench: Steps) -> Any:
    """A step that draws another branch each time."""
    step = bench.step(NUM_BRANCHES, 1, num_drawn=1)
    branches = cycle(range(NUM_BRANCHES))

    def run() -> None:
        step.task.draw_branches((next(branches),))
        step()

    run.tensors = step.tensors
    return run


def _loader(args: Any) -> Line:
    folder = Path(tempfile.mkdtemp())
    try:
        write_images(folder)
        kwargs = dict(is_training=True, mean=MEAN, std=STD, use_prefetcher=True, interpolation='bilinear')
        plain = create_transform(224, auto_augment=POLICY, **kwargs)
        base, after, to_tensor = create_transform(224, separate=True, color_jitter=None, **kwargs)
        policies = MultiPolicyRandAugment([POLICY] * NUM_BRANCHES, interpolation='bilinear', allow_equal=True)
        views = ViewTransform(base, [BranchTransform(policy, after) for policy in policies.transforms], to_tensor)
        create = partial(
            create_train_loader, batch_size=BATCH, num_workers=args.workers,
            prefetch=Prefetch(MEAN, STD, 3, torch.device('cpu')))
        draw = BranchDraw(NUM_BRANCHES, 1, seed=0)
        loaders = {
            'plain': create(SkippingDataset(images_of(folder), 'RGB'), [plain]),
            'one view': create(MultiViewDataset(images_of(folder), 'RGB'), [views], collate=collate_views, draw=draw)}
        runs = {name: partial(read, loader) for name, loader in loaders.items()}
        times = compare(runs, args.rounds, torch.device('cpu'))
    finally:
        shutil.rmtree(folder)
    where = f'500x375 JPEG to 224, {args.workers} workers, {POLICY}, N={NUM_BRANCHES}, V=1'
    return Line('loader of one view, time per image', 'loader of plain training', where, times('one view', 'plain'),
                at_most=1.05)
