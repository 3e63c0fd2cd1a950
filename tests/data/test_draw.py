"""Draws of branches: balance, equal draws on all ranks, and use in the workers of a loader."""
from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import (
    IterableImageDataset,
    ScheduledBatchSampler,
    ScheduledTransformDataset,
    create_dataset,
    create_transform,
)
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from a2aug_timm.data.draw import BranchDraw, DrawnBatches, DrawnIndex
from a2aug_timm.data.views import (
    BranchTransform,
    MultiViewDataset,
    MultiViewStream,
    ViewTransform,
    collate_views,
    set_epoch,
)
from a2aug_timm.engine.random_state import start_workers


def draws_of(draw, epoch=0, num_steps=100):
    return [draw.branches(epoch, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize('num_steps', [1, 2, 7, 100])
@pytest.mark.parametrize('num_branches, num_views', [(2, 1), (3, 1), (3, 2), (5, 2), (5, 4), (8, 3)])
def test_every_branch_is_drawn_equally_often_in_every_epoch(num_branches, num_views, num_steps):
    draw = BranchDraw(num_branches, num_views, seed=3)
    for epoch in range(20):
        draws = draws_of(draw, epoch, num_steps)
        assert all(len(set(drawn)) == num_views and list(drawn) == sorted(drawn) for drawn in draws)
        assert all(set(drawn) <= set(range(num_branches)) for drawn in draws)
        counts = Counter(branch for drawn in draws for branch in drawn)
        share = num_steps * num_views / num_branches
        assert all(int(share) <= counts[branch] <= -int(-share // 1) for branch in range(num_branches))


@pytest.mark.parametrize('num_branches, num_views, share', [
    (2, 1, 0.8), (3, 1, 0.5), (3, 1, 0.05), (3, 2, 1.), (3, 2, 0.3), (5, 2, 0.77), (5, 4, 0.01)])
def test_the_anchor_has_its_share_of_the_steps_and_the_others_share_the_rest(num_branches, num_views, share):
    draw, num_steps = BranchDraw(num_branches, num_views, seed=0, anchor_share=share), 37
    anchor = 0
    for epoch in range(200):
        counts = Counter(branch for drawn in draws_of(draw, epoch, num_steps) for branch in drawn)
        assert abs(counts[0] - share * num_steps) < 1
        others = [counts[branch] for branch in range(1, num_branches)]
        assert max(others) - min(others) <= 1 and sum(others) + counts[0] == num_steps * num_views
        anchor += counts[0]
    # A share that is no whole number of steps is exact on average over the epochs.
    assert abs(anchor / 200 - share * num_steps) < 0.15


def test_all_combinations_are_drawn_about_equally_often_and_no_epoch_repeats_another():
    draw = BranchDraw(5, 2, seed=1)
    epochs = [draws_of(draw, epoch, 200) for epoch in range(50)]
    counts = Counter(drawn for epoch in epochs for drawn in epoch)
    assert set(counts) == set(combinations(range(5), 2)) and len(counts) == comb(5, 2)
    assert all(850 < count < 1150 for count in counts.values())  # 1000 expected, standard deviation 30
    assert len({tuple(epoch) for epoch in epochs}) == 50
    for step in (0, 199):  # the first and the last step draw all branches equally often
        firsts = Counter(branch for epoch in range(500) for branch in draw.branches(epoch, step, 200))
        assert all(140 < firsts[branch] < 260 for branch in range(5))  # 200 expected, standard deviation 11


def test_the_draw_is_a_fixed_function_of_seed_epoch_step_and_number_of_steps():
    draw = BranchDraw(4, 2, seed=7)
    # Values of one run: every version of Python and every machine must draw the same.
    assert draws_of(draw, 3, 6) == [(1, 2), (0, 1), (0, 3), (0, 1), (2, 3), (2, 3)]
    assert draws_of(BranchDraw(4, 2, seed=7), 3, 6) == draws_of(draw, 3, 6)
    for other in (draws_of(BranchDraw(4, 2, seed=8), 3, 6), draws_of(draw, 4, 6), draws_of(draw, 3, 7)[:6]):
        assert other != draws_of(draw, 3, 6)


def test_all_branches_need_no_draw_and_late_branches_begin_with_the_first_alone():
    assert draws_of(BranchDraw(3, 3, seed=0), 0, 4) == [(0, 1, 2)] * 4
    late = BranchDraw(3, 2, seed=0, start_epoch=2)
    assert draws_of(late, 0, 4) == draws_of(late, 1, 4) == [(0,)] * 4
    assert draws_of(late, 2, 4) == draws_of(BranchDraw(3, 2, seed=0), 2, 4)
    assert [late.num_views_in(epoch) for epoch in (0, 1, 2, 9)] == [1, 1, 2, 2]
    assert BranchDraw(3, 3, seed=0, anchor_share=1.).is_full and not late.is_full


@pytest.mark.parametrize('kwargs, words', [
    (dict(num_views=0), '1 to 3'), (dict(num_views=4), '1 to 3'), (dict(num_views=2, anchor_share=0.), 'above 0'),
    (dict(num_views=2, anchor_share=1.1), 'at most 1'), (dict(num_views=3, anchor_share=0.5), 'every step'),
    (dict(num_views=1, anchor_share=1.), 'no other branch'), (dict(num_views=1, start_epoch=-1), 'at least 0')])
def test_an_impossible_draw_is_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        BranchDraw(3, seed=0, **kwargs)


class Squares(Dataset):
    """Images whose gray value is their index."""

    transform = None

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return Image.new('L', (4, 4), index), index


class Add:
    """Adds to the pixels and counts its calls in this process."""

    def __init__(self, amount):
        self.amount, self.calls = amount, 0

    def __call__(self, image):
        self.calls += 1
        return Image.fromarray(np.asarray(image) + np.uint8(self.amount))


def to_pixels(image):
    return torch.from_numpy(np.array(image))[None]


def same(image):
    return image


def views(dataset, num_branches=3):
    """View i of the image of one value is that value plus 50 * i."""
    dataset.transform = ViewTransform(same, [BranchTransform(Add(50 * i)) for i in range(num_branches)], to_pixels)
    return dataset


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_hold_only_the_views_of_the_drawn_branches(workers):
    dataset, draw = views(MultiViewDataset(Squares())), BranchDraw(3, 2, seed=5)
    batches = DrawnBatches(BatchSampler(SequentialSampler(dataset), 4, drop_last=True), draw)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate_views,
                        persistent_workers=workers > 0)
    start_workers(loader)
    for epoch in (0, 1, 4):
        set_epoch(loader, epoch)
        assert len(loader) == 6
        for step, (images, targets) in enumerate(loader):
            expected = [target + 50 * branch for branch in draw.branches(epoch, step, 6) for target in targets.tolist()]
            assert images[:, 0, 0, 0].tolist() == expected and images.shape == (8, 1, 4, 4)
    if not workers:
        assert sum(branch.policy.calls for branch in dataset.transform.branches) == 3 * 2 * 24


def test_views_of_branches_that_are_not_drawn_are_not_computed():
    dataset = views(MultiViewDataset(Squares()))
    items = dataset[DrawnIndex(7, (0, 2))]
    assert [view[0, 0, 0].item() for view in items[0]] == [7, 107] and items[1] == 7
    assert [branch.policy.calls for branch in dataset.transform.branches] == [1, 0, 1]
    assert len(dataset[7][0]) == 3


def test_ranks_draw_the_same_branches_for_other_images():
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(Squares(), num_replicas=2, rank=rank)
        batches = DrawnBatches(BatchSampler(sampler, 4, drop_last=True), BranchDraw(3, 1, seed=0))
        batches.set_epoch(6)
        assert sampler.epoch == 6
        seen.append([(tuple(entry.index for entry in batch), {entry.branches for entry in batch})
                     for batch in batches])
    assert [branches for _, branches in seen[0]] == [branches for _, branches in seen[1]]
    assert not {i for images, _ in seen[0] for i in images} & {i for images, _ in seen[1] for i in images}


def test_scheduled_image_sizes_work_with_draws(image_folder):
    dataset, draw = MultiViewDataset(create_dataset('', root=image_folder, split='train')), BranchDraw(3, 2, seed=0)
    dataset.transform = None
    scheduled = ScheduledBatchSampler(RandomSampler(dataset), batch_sizes=[8, 4])
    batches = DrawnBatches(scheduled, draw)
    assert batches.average_batch_size == scheduled.average_batch_size
    transforms = [ViewTransform(base, [BranchTransform(after)] * 3, to_tensor) for base, after, to_tensor in (
        create_transform(size, is_training=True, separate=True, color_jitter=None, use_prefetcher=True)
        for size in (16, 24))]
    loader = DataLoader(ScheduledTransformDataset(dataset, transforms), batch_sampler=batches, collate_fn=collate_views)
    sizes = set()
    for epoch in range(3):
        set_epoch(loader, epoch)
        for images, targets in loader:
            sizes.add((images.shape[-1], len(targets)))
            assert len(images) == 2 * len(targets)
    assert sizes == {(16, 8), (24, 4)} and scheduled.epoch == 2


class SquaresReader:
    def __iter__(self):
        return iter([(Image.new('L', (4, 4), i), i) for i in range(8)])

    def __len__(self):
        return 8

    def set_epoch(self, epoch):
        pass


def test_a_stream_accepts_late_branches_and_refuses_a_draw_for_every_step():
    stream = views(MultiViewStream(IterableImageDataset('', SquaresReader())))
    loader = DataLoader(stream, batch_size=4, collate_fn=collate_views)
    with pytest.raises(ValueError, match='stream'):
        stream.draw = BranchDraw(3, 2, seed=0)
    stream.draw = BranchDraw(3, 3, seed=0, start_epoch=1)
    sizes = []
    for epoch in (0, 1):
        set_epoch(loader, epoch)
        sizes.append([len(images) for images, _ in loader])
    assert sizes == [[4, 4], [12, 12]]


def test_drawn_batches_have_the_length_of_their_sampler():
    batches = DrawnBatches(BatchSampler(SequentialSampler(range(10)), 4, drop_last=False), BranchDraw(2, 1, seed=0))
    assert len(batches) == 3 and [len(batch) for batch in batches] == [4, 4, 2]
