"""The tables of a study as Markdown and CSV, and the page that holds them all."""
import csv
import os
import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import yaml
from matplotlib.figure import Figure

from ..checkpoint import atomic_write
from ..report.plots import save
from . import Row, Study
from .figures import draw_branches, draw_cost, draw_numbers
from .outcomes import mean_and_std, outcomes, write_runs
from .rows import TABLES, TITLES, Method

Table = list[list[str]]  # its first line is the head

PAGE = 'study.md'
_HEAD = """# A study of A²-Aug

Top-1 is measured on the validation split, once a run; branch, epoch and policy are chosen on images held out of the
training split. Mean ± sample standard deviation over seeds; a seed draws policies, weights and batches. Images seen
count every view; 1× is a plain run of {epochs} epochs. Hours are those of training, without evaluation."""


def write_tables(study: Study, method: Method, tables: Sequence[str], origin: Sequence[str]) -> None:
    """Write each table, its figures, ``runs.csv``, and a page of all tables that the folder holds."""
    for name in tables:
        rows = TABLES[name](method)
        make = {'table2': _methods, 'table6': _branches}.get(name, _costs)
        table, notes = make(study, rows)
        figures = [_save_figure(study.folder / stem, figure) for stem, figure in _figures(name, study, method, rows)]
        _write(study.folder / f'{name}.md', '\n\n'.join([f'## {TITLES[name]}', _markdown(table), *notes, *figures]))
        with atomic_write(study.folder / f'{name}.csv') as path, open(path, 'w', newline='', encoding='utf-8') as file:
            csv.writer(file).writerows(table)
    runs = [run for seed in study.seeds for name in TABLES for row in TABLES[name](method) for model in study.models
            for run in row.runs(model, seed)]
    write_runs(study, list(dict.fromkeys(runs)), study.folder / 'runs.csv')
    _write(study.folder / PAGE, _page(study, origin))


def _costs(study: Study, rows: Sequence[Row]) -> tuple[Table, list[str]]:
    """Top-1, gain over the first row, and what it took."""
    table = [['method', 'top-1, %', 'gain', 'seeds', 'images seen', 'hours of training', 'top-1 of each seed']]
    if len(study.models) > 1:
        table[0].insert(0, 'network')
    for model in study.models:
        first = None
        for row in rows:
            found = outcomes(study, row, model)
            name = [model] if len(study.models) > 1 else []
            if not found:
                table.append([*name, row.label, '–', '', '0', '', '', ''])
                continue
            mean, std = mean_and_std([one.top1 for one in found])
            first = mean if row is rows[0] else first
            gain = '' if row is rows[0] or first is None else f'{mean - first:+.2f}'
            hours, _ = mean_and_std([one.seconds / 3600 for one in found])
            table.append([
                *name, row.label, _spread(mean, std, len(found)), gain, str(len(found)), _times(found), f'{hours:.3f}',
                ' '.join(f'{one.top1:.2f}' for one in found)])
    return table, []


def _methods(study: Study, rows: Sequence[Row]) -> tuple[Table, list[str]]:
    """A line a network, a column a method; the gain is the last's over the first's."""
    table = [['network', *(row.label for row in rows), 'gain', 'seeds']]
    for model in study.models:
        found = [outcomes(study, row, model) for row in rows]
        means = [mean_and_std([one.top1 for one in of_row])[0] if of_row else None for of_row in found]
        gain = '' if None in (means[0], means[-1]) else f'{means[-1] - means[0]:+.2f}'
        cells = [_spread(*mean_and_std([one.top1 for one in of_row]), len(of_row)) if of_row else '–'
                 for of_row in found]
        table.append([model, *cells, gain, ' '.join(str(len(of_row)) for of_row in found)])
    return table, []


def _branches(study: Study, rows: Sequence[Row]) -> tuple[Table, list[str]]:
    """Policy, μ and top-1 of each branch at the epoch that was chosen."""
    table = [['network', 'seed', 'branch', 'μ', 'top-1 held out, %']]
    num_runs = num_agreeing = 0
    for model in study.models:
        for seed in study.seeds:
            (run,) = rows[0].runs(model, seed)
            if (record := study.record(run)) is None:
                continue
            epoch = record.chosen_epoch
            mu = [record.columns[f'mu_{i}'][epoch] for i in range(record.num_branches)]
            top1 = [record.series(i, 'top1')[epoch] for i in range(record.num_branches)]
            table += [[model, str(seed), record.policies[i], f'{mu[i]:.3f}', f'{top1[i]:.2f}'] for i in range(len(mu))]
            table.append([model, str(seed), 'ensemble', '', f"{record.series('ensemble', 'top1')[epoch]:.2f}"])
            num_runs += 1
            num_agreeing += top1[mu.index(max(mu))] == max(top1)
    return table, [f'In {num_agreeing} of {num_runs} runs the branch with the largest μ has the best top-1.']


def _spread(mean: float, std: float, num: int) -> str:
    return f'{mean:.2f} ± {std:.2f}' if num > 1 else f'{mean:.2f}'


def _times(found: Sequence) -> str:
    """``3×`` and the number itself, which may differ between seeds."""
    views, _ = mean_and_std([one.views for one in found])
    return f'{found[0].cost}× ({views / 1e6:.2f} M)'


def _figures(name: str, study: Study, method: Method, rows: Sequence[Row]) -> list[tuple[str, Figure]]:
    """Stem of the file -> figure, of those that the table has and the runs suffice for."""
    draw = {'table1': ('cost', partial(draw_cost, method=method)), 'figure3': ('figure3', draw_branches),
            'figure4': ('figure4', partial(draw_numbers, baseline=method.baseline()))}.get(name)
    if draw is None:
        return []
    stem, function = draw
    several = len(study.models) > 1
    figures = [(f'{stem}-{model}' if several else stem, function(study, rows, model)) for model in study.models]
    return [(stem, figure) for stem, figure in figures if figure is not None]


def _page(study: Study, origin: Sequence[str]) -> str:
    recipe = yaml.safe_dump({**study.recipe, 'epochs': study.epochs}, sort_keys=False, allow_unicode=True)
    machine = f'    {_processor()}, {os.cpu_count()} cores' + (
        f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else '')
    sections = [(study.folder / f'{name}.md').read_text(encoding='utf-8').rstrip()
                for name in TABLES if (study.folder / f'{name}.md').is_file()]
    command = '\n'.join(f'    {line}' for line in origin)
    return '\n\n'.join([
        _HEAD.format(epochs=study.epochs), *sections, '## Command, versions, machine', command, machine,
        '## Recipe', ''.join(f'    {line}\n' for line in recipe.splitlines())])


def _processor() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _save_figure(stem: Path, figure: Figure) -> str:
    save(figure, stem)
    return f'![{stem.name}]({stem.name}.png)'


def _markdown(table: Table) -> str:
    lines = [f'| {" | ".join(line)} |' for line in table]
    lines.insert(1, '|' + '---|' * len(table[0]))
    return '\n'.join(lines)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text.rstrip() + '\n', encoding='utf-8')
