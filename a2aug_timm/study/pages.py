"""Tables of a study as Markdown and CSV, and the page that contains them all."""
import csv
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from timm.models import safe_model_name

from ..engine.files import atomic_write
from ..report.plots import save
from .figures import draw_branches, draw_cost, draw_numbers, draw_pareto, draw_weights
from .outcomes import Line, lines_of, short_count, write_runs
from .price import PRICE_TITLES, Price
from .price_table import price_lines, price_table
from .rows import TABLES, TITLES, Method
from .study_folder import Study
from .trial import Row, Trial

Table = list[list[Any]]  # the first line is the header

PAGE = 'study.md'
_HEAD = """# A study of A²-Aug

Top-1 is measured on the validation split, once per run. Branch, epoch and policy are chosen on images held out of the
training split; Table 6 and Figure 3 show accuracy on those. Values are mean ± sample standard deviation over seeds. A
seed draws weights, batches and policies (unless the recipe names them). A gain is the mean difference to the first row
at the same seeds. 1× is the number of views in a plain run of {epochs} epochs. Hours are training time without
evaluation; they are comparable only if the machine was otherwise idle."""


@dataclass(frozen=True)
class _Content:
    """A table before it is written: for reading, for computing, and what belongs to it."""
    title: str
    markdown: Table
    plain: Table
    notes: list[str]
    figures: list[tuple[str, Figure]]
    trials: list[Trial]


