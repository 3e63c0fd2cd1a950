"""Results of the comparison at equal cost: means, intervals and paired differences, as a table."""
import math
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from scipy import stats

from ..report import RunRecord
from .outcomes import short_count
from .price import TUNING_SEED, Price, PriceRow
from .study_folder import Study
from .trial import Setting, Trial

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean of values with its standard error and its 95 % interval by Student's t; None for a single value."""
    mean: float
    error: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Interval':
        """Interval of the mean of independent values."""
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean)
        error = float(stats.sem(values))
        if error == 0:  # SciPy's interval of equal values is not a number
            return cls(mean, 0., mean, mean)
        return cls(mean, error, *map(float, stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=error)))


@dataclass(frozen=True)
class PriceResult:
    """Results of a row over its finished seeds.

    Attributes:
        top1: Mean top-1 on the validation split, in percent.
        difference: Mean difference to the reference over the seeds that both have; None for the reference.
        loss: Mean cross-entropy on the validation split.
        num_views: Mean number of views in training.
        num_updates: Mean number of optimizer steps.
        seconds: Mean seconds of training.
    """
    top1: Interval
    difference: Interval | None
    loss: float
    num_views: float
    num_updates: float
    seconds: float


@dataclass(frozen=True)
class PriceLine:
    """Row of the table for one network.

    Attributes:
        setting: Chosen learning rate and batch size; None until the row's tuning is finished.
        seeds: Seed -> top-1 on the validation split, in percent.
        result: Results; None without a finished seed.
    """
    model: str
    row: PriceRow
    setting: Setting | None
    seeds: dict[int, float]
    result: PriceResult | None = None


def price_lines(study: Study, price: Price, model: str) -> list[PriceLine]:
    """Results of all rows for one network; the first is the reference."""
    lines: list[PriceLine] = []
    for row in price.rows:
        setting = price.chosen(study, row, model)
        trials = [Trial(model, setting, seed) for seed in study.seeds] if setting else []
        done = {trial: record for trial in trials if (record := study.record(trial)) is not None}
        seeds = {trial.seed: record.result['test']['top1'] for trial, record in done.items()}
        if not done:
            lines.append(PriceLine(model, row, setting, seeds))
            continue
        paired = [seeds[seed] - lines[0].seeds[seed] for seed in seeds if lines and seed in lines[0].seeds]
        lines.append(PriceLine(model, row, setting, seeds, PriceResult(
            Interval.of(list(seeds.values())), Interval.of(paired) if paired else None,
            statistics.fmean(record.result['test']['loss'] for record in done.values()),
            statistics.fmean(record.total('train_views') for record in done.values()),
            statistics.fmean(num_updates(study.config(trial), record, study.num_processes)
                             for trial, record in done.items()),
            statistics.fmean(record.total('train_seconds') for record in done.values()))))
    return lines


def num_updates(config: dict[str, Any], record: RunRecord, num_processes: int = 1) -> int:
    """Number of optimizer steps of a finished trial, from the views that its summary counts.

    Args:
        config: Arguments of the trial, by name.
    """
    views = config.get('a2aug_views', config.get('a2aug_branches', 1))
    batch_size = config['batch_size'] // (views if config.get('a2aug_batch') == 'views' else 1)
    total = first_epoch = 0
    for epoch, num_views in zip(record.columns['epoch'], record.columns['train_views'], strict=True):
        epochs = range(first_epoch, int(epoch or 0) + 1)  # --val-interval leaves epochs without a row
        num_images = (num_views or 0.) / sum(1 if one < config.get('a2aug_start_epoch', 0) else views for one in epochs)
        num_batches = round(num_images / (batch_size * num_processes))
        total += len(epochs) * math.ceil(num_batches / config.get('grad_accum_steps', 1))
        first_epoch = epochs.stop
    return total


