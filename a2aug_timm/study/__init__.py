"""The paper's tables and figures on the user's own data: the runs that they need, and what is written of them.

As a program: ``python -m a2aug_timm.study TABLE [TABLE…] -c RECIPE --data FOLDER -o FOLDER``.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint import atomic_write
from ..report import RunRecord, read_run


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
        return f'{self.model}-{self.setting.name}-seed{self.seed}'


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
        folder: Of the tables; ``runs/`` in it holds the runs.
        recipe: train.py's arguments that all runs share, by name; those of A²-Aug go to joint runs alone.
        epochs: Of a plain run.
        models: Networks.
        seeds: Of the runs.
    """
    folder: Path
    recipe: dict[str, Any]
    epochs: int
    models: Sequence[str]
    seeds: Sequence[int]
    _records: dict[Run, RunRecord] = field(default_factory=dict, repr=False, compare=False)

    def path(self, run: Run) -> Path:
        """The run's folder; beside it lie its config, its log and its lock."""
        return self.folder / 'runs' / run.name

    def config(self, run: Run) -> dict[str, Any]:
        """The run's arguments, by name."""
        shared = {name: value for name, value in self.recipe.items()
                  if run.setting.is_joint or not name.startswith('a2aug_')}
        return {**shared, 'model': run.model, 'seed': run.seed, 'epochs': run.setting.epochs * self.epochs,
                **run.setting.changes}

    def config_path(self, run: Run) -> Path:
        return self.path(run).with_name(f'{run.name}.yaml')

    def check_kept(self, run: Run) -> None:
        """Raise ``ValueError`` if the folder holds this run with other arguments."""
        path, config = self.config_path(run), self.config(run)
        kept = yaml.safe_load(path.read_text(encoding='utf-8')) if path.is_file() else config
        for name in sorted(kept.keys() | config.keys()):
            if kept.get(name) != config.get(name):
                raise ValueError(f"'{self.folder}' holds the run {run.name} with {name} {kept.get(name)}, now it would "
                                 f'be {config.get(name)}; give another folder')

    def write_config(self, run: Run) -> None:
        """Write what ``train.py -c`` reads."""
        path, config = self.config_path(run), self.config(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding='utf-8')

    def is_done(self, run: Run) -> bool:
        return (self.path(run) / 'result.json').is_file()

    def record(self, run: Run) -> RunRecord | None:
        """What the run has come to; None if it has not come to its end."""
        if run not in self._records and self.is_done(run):
            self._records[run] = read_run(self.path(run))
        return self._records.get(run)
