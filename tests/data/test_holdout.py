"""Parts of the training images: class-balanced, the same in every run, and disjoint from the held-out images."""
from collections import Counter

import pytest
import torch
from timm.data import create_dataset
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData

from a2aug_timm.data.datasets import DigitsDataset
from a2aug_timm.data.holdout import hold_out, take_subset, targets_of
from a2aug_timm.data.skipping import SkippingDataset
from a2aug_timm.data.views import MultiViewDataset


def test_a_part_has_the_class_proportions_of_all_images():
    targets = torch.tensor([0] * 500 + [1] * 300 + [2] * 201)[torch.randperm(1001)].tolist()
    kept, held = hold_out(targets, 100)
    assert sorted(kept + held) == list(range(1001)) and len(held) == 100
    assert Counter(targets[i] for i in held) == {0: 50, 1: 30, 2: 20}
    assert hold_out(targets, 100) == (kept, held)
    assert len(hold_out(targets, 0.25)[1]) == 250
    assert set(hold_out(targets, 100)[1]) != set(range(100))


@pytest.mark.parametrize('size, words', [(10, '10 of 10'), (9, 'without any'), (0.01, '0 of 10')])
def test_a_holdout_that_leaves_no_images_or_has_none_of_a_class_is_refused(size, words):
    with pytest.raises(ValueError, match=words):
        hold_out([0, 1] * 5, size)


def test_a_subset_excludes_the_held_out_images_and_may_have_all_others():
    targets = torch.tensor([0] * 500 + [1] * 300 + [2] * 201)[torch.randperm(1001)].tolist()
    kept, held = hold_out(targets, 101)
    part = take_subset(targets, 90, kept)
    assert len(set(part)) == 90 and not set(part) & set(held) and part == take_subset(targets, 90, kept)
    assert Counter(targets[i] for i in part) == {0: 45, 1: 27, 2: 18}
    assert take_subset(targets, 1001) == list(range(1001)) and len(take_subset(targets, 0.5)) == 500
    for size, words in ((901, '901 of 900'), (1, 'without any')):
        with pytest.raises(ValueError, match=words):
            take_subset(targets, size, kept)


def test_classes_are_read_without_decoding_images(image_folder):
    folder = create_dataset('', root=str(image_folder), split='train')
    assert targets_of(folder) == [target for _, target in SkippingDataset(folder)]
    assert targets_of(DigitsDataset())[:3] == [DigitsDataset()[i][1] for i in range(3)]
    with pytest.raises(ValueError, match='TensorDataset has no list'):
        targets_of(TensorDataset(torch.zeros(1)))


@pytest.mark.parametrize('kind', [SkippingDataset, MultiViewDataset])
def test_a_data_set_returns_only_the_images_of_its_indices(kind):
    images = FakeData(6, (1, 4, 4), num_classes=3)
    part = kind(images, 'L', [4, 1])
    assert [target for _, target in part] == [int(images[4][1]), int(images[1][1])]