def price_table(study: Study, price: Price) -> tuple[list[list[Any]], list[list[Any]], list[str]]:
    """Table for reading, table for computing, and notes."""
    lines = [line for model in study.models for line in price_lines(study, price, model)]
    several = len(study.models) > 1
    markdown: list[list[Any]] = [['network'] * several + [
        'training', 'learning rate', 'batch', 'top-1, % [95 %]', 'difference ± standard error [95 %]', 'seeds', 'views',
        'updates', 'hours', 'cross-entropy', 'each seed']]
    plain: list[list[Any]] = [[
        'network', 'name', 'training', 'lr', 'batch_size', 'top1', 'top1_low', 'top1_high', 'difference',
        'difference_error', 'difference_low', 'difference_high', 'seeds', 'views', 'updates', 'seconds',
        'cross_entropy']]
    for line in lines:
        name = [line.model] * several + [line.row.label]
        lr, batch_size, counted = _choice(line.setting)
        if (result := line.result) is None:
            markdown.append([*name, lr, f'{batch_size} {counted}'.strip(), '–', '', 0, '', '', '', '', ''])
            continue
        difference = '' if result.difference is None else _with_error(result.difference)
        markdown.append([
            *name, lr, f'{batch_size} {counted}', _with_range(result.top1), difference, len(line.seeds),
            short_count(result.num_views), f'{result.num_updates:.0f}', f'{result.seconds / 3600:.3g}',
            f'{result.loss:.4f}', ' '.join(f'{top1:.2f}' for top1 in line.seeds.values())])
        paired = astuple(result.difference) if result.difference else (None,) * 4
        plain.append([
            line.model, line.row.name, line.row.label, lr, batch_size, result.top1.mean, result.top1.low,
            result.top1.high, *paired, len(line.seeds), result.num_views, result.num_updates, result.seconds,
            result.loss])
    return markdown, plain, _notes(price, lines)


def _choice(setting: Setting | None) -> tuple[str, str | int, str]:
    """Learning rate, batch size, and what the batch size counts."""
    if setting is None:
        return '', '', ''
    changes = setting.changes
    return f"{changes['lr']:g}", changes['batch_size'], changes.get('a2aug_batch', 'images')


def _with_range(value: Interval) -> str:
    return f'{value.mean:.2f}' + ('' if value.low is None else f' [{value.low:.2f}, {value.high:.2f}]')


def _with_error(value: Interval) -> str:
    if value.error is None:
        return f'{value.mean:+.2f}'
    return f'{value.mean:+.2f} ± {value.error:.2f} [{value.low:+.2f}, {value.high:+.2f}]'


def _notes(price: Price, lines: Sequence[PriceLine]) -> list[str]:
    """How the rows were tuned and compared, and where the tuning was too narrow."""
    rates, sizes = ', '.join(f'{lr:g}' for lr in price.learning_rates), ', '.join(map(str, price.batch_sizes))
    notes = [
        f'Each row trains on at most {price.num_views} views of each training image; "views" counts them after '
        'incomplete batches are dropped. Learning rate and batch size of each row are the best on held-out images '
        f'at one separate seed ({TUNING_SEED}), among the learning rates {rates} and the batch sizes {sizes}. The '
        f'difference is the mean of the paired differences to "{price.rows[0].label}" at the same seeds. Intervals are '
        "Student's t (scipy.stats); they do not cover the choice of learning rate and batch size."]
    differences = [line.result.difference for line in lines if line.result and line.result.difference]
    if num := sum(difference.low is not None for difference in differences):
        notes.append(f'With {num} differences, about {(1 - CONFIDENCE) * num:.1f} intervals exclude zero by chance.')
    used = {policy for line in lines for policy in line.row.changes.get('a2aug_policies', ())}
    if added := [policy for policy in price.added_policies if policy in used]:
        notes.append(f"Policies beyond the recipe's: {', '.join(added)}.")
    for name, key, values in (('learning rate', 'lr', price.learning_rates),
                              ('batch size', 'batch_size', price.batch_sizes)):
        ends = [line for line in lines if line.setting and line.setting.changes[key] in (min(values), max(values))]
        if ends and len(values) > 2:
            notes.append(f'The chosen {name} is the smallest or largest of its list for {len(ends)} rows: '
                         f"{'; '.join(line.row.label for line in ends)}.")
    return notes
