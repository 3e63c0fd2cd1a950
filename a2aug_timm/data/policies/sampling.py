"""The search space of candidate policies, and seeded sampling from it."""
import hashlib
from collections.abc import Sequence

from .published_ops import MAX_MAGNITUDE

NUM_LAYERS = (1, 2, 3)
MAGNITUDES = (5, 7, 9, 11, 13, 15)
# RandAugment's published search grids: data set -> (numbers of layers, magnitudes).
SPACES = {
    'cifar10': ((3,), (4, 5, 7, 9, 11)),
    'cifar100': ((1, 2), (2, 6, 10, 14)),
    'svhn': ((3,), (5, 7, 9, 11)),
    'imagenet': (NUM_LAYERS, MAGNITUDES),
}


def sample_policies(
        num_policies: int,
        seed: int,
        num_layers: Sequence[int] = NUM_LAYERS,
        magnitudes: Sequence[int] = MAGNITUDES,
) -> list[str]:
    """Draw distinct RandAugment policies from the grid ``num_layers`` x ``magnitudes``, without replacement.

    The policies are ordered by a keyed hash, so the draw depends on the arguments alone, not on the Python version or
    the platform, and ``sample_policies(n, seed)`` is the beginning of ``sample_policies(n + 1, seed)``.

    Raises:
        ValueError: Fewer than one policy, more than the grid has, or a grid value outside RandAugment's range.

    Source: A²-Aug §4.2.
    """
    if num_policies < 1:
        raise ValueError(f'the number of policies must be at least 1, got {num_policies}')
    if any(n < 1 for n in num_layers):
        raise ValueError(f'RandAugment needs at least 1 layer, got num_layers {list(num_layers)}')
    if any(not 0 <= m <= MAX_MAGNITUDE for m in magnitudes):
        raise ValueError(f'magnitudes must be between 0 and {MAX_MAGNITUDE}, got {list(magnitudes)}')
    space = {f'rand-m{m}-n{n}-p1.0-mmax{MAX_MAGNITUDE}-tpublished' for n in num_layers for m in magnitudes}
    if num_policies > len(space):
        raise ValueError(
            f'{num_policies} branches need {num_policies} distinct policies, but the search space of '
            f'{len(set(num_layers))} layer counts x {len(set(magnitudes))} magnitudes holds {len(space)}')
    return sorted(space, key=lambda policy: hashlib.sha256(f'{seed}/{policy}'.encode()).digest())[:num_policies]


def sample_beside(
        anchor: str | None,
        num_policies: int,
        seed: int,
        num_layers: Sequence[int] = NUM_LAYERS,
        magnitudes: Sequence[int] = MAGNITUDES,
) -> list[str]:
    """Draw policies as ``sample_policies`` does; an anchor, if given, is the first of them.

    Raises:
        ValueError: As ``sample_policies``.
    """
    if anchor is None:
        return sample_policies(num_policies, seed, num_layers, magnitudes)
    others = sample_policies(num_policies - 1, seed, num_layers, magnitudes) if num_policies > 1 else []
    if anchor in others:
        others = [policy for policy in sample_policies(num_policies, seed, num_layers, magnitudes) if policy != anchor]
    return [anchor, *others]
