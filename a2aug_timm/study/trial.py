"""Trials of a study: a setting, a network and a seed, trained once."""
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from timm.models import safe_model_name


@dataclass(frozen=True)
class Setting:
    """Changes that a trial makes to the recipe.

    Attributes:
        name: Part of the trial's name; a study has one setting per name.
        changes: train.py's arguments by name.
        epochs: Number of epochs, as a multiple of the recipe's.
        epochs_of_one_view: How many of them come first and train branch 0 alone (``--a2aug-start-epoch``).
    """
    name: str
    changes: dict[str, Any] = field(hash=False)
    epochs: int | Fraction = 1
    epochs_of_one_view: int | Fraction = 0

    @property
    def is_joint(self) -> bool:
        """Whether branches are trained jointly, rather than one plain network."""
        return 'a2aug_branches' in self.changes

    @property
    def num_views(self) -> int:
        """Views of an image in an epoch of joint training; 1 for plain training."""
        return self.changes.get('a2aug_views', self.changes.get('a2aug_branches', 1))

    @property
    def cost(self) -> int | Fraction:
        """Number of views in training, as a multiple of a plain run with the recipe's epochs."""
        return self.epochs_of_one_view + (self.epochs - self.epochs_of_one_view) * self.num_views


@dataclass(frozen=True)
class Trial:
    """One training run: a setting with a network and a seed. The seed also draws policies that are not named."""
    model: str
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """Name of the trial's folder."""
        return f'{safe_model_name(self.model)}-{self.setting.name}-seed{self.seed}'


@dataclass(frozen=True)
class Row:
    """Row of a table: one trial per seed, or several of which the best on the held-out images is taken.

    Attributes:
        settings: Seed -> settings of its trials.
    """
    label: str
    settings: Callable[[int], list[Setting]]

    def trials(self, model: str, seed: int) -> list[Trial]:
        """Trials of the row for a network and a seed."""
        return [Trial(model, setting, seed) for setting in self.settings(seed)]


def as_name(policy: str) -> str:
    """Policy string as part of a folder's name."""
    return re.sub(r'[^\w.+-]+', '_', policy)
