"""The training images of a finished run, on which the statistics of merged branches are estimated."""
import pytest
import torch
from timm.data import create_loader

from a2aug_timm.cli import training_images
from a2aug_timm.cli.training_images import training_batches
from a2aug_timm.data.datasets import DigitsDataset
from a2aug_timm.data.skipping import SkippingDataset
from tests.commands import SMALL, THREE, built

INPUT = dict(input_size=(1, 32, 32), mean=(0.3,), std=(0.35,), interpolation='bilinear', crop_pct=0.9)
DIGITS = dict(dataset='sklearn/digits', train_split='train', holdout=100, train_subset=300)


def rows(images):
    """Images in an order that does not depend on the order in which they come."""
    return torch.tensor(sorted(images.flatten(1).tolist()))


def test_the_images_are_those_that_the_run_trains_on_as_timm_preprocesses_them_for_evaluation(tmp_path):
    run = built([*SMALL, *THREE, '--holdout', 100, '--train-subset', 300, '--output', tmp_path])
    trained = SkippingDataset(DigitsDataset('train'), 'L', run.data.datasets.train.indices)
    (expected, _), = create_loader(trained, batch_size=300, num_workers=0, device=torch.device('cpu'), **INPUT)
    batches = list(training_batches(DIGITS, INPUT, 2000))
    assert [len(batch) for batch in batches] == [100, 100, 100]
    assert torch.equal(rows(torch.cat(batches)), rows(expected))


def test_a_part_of_the_images_is_the_same_in_every_call_and_in_batches_of_about_equal_size():
    first, second = (list(training_batches(DIGITS, INPUT, 257)) for _ in range(2))
    assert [len(batch) for batch in first] == [86, 86, 85]
    assert all(map(torch.equal, first, second))
    assert len(torch.cat(first).unique(dim=0)) == 257


def test_every_batch_of_a_folder_that_is_sorted_by_class_holds_all_classes(image_folder, monkeypatch):
    monkeypatch.setattr(training_images, '_BATCH_SIZE', 12)
    data = {**INPUT, 'input_size': (3, 32, 32), 'mean': (0.,) * 3, 'std': (1.,) * 3}
    batches = list(training_batches({'data_dir': 'gone'}, data, 24, data_dir=str(image_folder)))
    assert len(batches) == 2
    for batch in batches:
        is_dog = batch.mean(dim=(1, 2, 3)) > 0.44  # dogs are brighter by 100 of 255
        assert 0 < is_dog.sum() < 12


def test_a_stream_is_refused_when_its_first_batch_is_asked_for(monkeypatch):
    monkeypatch.setattr(training_images, 'is_stream', lambda dataset: True)
    batches = training_batches(DIGITS, INPUT, 10)
    with pytest.raises(ValueError, match="'sklearn/digits' is a stream"):
        next(batches)
