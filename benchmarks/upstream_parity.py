#!/usr/bin/env python3
"""Is one branch upstream's run? Train with timm's own train.py and with ours, and compare what they leave.

    python benchmarks/upstream_parity.py PATH/TO/timm's/train.py [RECIPE…]

Upstream's script is not part of this project; fetch it from timm's repository. For each recipe below, on a folder of
noise images that is made here, what both summaries hold must be equal to the last printed digit and the weights to the
bit. Exit code 1 if they are not.
"""
import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from a2aug_timm.engine.checkpoint import read_checkpoint

COMMON = ('--model test_resnet --num-classes 3 --img-size 64 -b 16 -vb 10 -j 2 --device cpu --epochs 3 --lr 0.05 '
          '--warmup-epochs 1').split()
RECIPES = {
    'plain': '',
    'everything': '--aa rand-m9-mstd0.5-inc1 --reprob 0.3 --drop 0.1 --mixup 0.2 --cutmix 1.0 --model-ema '
                  '--grad-accum-steps 2 --smoothing 0.1',
    'splits': '--aug-splits 2 --split-bn --jsd-loss --aa rand-m9 --reprob 0.5 --resplit --model-ema',
    'bce': '--bce-loss --bce-target-thresh 0.2 --bce-sum --mixup 0.5 --no-prefetcher --clip-grad 1 --sched step',
    'layers': '--opt adamw --layer-decay 0.7 --layer-decay-min-scale 0.1 --head-init-scale 0.1 --head-init-bias -1 '
              '--grad-checkpointing --sched-on-updates --warmup-prefix',
    'dtype': '--model-dtype bfloat16 --channels-last --model-ema --model-ema-warmup --smoothing 0',
    'amp': '--amp --amp-dtype bfloat16 --clip-grad 0.1 --clip-mode agc',
    'sizes': '--train-img-sizes 32 64 --train-batch-sizes 32 16 --variable-batch-loss-scale linear '
             '--train-size-schedule progressive',
    'teacher': '--kd-model-name local-dir:TEACHER --task-loss-weight 0.3 --kd-temperature 2',
    'features': '--kd-model-name local-dir:TEACHER --kd-distill-type feature --distill-loss-weight 0.5',
    'patches': '--model naflexvit_base_patch16_gap --model-kwargs embed_dim=32 depth=2 num_heads=2 '
               'enable_patch_interpolator=True --naflex-loader --naflex-train-seq-lens 4 9 16 '
               '--naflex-max-seq-len 16 --naflex-patch-sizes 8 16',
    'compiled': '--torchcompile eager --model-ema',
}
# Upstream takes the loss of bfloat16 logits in bfloat16, ours in float32.
NOT_COMPARED = {'dtype': 'eval_loss'}


def make_images(folder):
    generator = np.random.default_rng(0)
    for split, count in (('train', 40), ('validation', 16)):
        for label in range(3):
            path = folder / split / str(label)
            path.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (48, 56, 3), dtype=np.uint8) + np.uint8(40 * label)
                Image.fromarray(pixels).save(path / f'{i}.jpg')


def make_teacher(folder):
    torch.manual_seed(1)
    timm.models.save_for_hf(timm.create_model('test_byobnet', num_classes=3), folder)


def train(script, folder, name, recipe):
    recipe = recipe.replace('TEACHER', str(folder / 'teacher')).split()
    subprocess.run(
        [sys.executable, str(script), *COMMON, *recipe, '--data-dir', str(folder / 'data'), '--output', str(folder),
         '--experiment', name], check=True, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    with open(folder / name / 'summary.csv', encoding='utf-8') as file:
        return list(csv.DictReader(file)), read_checkpoint(folder / name / 'last.pth.tar')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('upstream', type=Path)
    parser.add_argument('recipes', nargs='*', choices=[[], *RECIPES], help='all if none is named')
    args = parser.parse_args()
    upstream = args.upstream.resolve()
    ours = Path(__file__).resolve().parent.parent / 'train.py'
    is_equal = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / 'data')
        make_teacher(folder / 'teacher')
        for recipe in args.recipes or RECIPES:
            theirs, own = (train(script, folder, f'{recipe}-{i}', RECIPES[recipe])
                           for i, script in enumerate((upstream, ours)))
            # Ours tells the terms of a distillation's loss too.
            names = theirs[0][0].keys() - {NOT_COMPARED.get(recipe)}
            summaries = [[{name: row[name] for name in names} for row in rows] for rows in (theirs[0], own[0])]
            is_same = summaries[0] == summaries[1]
            weights = all(torch.equal(value, own[1][key][name]) for key in ('state_dict', 'state_dict_ema')
                          for name, value in theirs[1].get(key, {}).items())
            print(f'{recipe}: summary {"equal" if is_same else "differs"}, '
                  f'weights {"equal" if weights else "differ"}', flush=True)
            is_equal &= is_same and weights
    sys.exit(0 if is_equal else 1)


if __name__ == '__main__':
    main()
