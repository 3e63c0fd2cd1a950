"""How long runs will take: from those that are done, or from a few batches."""
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..datasets import create_dataset, is_stream
from ..report import read_run
from . import Run, Study
from .run_list import TRAIN

_NUM_BATCHES = 20


def estimate(study: Study, runs: Sequence[Run], may_probe: bool = True) -> dict[Run, float | None]:
    """Seconds of training of each run that is not done; None where nothing tells.

    Args:
        may_probe: If no run of its network is done, a few batches are trained and timed.
    """
    done = [run for run in runs if study.is_done(run)]
    units: dict[str, float | None] = {}
    for model in study.models:
        seconds = [sum(study.record(run).columns['train_seconds']) / run.setting.cost for run in done
                   if run.model == model]
        if not seconds and may_probe:
            seconds = _probe(study, next(run for run in runs if run.model == model))
        units[model] = statistics.median(seconds) if seconds else None
    return {run: None if units[run.model] is None else units[run.model] * run.setting.cost
            for run in runs if run not in done}


def _probe(study: Study, run: Run) -> list[float]:
    """Seconds of a plain run, by the second of two short epochs; nothing if they could not be trained."""
    config = study.config(run)
    num_images = _num_images(config)
    if num_images is None:
        return []
    size = min(num_images, _NUM_BATCHES * config.get('batch_size', 128))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'probe.yaml'
        probe = {**config, 'epochs': 2, 'train_subset': size, 'val_split': '', 'warmup_epochs': 0}
        probe.pop('holdout')
        path.write_text(yaml.safe_dump(probe), encoding='utf-8')
        command = [sys.executable, str(TRAIN), '-c', str(path), '--output', folder, '--experiment', 'probe']
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            return []
        columns = read_run(Path(folder) / 'probe').columns
    return [columns['train_seconds'][-1] / columns['train_views'][-1] * num_images * study.epochs]


def _num_images(config: dict) -> int | None:
    """Training images of an epoch; None if they come as a stream."""
    mode = 'L' if (config.get('input_size') or [config.get('in_chans')])[0] == 1 else 'RGB'
    images = create_dataset(config.get('dataset', ''), config.get('data_dir'), config.get('train_split', 'train'),
                            input_img_mode=mode)
    if is_stream(images):
        return None
    num = len(images) - _count(config['holdout'], len(images))
    return _count(config['train_subset'], num) if config.get('train_subset') else num


def _count(size: int | float, num_images: int) -> int:
    return round(size * num_images) if size < 1 else int(size)
