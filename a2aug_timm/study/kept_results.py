"""Results of a study's trials in one small file, so that a study without its runs can be committed and resumed."""
import json
import logging
import math
from pathlib import Path
from typing import Any

from ..report import RunRecord

_logger = logging.getLogger(__name__)

FILE = 'trials.jsonl'
_ARGS = ('model', 'seed', 'epochs', 'lr', 'batch_size', 'aa', 'a2aug_policies', 'eval_metric')
_COLUMNS = ('epoch', 'train_views', 'train_seconds', 'eval_top1', 'best_branch')


def read_results(path: Path) -> dict[str, RunRecord | str]:
    """Read the file of results; of several lines with one name the last counts.

    Returns:
        Name of a trial -> its record, or why it failed. A line that a killed process left unfinished is skipped.
    """
    results: dict[str, RunRecord | str] = {}
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            name = entry['name']
            results[name] = entry['failed'] if 'failed' in entry else RunRecord(
                name, entry['columns'], entry['args'], entry['origin'], entry['result'])
        except (ValueError, TypeError, KeyError):
            _logger.warning('%s: line %d is not the result of a trial; it is skipped', path, number)
    return results


def append_result(path: Path, name: str, result: RunRecord | str) -> None:
    """Add a line: what the tables and figures read of a record, or why a trial failed."""
    entry = {'name': name, 'failed': result} if isinstance(result, str) else _entry(name, result)
    line = json.dumps(entry, ensure_ascii=False, separators=(',', ':')) + '\n'
    with open(path, 'ab+') as file:
        if file.tell():
            file.seek(-1, 2)
            line = line if file.read(1) == b'\n' else '\n' + line
        file.write(line.encode())  # appended in one piece, since several processes share the file


def _entry(name: str, record: RunRecord) -> dict[str, Any]:
    columns = {column: [_short(value) for value in values] for column, values in record.columns.items()
               if column in _COLUMNS or column.startswith('mu_') or column.endswith('_top1')}
    return {'name': name, 'args': {key: record.args[key] for key in _ARGS if key in record.args},
            'origin': record.origin[-1:], 'result': record.result, 'columns': columns}


def _short(value: float | None) -> float | None:
    """A value with seven significant digits; whole numbers keep all, and what is not finite has no value."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f'{value:.7g}')
