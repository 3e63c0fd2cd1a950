"""Views: order, shared crops, seeds that do not depend on workers, and broken images."""
import hashlib
import logging
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset, create_dataset, create_loader
from torch.utils.data import DataLoader, Dataset

from a2aug_timm import MultiPolicyRandAugment, sample_policies
from a2aug_timm.data.skipping import SkippingDataset
from a2aug_timm.data.views import (
    BranchTransform,
    MultiViewDataset,
    MultiViewStream,
    SeededImage,
    ViewTransform,
    collate_views,
    set_epoch,
)
from a2aug_timm.engine.random_state import start_workers

UNTOUCHED = ['rand-m1-n1-p0-tpublished', 'rand-m2-n1-p0-tpublished']  # probability 0: the base image


class Squares(Dataset):
    """Images whose gray value is their index."""

    def __init__(self, size=12):
        self.size, self.transform = size, None

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return Image.new('L', (8, 8), index), index


def to_pixels(image):
    return torch.from_numpy(np.array(image))


def same(image):
    return image


def jitter(image):
    shift = random.randint(0, 20) + np.random.randint(20) + int(torch.randint(20, ()))
    return Image.fromarray(np.asarray(image) + np.uint8(shift))


def views_of(dataset, policies, base=jitter, **kwargs):
    dataset.transform = ViewTransform(base, branches_of(policies), to_pixels, **kwargs)
    return dataset


def branches_of(policies, after=same):
    return [BranchTransform(policy, after) for policy in policies.transforms]


class Shifts(MultiPolicyRandAugment):
    """Policies whose view i is the image plus 100 * i."""

    def __init__(self):
        super().__init__(['none'])
        self.transforms = [lambda image, i=i: Image.fromarray(np.asarray(image) + np.uint8(100 * i)) for i in range(2)]


