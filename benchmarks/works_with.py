#!/usr/bin/env python3
"""Do timm's own scripts work with what we export? Run them, unmodified, and compare figures, weights and logits.

    pip install -e ".[test]" pandas
    python benchmarks/works_with.py PATH/TO/timm's/repository

Upstream's scripts are not part of this project; clone timm's repository. Two short runs of three branches on
scikit-learn's digits are made here, one in RGB with EMA and one in grayscale. Prints a Markdown table; exit code 1 if a
script disagrees with ours, or fails where it is not known to.
"""
import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from timm.data import create_dataset, create_transform, resolve_data_config

from a2aug_timm.data.datasets import DigitsDataset
from a2aug_timm.engine.checkpoint import read_checkpoint, state_dict_of

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ('--model test_resnet --num-classes 10 --a2aug-branches 3 --a2aug-seed 0 -b 64 -j 1 --device cpu --epochs 3 '
         '--lr 0.1 --warmup-epochs 0 --scale 0.7 1 --hflip 0').split()
# Not the architecture's own preprocessing: a script that takes that in place of ours shows other figures.
INPUT = {
    'RGB': '--input-size 3 32 32 --mean 0.3 0.4 0.5 --std 0.3 0.35 0.4 --crop-pct 0.9 --interpolation bicubic',
    'grayscale': '--input-size 1 32 32 --mean 0.3 --std 0.35 --crop-pct 0.9 --interpolation bicubic',
}
EXTRA = {'RGB': ['--model-ema', '--model-ema-decay', '0.9'], 'grayscale': []}


class Disagreement(Exception):
    """A script failed, or its outcome is not ours."""


