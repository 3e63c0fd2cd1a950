#!/usr/bin/env python3
"""Is one branch upstream's run? Train with timm's own train.py and with ours, and compare what they leave.

    python benchmarks/upstream_parity.py PATH/TO/timm's/train.py

Upstream's script is not part of this project; fetch it from timm's repository. For a plain recipe and for one with
RandAugment, random erasing, mixup, cutmix, EMA and gradient accumulation, on a folder of noise images that is made
here, the summaries must be equal to the last printed digit and the weights to the bit. Exit code 1 if they are not.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from a2aug_timm.checkpoint import read_checkpoint

COMMON = ('--model test_resnet --num-classes 3 --img-size 64 -b 16 -vb 10 -j 2 --device cpu --epochs 3 --lr 0.05 '
          '--warmup-epochs 1').split()
RECIPES = {
    'plain': [],
    'everything': ('--aa rand-m9-mstd0.5-inc1 --reprob 0.3 --drop 0.1 --mixup 0.2 --cutmix 1.0 --model-ema '
                   '--grad-accum-steps 2 --smoothing 0.1').split(),
}


def make_images(folder):
    generator = np.random.default_rng(0)
    for split, count in (('train', 40), ('validation', 16)):
        for label in range(3):
            path = folder / split / str(label)
            path.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (48, 56, 3), dtype=np.uint8) + np.uint8(40 * label)
                Image.fromarray(pixels).save(path / f'{i}.jpg')


def train(script, folder, name, recipe):
    subprocess.run(
        [sys.executable, str(script), *COMMON, *recipe, '--data-dir', str(folder / 'data'), '--output', str(folder),
         '--experiment', name], check=True, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    return (folder / name / 'summary.csv').read_text(), read_checkpoint(folder / name / 'last.pth.tar')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('upstream', type=Path)
    upstream = parser.parse_args().upstream.resolve()
    ours = Path(__file__).resolve().parent.parent / 'train.py'
    is_equal = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / 'data')
        for recipe, flags in RECIPES.items():
            theirs, own = (train(script, folder, f'{recipe}-{i}', flags) for i, script in enumerate((upstream, ours)))
            weights = all(torch.equal(value, own[1][key][name]) for key in ('state_dict', 'state_dict_ema')
                          for name, value in theirs[1].get(key, {}).items())
            print(f'{recipe}: summary {"equal" if theirs[0] == own[0] else "differs"}, '
                  f'weights {"equal" if weights else "differ"}')
            is_equal &= theirs[0] == own[0] and weights
    sys.exit(0 if is_equal else 1)


if __name__ == '__main__':
    main()
