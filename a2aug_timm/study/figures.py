"""Figures of a study, in the style of a run's report."""
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..report.plots import COLORS, ENSEMBLE_COLOR, draw_mu, draw_series, finish, short_policy
from .outcomes import Line, expected_search, lines_of
from .price_table import PriceLine, PriceResult
from .rows import MAX_BRANCHES, Method
from .study_folder import Study
from .trial import Row


def draw_branches(study: Study, rows: Sequence[Row], model: str) -> Figure | None:
    """Figure 3: top-1 over the epochs, of branches and of their policies alone, for the first finished seed."""
    joint_row, alone_row = rows
    for seed in study.seeds:
        trials = [*joint_row.trials(model, seed), *alone_row.trials(model, seed)]
        records = [record for trial in trials if (record := study.record(trial)) is not None]
        if len(records) == len(trials):
            break
    else:
        return None
    joint, *alone = records
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for branch, (policy, plain) in enumerate(zip(joint.policies, alone, strict=True)):
        color = COLORS[branch % len(COLORS)]
        draw_series(axes, joint, joint.series(branch, 'top1'), short_policy(policy, branch), color)
        draw_series(axes, plain, plain.series(0, 'top1'), f'{branch}: alone', color, ':')
    draw_series(axes, joint, joint.series('ensemble', 'top1'), 'ensemble', ENSEMBLE_COLOR, '--')
    axes.set_title(f'top-1 on held-out images, %: {model}, seed {seed}', loc='left')
    # The low values of the first epochs would leave little room for those of the last.
    last = [record.series(0, 'top1')[-1] or 0. for record in records]
    axes.set_ylim(bottom=min(last) - 12)
    finish(axes)
    return figure


def draw_weights(study: Study, rows: Sequence[Row], model: str) -> Figure | None:
    """Draw μ over the epochs, for the first finished seed."""
    records = (study.record(trial) for seed in study.seeds for trial in rows[0].trials(model, seed))
    record = next((record for record in records if record is not None), None)
    return None if record is None else draw_mu(record)


def draw_numbers(study: Study, rows: Sequence[Row], model: str, baseline: Row) -> Figure | None:
    """Figure 4: top-1 against the number of branches, with the spread over seeds."""
    points = [(num, line) for num, line in enumerate(lines_of(study, rows, model), 1) if line.top1 is not None]
    if not points:
        return None
    figure = Figure(figsize=(5.5, 3.6), layout='constrained')
    axes = figure.subplots()
    nums, lines = zip(*points, strict=True)
    _draw_points(axes, nums, lines, 'A²-Aug', COLORS[0], 'o-')
    (line,) = lines_of(study, [baseline], model)
    if line.top1 is not None:
        axes.axhline(line.top1[0], color=ENSEMBLE_COLOR, linestyle='--', linewidth=1, label='baseline')
    axes.set_xticks(nums)
    axes.set_title(f'top-1, %: {model}', loc='left')
    finish(axes, 'number of branches, N')
    return figure


def draw_cost(study: Study, rows: Sequence[Row], model: str, method: Method) -> Figure | None:
    """Top-1 against the number of views: A²-Aug for each N, a random search of each size, plain training."""
    figure = Figure(figsize=(7, 4.4), layout='constrained')
    axes = figure.subplots()
    search, num = method.search(), method.num_branches
    costs: set[int | Fraction] = set()
    if curves := [curve for seed in study.seeds if (curve := expected_search(study, search, model, seed))]:
        # A seed with failed trials has a shorter curve.
        means = [statistics.fmean(values) for values in zip(*curves, strict=False)]
        axes.plot(range(1, len(means) + 1), means, '-', color=COLORS[1], label='the best of k policies alone')
        costs |= {1, len(means)}
    joint = [method.joint(num) for num in range(2, min(MAX_BRANCHES, method.num_policies) + 1)]
    for label, color, style, of_label in (
            ('A²-Aug, N branches', COLORS[0], 'o-', joint),
            ('baseline', ENSEMBLE_COLOR, 's--', [method.baseline(), method.baseline(num)]),
            (method.best_of(1).label, COLORS[2], '^--', [method.best_of(1), method.best_of(1, num)])):
        lines = [line for line in lines_of(study, of_label, model) if line.top1 is not None]
        if lines:
            _draw_points(axes, [float(line.cost) for line in lines], lines, label, color, style)
            costs.update(line.cost for line in lines)
    if not axes.get_legend_handles_labels()[0]:
        return None
    axes.set_xscale('log', base=2)
    axes.set_xticks(list(map(float, sorted(costs))), [f'{cost}×' for cost in sorted(costs)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(f'top-1, %, against cost: {model}', loc='left')
    finish(axes, 'views, as a multiple of a plain run')
    return figure


def draw_pareto(tables: Mapping[str, Sequence[PriceLine]], model: str) -> Figure | None:
    """Top-1 with its interval against the seconds of training, one part per table.

    A line connects the results that no cheaper result of the table beats.

    Args:
        tables: Title -> lines of a table.
    """
    if not any(line.result for lines in tables.values() for line in lines):
        return None
    figure = Figure(figsize=(7 * len(tables), 4.8), layout='constrained')
    parts = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (title, lines) in zip(parts, tables.items(), strict=True):
        done = [(line.row, line.result) for line in lines if line.result is not None]
        done.sort(key=lambda one: (one[1].seconds, -one[1].top1.mean))
        for number, group in enumerate(dict.fromkeys(line.row.group for line in lines)):
            if own := [result for row, result in done if row.group == group]:
                margins = [0. if one.top1.high is None else one.top1.high - one.top1.mean for one in own]
                axes.errorbar([one.seconds for one in own], [one.top1.mean for one in own], margins, fmt='o',
                              markersize=4, capsize=2, linewidth=0.8, color=COLORS[number % len(COLORS)], label=group)
        front = pareto_front([result for _, result in done])
        axes.step([one.seconds for one in front], [one.top1.mean for one in front], where='post', linewidth=1,
                  color=ENSEMBLE_COLOR, label='best for its cost')
        for row, one in done:
            if one in front:
                name = row.name.replace('-p1.0-mmax30-tpublished', '')
                axes.annotate(name, (one.seconds, one.top1.mean), (3, 4), textcoords='offset points', fontsize=7)
        axes.set_title(f'{title}: {model}, top-1, % with 95 % interval', loc='left', fontsize=9)
        finish(axes, 'seconds of training')
    return figure


def pareto_front(results: Sequence[PriceResult]) -> list[PriceResult]:
    """Results with a higher top-1 than all before them; ``results`` are in order of cost."""
    front: list[PriceResult] = []
    for one in results:
        if not front or one.top1.mean > front[-1].top1.mean:
            front.append(one)
    return front


def _draw_points(axes: Axes, xs: Sequence[float], lines: Sequence[Line], label: str, color: str, style: str) -> None:
    """Draw means, with the standard deviation as error bars if there are several seeds."""
    means, stds = zip(*(line.top1 for line in lines), strict=True)
    stds = [float('nan') if std is None else std for std in stds]
    axes.errorbar(xs, means, stds, fmt=style, color=color, capsize=4, label=label)
