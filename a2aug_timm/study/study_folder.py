"""A study's folder: its recipe, its trials and their results."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..engine.files import atomic_write
from ..report import RunRecord, read_run
from . import kept_results
from .trial import Trial

# Milestones and patience grow with the number of epochs; otherwise a longer control would spend most of its epochs at a
# learning rate near zero. The warm-up keeps its length.
_COUNTED_IN_EPOCHS = ('decay_epochs', 'decay_milestones', 'cooldown_epochs', 'patience_epochs', 'mixup_off_epoch')
# May differ between the machines that share a study.
_OF_THE_MACHINE = {'data_dir', 'device', 'workers', 'pin_mem', 'log_interval', 'validation_batch_size'}


@dataclass(frozen=True)
class Study:
    """A recipe and the folder that holds its trials.

    Attributes:
        folder: Folder of the tables. Its ``runs/`` holds the trials' own folders, ``trials.jsonl`` their results,
            ``study.yaml`` describes the study.
        recipe: train.py's arguments that all trials share, by name; those of A²-Aug apply to joint trials only.
        epochs: Number of epochs of a plain trial.
        models: Names of the networks.
        num_seeds: Number of seeds; they are 0, 1, ….
        num_processes: Processes per trial, each with a batch of the recipe's size.
        learning_rates: Choices of the tables at equal cost, with ``batch_sizes``.
    """
    folder: Path
    recipe: dict[str, Any]
    epochs: int
    models: Sequence[str]
    num_seeds: int
    num_processes: int = 1
    learning_rates: Sequence[float] = ()
    batch_sizes: Sequence[int] = ()
    _records: dict[Trial, RunRecord] = field(default_factory=dict, repr=False, compare=False)

    @property
    def seeds(self) -> range:
        return range(self.num_seeds)

    def path(self, trial: Trial) -> Path:
        """Folder of a trial."""
        return self.folder / 'runs' / trial.name

    def beside(self, trial: Trial, ending: str) -> Path:
        """File beside a trial's folder: its config (yaml), log, lock, or the reason of its failure (failed)."""
        return self.path(trial).with_name(f'{trial.name}.{ending}')

    def config(self, trial: Trial) -> dict[str, Any]:
        """Arguments of a trial, by name."""
        setting = trial.setting
        config = {name: value for name, value in self.recipe.items()
                  if setting.is_joint or not name.startswith('a2aug_')}
        for name in _COUNTED_IN_EPOCHS:
            if isinstance(value := config.get(name), (list, tuple)):
                config[name] = [_stretched(epoch, setting.epochs) for epoch in value]
            elif value and value >= 1:  # a smaller value is a share of the epochs
                config[name] = _stretched(value, setting.epochs)
        config.update(model=trial.model, seed=trial.seed, epochs=int(setting.epochs * self.epochs))
        if setting.epochs_of_one_view:
            config['a2aug_start_epoch'] = int(setting.epochs_of_one_view * self.epochs)
        return {**config, **setting.changes}

    @cached_property
    def _kept(self) -> dict[str, RunRecord | str]:
        return kept_results.read_results(self.folder / kept_results.FILE)

    def is_done(self, trial: Trial) -> bool:
        """Whether a trial is finished, by its own folder or by the kept results."""
        return (self.path(trial) / 'result.json').is_file() or isinstance(self._kept.get(trial.name), RunRecord)

    def record(self, trial: Trial) -> RunRecord | None:
        """Record of a finished trial, else None."""
        if trial not in self._records:
            kept = self._kept.get(trial.name)
            if (self.path(trial) / 'result.json').is_file():
                self._records[trial] = read_run(self.path(trial))
            elif isinstance(kept, RunRecord):
                self._records[trial] = kept
        return self._records.get(trial)

    def failure(self, trial: Trial) -> str | None:
        """Reason why a trial failed, else None."""
        kept = self._kept.get(trial.name)
        if self.is_done(trial) or isinstance(kept, RunRecord):
            return None
        path = self.beside(trial, 'failed')
        return path.read_text(encoding='utf-8').strip() if path.is_file() else kept

    def keep_results(self, trials: Iterable[Trial]) -> None:
        """Add the results of trials to the kept ones, unless they are kept already, also by another process."""
        path = self.folder / kept_results.FILE
        self._kept.update(kept_results.read_results(path))
        for trial in trials:
            result = self.record(trial) or self.failure(trial)
            kept = self._kept.get(trial.name)
            if result is None or kept == result or isinstance(kept, RunRecord):
                continue
            kept_results.append_result(path, trial.name, result)
            self._kept[trial.name] = result

    def with_kept(self) -> 'Study':
        """The study with all networks and seeds that its folder knows, these included.

        Raises:
            ValueError: The folder belongs to a study of another recipe, or with other choices or processes.
        """
        path = self.folder / 'study.yaml'
        if not path.is_file():
            return self
        kept, ours = yaml.safe_load(path.read_text(encoding='utf-8')), self._description()
        for name in sorted((kept['recipe'].keys() | ours['recipe'].keys()) - _OF_THE_MACHINE):
            if kept['recipe'].get(name) != ours['recipe'].get(name):
                raise ValueError(f"'{self.folder}' is a study of a recipe with {name} {kept['recipe'].get(name)}, not "
                                 f"{ours['recipe'].get(name)}; give another folder")
        if (num := kept.get('num_processes', 1)) != self.num_processes:
            raise ValueError(f"'{self.folder}' is a study of runs with --nproc {num}; give another folder")
        choices = {}
        for name in ('learning_rates', 'batch_sizes'):
            choices[name] = ours.get(name) or kept.get(name, [])
            if kept.get(name, choices[name]) != choices[name]:
                raise ValueError(f"'{self.folder}' is a study with --{name.replace('_', '-')} "
                                 f"{' '.join(map(str, kept[name]))}; give another folder")
        return replace(self, models=list(dict.fromkeys([*kept['models'], *self.models])),
                       num_seeds=max(kept['num_seeds'], self.num_seeds), **choices)

    def keep(self) -> None:
        """Describe the study in its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / 'study.yaml') as path:
            path.write_text(yaml.safe_dump(self._description(), sort_keys=False, allow_unicode=True), encoding='utf-8')

    def _description(self) -> dict[str, Any]:
        """Contents of study.yaml as they are read again; YAML has no tuples."""
        choices = {name: list(values) for name in ('learning_rates', 'batch_sizes') if (values := getattr(self, name))}
        return yaml.safe_load(yaml.safe_dump({
            'recipe': {**self.recipe, 'epochs': self.epochs}, 'models': list(self.models),
            'num_seeds': self.num_seeds, 'num_processes': self.num_processes, **choices}))


def _stretched(value: float, factor: int | Fraction) -> float:
    """A number of epochs times ``factor``."""
    product = factor * value
    return round(product) if isinstance(product, Fraction) else product