def run(script, *arguments, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'PYTHONPATH': str(ROOT)})
    if done.returncode:
        raise Disagreement((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout


@dataclass
class Case:
    """A finished run: its folders, what our validate.py says of its export, and the export's logits."""

    upstream: Path
    data: Path
    folder: Path
    kind: str

    def __post_init__(self):
        self.input = INPUT[self.kind].split()
        self.export = self.folder / 'run' / 'export'
        run(ROOT / 'train.py', *TRAIN, *self.input, *EXTRA[self.kind], '--data-dir', self.data,
            '--output', self.folder, '--experiment', 'run')
        self.top1 = self.our_top1(self.export)
        model = timm.create_model(f'local-dir:{self.export}', pretrained=True).eval()
        transform = create_transform(**resolve_data_config(model=model))
        dataset = create_dataset('', self.data, split='validation', transform=transform,
                                 input_img_mode='RGB' if self.kind == 'RGB' else 'L')
        self.images = torch.stack([dataset[i][0] for i in range(len(dataset))])
        with torch.inference_mode():
            self.logits = model(self.images).numpy()

    def our_top1(self, checkpoint):
        output = run(ROOT / 'validate.py', '--data-dir', self.data, '--checkpoint', checkpoint, '-j', 1)
        return json.loads(output.split('--result')[1])['top1']

    def theirs(self, script, *arguments):
        return run(self.upstream / script, *arguments, cwd=self.folder)

    def their_top1(self, *arguments):
        output = self.theirs('validate.py', '--data-dir', self.data, '--device', 'cpu', '-j', 1, *arguments)
        return json.loads(output.split('--result')[1])['top1']


def same_top1(theirs, ours):
    if theirs != ours:
        raise Disagreement(f'top-1 {theirs}, ours {ours}')
    return f'top-1 {theirs:.2f}, as ours'


def same_weights(path, expected):
    weights = state_dict_of(read_checkpoint(path))
    if weights.keys() != expected.keys() or not all(torch.equal(weights[key], expected[key]) for key in weights):
        raise Disagreement('the weights differ')
    return 'weights equal, bit for bit'


def same_logits(theirs, ours):
    difference = np.abs(np.asarray(theirs, np.float32) - ours).max()
    if not difference <= 1e-5 * np.abs(ours).max():
        raise Disagreement(f'logits differ by {difference:.1e}')
    return f'logits of {len(ours)} images within {difference:.1e}, the largest is {np.abs(ours).max():.1f}'


def validate_file(case, name):
    return same_top1(case.their_top1('--model', 'test_resnet', '--num-classes', 10, *case.input,
                                     '--checkpoint', case.export / name), case.top1)


def validate_folder(case):
    channels = [] if case.kind == 'RGB' else ['--in-chans', 1]
    return same_top1(case.their_top1('--model', f'local-dir:{case.export}', *channels), case.top1)


def clean(case):
    case.theirs('clean_checkpoint.py', '--checkpoint', case.export / 'checkpoint.pth.tar', '--output', 'clean.pth',
                '--no-hash')
    return same_weights(case.folder / 'clean.pth', state_dict_of(read_checkpoint(case.export / 'model.safetensors')))


def average(case):
    """Export one branch of each kept epoch, average these, and put the average beside one of their config.json."""
    parts = []
    for path in sorted((case.folder / 'run').glob('checkpoint-*.pth.tar')):
        folder = case.folder / 'epochs' / path.name.split('.')[0]
        run('-m', 'a2aug_timm.export', path, '--branch', 1, '-o', folder)
        parts.append(state_dict_of(read_checkpoint(folder / 'model.safetensors')))
    soup = case.folder / 'soup'
    soup.mkdir()
    (soup / 'config.json').write_text((folder / 'config.json').read_text())
    case.theirs('avg_checkpoints.py', '--input', case.folder / 'epochs', '--filter', '*/checkpoint.pth.tar',
                '--safetensors', '--output', soup / 'model.safetensors')
    mean = {key: torch.stack([part[key].double() for part in parts]).mean(0).float() for key in parts[0]}
    for key, value in state_dict_of(read_checkpoint(soup / 'model.safetensors')).items():
        torch.testing.assert_close(value, mean[key])
    channels = [] if case.kind == 'RGB' else ['--in-chans', 1]
    top1 = same_top1(case.their_top1('--model', f'local-dir:{soup}', *channels), case.our_top1(soup))
    return f'mean of {len(parts)} epochs; {top1}'


def infer(case):
    case.theirs('inference.py', '--data-dir', case.data, '--device', 'cpu', '--model', f'local-dir:{case.export}',
                *([] if case.kind == 'RGB' else ['--in-chans', 1]), '--results-file', 'inference', '--output-type',
                'logit', '--topk', 0, '--results-separate-col', '--no-console-results')
    with open(case.folder / 'inference.csv', newline='') as file:
        rows = [[float(row[f'logit_{i}']) for i in range(10)] for row in csv.DictReader(file)]
    return same_logits(rows, case.logits)


def export_onnx(case, *flags):
    path = case.folder / 'model.onnx'
    case.theirs('onnx_export.py', path, '--model', f'local-dir:{case.export}', *flags)
    session = onnxruntime.InferenceSession(path)
    logits = same_logits(session.run([], {session.get_inputs()[0].name: case.images.numpy()})[0], case.logits)
    # This script knows nothing of the model but its graph.
    output = case.theirs('onnx_validate.py', case.data / 'validation', '--onnx-input', path, '-j', 1, '--img-size', 32,
                         *case.input[4:])
    return f'{logits}; {same_top1(round(float(output.split("Prec@1")[-1].split()[0]), 3), round(case.top1, 3))}'


def clean_all_branches(case):
    case.theirs('clean_checkpoint.py', '--checkpoint', case.folder / 'run' / 'last.pth.tar', '--output', 'last.pth',
                '--no-hash')
    try:
        case.their_top1('--model', 'test_resnet', '--num-classes', 10, *case.input, '--checkpoint', 'last.pth')
    except Disagreement as error:
        if 'branches' not in str(error):
            raise
        return 'keeps all branches, which timm then refuses to load'
    raise Disagreement('timm loaded a checkpoint of three branches')


# Title, check, and what the script cannot do with one channel, whoever made the model.
CHECKS = (
    ('`validate.py --checkpoint export/checkpoint.pth.tar`', partial(validate_file, name='checkpoint.pth.tar'), ''),
    ('`validate.py --checkpoint export/model.safetensors`', partial(validate_file, name='model.safetensors'), ''),
    ('`validate.py --model local-dir:export`', validate_folder, ''),
    ('`clean_checkpoint.py --checkpoint export/checkpoint.pth.tar`', clean, ''),
    ('`clean_checkpoint.py --checkpoint last.pth.tar`', clean_all_branches, ''),
    ('`avg_checkpoints.py` on exports of one branch', average, ''),
    ('`inference.py --model local-dir:export`', infer, 'it opens every image in RGB'),
    ('`onnx_export.py`, ONNX Runtime, `onnx_validate.py`', export_onnx, 'it builds every model for 3 channels'),
    ('the same with `onnx_export.py --dynamo`', lambda case: export_onnx(case, '--dynamo'), 'as above'),
)


def outcome(case, check, limit):
    """The table's cell, and whether it is as it should be."""
    try:
        return check(case), True
    except Disagreement as error:
        if limit and case.kind == 'grayscale' and 'channels' in str(error):
            return f'cannot: {limit}', True
        return f'**failed**: {error}', False


def save_digits(folder):
    for split in ('train', 'validation'):
        for i, (image, label) in enumerate(DigitsDataset(split)):
            path = folder / split / str(label)
            path.mkdir(parents=True, exist_ok=True)
            image.save(path / f'{i:04d}.png')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('upstream', type=Path)
    upstream = parser.parse_args().upstream.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_digits(folder / 'digits')
        cases = [Case(upstream, folder / 'digits', folder / kind, kind) for kind in INPUT]
        rows = {title: [outcome(case, check, limit) for case in cases] for title, check, limit in CHECKS}
    print(f'timm {timm.__version__}, torch {torch.__version__}, onnx {onnx.__version__}, '
          f'ONNX Runtime {onnxruntime.__version__}, CPU, {platform.machine()}\n')
    print("| timm's script | RGB | grayscale |\n|---|---|---|")
    for title, cells in rows.items():
        print(f'| {title} | {" | ".join(cell for cell, _ in cells)} |')
    sys.exit(0 if all(is_good for cells in rows.values() for _, is_good in cells) else 1)


if __name__ == '__main__':
    main()
