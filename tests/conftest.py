"""Fixtures: small image folders, and the scripts as modules and as processes."""
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import ROOT
from tests.commands import THREE, run_train

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def image_folder(tmp_path):
    """A folder with the splits train and validation, 2 classes of 12 and 4 noisy JPEG images each."""
    generator = np.random.default_rng(0)
    for split, count in (('train', 12), ('validation', 4)):
        for label in ('cat', 'dog'):
            folder = tmp_path / 'images' / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 128, (40, 48, 3), dtype=np.uint8) + (100 if label == 'dog' else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.jpg', quality=90)
    return tmp_path / 'images'


@pytest.fixture
def run_script():
    """Run a command in the repository's root and return the finished process."""
    def run(*command, check=True, env=None, **kwargs):
        command = [sys.executable if part == 'python' else str(part) for part in command]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', **(env or {})}
        environment['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{environment["PATH"]}'
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, **kwargs)
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done
    return run


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    """A finished run with three branches."""
    return run_train(tmp_path_factory.mktemp('finished'), *THREE)
