"""Comparison at equal cost: its rows, all with the same number of views, and the tuning of each row."""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from ..data.policies import SPACES, sample_policies
from .outcomes import chosen_score, finished_records
from .rows import NO_POLICY, Method
from .study_folder import Study
from .trial import Setting, Trial, as_name

# Table -> its views, as a multiple of those of A²-Aug with the recipe's epochs.
PRICES = {'price': 1, 'price_long': 3}
PRICE_TITLES = {'price': 'Accuracy at equal cost', 'price_long': 'Accuracy at equal cost, three times as many views'}
# Learning rate and batch size are chosen on a seed that no result is taken from.
TUNING_SEED = 1000
_NUM_BRANCHES = (2, 5)  # besides the recipe's
_ANCHOR_SHARES = ((1, 0.5), (1, 0.8), (2, 1.))  # (views per image, share of the steps that train branch 0)
_LATE_SHARES = (0.25, 0.5)  # share of the epochs with branches


@dataclass(frozen=True)
class PriceRow:
    """Row of the comparison, without learning rate and batch size.

    Attributes:
        name: Part of the names of its trials.
        label: Text in the table.
        group: Kind of training, one color in the figure.
        changes: train.py's arguments by name.
        epochs: Number of epochs.
        epochs_of_one_view: How many of them come first and train branch 0 alone.
    """
    name: str
    label: str
    group: str
    changes: dict[str, Any]
    epochs: int
    epochs_of_one_view: int = 0


@dataclass(frozen=True)
class Price:
    """Table of the comparison: rows of equal cost, and the learning rates and batch sizes that each is tuned over.

    Attributes:
        rows: Rows; the first is the reference.
        num_views: Views of each training image in a trial. A row whose views per epoch do not divide it has fewer.
        recipe_epochs: Number of epochs of the recipe.
        added_policies: Policies of the branches beyond those that the recipe names.
    """
    rows: Sequence[PriceRow]
    num_views: int
    recipe_epochs: int
    learning_rates: Sequence[float]
    batch_sizes: Sequence[int]
    added_policies: Sequence[str] = ()

    def setting(self, row: PriceRow, lr: float, batch_size: int) -> Setting:
        """Setting of a row with a learning rate and a batch size."""
        return Setting(
            f'{row.name}-{self.num_views}v-lr{lr:g}-b{batch_size}',
            {**row.changes, 'lr': lr, 'batch_size': batch_size}, Fraction(row.epochs, self.recipe_epochs),
            Fraction(row.epochs_of_one_view, self.recipe_epochs))

    def tuning(self, row: PriceRow, model: str) -> list[Trial]:
        """Trials of a row that its learning rate and batch size are chosen from."""
        return [Trial(model, self.setting(row, lr, size), TUNING_SEED)
                for lr in self.learning_rates for size in self.batch_sizes]

    def chosen(self, study: Study, row: PriceRow, model: str) -> Setting | None:
        """Setting of a row that is best on the held-out images; None until its tuning is finished.

        Failed trials are left out; None if all failed.
        """
        trials = [trial for trial in self.tuning(row, model) if study.failure(trial) is None]
        records = finished_records(study, trials)
        if not records:
            return None
        scores = list(map(chosen_score, records))
        return trials[scores.index(max(scores))].setting

    def trials(self, study: Study, is_planned: bool = False) -> list[Trial]:
        """Trials that are known, in the order of training: all tuning first, then one seed after the other.

        Args:
            is_planned: Include the trials whose learning rate and batch size are not chosen yet; they have the first
                of the choices, and a name that no trial has.
        """
        chosen = {(row.name, model): self.chosen(study, row, model) for row in self.rows for model in study.models}
        if is_planned:
            first = {row.name: replace(self.setting(row, self.learning_rates[0], self.batch_sizes[0]),
                                       name=f'{row.name}-{self.num_views}v-tuned') for row in self.rows}
            chosen = {key: setting or first[key[0]] for key, setting in chosen.items()}
        tuning = [trial for row in self.rows for model in study.models for trial in self.tuning(row, model)]
        return [*tuning, *(Trial(model, setting, seed) for seed in study.seeds
                           for (_, model), setting in chosen.items() if setting is not None)]

    def with_rows(self, names: Sequence[str]) -> 'Price':
        """The same table with the reference and the rows of these names only."""
        return replace(self, rows=[row for row in self.rows if row is self.rows[0] or row.name in names])

    def started(self, study: Study) -> list[str]:
        """Names of the rows with at least one finished trial."""
        return [row.name for row in self.rows
                if any(study.is_done(trial) for model in study.models for trial in self.tuning(row, model))]


def price_of(study: Study, method: Method, factor: int) -> Price:
    """Comparison at ``factor`` times the views of A²-Aug with the recipe's epochs, with all rows."""
    num_views = factor * study.epochs * method.num_branches
    added = _policies(method, max(_NUM_BRANCHES))[len(method.named):]
    return Price(price_rows(method, num_views), num_views, study.epochs, study.learning_rates, study.batch_sizes, added)


