"""The paper's tables and figures on the user's own data: the runs that they need, and what is written of them.

As a program: ``python -m a2aug_timm.study TABLE [TABLE…] -c RECIPE --data FOLDER -o FOLDER``.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from timm.models import safe_model_name

from ..engine.checkpoint import atomic_write
from ..report import RunRecord, read_run

# Milestones and patience grow with the epochs, or a control that trains longer would do so at a vanished learning rate;
# warm-up stays as long as it is.
_COUNTED_IN_EPOCHS = ('decay_epochs', 'decay_milestones', 'cooldown_epochs', 'patience_epochs', 'mixup_off_epoch')
# What may differ between the machines that share a study.
_OF_THE_MACHINE = {'data_dir', 'device', 'workers', 'pin_mem', 'log_interval', 'validation_batch_size'}


@dataclass(frozen=True)
class Setting:
    """What a run changes in the recipe.

    Attributes:
        name: Of the setting, in the names of runs.
        changes: train.py's arguments by name.
        epochs: As a multiple of the recipe's.
    """
    name: str
    changes: dict[str, Any] = field(hash=False)
    epochs: int = 1

    @property
    def is_joint(self) -> bool:
        return 'a2aug_branches' in self.changes

    @property
    def cost(self) -> int:
        """Views seen, as a multiple of a plain run of the recipe's epochs."""
        return self.epochs * self.changes.get('a2aug_branches', 1)


@dataclass(frozen=True)
class Run:
    """A setting with a network and a seed; the seed also draws the policies."""
    model: str
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        return f'{safe_model_name(self.model)}-{self.setting.name}-seed{self.seed}'


@dataclass(frozen=True)
class Row:
    """A line of a table: a run a seed, or several of which the best on the held-out images is taken.

    Attributes:
        settings: Seed -> the settings of its runs.
    """
    label: str
    settings: Callable[[int], list[Setting]]

    def runs(self, model: str, seed: int) -> list[Run]:
        return [Run(model, setting, seed) for setting in self.settings(seed)]


@dataclass(frozen=True)
class Study:
    """A recipe, and the folder that keeps its runs.

    Attributes:
        folder: Of the tables; ``runs/`` in it holds the runs, ``study.yaml`` says what it is a study of.
        recipe: train.py's arguments that all runs share, by name; those of A²-Aug go to joint runs alone.
        epochs: Of a plain run.
        models: Networks.
        num_seeds: Seeds of the runs are those below it.
        num_processes: Of a run, each with a batch of the recipe's size.
    """
    folder: Path
    recipe: dict[str, Any]
    epochs: int
    models: Sequence[str]
    num_seeds: int
    num_processes: int = 1
    _records: dict[Run, RunRecord] = field(default_factory=dict, repr=False, compare=False)

    @property
    def seeds(self) -> range:
        return range(self.num_seeds)

    def path(self, run: Run) -> Path:
        """The run's folder; beside it lie its config, its log, its lock, and why it failed if it did."""
        return self.folder / 'runs' / run.name

    def beside(self, run: Run, ending: str) -> Path:
        return self.path(run).with_name(f'{run.name}.{ending}')

    def config(self, run: Run) -> dict[str, Any]:
        """The run's arguments, by name."""
        factor = run.setting.epochs
        config = {name: value for name, value in self.recipe.items()
                  if run.setting.is_joint or not name.startswith('a2aug_')}
        for name in _COUNTED_IN_EPOCHS:
            if isinstance(value := config.get(name), (list, tuple)):
                config[name] = [factor * epoch for epoch in value]
            elif value and value >= 1:  # less is a share of the epochs
                config[name] = factor * value
        return {**config, 'model': run.model, 'seed': run.seed, 'epochs': factor * self.epochs, **run.setting.changes}

    def is_done(self, run: Run) -> bool:
        return (self.path(run) / 'result.json').is_file()

    def record(self, run: Run) -> RunRecord | None:
        """What the run has come to; None if it has not come to its end."""
        if run not in self._records and self.is_done(run):
            self._records[run] = read_run(self.path(run))
        return self._records.get(run)

    def failure(self, run: Run) -> str | None:
        """Why the run failed, if it did."""
        path = self.beside(run, 'failed')
        return path.read_text(encoding='utf-8').strip() if path.is_file() and not self.is_done(run) else None

    def with_kept(self) -> 'Study':
        """The study of all networks and seeds that the folder knows, these included.

        Raises:
            ValueError: The folder holds runs of another recipe.
        """
        path = self.folder / 'study.yaml'
        if not path.is_file():
            return self
        kept, ours = yaml.safe_load(path.read_text(encoding='utf-8')), self._described()
        for name in sorted((kept['recipe'].keys() | ours['recipe'].keys()) - _OF_THE_MACHINE):
            if kept['recipe'].get(name) != ours['recipe'].get(name):
                raise ValueError(f"'{self.folder}' is a study of a recipe with {name} {kept['recipe'].get(name)}, not "
                                 f"{ours['recipe'].get(name)}; give another folder")
        if (num := kept.get('num_processes', 1)) != self.num_processes:
            raise ValueError(f"'{self.folder}' is a study of runs with --nproc {num}; give another folder")
        return replace(self, models=list(dict.fromkeys([*kept['models'], *self.models])),
                       num_seeds=max(kept['num_seeds'], self.num_seeds))

    def keep(self) -> None:
        """Say in the folder what it is a study of."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / 'study.yaml') as path:
            path.write_text(yaml.safe_dump(self._described(), sort_keys=False, allow_unicode=True), encoding='utf-8')

    def _described(self) -> dict[str, Any]:
        """As it is read again; YAML knows no tuples."""
        return yaml.safe_load(yaml.safe_dump({
            'recipe': {**self.recipe, 'epochs': self.epochs}, 'models': list(self.models),
            'num_seeds': self.num_seeds, 'num_processes': self.num_processes}))
