"""Contents of the folder of a training run: arguments, metrics per epoch, result."""
import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class RunRecord:
    """Contents of a run's folder, without its checkpoints.

    Attributes:
        name: Name of the folder.
        columns: Column of summary.csv -> one value per epoch; None where the epoch has no value.
        args: Arguments of the run, from args.yaml; empty if the file is missing.
        origin: Command and versions, from the comment at the top of args.yaml.
        result: Contents of result.json; empty if the run is not finished.
    """
    name: str
    columns: dict[str, list[float | None]]
    args: dict[str, Any] = field(default_factory=dict)
    origin: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def num_branches(self) -> int:
        """Number of branches; 1 for plain training."""
        return max(1, sum(column.startswith('mu_') for column in self.columns))

    @property
    def policies(self) -> list[str]:
        """Policy of each branch, or the one policy of plain training."""
        named = self.args.get('a2aug_policies') or [self.args.get('aa') or 'none']
        return named if len(named) == self.num_branches else [f'branch {i}' for i in range(self.num_branches)]

    def series(self, branch: int | str, metric: str) -> list[float | None]:
        """Validation metric of a branch or of the ``ensemble``, one value per epoch; empty if it was not measured."""
        if self.num_branches == 1:
            return self.columns.get(f'eval_{metric}', [])
        name = branch if branch == 'ensemble' else f'branch_{branch}'
        return self.columns.get(f'eval_{name}_{metric}', [])

    def total(self, column: str) -> float:
        """Sum of a column over the epochs that have a value."""
        return sum(value for value in self.columns[column] if value is not None)

    @property
    def chosen_epoch(self) -> int:
        """Row of the chosen epoch; of the best epoch so far if the run is not finished."""
        if self.result:
            return self.columns['epoch'].index(self.result['epoch'])
        name = 'eval_loss' if self.args.get('eval_metric') == 'loss' else 'eval_top1'
        values = self.columns.get(name) or self.columns['train_loss']
        sign = 1 if name == 'eval_top1' and name in self.columns else -1
        scores = [-math.inf if value is None else sign * value for value in values]
        return scores.index(max(scores))

    @property
    def chosen_branch(self) -> int:
        """Best branch at the chosen epoch."""
        return int((self.columns.get('best_branch') or [0] * (self.chosen_epoch + 1))[self.chosen_epoch] or 0)


def read_run(folder: str | Path) -> RunRecord:
    """Read a run's folder; only summary.csv is required.

    Raises:
        ValueError: summary.csv is missing or has no epoch, or a file cannot be read.
    """
    folder = Path(folder)
    path = folder / 'summary.csv'
    if not path.is_file():
        raise ValueError(f"'{folder}' is not the folder of a run: it has no summary.csv")
    try:
        with open(path, newline='', encoding='utf-8') as file:
            rows = list(csv.DictReader(file))
        names = rows[0] if rows else ()
        columns = {name: [float(row[name]) if row[name] else None for row in rows] for name in names}
        head = (folder / 'args.yaml').read_text(encoding='utf-8') if (folder / 'args.yaml').is_file() else ''
        result = folder / 'result.json'
        record = RunRecord(
            folder.resolve().name, columns, yaml.safe_load(head) or {},
            [line.removeprefix('#').strip() for line in head.splitlines() if line.startswith('#')],
            json.loads(result.read_text(encoding='utf-8')) if result.is_file() else {})
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"the files of the run '{folder}' cannot be read: {error}") from error
    if not rows or 'train_loss' not in columns:
        raise ValueError(f"'{path}' has no epoch of a run")
    return record
