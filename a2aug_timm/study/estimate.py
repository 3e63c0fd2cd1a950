"""Training time of trials, estimated from finished trials or from a few batches."""
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..report import read_run
from .study_folder import Study
from .trial import Trial
from .trial_queue import last_line, launcher

_NUM_BATCHES = 20


class Estimate:
    """Estimated seconds of training, without start-up and evaluation.

    Args:
        num_images: Number of training images.
        may_probe: For a network without a finished trial, train a few batches and measure their time.

    Raises:
        ValueError: These batches could not be trained.
    """

    def __init__(self, study: Study, trials: Sequence[Trial], num_images: int, may_probe: bool):
        self._study = study
        self._trials = trials
        self._probed = {}
        for model in study.models if may_probe else ():
            if not self._measured(model):
                probe = min((trial for trial in trials if trial.model == model), key=lambda trial: trial.setting.cost)
                self._probed[model] = num_images * study.epochs * _seconds_per_view(study, probe, num_images)

    def seconds(self, trial: Trial) -> float | None:
        """Seconds of a whole trial, even if a part of it is done; None if there is nothing to estimate from."""
        measured = self._measured(trial.model)
        unit = statistics.median(measured) if measured else self._probed.get(trial.model)
        return None if unit is None else unit * float(trial.setting.cost)

    def _measured(self, model: str) -> list[float]:
        """Seconds of a plain trial, one estimate per finished trial."""
        return [record.total('train_seconds') / float(trial.setting.cost) for trial in self._trials
                if trial.model == model and (record := self._study.record(trial)) is not None]


def _seconds_per_view(study: Study, trial: Trial, num_images: int) -> float:
    """Seconds per view in the second of two short epochs."""
    config = study.config(trial)
    # A class-balanced subset has every class.
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
            raise ValueError(f'the training of a few batches, for the estimate, failed: {last_line(done.stderr)}')
        columns = read_run(Path(folder) / 'probe').columns
    return (columns['train_seconds'][-1] or 0.) / (columns['train_views'][-1] or 1.)