def price_choices(
        settings: dict[str, Any],
        learning_rates: Sequence[float],
        batch_sizes: Sequence[int],
) -> tuple[list[float], list[int]]:
    """Learning rates and batch sizes to choose from: those given, else the recipe's and its neighbors.

    Raises:
        ValueError: The recipe has no learning rate or names no policies, or a choice is too small.
    """
    if not settings['a2aug_policies']:
        raise ValueError('a comparison at equal cost needs the same policies at every seed; name them with '
                         '--a2aug-policies')
    if not learning_rates and settings['lr'] is None:
        raise ValueError('a comparison at equal cost needs --lr in the recipe, or --learning-rates')
    learning_rates = list(learning_rates) or [factor * settings['lr'] for factor in (0.5, 1., 2.)]
    batch_sizes = list(batch_sizes) or [settings['batch_size'] // 2, settings['batch_size']]
    if min(learning_rates) <= 0:
        raise ValueError(f'--learning-rates must be above 0, got {min(learning_rates):g}')
    if min(batch_sizes) < (least := max(*_NUM_BRANCHES, settings['a2aug_branches'])):
        raise ValueError(f'the batch sizes must be at least {least}, the largest number of views of an image, got '
                         f'{min(batch_sizes)}')
    return list(dict.fromkeys(learning_rates)), list(dict.fromkeys(batch_sizes))


def price_rows(method: Method, num_views: int) -> list[PriceRow]:
    """All rows of the comparison; the first, plain training with crop and flip only, is the reference."""
    return [*_plain_rows(method, num_views), *_published_rows(method, num_views), *_drawn_rows(method, num_views),
            *_late_rows(method, num_views)]


def _policies(method: Method, num: int) -> list[str]:
    """Policies of ``num`` branches: those that the recipe names, then a fixed draw from a published search space."""
    num_layers, magnitudes = SPACES['imagenet' if method.image_size > 64 else 'cifar100']
    drawn = sample_policies(len(num_layers) * len(magnitudes), 0, num_layers, magnitudes)
    return [*method.named, *(policy for policy in drawn if policy not in method.named)][:num]


def _plain_rows(method: Method, num_views: int) -> list[PriceRow]:
    def row(name: str, label: str, changes: dict[str, Any]) -> PriceRow:
        return PriceRow(f'plain-{name}', f'plain, {label}', 'plain', changes, num_views)

    named = [policy for policy in method.named if policy != 'none']
    return [
        row('none', 'crop and flip', {**NO_POLICY, 'aa': 'none'}),
        *(row(as_name(policy), policy, {'aa': policy}) for policy in named),
        row('ta', 'TrivialAugment', {'aa': 'ta'}),
        row('mix', f'one of the {len(method.named)} policies at random per image',
            {'aa': f"mix:{','.join(method.named)}"}),
        row('3a', "timm's 3-Augment", {'aa': '3a'})]


def _joint(method: Method, num: int, **changes: Any) -> dict[str, Any]:
    return {'a2aug_branches': num, 'a2aug_policies': _policies(method, num), **changes}


def _published_rows(method: Method, num_views: int) -> list[PriceRow]:
    """A²-Aug with all branches in each step."""
    num = method.num_branches
    rows = [PriceRow(
        f'a2aug{num}-{counted}-{reduction}', f'A²-Aug, N = {num}, {counted} counted, {reduction} of the losses',
        'A²-Aug as published', _joint(method, num, a2aug_batch=counted, a2aug_loss_reduction=reduction),
        num_views // num) for reduction in ('sum', 'mean') for counted in ('images', 'views')]
    crops = PriceRow(
        f'a2aug{num}-crops', f'A²-Aug, N = {num}, a separate crop for each view', 'A²-Aug as published',
        _joint(method, num, a2aug_batch='views', a2aug_independent_crops=True), num_views // num)
    return [*rows, crops]


def _drawn_rows(method: Method, num_views: int) -> list[PriceRow]:
    """A²-Aug with V of N branches in each step, drawn evenly or with an anchor."""
    def row(num: int, views: int, share: float | None = None) -> PriceRow:
        # With all N views, these rows are A²-Aug as published; --a2aug-views is left at its default.
        changes = {'a2aug_batch': 'views', **({'a2aug_views': views} if views < num else {})}
        name, label = f'a2aug{num}-v{views}', f'A²-Aug, N = {num}, V = {views}'
        if share is None:
            return PriceRow(name, label, 'V of N branches', _joint(method, num, **changes), num_views // views)
        return PriceRow(
            f'{name}-anchor{share:g}', f'{label}, branch 0 in {share:.0%} of the steps', 'anchor',
            _joint(method, num, **changes, a2aug_anchor_share=share), num_views // views)

    nums = sorted({method.num_branches, *_NUM_BRANCHES})
    anchored = [row(method.num_branches, views, share) for views, share in _ANCHOR_SHARES
                if views < method.num_branches and share > views / method.num_branches]
    # The recipe's own N with V = N is among the published rows.
    return [*(row(num, views) for num in nums for views in (1, 2) if (num, views) != (method.num_branches, num)),
            *anchored]


def _late_rows(method: Method, num_views: int) -> list[PriceRow]:
    """Plain training first, then N branches for a share of the epochs; the first part takes all views that are left."""
    rows, num = [], method.num_branches
    for share in _LATE_SHARES:
        late = max(1, round(share * num_views / (1 - share + share * num)))
        start = num_views - late * num
        if start >= 1:
            rows.append(PriceRow(
                f'late{share:g}', f'A²-Aug, N = {num}, from epoch {start} of {start + late}', 'late branches',
                _joint(method, num), start + late, start))
    return rows
