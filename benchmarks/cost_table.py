"""A table of ratios, each of two things that ran alternately in one process."""
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

HEAD = '| what | against | where | ratio (quartiles) | wanted | |\n|---|---|---|---|---|---|'


@dataclass
class Line:
    """A row: ``ratios`` of a quantity of ``what`` over the same of ``against``, and what they should be."""
    what: str
    against: str
    where: str
    ratios: list[float]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def falls_short(self) -> bool:
        """Whether the median as it is printed, to a thousandth, misses what is wanted."""
        value = round(self.median, 3)
        return (self.at_most is not None and value > self.at_most) or (
            self.at_least is not None and value < self.at_least)

    def __str__(self) -> str:
        spread = ''
        if len(self.ratios) > 1:
            low, _, high = statistics.quantiles(self.ratios, n=4)
            spread = f' ({low:.3f} to {high:.3f})'
        wanted = ''
        if self.at_most is not None:
            wanted = f'≤ {self.at_most:g}'
        if self.at_least is not None:
            wanted = f'≥ {self.at_least:g}'
        return (f'| {self.what} | {self.against} | {self.where} | {self.median:.3f}{spread} | {wanted} | '
                f'{"falls short" if self.falls_short else ""} |')


def compare(
        runs: dict[str, Callable[[], None]],
        rounds: int,
        device: torch.device,
) -> Callable[[str, str], list[float]]:
    """Time runs in turn; the result gives the ratio of two of them in each round.

    The order turns from round to round, so that none always follows the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for round_ in range(rounds + 2):
        for name in names if round_ % 2 else reversed(names):
            _wait(device)
            start = time.perf_counter()
            runs[name]()
            _wait(device)
            if round_ >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    return lambda one, other: [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()


def print_table(lines: Iterable[Line]) -> list[Line]:
    """Print each row when it is known; those that fall short."""
    print(HEAD, flush=True)
    short = []
    for line in lines:
        print(line, flush=True)
        if line.falls_short:
            short.append(line)
    return short