def test_a_batch_is_view_major_with_one_target_per_image():
    dataset = views_of(MultiViewDataset(Squares()), Shifts(), base=same)
    images, targets = next(iter(DataLoader(dataset, batch_size=3, collate_fn=collate_views)))
    assert images[:, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert images.shape == (6, 8, 8) and targets.tolist() == [0, 1, 2]


def test_views_share_one_base_image_unless_crops_are_independent():
    policies = MultiPolicyRandAugment(UNTOUCHED, mean=(0.5,))
    for independent in (False, True):
        dataset = views_of(MultiViewDataset(Squares()), policies, independent_crops=independent)
        equal = [bool((views[0] == views[1]).all()) for views, _ in (dataset[i] for i in range(12))]
        assert all(equal) if not independent else not all(equal)


def batches(workers, context=None, epoch=0, seed=0):
    policies = MultiPolicyRandAugment(sample_policies(2, 0), img_size=8, mean=(0.5,))
    dataset = views_of(MultiViewDataset(Squares(), seed=seed), policies)
    dataset.set_epoch(epoch)
    loader = DataLoader(
        dataset, batch_size=4, num_workers=workers, collate_fn=collate_views, multiprocessing_context=context)
    return torch.cat([images for images, _ in loader])


def test_views_depend_only_on_seed_epoch_and_index_and_not_on_workers_or_their_start_method():
    expected = batches(0)
    for workers, context in ((1, 'fork'), (2, 'fork'), (2, 'spawn')):
        assert torch.equal(batches(workers, context), expected)
    assert not torch.equal(batches(0, epoch=1), expected)
    assert not torch.equal(batches(0, seed=1), expected)


def test_persistent_workers_follow_the_epoch():
    dataset = views_of(MultiViewDataset(Squares()), MultiPolicyRandAugment(UNTOUCHED, mean=(0.5,)))
    loader = DataLoader(dataset, batch_size=12, num_workers=1, collate_fn=collate_views, persistent_workers=True)
    start_workers(loader)
    epochs = []
    for epoch in (0, 1, 0):
        set_epoch(loader, epoch)
        epochs.append(next(iter(loader))[0])
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


def test_loading_without_workers_keeps_the_random_state_of_the_training_process():
    dataset = views_of(MultiViewDataset(Squares()), MultiPolicyRandAugment(UNTOUCHED, mean=(0.5,)))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    dataset[3]
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@pytest.mark.parametrize('prefetcher', [True, False])
def test_timms_loader_crops_erases_and_normalises_every_view(image_folder, prefetcher):
    images = create_dataset('', root=image_folder, split='train')
    dataset = MultiViewDataset(images)
    loader = create_loader(
        dataset, (3, 16, 16), batch_size=8, is_training=True, num_aug_splits=2, collate_fn=collate_views,
        color_jitter=None, num_workers=0, use_prefetcher=prefetcher, device=torch.device('cpu'), re_prob=1.,
        re_mode='const', mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    base, after, to_tensor = dataset.transform
    dataset.transform = ViewTransform(
        base, branches_of(MultiPolicyRandAugment(UNTOUCHED, img_size=16), after), to_tensor)
    images, targets = next(iter(loader))
    assert images.shape == (16, 3, 16, 16) and images.dtype == torch.float32 and targets.shape == (8,)
    first, second = images.chunk(2)
    erased = (images == 0).all(1).flatten(1).float().mean(1)
    assert (erased > 0.015).all()  # in each view of each image
    kept = ((first != 0) & (second != 0)).all(1, keepdim=True).expand_as(first)
    assert torch.equal(first[kept], second[kept]) and not torch.equal(first, second)
    assert -2 <= images.min() < -0.5 and 0.5 < images.max() <= 2


def truncated(path):
    path.write_bytes(path.read_bytes()[:300])


def damaged_png(path):
    """Write a PNG file whose second chunk of pixels has no name, for which Pillow raises a SyntaxError."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(path, 'png')
    head, first, second = path.read_bytes().split(b'IDAT', 2)
    path.write_bytes(head + b'IDAT' + first + b'\0\0\0\0' + second)


def too_large(path):
    Image.new('1', (20000, 20000)).save(path, 'png')


@pytest.mark.parametrize('damage', [truncated, damaged_png, too_large])
def test_broken_images_are_named_counted_and_replaced_by_the_next_image(image_folder, caplog, damage):
    broken = image_folder / 'train' / 'cat' / '1.jpg'
    damage(broken)
    images = create_dataset('', root=image_folder, split='train')
    index = images.filenames(absolute=True).index(str(broken))
    dataset = SkippingDataset(images)
    dataset.transform = to_pixels
    with caplog.at_level(logging.WARNING):
        image, target = dataset[index]
    assert str(broken) in caplog.text
    assert torch.equal(image, dataset[index + 1][0]) and target == dataset[index + 1][1]
    assert dataset.take_num_skipped() == 1 and dataset.take_num_skipped() == 0

    for context in ('fork', 'spawn'):
        list(DataLoader(dataset, batch_size=6, num_workers=2, multiprocessing_context=context))
        assert dataset.take_num_skipped() == 1


def test_ten_broken_images_in_a_row_raise_an_error(image_folder):
    for path in (image_folder / 'train' / 'cat').iterdir():
        path.write_bytes(b'no image')
    dataset = SkippingDataset(create_dataset('', root=image_folder, split='train'))
    with pytest.raises(RuntimeError, match='10 images in a row'):
        dataset[0]


@pytest.mark.parametrize('workers', [0, 2])
def test_an_index_repeated_in_an_epoch_gets_new_random_numbers(workers):
    policies = MultiPolicyRandAugment(UNTOUCHED, mean=(0.5,))

    def draws(repeats, epoch=0, seed=0):
        dataset = views_of(MultiViewDataset(Squares(), seed=seed, repeats=repeats), policies)
        dataset.set_epoch(epoch)
        loader = DataLoader(dataset, batch_sampler=[[3], [3], [3], [3]], num_workers=workers, collate_fn=collate_views)
        return [images[0, 0, 0].item() for images, _ in loader]

    assert len(set(draws(repeats=False))) == 1
    assert len(set(draws(repeats=True))) > 2
    assert draws(repeats=True) == draws(repeats=True)
    assert draws(repeats=True) != draws(repeats=True, epoch=1) and draws(repeats=True) != draws(repeats=True, seed='1')


def test_the_transform_of_views_can_be_set_by_the_loader():
    dataset = MultiViewDataset(Squares(), seed=5)
    seeded, target = dataset[2]
    assert isinstance(seeded, SeededImage) and target == 2
    transform = ViewTransform(jitter, branches_of(MultiPolicyRandAugment(UNTOUCHED, mean=(0.5,))), to_pixels)
    dataset.transform = transform
    assert torch.equal(transform(seeded)[0], dataset[2][0][0])


class SquaresReader:
    """Reader that gives each of two workers half of the images, as timm's readers of streams do."""

    epoch = None

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        return ((Image.new('L', (8, 8), i), i) for i in range(info.id if info else 0, 12, 2 if info else 1))

    def __len__(self):
        return 12

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_a_stream_has_views_that_depend_on_seed_epoch_and_place():
    def batches(workers, epoch=0, seed=0):
        stream = views_of(MultiViewStream(IterableImageDataset('', SquaresReader()), seed), MultiPolicyRandAugment(
            UNTOUCHED, mean=(0.5,)))
        loader = DataLoader(stream, batch_size=3, num_workers=workers, collate_fn=collate_views)
        set_epoch(loader, epoch)
        assert len(loader) == 4 and stream.dataset.reader.epoch == epoch
        batches = list(loader)
        assert sorted(torch.cat([target for _, target in batches]).tolist()) == list(range(12))
        return torch.cat([images for images, _ in batches])

    for workers in (0, 2):
        images = batches(workers)
        assert images.shape == (24, 8, 8) and torch.equal(images, batches(workers))
        assert torch.equal(images.view(4, 2, 3, 8, 8)[:, 0], images.view(4, 2, 3, 8, 8)[:, 1])
        assert not torch.equal(images, batches(workers, epoch=1)) and not torch.equal(images, batches(workers, seed=1))


@pytest.mark.parametrize('independent_crops', [False, True])
@pytest.mark.parametrize('branches', [None, (0, 1, 2), (1,), (0, 2)])
def test_random_numbers_are_drawn_policy_by_policy_and_then_view_by_view(branches, independent_crops):
    policies = [BranchTransform(lambda image, i=i: (*image, i, random.random()), then_draw) for i in range(3)]
    transform = ViewTransform(lambda image: (image, random.random()), policies, then_draw, independent_crops)
    views = transform(SeededImage('image', 'key', branches))

    # Another order would change the views of every seed.
    random.seed(hashlib.sha256(b'key').digest())
    expected, base = [], ('image', random.random())
    for number, branch in enumerate(branches or range(3)):
        if independent_crops and number:
            base = ('image', random.random())
        expected.append((*base, branch, random.random()))
    assert views == tuple((*view, random.random(), random.random()) for view in expected)


def then_draw(view):
    return (*view, random.random())
