"""Results of trials: accuracy on images that were not used for any choice, and the cost of training."""
import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..engine.files import atomic_write
from ..report import RunRecord
from .study_folder import Study
from .trial import Row, Trial


@dataclass(frozen=True)
class Outcome:
    """Result of one trial, or of the best of several, chosen on the held-out images.

    Attributes:
        record: Record of the chosen trial.
        top1: Its top-1 on the validation split, in percent.
        views: Number of views in the training of all trials that the choice was made from.
        seconds: Seconds of their training.
        cost: Their planned views, also of failed trials, as a multiple of a plain run with the recipe's epochs.
    """
    record: RunRecord
    top1: float
    views: float
    seconds: float
    cost: int | Fraction


def outcome(study: Study, trials: Sequence[Trial]) -> Outcome | None:
    """Result of the trials of a row and a seed; None until all are finished, or if all failed.

    Failed trials are left out of the choice, as in a search; what they cost before they failed is not known.
    """
    records = finished_records(study, trials)
    if not records:
        return None
    best = max(records, key=chosen_score)
    cost: int | Fraction = sum((trial.setting.cost for trial in trials), 0)
    return Outcome(
        best, best.result['test']['top1'], sum(record.total('train_views') for record in records),
        sum(record.total('train_seconds') for record in records), cost)


def finished_records(study: Study, trials: Sequence[Trial]) -> list[RunRecord]:
    """Records of the trials that did not fail; empty until all of these are finished."""
    records = [study.record(trial) for trial in trials if study.failure(trial) is None]
    finished = [record for record in records if record is not None]
    return finished if len(finished) == len(records) else []


def chosen_score(record: RunRecord) -> float:
    """Metric on the held-out images that the trial's branch and epoch were chosen by; higher is better."""
    metric = record.result['eval_metric']
    return record.result['chosen_with'][metric] * (-1 if metric == 'loss' else 1)


def outcomes(study: Study, row: Row, model: str) -> dict[int, Outcome]:
    """Seed -> result, for the seeds whose trials are finished."""
    found = {seed: outcome(study, row.trials(model, seed)) for seed in study.seeds}
    return {seed: one for seed, one in found.items() if one is not None}


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; a single value has no deviation."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Line:
    """Results of a row over the seeds.

    Attributes:
        seeds: Seed -> top-1.
        top1: Mean and standard deviation; None without a finished seed.
        gain: Mean and standard deviation of the differences to the first row, over the seeds that both have.
        cost: Number of views, as a multiple of a plain run; like the next two, 0 without a finished seed.
        views: Mean number of views.
        seconds: Mean seconds of training.
    """
    model: str
    label: str
    seeds: dict[int, float]
    top1: tuple[float, float | None] | None = None
    gain: tuple[float, float | None] | None = None
    cost: int | Fraction = 0
    views: float = 0.
    seconds: float = 0.


def lines_of(study: Study, rows: Sequence[Row], model: str) -> list[Line]:
    """Results of a table's rows for one network."""
    lines: list[Line] = []
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
    """Expected top-1 of a random search over a row's trials: the best of k, chosen on the held-out images, k = 1, 2, …

    Empty until all trials are finished; failed trials are left out.
    """
    records = finished_records(study, row.trials(model, seed))
    top1 = [record.result['test']['top1'] for record in sorted(records, key=chosen_score, reverse=True)]
    num = len(top1)
    # The trial of rank r is the best of k if it is drawn and the k - 1 others come from the num - r - 1 below it.
    return [sum(math.comb(num - rank - 1, k - 1) * value for rank, value in enumerate(top1)) / math.comb(num, k)
            for k in range(1, num + 1)]


def write_runs(study: Study, trials: Sequence[Trial], path: Path) -> None:
    """Write a CSV file with one line per finished trial."""
    with atomic_write(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow([
            'model', 'setting', 'seed', 'top1', 'chosen_with_top1', 'epoch', 'branch', 'policy', 'policies', 'mu',
            'train_views', 'train_seconds'])
        for trial in trials:
            if (record := study.record(trial)) is None:
                continue
            result, row = record.result, record.chosen_epoch
            mu = [record.columns[f'mu_{i}'][row] for i in range(record.num_branches)] if trial.setting.is_joint else []
            writer.writerow([
                trial.model, trial.setting.name, trial.seed, f"{result['test']['top1']:.2f}",
                f"{result['chosen_with']['top1']:.2f}", result['epoch'], result['branch'], result['policy'],
                ' '.join(record.policies), ' '.join(f'{one:.3f}' for one in mu),
                f"{record.total('train_views'):.0f}", f"{record.total('train_seconds'):.1f}"])


def short_count(num_views: float) -> str:
    """A number of views in thousands or millions."""
    return f'{num_views / 1e6:.3g} M' if num_views >= 1e6 else f'{num_views / 1e3:.0f} k'
