"""Types of flags: numbers with bounds, which the command line and a YAML file honour alike."""
import argparse
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """An ``int`` or ``float`` between two bounds, as the ``type`` of a flag.

    Attributes:
        kind: ``int`` or ``float``.
        least: Smallest value, included unless ``is_open``.
        most: Largest value, included.
        is_open: The smallest value itself is excluded.
    """
    kind: type
    least: float = -math.inf
    most: float = math.inf
    is_open: bool = False

    @property
    def __name__(self) -> str:  # the name in argparse's and the parser's messages
        return self.kind.__name__

    def __call__(self, text: str) -> int | float:
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {self.__name__}, got '{text}'") from None
        is_above = value > self.least if self.is_open else value >= self.least
        if not (is_above and value <= self.most):  # which NaN fails too
            raise argparse.ArgumentTypeError(f'must be {self}, got {text}')
        return value

    def __str__(self) -> str:
        if self.least > -math.inf and self.most < math.inf and not self.is_open:
            return f'between {self.least:g} and {self.most:g}'
        bounds = [f'above {self.least:g}' if self.is_open else f'at least {self.least:g}'] * (self.least > -math.inf)
        bounds += [f'at most {self.most:g}'] * (self.most < math.inf)
        return ' and '.join(bounds) or 'a number'


COUNT = Number(int, 1)
COUNT_OR_ZERO = Number(int, 0)
POSITIVE = Number(float, 0, is_open=True)
NOT_NEGATIVE = Number(float, 0)
SHARE = Number(float, 0, 1)


def part_size(text: str) -> int | float:
    """Type of ``--holdout`` and ``--train-subset``: a number of images, or a share of them below 1."""
    try:
        size = float(text)
        if not 0 < size < math.inf or (size >= 1 and size != int(size)):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of images or a share below 1, got '{text}'") from None
    return size if size < 1 else int(size)
