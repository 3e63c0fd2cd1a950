"""summary.csv: a row an epoch, written whole each time so that it never disagrees with the checkpoint."""
import csv
from pathlib import Path
from typing import Any

from .checkpoint import atomic_write


def summary_row(
        epoch: int,
        train_terms: dict[str, float],
        metrics: list[dict[str, float]] | None,
        mu: list[float],
        best_branch: int,
        lr: float,
        **cost: float,
) -> dict[str, Any]:
    """One epoch under timm's column names, with a column set a branch and the ensemble where there are branches.

    Args:
        train_terms: Mean loss terms; ``train_…``.
        metrics: Of each branch and the ensemble, as ``engine.evaluate`` returns them, or None without validation.
        best_branch: The branch whose metrics are timm's ``eval_…`` columns.
        cost: What the epoch took, under names of its own.
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
    """Write all rows; columns are in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
