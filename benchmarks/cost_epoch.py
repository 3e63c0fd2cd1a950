"""Epochs end to end, of our script and timm's: loader, steps, evaluation."""
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cost_table import Line

from a2aug_timm.data.datasets import DigitsDataset

OURS = Path(__file__).resolve().parent.parent / 'train.py'
COMMON = ('--num-classes 10 --input-size 1 32 32 --mean 0.3 --std 0.35 --hflip 0 --scale 0.7 1 --model test_resnet '
          '-b 64 -vb 360 --lr 0.05 --warmup-epochs 0 --smoothing 0 --checkpoint-hist 1').split()
POLICY = 'rand-m9-n2-p1.0'
SCRIPTS = {
    'branches': [OURS, '--a2aug-branches', '3', '--a2aug-policies', POLICY, f'{POLICY}-mstd0.5', 'rand-m7-n2-p1.0'],
    'plain': [OURS, '--aa', POLICY],
    'splits': [None, '--aa', POLICY, '--aug-splits', '3', '--split-bn', '--jsd-loss'],
}
MANY = 5  # epochs of a long run; a short one has 1, and what both spend at the start is left out


def lines(args: Any) -> Iterator[Line]:
    """All lines of this part, of the quickstart's images; ``args`` are those of cost.py."""
    if not args.upstream:
        return
    folder = Path(tempfile.mkdtemp())
    try:
        _write_digits(folder)
        seconds: dict[str, list[float]] = {name: [] for name in SCRIPTS}
        for round_ in range(max(3, args.rounds // 3)):
            for name in SCRIPTS if round_ % 2 else reversed(SCRIPTS):
                short, long = (_run(args, folder, name, epochs) for epochs in (1, MANY))
                seconds[name].append((long - short) / (MANY - 1))
    finally:
        shutil.rmtree(folder)
    median = statistics.median(seconds['branches'])
    where = f'digits at 32, test_resnet, batch 64, {args.workers} workers, {median:.1f} s'
    for other, against, limit in (
            ('splits', "timm's train.py --aug-splits 3 --split-bn --jsd-loss", 1.),
            ('plain', 'train.py, one branch', None)):
        ratios = [a / b for a, b in zip(seconds['branches'], seconds[other], strict=True)]
        yield Line('train.py, 3 branches, an epoch', against, where, ratios, at_most=limit)


def _write_digits(folder: Path) -> None:
    for split in ('train', 'validation'):
        for i, (image, target) in enumerate(DigitsDataset(split)):
            path = folder / split / str(target) / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def _run(args: Any, folder: Path, name: str, epochs: int) -> float:
    script, *flags = SCRIPTS[name]
    command = [sys.executable, script or args.upstream, '--data-dir', folder, *COMMON, *flags, '--epochs', epochs, '-j',
               args.workers, '--device', args.device, '--output', folder / 'output', '--experiment', f'{name}{epochs}']
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    shutil.rmtree(folder / 'output')
    return time.perf_counter() - start
