"""The checkpoints that a run keeps: the last one, the best k, and one from the middle of an epoch."""
import operator
import re
from pathlib import Path
from typing import Any

import torch

from .fields import check_fields
from .files import atomic_copy, atomic_link, atomic_write

_FIELDS = {'best_metric': float | None, 'best_epoch': int | None, 'kept': list[tuple[str, float]]}


class CheckpointKeeper:
    """Keeps the files ``last``, ``model_best`` and the best k checkpoints of a run, under timm's names.

    Args:
        folder: The run's folder.
        max_history: ``k``, at least 1.
        decreasing: Whether a lower metric is better.
    """

    def __init__(self, folder: str | Path, max_history: int = 10, decreasing: bool = False):
        self.folder = Path(folder)
        self.max_history = max_history
        self.decreasing = decreasing
        self.best_metric: float | None = None
        self.best_epoch: int | None = None
        self._kept: list[tuple[str, float]] = []

    def is_best(self, metric: float) -> bool:
        """Whether a metric is better than those of all saved epochs."""
        better = operator.lt if self.decreasing else operator.gt
        return self.best_metric is None or better(metric, self.best_metric)

    def save(self, state: dict[str, Any], epoch: int, metric: float) -> bool:
        """Write the checkpoint of an epoch and return whether it is the best so far."""
        is_best = self.is_best(metric)
        if is_best:
            self.best_metric, self.best_epoch = metric, epoch
        name = f'checkpoint-{epoch}.pth.tar'
        kept = [item for item in self._kept if item[0] != name]
        # The sort is stable: among equal metrics, the earlier epoch stays.
        kept = sorted([*kept, (name, metric)], key=lambda item: item[1], reverse=not self.decreasing)
        dropped = {item[0] for item in [*self._kept, *kept[self.max_history:]]}
        self._kept = kept[:self.max_history]
        state = {**state, **self._state(epoch), 'metric': metric}

        # `last` is replaced at the end: after a kill before that, the epoch is repeated and its files written again.
        with atomic_write(self.folder / 'last.pth.tar') as path:
            torch.save(state, path)
            if (name, metric) in self._kept:
                atomic_link(path, self.folder / name)
            if is_best:
                atomic_link(path, self.folder / 'model_best.pth.tar')
        for name in dropped - {item[0] for item in self._kept}:
            (self.folder / name).unlink(missing_ok=True)
        return is_best

    def save_recovery(self, state: dict[str, Any], epoch: int, update: int) -> None:
        """Write a checkpoint from the middle of an epoch in place of earlier ones; a resume from it repeats the epoch.
        """
        path = self.folder / f'recovery-{epoch}-{update}.pth.tar'
        with atomic_write(path) as temporary:
            torch.save({**state, **self._state(epoch - 1)}, temporary)
        for recovery in set(self.folder.glob('recovery-*.pth.tar')) - {path}:
            recovery.unlink()

    def remove_recoveries(self, num_epochs: int) -> None:
        """Remove the checkpoints from the middle of epochs where these are complete: the first ``num_epochs``."""
        for path in self.folder.glob('recovery-*.pth.tar'):
            if _epoch_of(path.name) in range(num_epochs):
                path.unlink()

    def _state(self, epoch: int) -> dict[str, Any]:
        keeper = {'best_metric': self.best_metric, 'best_epoch': self.best_epoch, 'kept': self._kept}
        return {'epoch': epoch, 'version': 2, 'keeper': keeper}

    def load(self, checkpoint: dict[str, Any], start_epoch: int, source: str) -> None:
        """Continue with the best metric and the kept files of a checkpoint, where they are of earlier epochs.

        Args:
            checkpoint: As ``read_checkpoint`` returned it; one of timm's own changes nothing.
            start_epoch: First epoch that is trained.
            source: Path of the checkpoint, for error messages.

        Raises:
            ValueError: The keeper's entry is damaged.
        """
        if 'keeper' not in checkpoint:
            return
        keeper = check_fields(checkpoint['keeper'], _FIELDS, f"the entry 'keeper' of '{source}'")
        if keeper['best_epoch'] is not None and keeper['best_epoch'] < start_epoch:
            self.best_metric, self.best_epoch = keeper['best_metric'], keeper['best_epoch']
        self._kept = [(name, metric) for name, metric in keeper['kept'] if _epoch_of(name) in range(start_epoch)]

    def take_from(self, folder: Path) -> None:
        """Copy the kept files of another folder. Missing files are not kept; if the best is missing, there is none."""
        self._kept = [(name, metric) for name, metric in self._kept if (folder / name).exists()]
        for name, _ in self._kept:
            atomic_copy(folder / name, self.folder / name)
        if all(name != f'checkpoint-{self.best_epoch}.pth.tar' for name, _ in self._kept):
            self.best_metric = self.best_epoch = None

    def restore_best(self) -> Path | None:
        """Make ``model_best`` the best epoch's file again and return it; a kill may have left it ahead of ``last``."""
        best, path = self.folder / f'checkpoint-{self.best_epoch}.pth.tar', self.folder / 'model_best.pth.tar'
        if self.best_epoch is None or not best.exists():
            return None
        atomic_link(best, path)
        return path


def _epoch_of(name: str) -> int | None:
    """Epoch in the name of a checkpoint; None for other names, which may be paths to other folders."""
    match = re.fullmatch(r'(?:checkpoint-|recovery-)([0-9]{1,9})(?:-[0-9]+)?\.pth\.tar', name)
    return int(match[1]) if match else None
