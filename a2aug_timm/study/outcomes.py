"""What runs have come to: accuracy on images that had no part in any choice, and what the runs have cost."""
import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.checkpoint import atomic_write
from ..report import RunRecord
from . import Row, Run, Study


@dataclass(frozen=True)
class Outcome:
    """One run, or the best of several, chosen on the held-out images.

    Attributes:
        record: The run that was chosen.
        top1: On the validation split, in percent.
        views: Seen in training, by all runs that the choice was made from.
        seconds: Of their training.
        cost: Their views, those that failed counted whole, as a multiple of a plain run of the recipe's epochs.
    """
    record: RunRecord
    top1: float
    views: float
    seconds: float
    cost: int


def outcome(study: Study, runs: Sequence[Run]) -> Outcome | None:
    """What the runs of a row and seed have come to; None while one of them is to come, or if all failed.

    A choice of several leaves out those that failed, as a search would; their cost before they did is not known.
    """
    records = [study.record(run) for run in runs if study.failure(run) is None]
    if None in records or not records:
        return None
    best = max(records, key=chosen_score)
    return Outcome(
        best, best.result['test']['top1'], sum(sum(record.columns['train_views']) for record in records),
        sum(sum(record.columns['train_seconds']) for record in records), sum(run.setting.cost for run in runs))


def chosen_score(record: RunRecord) -> float:
    """What a run was chosen by, higher is better."""
    metric = record.result['eval_metric']
    return record.result['chosen_with'][metric] * (-1 if metric == 'loss' else 1)


def outcomes(study: Study, row: Row, model: str) -> dict[int, Outcome]:
    """By seed, of those whose runs are done."""
    found = {seed: outcome(study, row.runs(model, seed)) for seed in study.seeds}
    return {seed: one for seed, one in found.items() if one is not None}


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, which a single value has not."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Line:
    """A row of a table, over seeds.

    Attributes:
        top1: Mean and standard deviation; None without a seed.
        gain: The same, of the differences to the first row at the seeds that both have.
        cost: As a multiple of a plain run; ``views`` and ``seconds`` are means.
    """
    model: str
    label: str
    seeds: dict[int, float]
    top1: tuple[float, float | None] | None = None
    gain: tuple[float, float | None] | None = None
    cost: int | None = None
    views: float | None = None
    seconds: float | None = None


def lines_of(study: Study, rows: Sequence[Row], model: str) -> list[Line]:
    """The rows of a table for one network."""
    lines = []
    for row in rows:
        found = outcomes(study, row, model)
        top1 = {seed: one.top1 for seed, one in found.items()}
        first = lines[0].seeds if lines else {}
        gains = [top1[seed] - first[seed] for seed in top1 if seed in first]
        one = next(iter(found.values()), None)
        lines.append(Line(model, row.label, top1) if one is None else Line(
            model, row.label, top1, mean_and_std(list(top1.values())), mean_and_std(gains) if gains else None, one.cost,
            statistics.fmean(one.views for one in found.values()),
            statistics.fmean(one.seconds for one in found.values())))
    return lines


def expected_search(study: Study, row: Row, model: str, seed: int) -> list[float]:
    """Expected top-1 of the best, as chosen on the held-out images, of k of the row's runs drawn at random, k = 1, 2, …

    Empty while one of them is to come; those that failed are left out.
    """
    records = [study.record(run) for run in row.runs(model, seed) if study.failure(run) is None]
    if None in records:
        return []
    top1 = [record.result['test']['top1'] for record in sorted(records, key=chosen_score, reverse=True)]
    num = len(top1)
    # The one of rank r is the best of k if it is drawn and the others come from the num - r - 1 behind it.
    return [sum(math.comb(num - rank - 1, k - 1) * value for rank, value in enumerate(top1)) / math.comb(num, k)
            for k in range(1, num + 1)]


def write_runs(study: Study, runs: Sequence[Run], path: Path) -> None:
    """A line a run that is done: what it was, chose and cost."""
    with atomic_write(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow([
            'model', 'setting', 'seed', 'top1', 'chosen_with_top1', 'epoch', 'branch', 'policy', 'policies', 'mu',
            'train_views', 'train_seconds'])
        for run in runs:
            if (record := study.record(run)) is None:
                continue
            result, row = record.result, record.chosen_epoch
            mu = [record.columns[f'mu_{i}'][row] for i in range(record.num_branches)] if run.setting.is_joint else []
            writer.writerow([
                run.model, run.setting.name, run.seed, f"{result['test']['top1']:.2f}",
                f"{result['chosen_with']['top1']:.2f}", result['epoch'], result['branch'], result['policy'],
                ' '.join(record.policies), ' '.join(f'{one:.3f}' for one in mu),
                f"{sum(record.columns['train_views']):.0f}", f"{sum(record.columns['train_seconds']):.1f}"])
