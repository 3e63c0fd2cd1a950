#!/usr/bin/env python3
"""Does validate.py measure what upstream's script measures? Run both on one checkpoint and compare what they print.

    python benchmarks/validate_parity.py PATH/TO/timm's/validate.py

Upstream's script is not part of this project; fetch it from timm's repository. Networks whose classifier is fitted to
some noise images that are made here are measured on all of them; for every set of flags all columns that upstream
prints must be equal to the last digit. Exit code 1 if they are not.
"""
import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config

from a2aug_timm.export import export_branch

NUM_CLASSES, PARTIAL = 8, (6, 0, 3, 5, 1, 7)
COMMON = (f'--model test_resnet --checkpoint resnet.pth --num-classes {NUM_CLASSES} --data-dir data -b 40 -j 2 '
          '--device cpu')
FLAGS = {
    'default': '', 'test-pool': '--test-pool --img-size 224', 'amp': '--amp --amp-dtype bfloat16',
    'model-dtype': '--model-dtype bfloat16', 'no-prefetcher': '--model-dtype bfloat16 --no-prefetcher',
    'crop': '--crop-border-pixels 9 --crop-pct 0.8 --crop-mode border --interpolation bilinear',
    'valid-labels': '--valid-labels valid.txt --data-dir partial', 'real-labels': '--real-labels real.json',
    'torchscript': '--torchscript --fuser te', 'torchcompile': '--torchcompile aot_eager',
    'aot-autograd': '--aot-autograd -b 48', 'channels-last': '--channels-last --pin-mem', 'retry': '--retry',
    'class-map': '--class-map classes.txt', 'input-key': '--input-key .png --data-dir mixed', 'use-ema': '--use-ema',
    'input-size': '--input-size 3 96 128 --mean 0.4 --std 0.2 --use-train-size',
    **{f'metrics-{average}': f'--metrics-avg {average}' for average in ('micro', 'macro', 'weighted')},
    'reparam': '--model repghostnet_050 --checkpoint repghostnet.pth --img-size 96 --reparam',
    'fast-norm': '--model test_vit --checkpoint vit.pth --amp --amp-dtype bfloat16 --fast-norm',
    'naflex': '--model test_vit --checkpoint naflex.pth --model-kwargs use_naflex=True --naflex-loader '
              '--naflex-max-seq-len 49',
    'folder': '--checkpoint checkpoints', 'names': '--model names.txt --checkpoint= --metrics-avg macro',
}


def make_images(folder):
    """Noisy images of 8 classes under ImageNet's names, a set of two formats, a set of 6 classes, and label files."""
    generator = np.random.default_rng(0)
    real = []
    for label in range(NUM_CLASSES):
        paths = [folder / name / 'validation' / str(label) for name in ('data', 'mixed')]
        for path in paths:
            path.mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 150, (190, 210, 3), dtype=np.uint8)
            pixels[:, :24 * (label + 1), i % 3] += np.uint8(60)
            image = Image.fromarray(pixels)
            image.save(paths[0] / f'ILSVRC2012_val_{12 * label + i + 1:08d}.JPEG')
            image.save(paths[1] / f"{i}.{'png' if i % 2 else 'jpg'}")
            real.append(generator.choice(NUM_CLASSES, generator.integers(0, 3), replace=False).tolist())
    (folder / 'partial').mkdir()
    for position, label in enumerate(PARTIAL):
        (folder / 'partial' / str(position)).symlink_to(folder / 'data' / 'validation' / str(label))
    (folder / 'valid.txt').write_text('\n'.join(map(str, PARTIAL)))
    (folder / 'classes.txt').write_text('\n'.join(str(label) for label in reversed(range(NUM_CLASSES))))
    (folder / 'real.json').write_text(json.dumps(real))


@torch.no_grad()
def fit_classifier(model, folder, size, num_fitted=48):
    """Fit a random network's statistics to all images and its classifier to some, so that it is right about those."""
    config = resolve_data_config({'img_size': size}, model=model)
    (images, target), = create_loader(
        create_dataset('', str(folder / 'data')), batch_size=100, num_workers=0, device=torch.device('cpu'), **config)
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None
        norm.reset_running_stats()
    model.train()(images)
    features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
    some = torch.randperm(len(images))[:num_fitted]
    wanted = 5. * torch.nn.functional.one_hot(target[some], NUM_CLASSES)
    model.get_classifier().weight.copy_(torch.linalg.lstsq(features[some], wanted).solution.T)
    return model


def make_checkpoints(folder):
    """Checkpoints of four networks; of the first also several in a folder, and two exports."""
    for file, name, size, kwargs in (
            ('repghostnet', 'repghostnet_050', 96, {}), ('vit', 'test_vit', 160, {}),
            ('naflex', 'test_vit', 160, {'use_naflex': True})):
        model = fit_classifier(timm.create_model(name, num_classes=NUM_CLASSES, **kwargs), folder, size)
        torch.save(model.state_dict(), folder / f'{file}.pth')
    (folder / 'checkpoints').mkdir()
    model = timm.create_model('test_resnet', num_classes=NUM_CLASSES)
    for epoch in (1, 3, 10):
        fit_classifier(model, folder, 160, num_fitted=20 + 5 * epoch)
        torch.save({'state_dict': model.state_dict()}, folder / 'checkpoints' / f'checkpoint-{epoch}.pth.tar')
        export_branch(model, 0, folder / f'export-{epoch}')
    worse = fit_classifier(copy.deepcopy(model), folder, 160, num_fitted=10)
    torch.save({'state_dict': model.state_dict(), 'state_dict_ema': worse.state_dict()}, folder / 'resnet.pth')
    (folder / 'names.txt').write_text('local-dir:export-1\nlocal-dir:export-10\n')


def validate(script, folder, flags):
    done = subprocess.run(
        [sys.executable, str(script), *COMMON.split(), *flags.split()], check=True, cwd=folder, capture_output=True,
        text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    results = json.loads(done.stdout.split('--result\n')[1])
    return results if isinstance(results, list) else [results]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('upstream', type=Path)
    parser.add_argument('--only', nargs='+', choices=FLAGS, default=FLAGS, help='compare with these flags alone')
    args = parser.parse_args()
    scripts = args.upstream.resolve(), Path(__file__).resolve().parent.parent / 'validate.py'
    is_equal = True
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder)
        make_checkpoints(folder)
        for what in args.only:
            theirs, ours = (validate(script, folder, FLAGS[what]) for script in scripts)
            equal = len(theirs) == len(ours) and all(
                {name: own[name] for name in their} == their for their, own in zip(theirs, ours, strict=True))
            shown = ', '.join(f"{their['top1']}/{their['top5']}" for their in theirs)
            print(f"{what}: {'equal' if equal else f'differs: {theirs} {ours}'} (top-1/top-5 {shown})", flush=True)
            is_equal &= equal
    sys.exit(0 if is_equal else 1)


if __name__ == '__main__':
    main()
