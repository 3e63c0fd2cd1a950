"""Figures of a study, drawn as those of a run's report are."""
from collections.abc import Sequence

from matplotlib.figure import Figure

from ..report.plots import COLORS, ENSEMBLE_COLOR, draw_series, finish, short_policy
from . import Row, Study
from .outcomes import expected_search, mean_and_std, outcomes
from .rows import MAX_BRANCHES, Method


def draw_branches(study: Study, rows: Sequence[Row], model: str) -> Figure | None:
    """Figure 3: top-1 over the epochs, of branches and of their policies alone, at the first seed that is done."""
    joint_row, alone_row = rows
    for seed in study.seeds:
        joint, *alone = (study.record(run) for row in (joint_row, alone_row) for run in row.runs(model, seed))
        if joint is not None and None not in alone:
            break
    else:
        return None
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for branch, (policy, run) in enumerate(zip(joint.policies, alone, strict=True)):
        color = COLORS[branch % len(COLORS)]
        draw_series(axes, joint, joint.series(branch, 'top1'), short_policy(policy, branch), color)
        draw_series(axes, run, run.series(0, 'top1'), f'{branch}: alone', color, ':')
    draw_series(axes, joint, joint.series('ensemble', 'top1'), 'ensemble', ENSEMBLE_COLOR, '--')
    axes.set_title(f'top-1 on held-out images, %: {model}, seed {seed}', loc='left')
    # The first epochs would press the last, which count, together.
    last = [run.series(0, 'top1')[-1] for run in (joint, *alone)]
    axes.set_ylim(bottom=min(last) - 12)
    finish(axes)
    return figure


def draw_numbers(study: Study, rows: Sequence[Row], model: str, baseline: Row) -> Figure | None:
    """Figure 4: top-1 against the number of branches, with the spread over seeds, which also draw the policies."""
    points = [(num, *mean_and_std([one.top1 for one in found]))
              for num, row in enumerate(rows, 1) if (found := outcomes(study, row, model))]
    if not points:
        return None
    figure = Figure(figsize=(5.5, 3.6), layout='constrained')
    axes = figure.subplots()
    nums, means, stds = zip(*points, strict=True)
    axes.errorbar(nums, means, stds, fmt='o-', color=COLORS[0], capsize=4, label='A²-Aug')
    if found := outcomes(study, baseline, model):
        axes.axhline(mean_and_std([one.top1 for one in found])[0], color=ENSEMBLE_COLOR, linestyle='--', linewidth=1,
                     label='baseline')
    axes.set_xticks(nums)
    axes.set_title(f'top-1, %: {model}', loc='left')
    finish(axes, 'number of branches, N')
    return figure


def draw_cost(study: Study, rows: Sequence[Row], model: str, method: Method) -> Figure | None:
    """Top-1 against the images seen: every row, the random search on the grid as it grows, A²-Aug as N grows."""
    figure = Figure(figsize=(7, 4.4), layout='constrained')
    axes = figure.subplots()
    search = method.search()
    curves = [curve for seed in study.seeds if (curve := expected_search(study, search, model, seed))]
    if curves:
        means = [mean_and_std(values)[0] for values in zip(*curves, strict=True)]
        axes.plot(range(1, len(means) + 1), means, '-', color=COLORS[1], label='RA, the best of k policies')
    joint = [(found[0].cost, *mean_and_std([one.top1 for one in found])) for num in range(2, MAX_BRANCHES + 1)
             if num <= method.num_policies and (found := outcomes(study, method.joint(num), model))]
    if joint:
        axes.errorbar(*zip(*joint, strict=True), fmt='o-', color=COLORS[0], capsize=3, label='A²-Aug, N branches')
    plain = (('baseline', ENSEMBLE_COLOR, 's', [method.baseline(), method.baseline(method.num_branches)]),
             ('RA, a drawn policy, longer', COLORS[2], '^', [method.drawn(1), method.drawn(1, method.num_branches)]))
    for label, color, marker, lines in plain:
        points = [(found[0].cost, *mean_and_std([one.top1 for one in found])) for row in lines
                  if (found := outcomes(study, row, model))]
        if points:
            axes.errorbar(*zip(*points, strict=True), fmt=f'{marker}--', color=color, capsize=3, label=label)
    if not axes.get_legend_handles_labels()[0]:
        return None
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter('{x:g}×')
    axes.set_title(f'top-1, %, and what it took: {model}', loc='left')
    finish(axes, 'images seen, as a multiple of a plain run')
    return figure
