"""A run as its folder tells it: rows of summary.csv, arguments, result; drawn and written as a page by this package.

As a program: ``python -m a2aug_timm.report RUN [RUN…] -o FOLDER``.
"""
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class RunRecord:
    """What a run's folder says.

    Attributes:
        name: The folder's.
        columns: Column of summary.csv -> a value an epoch; epochs without one hold None.
        args: Of args.yaml; empty where there is none.
        origin: Command and versions, the comment at the head of args.yaml.
        result: Of result.json; empty for a run that has not come to its end.
    """
    name: str
    columns: dict[str, list[float | None]]
    args: dict[str, Any] = field(default_factory=dict)
    origin: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def num_branches(self) -> int:
        return max(1, sum(column.startswith('mu_') for column in self.columns))

    @property
    def policies(self) -> list[str]:
        """Policy of each branch, or of the plain run."""
        named = self.args.get('a2aug_policies') or [self.args.get('aa') or 'none']
        return named if len(named) == self.num_branches else [f'branch {i}' for i in range(self.num_branches)]

    def series(self, branch: int | str, metric: str) -> list[float | None]:
        """A validation metric of a branch or the ``ensemble``, epoch by epoch; empty if it was not measured."""
        if self.num_branches == 1:
            return self.columns.get(f'eval_{metric}', [])
        name = branch if branch == 'ensemble' else f'branch_{branch}'
        return self.columns.get(f'eval_{name}_{metric}', [])

    @property
    def chosen_epoch(self) -> int:
        """Row of the epoch that was chosen, or that is the best so far."""
        if self.result:
            return self.columns['epoch'].index(self.result['epoch'])
        name = 'eval_loss' if self.args.get('eval_metric') == 'loss' else 'eval_top1'
        values = self.columns.get(name) or [-value for value in self.columns['train_loss']]
        sign = -1 if name == 'eval_loss' and name in self.columns else 1
        return max(range(len(values)), key=lambda row: -float('inf') if values[row] is None else sign * values[row])

    @property
    def chosen_branch(self) -> int:
        return int((self.columns.get('best_branch') or [0] * (self.chosen_epoch + 1))[self.chosen_epoch] or 0)


def read_run(folder: str | Path) -> RunRecord:
    """Read a run's folder; summary.csv is all that must be there.

    Raises:
        ValueError: There is no summary, it has no epoch, or a file in the folder is not what its name says.
    """
    folder = Path(folder)
    path = folder / 'summary.csv'
    if not path.is_file():
        raise ValueError(f"there is no run in '{folder}': it has no summary.csv")
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
        raise ValueError(f"'{path}' holds no epoch of a run")
    return record
