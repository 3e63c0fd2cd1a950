"""Results of an evaluation: timm's columns for each branch and the ensemble, printed and written to a file."""
import csv
import json
from pathlib import Path
from typing import Any

from ..engine.files import atomic_write


def describe(
        rows: list[dict[str, Any]],
        metrics: list[dict[str, float]],
        common: dict[str, Any],
) -> list[dict[str, Any]]:
    """Results under timm's names: one dict per branch, and one for the ensemble of several branches.

    Args:
        rows: Description of each branch.
        metrics: Metrics of each branch and the ensemble, as ``evaluate`` returns them.
        common: Size, preprocessing and source of the model; a row may override them.
    """
    if len(metrics) > len(rows):
        rows = [*rows, {'model': rows[0]['model'], 'branch': 'ensemble', 'policy': None, 'mu': None}]
    results = []
    for row, one in zip(rows, metrics, strict=True):
        result = dict(row)
        for name in ('top1', 'top5'):
            result.update({name: round(one[name], 4), f'{name}_err': round(100 - one[name], 4)})
        result.update({name: round(value, 4) for name, value in one.items() if name not in ('top1', 'top5', 'loss')})
        results.append({**result, 'loss': round(one['loss'], 4), **common, **row})
    return results


def write_results(path: Path, results: list[dict[str, Any]] | dict[str, Any], results_format: str) -> None:
    """Write results as CSV or JSON; the file is replaced in one step."""
    with atomic_write(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        if results_format == 'json':
            json.dump(results, file, indent=4)
            return
        rows = results if isinstance(results, list) else [results]
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
