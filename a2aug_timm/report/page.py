"""The report as one self-contained HTML page."""
import html
from collections.abc import Sequence
from typing import Any

from .run_record import RunRecord

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.6rem 0 1.2rem; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.chosen { font-weight: bold; }
svg { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: 0.7rem; overflow-x: auto; }
"""


def write_page(runs: Sequence[RunRecord], figures: Sequence[dict[str, str]]) -> str:
    """HTML page about several runs.

    Args:
        figures: One dictionary per run: title of a figure -> its SVG text.
    """
    parts = ['<!DOCTYPE html>', '<html lang="en"><head><meta charset="utf-8"><title>A²-Aug report</title>',
             f'<style>{_STYLE}</style></head><body>', '<h1>A²-Aug report</h1>', _table_of_runs(runs)]
    for run, drawn in zip(runs, figures, strict=True):
        parts.append(f'<h2>{html.escape(run.name)}</h2>')
        parts.append(f'<p>{html.escape(_sentence(run))}</p>')
        parts.append(_table_of_branches(run))
        for title, svg in drawn.items():
            parts.append(f'<h3>{html.escape(title)}</h3>\n{svg[svg.index("<svg"):]}')
        if run.origin:
            parts.append(f'<h3>Command and versions</h3>\n<pre>{html.escape(chr(10).join(run.origin))}</pre>')
    return '\n'.join([*parts, '</body></html>']) + '\n'


def _sentence(run: RunRecord) -> str:
    """Accuracy of the chosen branch; first on images that were not used for the choice, if there are any."""
    result = run.result
    if not result:
        return f'{len(run.columns["epoch"])} epochs so far; the run is not finished.'
    chosen = f"epoch {result['epoch'] + 1}, branch {result['branch']}" + (
        f" ({result['policy']})" if result['policy'] else '')
    on_choice = ', '.join(f'{name} {value:.4g}' for name, value in result['chosen_with'].items())
    if result['test']:
        on_test = ', '.join(f'{name} {value:.4g}' for name, value in result['test'].items())
        return (f"On {result['test_split']}, which was not used for the choice: {on_test}. Chosen: {chosen}, on "
                f"{result['chosen_on']}: {on_choice}.")
    return (f"Chosen: {chosen}, on {result['chosen_on']}" + (f': {on_choice}' if on_choice else '')
            + '. The same images were used for the choice and for this figure, so it is optimistic.')


def _table_of_runs(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        test = (run.result.get('test') or {}).get('top1')
        rows.append((run.name, run.args.get('model', ''), run.num_branches, len(run.columns['epoch']), test,
                     run.result.get('chosen_on', ''), run.series(run.chosen_branch, 'top1')[run.chosen_epoch]
                     if run.series(run.chosen_branch, 'top1') else None))
    head = ('run', 'model', 'branches', 'epochs', 'top-1 on images not used for the choice', 'chosen on', 'top-1 there')
    return _table(head, rows)


def _table_of_branches(run: RunRecord) -> str:
    """Table of all branches and the ensemble at the chosen epoch."""
    row = run.chosen_epoch
    names = ['policy', 'μ', 'top-1', 'top-5', 'loss']
    lines: list[tuple[Any, ...]] = []
    for branch, policy in enumerate(run.policies):
        mu = run.columns[f'mu_{branch}'][row] if run.num_branches > 1 else None
        lines.append((policy, mu, *(_at(run, branch, metric, row) for metric in ('top1', 'top5', 'loss'))))
    if run.num_branches > 1:
        lines.append(('ensemble', None, *(_at(run, 'ensemble', metric, row) for metric in ('top1', 'top5', 'loss'))))
    return _table(names, lines, run.chosen_branch)


def _at(run: RunRecord, branch: int | str, metric: str, row: int) -> float | None:
    values = run.series(branch, metric)
    return values[row] if values else None


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], chosen: int | None = None) -> str:
    lines = ['<table>', '<tr>' + ''.join(f'<th>{html.escape(name)}</th>' for name in head) + '</tr>']
    for i, row in enumerate(rows):
        cells = ''.join(f'<td>{html.escape(_cell(value))}</td>' for value in row)
        lines.append(f'<tr class="chosen">{cells}</tr>' if i == chosen else f'<tr>{cells}</tr>')
    return '\n'.join([*lines, '</table>'])


def _cell(value: Any) -> str:
    if value is None:
        return '–'
    return f'{value:.4g}' if isinstance(value, float) else str(value)
