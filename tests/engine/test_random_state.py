"""Random state: restored from a file, and refused where it is damaged."""
import random

import numpy as np
import pytest
import torch

from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.engine.random_state import rng_state, set_rng_state


def draws():
    return random.random(), np.random.randn(), torch.randn(2).tolist()


def test_random_state_survives_a_file(tmp_path):
    np.random.randn()  # leaves a second Gaussian in NumPy's generator
    torch.save({'rng': rng_state()}, tmp_path / 'rng')
    expected = draws()
    draws()
    set_rng_state(read_checkpoint(tmp_path / 'rng')['rng'])
    assert draws() == expected


@pytest.mark.parametrize('damage', [
    {'python': [3, [1, 2], None]}, {'python': None}, {'numpy': ['MT19937', [1]]}, {'torch': torch.zeros(3)},
    {'torch': [1, 2]}])
def test_a_damaged_random_state_is_refused(damage):
    with pytest.raises(ValueError, match='random state of the checkpoint is damaged'):
        set_rng_state({**rng_state(), **damage})
    with pytest.raises(ValueError, match='random state of the checkpoint is damaged'):
        set_rng_state([])