def write_tables(
        study: Study,
        method: Method,
        tables: Sequence[str],
        origin: Sequence[str],
        prices: Mapping[str, Price] | None = None,
) -> tuple[int, int]:
    """Write each table with its figures, ``runs.csv`` and the page.

    Args:
        tables: Names of the paper's tables.
        origin: Command and versions, for the page.
        prices: Name -> table of the comparison at equal cost.

    Returns:
        Number of finished trials, and of all trials that are known.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    prices = prices or {}
    all_trials: dict[Trial, None] = {}
    for name in [*tables, *prices]:
        content = _price_content(name, study, prices) if name in prices else _paper_content(name, study, method)
        all_trials.update(dict.fromkeys(content.trials))
        failures = [f'{trial.name} failed: {why}' for trial in content.trials if (why := study.failure(trial))]
        figures = [_save_figure(study.folder / stem, figure) for stem, figure in content.figures]
        _write(study.folder / f'{name}.md', '\n\n'.join(
            [f'## {content.title}', _markdown(content.markdown), *content.notes, *failures, *figures]))
        with atomic_write(study.folder / f'{name}.csv') as path, open(path, 'w', newline='', encoding='utf-8') as file:
            csv.writer(file).writerows(content.plain)
    study.keep_results(all_trials)
    write_runs(study, list(all_trials), study.folder / 'runs.csv')
    _write(study.folder / PAGE, _page(study, [*tables, *prices], origin))
    return sum(map(study.is_done, all_trials)), len(all_trials)


def _paper_content(name: str, study: Study, method: Method) -> _Content:
    rows = TABLES[name](method)
    markdown, plain, notes = {'table2': _methods, 'table6': _branches}.get(name, _costs)(study, rows)
    trials = dict.fromkeys(trial for seed in study.seeds for row in rows for model in study.models
                           for trial in row.trials(model, seed))
    return _Content(TITLES[name], markdown, plain, notes, _figures(name, study, method, rows), list(trials))


def _price_content(name: str, study: Study, prices: Mapping[str, Price]) -> _Content:
    markdown, plain, notes = price_table(study, prices[name])
    figures = []
    if name == list(prices)[-1]:  # one figure for all of them
        for model in study.models:
            lines = {PRICE_TITLES[name]: price_lines(study, price, model) for name, price in prices.items()}
            figures.append((_stem('pareto', study, model), draw_pareto(lines, model)))
    return _Content(PRICE_TITLES[name], markdown, plain, notes, _drawn(figures), prices[name].trials(study))


def _costs(study: Study, rows: Sequence[Row]) -> tuple[Table, Table, list[str]]:
    """Table of top-1, gain over the first row, and cost."""
    lines = [line for model in study.models for line in lines_of(study, rows, model)]
    first = f'gain over {rows[0].label}'
    several = len(study.models) > 1
    markdown: Table = [['network'] * several + ['method', 'top-1, %', first, 'seeds', 'views', 'hours', 'each seed']]
    plain: Table = [['network', 'method', 'top1', 'top1_std', 'gain', 'gain_std', 'seeds', 'cost', 'views', 'seconds']]
    for line in lines:
        name = [line.model] * several + [line.label]
        if line.top1 is None:
            markdown.append([*name, '–', '', 0, '', '', ''])
            continue
        gain = '' if line.label == rows[0].label or line.gain is None else _spread(line.gain, '+')
        markdown.append([
            *name, _spread(line.top1), gain, len(line.seeds), f'{line.cost}× ({short_count(line.views)})',
            f'{line.seconds / 3600:.3g}', ' '.join(f'{top1:.2f}' for top1 in line.seeds.values())])
        plain.append([line.model, line.label, *line.top1, *(line.gain or (None, None)), len(line.seeds), line.cost,
                      line.views, line.seconds])
    return markdown, plain, []


def _methods(study: Study, rows: Sequence[Row]) -> tuple[Table, Table, list[str]]:
    """Table with one line per network and one column per method; the gain is that of the last over the first."""
    _, plain, _ = _costs(study, rows)
    markdown = [['network', *(row.label for row in rows), 'gain', 'seeds']]
    for model in study.models:
        lines = lines_of(study, rows, model)
        gain = '' if lines[-1].gain is None else _spread(lines[-1].gain, '+')
        seeds = ' '.join(str(len(line.seeds)) for line in lines)
        markdown.append([model, *(_cell(line) for line in lines), gain, seeds])
    return markdown, plain, []


def _branches(study: Study, rows: Sequence[Row]) -> tuple[Table, Table, list[str]]:
    """Table of policy, μ and top-1 of each branch at the chosen epoch."""
    table: Table = [['network', 'seed', 'branch', 'μ', 'top-1 held out, %']]
    num_trials = num_agreeing = 0
    for model in study.models:
        for seed in study.seeds:
            (trial,) = rows[0].trials(model, seed)
            if (record := study.record(trial)) is None:
                continue
            epoch = record.chosen_epoch
            mu = [record.columns[f'mu_{i}'][epoch] or 0. for i in range(record.num_branches)]
            top1 = [record.series(i, 'top1')[epoch] or 0. for i in range(record.num_branches)]
            table += [[model, seed, record.policies[i], f'{mu[i]:.3f}', f'{top1[i]:.2f}'] for i in range(len(mu))]
            table.append([model, seed, 'ensemble', '', f"{record.series('ensemble', 'top1')[epoch]:.2f}"])
            num_trials += 1
            num_agreeing += top1[mu.index(max(mu))] == max(top1)
    return table, table, [f'In {num_agreeing} of {num_trials} runs the branch with the largest μ has the best top-1.']


def _spread(value: tuple[float, float | None], sign: str = '') -> str:
    mean, std = value
    return f'{mean:{sign}.2f}' if std is None else f'{mean:{sign}.2f} ± {std:.2f}'


def _cell(line: Line) -> str:
    return '–' if line.top1 is None else _spread(line.top1)


def _figures(name: str, study: Study, method: Method, rows: Sequence[Row]) -> list[tuple[str, Figure]]:
    """Figures of a table that can be drawn from the finished trials: name of the file and figure."""
    functions: dict[str, tuple[str, Callable[..., Figure | None]]] = {
        'table1': ('cost', partial(draw_cost, method=method)), 'table6': ('mu', draw_weights),
        'figure3': ('figure3', draw_branches),
        'figure4': ('figure4', partial(draw_numbers, baseline=method.baseline()))}
    if name not in functions:
        return []
    stem, function = functions[name]
    return _drawn([(_stem(stem, study, model), function(study, rows, model)) for model in study.models])


def _drawn(figures: Sequence[tuple[str, Figure | None]]) -> list[tuple[str, Figure]]:
    return [(stem, figure) for stem, figure in figures if figure is not None]


def _stem(name: str, study: Study, model: str) -> str:
    """Name of a figure's file; it contains the network if the study has several."""
    return f'{name}-{safe_model_name(model)}' if len(study.models) > 1 else name


def _page(study: Study, tables: Sequence[str], origin: Sequence[str]) -> str:
    recipe = yaml.safe_dump({**study.recipe, 'epochs': study.epochs}, sort_keys=False, allow_unicode=True)
    machine = f'    {_processor()}, {os.cpu_count()} cores' + (
        f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else '')
    sections = [(study.folder / f'{name}.md').read_text(encoding='utf-8').rstrip() for name in tables]
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
    save(figure, stem.with_suffix('.png'))
    return f'![{stem.name}]({stem.name}.png)'


def _markdown(table: Table) -> str:
    lines = [f'| {" | ".join(map(str, line))} |' for line in table]
    lines.insert(1, '|' + '---|' * len(table[0]))
    return '\n'.join(lines)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text.rstrip() + '\n', encoding='utf-8')
