"""The examples run, and what they return is what they say."""
import importlib.util

import pytest
import timm
import torch
from torchvision.transforms.functional import resize, to_tensor

from a2aug_timm.data.datasets import DigitsDataset
from tests import ROOT

PATH = ROOT / 'examples' / 'a2aug_in_60_lines.py'


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location('example', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_has_at_most_60_lines_beside_blank_ones():
    lines = PATH.read_text(encoding='utf-8').splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 60


def test_the_example_learns_digits_and_returns_its_best_branch_as_a_plain_timm_model(example):
    accuracies, plain = example.train(num_epochs=3)
    assert len(accuracies) == 3 and max(accuracies) > 0.75  # chance is 0.1
    model = timm.create_model('test_resnet', in_chans=1, num_classes=10)
    model.load_state_dict(plain.state_dict())
    images, target = zip(*DigitsDataset('validation'), strict=True)
    with torch.no_grad():
        logits = model.eval()(torch.stack([to_tensor(resize(image, [32])) for image in images]))
    right = (logits.argmax(dim=1) == torch.tensor(target)).double().mean().item()
    assert right == pytest.approx(max(accuracies), abs=1e-6)
