"""The draw: which branches train in a step, and how the batches carry it to the loader's workers."""
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple


class BranchDraw:
    """A seeded draw of ``V`` of ``N`` branches for every step of training.

    The draw depends on its arguments, the epoch, the step and the number of steps alone, so all ranks draw the same,
    and a resumed run draws what an uninterrupted one would have drawn. Within an epoch it is balanced: each branch is
    drawn in its share of the steps, rounded down or up.

    Args:
        num_branches: ``N``.
        num_views: ``V``, the number of branches that a step trains; ``N`` is the paper's method.
        seed: Seed of the draw.
        anchor_share: Share of the steps that draw branch 0, the anchor; the other branches share the rest evenly.
            None treats branch 0 like the others.
        start_epoch: Every step before this epoch draws branch 0 alone (late branches).

    Raises:
        ValueError: An argument is out of range, or the anchor's share leaves no step for the other branches.
    """

    def __init__(
            self,
            num_branches: int,
            num_views: int,
            seed: int,
            anchor_share: float | None = None,
            start_epoch: int = 0,
    ):
        if not 1 <= num_views <= num_branches:
            raise ValueError(f'a step trains 1 to {num_branches} of {num_branches} branches, got {num_views}')
        if anchor_share is not None and not 0 < anchor_share <= 1:
            raise ValueError(f"the anchor's share of the steps must be above 0 and at most 1, got {anchor_share}")
        if anchor_share not in (None, 1) and num_views == num_branches:
            raise ValueError(f'all {num_branches} branches are drawn in every step, so the share of the anchor cannot '
                             f'be {anchor_share}')
        if anchor_share == 1 and num_views == 1 < num_branches:
            raise ValueError('a share of 1 with one view per step trains the anchor alone and no other branch')
        if start_epoch < 0:
            raise ValueError(f'the start epoch must be at least 0, got {start_epoch}')
        self.num_branches = num_branches
        self.num_views = num_views
        self.seed = seed
        self.anchor_share = anchor_share
        self.start_epoch = start_epoch

    @property
    def is_full(self) -> bool:
        """Whether every step from ``start_epoch`` on trains all branches."""
        return self.num_views == self.num_branches

    def num_views_in(self, epoch: int) -> int:
        """Number of views per image in an epoch: 1 before ``start_epoch``, ``V`` from it on."""
        return 1 if epoch < self.start_epoch else self.num_views

    def branches(self, epoch: int, step: int, num_steps: int) -> tuple[int, ...]:
        """The branches that a step trains, ascending.

        Args:
            epoch: Number of the epoch.
            step: Number of the batch within the epoch.
            num_steps: Number of batches of the epoch.
        """
        if epoch < self.start_epoch:
            return (0,)
        if self.is_full:
            return tuple(range(self.num_branches))
        seed = f'{self.seed}/{epoch}'
        return _draw_epoch(self.num_branches, self.num_views, self.anchor_share, seed, num_steps)[step]

    def __repr__(self) -> str:
        arguments = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({arguments})'


@lru_cache(maxsize=4)
def _draw_epoch(
        num_branches: int,
        num_views: int,
        anchor_share: float | None,
        seed: str,
        num_steps: int,
) -> tuple[tuple[int, ...], ...]:
    """The draws of all steps of an epoch.

    Each step is a systematic sample: the branches lie in random order on a line, each as long as the number of steps
    that it still has to be drawn in, and the points ``start + i * (steps left)`` hit ``V`` of them. No branch is longer
    than the distance of two points, so the ``V`` differ; a branch that needs all steps left is always hit, so the
    quotas are met exactly.
    """
    # Python promises that random() gives the same sequence in every version; of its other methods it does not.
    uniform = random.Random(f'draw/{seed}/{num_steps}').random
    left = _quotas(num_branches, num_views, anchor_share, num_steps, uniform)
    draws = []
    for steps_left in range(num_steps, 0, -1):
        point, end, drawn = int(uniform() * steps_left), 0, []
        for branch in _shuffled(range(num_branches), uniform):
            end += left[branch]
            if point < end:
                drawn.append(branch)
                point += steps_left
        for branch in drawn:
            left[branch] -= 1
        draws.append(tuple(sorted(drawn)))
    return tuple(draws)


def _quotas(
        num_branches: int,
        num_views: int,
        anchor_share: float | None,
        num_steps: int,
        uniform: Callable[[], float],
) -> list[int]:
    """Number of steps that draw each branch; what the shares leave of whole steps falls to branches at random."""
    quotas, rest, num_places = [], list(range(num_branches)), num_steps * num_views
    if anchor_share is not None:
        quotas.append(min(num_steps, int(anchor_share * num_steps + uniform())))
        rest, num_places = rest[1:], num_places - quotas[0]
    whole, num_extra = divmod(num_places, len(rest)) if rest else (0, 0)
    lucky = set(_shuffled(rest, uniform)[:num_extra])
    return quotas + [whole + (branch in lucky) for branch in rest]


def _shuffled(values: Sequence[int], uniform: Callable[[], float]) -> list[int]:
    return [value for _, value in sorted((uniform(), value) for value in values)]


class DrawnIndex(NamedTuple):
    """Index of an image and the branches whose views of it are needed."""
    index: int  # type: ignore[assignment]  # hides the method that a tuple has under this name
    branches: tuple[int, ...]


class DrawnBatches:
    """A batch sampler whose batches carry the branches that their step draws.

    Each index of a batch becomes a ``DrawnIndex``, and each ``(index, choice)`` of timm's ``ScheduledBatchSampler``
    becomes ``(DrawnIndex, choice)``.

    Args:
        batch_sampler: The batch sampler that the batches come from; it has a length.
        draw: The draw; the number of steps is the length of ``batch_sampler``.
    """

    def __init__(self, batch_sampler: Any, draw: BranchDraw):
        self.batch_sampler = batch_sampler
        self.draw = draw
        self.epoch = 0

    @property
    def sampler(self) -> Any:
        """The sampler of images within the batch sampler."""
        return self.batch_sampler.sampler

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self.batch_sampler.sampler = sampler

    @property
    def average_batch_size(self) -> float:
        """Images of a mean batch of timm's ``ScheduledBatchSampler``."""
        return self.batch_sampler.average_batch_size

    def set_epoch(self, epoch: int) -> None:
        """Select the draws of an epoch, and tell the samplers within."""
        self.epoch = epoch
        for part in (self.batch_sampler, self.sampler):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        epoch, num_steps = self.epoch, len(self)
        for step, batch in enumerate(self.batch_sampler):
            branches = self.draw.branches(epoch, step, num_steps)
            yield [_with_branches(entry, branches) for entry in batch]


def _with_branches(entry: Any, branches: tuple[int, ...]) -> Any:
    if isinstance(entry, tuple):
        index, choice = entry
        return DrawnIndex(index, branches), choice
    return DrawnIndex(entry, branches)
