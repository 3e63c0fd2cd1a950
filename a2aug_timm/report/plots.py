"""Figures of a run: metrics, losses and μ over the epochs, and sample views."""
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..engine.files import atomic_write
from .run_record import RunRecord

# Okabe and Ito's palette, which color-blind readers can tell apart; black is the ensemble.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#F0E442', '#999999')
ENSEMBLE_COLOR = '#000000'


def draw_curves(run: RunRecord) -> Figure:
    """Top-1 and loss of every branch and the ensemble on the validation or held-out images, and the training loss."""
    figure = Figure(figsize=(11, 3.6), layout='constrained')
    accuracy, loss, training = figure.subplots(1, 3)
    for axes, metric, title in ((accuracy, 'top1', 'top-1, %'), (loss, 'loss', 'cross-entropy')):
        for branch, policy in enumerate(run.policies):
            color = COLORS[branch % len(COLORS)]
            draw_series(axes, run, run.series(branch, metric), short_policy(policy, branch), color)
        if run.num_branches > 1:
            draw_series(axes, run, run.series('ensemble', metric), 'ensemble', ENSEMBLE_COLOR, '--')
        axes.set_title(title, loc='left')
    if run.series(run.chosen_branch, 'top1'):
        chosen = run.series(run.chosen_branch, 'top1')[run.chosen_epoch]
        epoch = (run.columns['epoch'][run.chosen_epoch] or 0) + 1
        accuracy.plot(epoch, chosen, 'o', mfc='none', mec=ENSEMBLE_COLOR, ms=9)
    draw_series(training, run, run.columns['train_loss'], 'total', ENSEMBLE_COLOR)
    for branch in range(run.num_branches if run.num_branches > 1 else 0):
        color = COLORS[branch % len(COLORS)]
        draw_series(training, run, run.columns.get(f'train_ce_{branch}', []), f'CE {branch}', color)
        draw_series(training, run, run.columns.get(f'train_kl_{branch}', []), f'KL {branch}', color, ':')
    training.set_title('training loss', loc='left')
    for axes in (accuracy, loss, training):
        finish(axes)
    return figure


def draw_mu(run: RunRecord) -> Figure:
    """Weights of the branches in the ensemble, which sum to 1, over the epochs."""
    figure = Figure(figsize=(5.5, 3.2), layout='constrained')
    axes = figure.subplots()
    for branch, policy in enumerate(run.policies):
        draw_series(axes, run, run.columns[f'mu_{branch}'], short_policy(policy, branch), COLORS[branch % len(COLORS)])
    axes.axhline(1 / run.num_branches, color='#bbbbbb', linewidth=1, zorder=0)
    axes.set_title('μ, weight in the ensemble', loc='left')
    finish(axes)
    return figure


def draw_views(views: Sequence[Sequence[Any]], labels: Iterable[str]) -> Figure:
    """Grid of views: one row per policy, one column per image; the first row holds the originals."""
    figure = Figure(figsize=(1.3 * len(views[0]) + 2.2, 1.3 * len(views)), layout='constrained')
    grid = figure.subplots(len(views), len(views[0]), squeeze=False)
    for axes_of_row, images, label in zip(grid, views, labels, strict=True):
        for axes, image in zip(axes_of_row, images, strict=True):
            axes.imshow(image, cmap='gray', vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_of_row[0].set_ylabel(label, rotation=0, ha='right', va='center', fontsize=8)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, 150 dots per inch."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format='png', dpi=150)


def svg_text(figure: Figure, name: str) -> str:
    """A figure as SVG text for an HTML page; the same text for the same figure and name.

    Args:
        name: Seed of the identifiers in the text, so that several figures can share a page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({'svg.hashsalt': name}):
        figure.savefig(buffer, format='svg', metadata={'Date': None})
    return buffer.getvalue()


def draw_series(
        axes: Axes,
        run: RunRecord,
        values: list[float | None],
        label: str,
        color: str,
        style: str = '-',
) -> None:
    """Draw a line over the epochs of a run that have a value."""
    epochs = run.columns['epoch']
    points = [((epoch or 0) + 1, value) for epoch, value in zip(epochs, values, strict=False) if value is not None]
    if points:
        marker = '.' if len(points) < 3 else None
        axes.plot(*zip(*points, strict=True), style, color=color, label=label, linewidth=1.6, marker=marker)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def finish(axes: Axes, x_label: str = 'epoch') -> None:
    """Add what all figures share: the label of the horizontal axis, a grid, and a legend if there are labels."""
    axes.set_xlabel(x_label)
    axes.grid(color='#e5e5e5', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def short_policy(policy: str, branch: int) -> str:
    """Label of a branch in a legend: its number and its policy without the default sections."""
    return f'{branch}: ' + policy.replace('-p1.0-mmax30-tpublished', '')
