"""Output of a run: a progress bar with the remaining time, log lines without a terminal, and tables of branches."""
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_logger = logging.getLogger(__name__)


class RunProgress:
    """Progress over the optimizer steps of a run, as a context manager; only the first rank prints.

    On a terminal it is a bar, otherwise a log line at every log step.

    Args:
        num_epochs: Epochs of the whole run.
        num_updates: Optimizer steps per epoch.
        start_epoch: First epoch, above 0 after a resume.
        enabled: Whether this rank prints.
    """

    def __init__(self, num_epochs: int, num_updates: int, start_epoch: int = 0, enabled: bool = True):
        self.num_epochs = num_epochs
        self._num_updates = num_updates
        self._start_epoch = start_epoch
        self.epoch = start_epoch
        self._start_time = time.perf_counter()
        self._enabled = enabled
        self.console = Console(stderr=True, quiet=not enabled)
        self._bar = None
        if enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[note]}'),
                TextColumn('ETA'), TimeRemainingColumn(), console=self.console, transient=True, redirect_stdout=False)
            self._task = self._bar.add_task(
                'train', total=num_epochs * num_updates, completed=start_epoch * num_updates, note='')

    def __enter__(self) -> 'RunProgress':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pause()

    def pause(self) -> None:
        """Remove the bar until the next epoch, so that a table can be printed."""
        if self._bar is not None:
            self._bar.stop()

    def start_epoch(self, epoch: int) -> None:
        """Start the progress of an epoch, counted from 0."""
        self.epoch = epoch
        if self._bar is not None:
            self._bar.start()
            self._bar.update(
                self._task, completed=epoch * self._num_updates, description=f'epoch {epoch + 1}/{self.num_epochs}')

    def on_update(self, update: int, terms: dict[str, float] | None, rate: float, lr: float) -> None:
        """Show one optimizer step; ``terms`` are the mean loss terms at log steps, ``rate`` is in images per second."""
        if self._bar is not None:
            self._bar.advance(self._task)
            if terms is not None:
                self._bar.update(self._task, note=f"loss {terms['loss']:.3g}  lr {lr:.2e}  {rate:.0f} img/s")
        elif terms is not None and self._enabled:
            done = (self.epoch - self._start_epoch) * self._num_updates + update + 1
            total = (self.num_epochs - self._start_epoch) * self._num_updates
            seconds = (time.perf_counter() - self._start_time) * (total - done) / done
            _logger.info(
                'Train: %d [%4d/%d (%3.0f%%)]  Loss: %#.3g  %.2f/s  LR: %.3e  ETA: %s', self.epoch, update,
                self._num_updates, 100 * (update + 1) / self._num_updates, terms['loss'], rate, lr,
                timedelta(seconds=round(seconds)))


def branch_labels(policies: Sequence[str | None], sizes: Sequence[int] | None = None) -> list[str]:
    """Label of each branch: its policy, and its image size where the branches have different ones."""
    if sizes is None:
        return [policy or '' for policy in policies]
    return [f'{policy} at {size}' for policy, size in zip(policies, sizes, strict=True)]


def branch_table(
        labels: Sequence[str],
        metrics: Sequence[dict[str, float]],
        mu: Sequence[float],
        best: int | None,
) -> Table:
    """Table of an evaluation: one row per branch (policy, μ, top-1, top-5, loss, other metrics), then the ensemble.

    Args:
        labels: Label of each branch.
        metrics: Metrics as ``evaluate`` returns them, in percent.
        mu: Weight of each branch in the ensemble.
        best: Index of the branch to mark.
    """
    table = Table()
    for name in ('', 'policy'):
        table.add_column(name, no_wrap=True)
    for name in ('μ', 'top-1', 'top-5', 'loss', *_others(metrics[0])):
        table.add_column(name, justify='right', no_wrap=True)
    for i, label in enumerate(labels):
        mark = '*' if i == best else ''
        table.add_row(f'{i}{mark}', label, f'{mu[i]:.3f}' if len(labels) > 1 else '', *_cells(metrics[i]),
                      style='bold' if i == best else None)
    if len(metrics) > len(labels):
        table.add_row('', 'ensemble', '', *_cells(metrics[-1]))
    return table


def print_table(title: str, table: Table) -> None:
    """Print a table to standard output, in full width even without a terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(title, highlight=False, soft_wrap=True)
    console.print(table)


def _cells(metrics: dict[str, float]) -> tuple[str, ...]:
    others = (f'{metrics[name]:.2f}' for name in _others(metrics))
    return f"{metrics['top1']:.2f}", f"{metrics['top5']:.2f}", f"{metrics['loss']:.4f}", *others


def _others(metrics: dict[str, float]) -> list[str]:
    return [name for name in metrics if name not in ('top1', 'top5', 'loss')]
