"""Folder of a run: args.yaml, summary.csv, checkpoints, export/ with the best branch, and result.json at the end."""
import csv
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ..engine.checkpoint import read_checkpoint
from ..engine.files import atomic_copy, atomic_write, remove_unfinished
from ..engine.keeper import CheckpointKeeper
from ..engine.record import CheckpointRecord, require_record
from ..export import export_recorded_branch, load_branches


def choose_folder(
        output: str | Path,
        experiment: str = '',
        name: str = '',
        resumed: str | Path | None = None,
) -> Path:
    """Choose the folder of a run: the folder of the run that is resumed, else one that holds no run yet.

    Args:
        output: Folder of runs.
        experiment: Name of the folder in it (default: a date and ``name``).
        name: Name of the model.
        resumed: Folder of the checkpoint that is resumed; used if it holds a run.

    Raises:
        ValueError: The experiment exists already and is not the run that is resumed.
    """
    if resumed is not None and (Path(resumed) / 'args.yaml').exists():
        return Path(resumed)
    if experiment:
        path = Path(output) / experiment
        if (path / 'args.yaml').exists():
            checkpoint = next((one for one in (path / 'last.pth.tar', *path.glob('recovery-*')) if one.exists()), None)
            advice = f'resume it with --resume {checkpoint}' if checkpoint else 'it has no checkpoint yet, remove it'
            raise ValueError(f"'{path}' holds a run already; {advice}, or choose another --experiment")
        return path
    name = f'{datetime.now():%Y%m%d-%H%M%S}-{name}'
    taken = {path.name for path in Path(output).glob(f'{name}*')}
    return Path(output) / next(new for new in (name, *(f'{name}-{i}' for i in range(2, 1000))) if new not in taken)


class RunFolder:
    """Folder of one run; only the first rank may write to it.

    Args:
        path: Path of the folder; ``begin`` creates it.
        max_history: Number of best checkpoints to keep.
        decreasing: Lower values of the metric are better.
    """

    def __init__(self, path: str | Path, max_history: int = 10, decreasing: bool = False):
        self.path = Path(path)
        self.export_path = self.path / 'export'
        self.last_path = self.path / 'last.pth.tar'
        self.keeper = CheckpointKeeper(self.path, max_history, decreasing)
        self.history: list[dict[str, Any]] = []

    def _resume(self, checkpoint: dict[str, Any], source: str | Path, start_epoch: int) -> None:
        source = Path(source)
        self.history = [row for row in checkpoint.get('history', []) if row['epoch'] < start_epoch]
        self.keeper.load(checkpoint, start_epoch, str(source))
        if self.history:  # a run that was killed after its checkpoint has not written it
            write_summary(self.path / 'summary.csv', self.history)
        if source.parent.resolve() != self.path.resolve():
            atomic_copy(source, self.last_path)
            self.keeper.take_from(source.parent)
        if path := self.keeper.restore_best():
            best = read_checkpoint(path)
            record = require_record(best, str(path))
            export_recorded_branch(record, load_branches(best, str(path)), record.best_branch, self.export_path)

    def begin(
            self,
            args: dict[str, Any],
            checkpoint: dict[str, Any] | None = None,
            source: str | Path = '',
            start_epoch: int = 0,
            origin: Sequence[str] = (),
    ) -> None:
        """Create the folder, or clear it of unfinished files, and write ``args.yaml``, which ``-c`` reads again.

        Args:
            args: Arguments of the run.
            checkpoint: Checkpoint that is resumed, with its history, best metric and kept files.
            source: Path of the checkpoint. From another folder, its best checkpoints are copied.
            start_epoch: First epoch that is trained.
            origin: Command and versions, written as a comment at the head of ``args.yaml``.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / 'result.json').unlink(missing_ok=True)  # of an earlier end of the run
        if checkpoint is not None:
            self._resume(checkpoint, source, start_epoch)
        self.keeper.remove_recoveries(start_epoch)
        for folder in (self.path, self.export_path):
            remove_unfinished(folder)
        with atomic_write(self.path / 'args.yaml') as path:
            head = ''.join(f'# {line}\n' for line in origin)
            path.write_text(head + yaml.safe_dump(args, sort_keys=False, allow_unicode=True), encoding='utf-8')

    def save(
            self,
            model: nn.Module,
            state: dict[str, Any],
            row: dict[str, Any],
            record: CheckpointRecord,
            metric: float,
    ) -> None:
        """Save an epoch: the checkpoint, its row of the summary, and the export if the epoch is the best so far.

        Args:
            model: The evaluated model, with all its branches.
            state: Tensors and arguments of the checkpoint.
            row: Row of ``summary_row``.
            record: Record of the run: policies, μ, metrics, best branch, model and data config.
            metric: Metric by which epochs are compared.
        """
        self.history.append(row)
        # The export is written first: after a kill in between, the epoch is repeated and exported again.
        if self.keeper.is_best(metric):
            export_recorded_branch(record, model, record.best_branch, self.export_path)
        self.keeper.save({**state, **record.to_entry(), 'history': self.history}, epoch=row['epoch'], metric=metric)
        write_summary(self.path / 'summary.csv', self.history)
        self.keeper.remove_recoveries(row['epoch'] + 1)

    def save_result(self, result: dict[str, Any]) -> None:
        """Write the result of the run."""
        with atomic_write(self.path / 'result.json') as path:
            path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')

    def save_recovery(self, state: dict[str, Any], epoch: int, update: int) -> None:
        """Save a checkpoint in the middle of an epoch; the next one or the end of the epoch replaces it."""
        self.keeper.save_recovery({**state, 'history': self.history}, epoch, update)


def summary_row(
        epoch: int,
        train_terms: dict[str, float],
        metrics: list[dict[str, float]] | None,
        mu: list[float],
        best_branch: int,
        lr: float,
        **cost: float,
) -> dict[str, Any]:
    """Row of one epoch under timm's column names; with branches, also one set of columns per branch and the ensemble.

    Args:
        train_terms: Mean loss terms; ``train_…``.
        metrics: Metrics of each branch and the ensemble, as ``evaluate`` returns them; None without validation.
        best_branch: Branch whose metrics are timm's ``eval_…`` columns.
        cost: Cost of the epoch, as further columns.
    """
    row = {'epoch': epoch, **{f'train_{name}': value for name, value in train_terms.items()}}
    if metrics is not None:
        row.update({f'eval_{name}': value for name, value in metrics[best_branch].items()})
    if len(mu) > 1:
        row['best_branch'] = best_branch
        row.update({f'mu_{i}': value for i, value in enumerate(mu)})
        for i, branch in enumerate(metrics or []):
            name = f'branch_{i}' if i < len(mu) else 'ensemble'
            row.update({f'eval_{name}_{metric}': value for metric, value in branch.items()})
    return {**row, 'lr': lr, **cost}


def write_summary(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows; columns keep the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
