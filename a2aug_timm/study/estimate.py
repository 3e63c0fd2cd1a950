"""How long runs will train: by those that are done, or by a few batches."""
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..report import read_run
from . import Run, Study
from .run_list import last_line, launcher

_NUM_BATCHES = 20


class Estimate:
    """Seconds of training, without start and evaluation.

    Args:
        num_images: Training images of an epoch.
        may_probe: Where no run of a network is done, train a few batches and time them.

    Raises:
        ValueError: Those batches could not be trained.
    """

    def __init__(self, study: Study, runs: Sequence[Run], num_images: int, may_probe: bool):
        self._study = study
        self._runs = runs
        self._probed = {}
        for model in study.models if may_probe else ():
            if not self._measured(model):
                probe = min((run for run in runs if run.model == model), key=lambda run: run.setting.cost)
                self._probed[model] = num_images * study.epochs * _seconds_per_view(study, probe, num_images)

    def seconds(self, run: Run) -> float | None:
        """Of a whole run, also where part of it is done; None where nothing tells."""
        measured = self._measured(run.model)
        unit = statistics.median(measured) if measured else self._probed.get(run.model)
        return None if unit is None else unit * run.setting.cost

    def _measured(self, model: str) -> list[float]:
        """Seconds of a plain run, by each run that is done."""
        done = [run for run in self._runs if run.model == model and self._study.is_done(run)]
        return [sum(self._study.record(run).columns['train_seconds']) / run.setting.cost for run in done]


def _seconds_per_view(study: Study, run: Run, num_images: int) -> float:
    """By the second of two short epochs."""
    config = study.config(run)
    # A class-balanced part has every class.
    batch_size = config.get('batch_size', 128) * study.num_processes
    size = max(_NUM_BATCHES * batch_size, 4 * (config.get('num_classes') or 1000))
    config = {name: value for name, value in config.items() if name != 'holdout' and 'wandb' not in name}
    config.update(epochs=2, train_subset=min(num_images, size), val_split='', warmup_epochs=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'probe.yaml'
        path.write_text(yaml.safe_dump(config), encoding='utf-8')
        command = [*launcher(study), '-c', path, '--output', folder, '--experiment', 'probe']
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f'a few batches, trained for an estimate, failed: {last_line(done.stderr)}')
        columns = read_run(Path(folder) / 'probe').columns
    return columns['train_seconds'][-1] / columns['train_views'][-1]
