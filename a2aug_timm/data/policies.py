"""Augmentation policies: the search space, seeded sampling, and policy string -> transform.

A policy *is* a timm auto-augment string (``rand-m9-n2-p1.0-mmax30-tpublished``); that string is what is sampled,
logged, stored in checkpoints and parsed. The op set ``tpublished`` is RandAugment's own, ``autoaugment_cifar10`` and
its siblings are AutoAugment's policies as torchvision ships them, ``none`` leaves an image as it is; any other string
means exactly what timm's ``--aa`` means.
"""
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP, AugmentOp, RandAugment
from timm.data.transforms import str_to_pil_interp
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

NUM_LAYERS = (1, 2, 3)
MAGNITUDES = (5, 7, 9, 11, 13, 15)
MAX_MAGNITUDE = 30
# RandAugment's published search grids: data set -> (numbers of layers, magnitudes).
SPACES = {
    'cifar10': ((3,), (4, 5, 7, 9, 11)),
    'cifar100': ((1, 2), (2, 6, 10, 14)),
    'svhn': ((3,), (5, 7, 9, 11)),
    'imagenet': (NUM_LAYERS, MAGNITUDES),
}

AUTO_AUGMENT = {f'autoaugment_{policy.value}': policy for policy in AutoAugmentPolicy}
OP_BACKENDS = ('pillow', 'opencv')
# Largest shift as a share of the image side: the published 10 pixels at 32 pixels.
TRANSLATE_PCT = 10 / 32


def identity(img: Image.Image, **_) -> Image.Image:
    return img


def _posterize_level_to_arg(level: float, _hparams: dict) -> tuple[int]:
    # 0.4 bits a level. Level 2 and below would keep 0 bits, a black image; the published TensorFlow op cannot shift
    # a byte by more than 7, so it keeps 1.
    return max(1, int(level * 0.4)),


# RandAugment's op: (function, level -> arguments). The level functions are AutoAugment's, not timm's "increasing" ones.
PUBLISHED_OPS: dict[str, tuple[Callable, Callable | None]] = {
    'Identity': (identity, None),
    'Posterize': (NAME_TO_OP['Posterize'], _posterize_level_to_arg),
    'TranslateX': (NAME_TO_OP['TranslateXRel'], LEVEL_TO_ARG['TranslateXRel']),
    'TranslateY': (NAME_TO_OP['TranslateYRel'], LEVEL_TO_ARG['TranslateYRel']),
    **{name: (NAME_TO_OP[name], LEVEL_TO_ARG[name]) for name in (
        'AutoContrast', 'Equalize', 'Rotate', 'Solarize', 'Color', 'Contrast', 'Brightness', 'Sharpness', 'ShearX',
        'ShearY')},
}

_NUMBER = r'\d+(?:\.\d+)?'
# Policy family -> its sections, as timm parses them: {key: value pattern}.
_SECTIONS = {
    'rand': {'m': r'\d+', 'n': r'[1-9]\d*', 'p': _NUMBER, 'mstd': _NUMBER, 'mmax': r'\d+', 'inc': r'[01]',
             't': r'published|weights|3aw|3a'},
    'augmix': {'m': r'\d+', 'w': r'[1-9]\d*', 'd': r'\d+', 'a': _NUMBER, 'b': r'[01]', 'mstd': _NUMBER},
    **{name: {'mstd': _NUMBER} for name in ('original', 'originalr', 'v0', 'v0r', '3a')},
    **{name: {} for name in ('none', *AUTO_AUGMENT)},
}


class PublishedOp(AugmentOp):
    """One of RandAugment's 14 published ops on a Pillow image, with its published level function.

    Args:
        name: Key of ``PUBLISHED_OPS``.
        prob: Probability that the op is applied.
        magnitude: Level on RandAugment's scale, where 10 is AutoAugment's maximum; levels above 10 extrapolate.
        hparams: timm's op settings; ``magnitude_max`` clamps the level, ``img_mean`` fills uncovered pixels.

    Source: RandAugment (arXiv:1909.13719), Figure 2 and its released code.
    """

    def __init__(self, name: str, prob: float, magnitude: float, hparams: dict):
        super().__init__('AutoContrast', prob=prob, magnitude=magnitude, hparams=hparams)
        self.name = name
        self.aug_fn, self.level_fn = PUBLISHED_OPS[name]


def sample_policies(
        num_policies: int,
        seed: int,
        num_layers: Sequence[int] = NUM_LAYERS,
        magnitudes: Sequence[int] = MAGNITUDES,
) -> list[str]:
    """Draw distinct RandAugment policies from the grid ``num_layers`` x ``magnitudes``, without replacement.

    The order is a keyed hash of the policy string, so the draw depends on the arguments alone, never on the Python
    version or platform, and ``sample_policies(n, seed)`` is the beginning of ``sample_policies(n + 1, seed)``.

    Raises:
        ValueError: Fewer than one policy, more than the grid holds, or a grid value outside of RandAugment's range.

    Source: A²-Aug §4.2.
    """
    if num_policies < 1:
        raise ValueError(f'the number of policies must be at least 1, got {num_policies}')
    if any(n < 1 for n in num_layers):
        raise ValueError(f'RandAugment needs at least 1 layer, got num_layers {list(num_layers)}')
    if any(not 0 <= m <= MAX_MAGNITUDE for m in magnitudes):
        raise ValueError(f'magnitudes lie between 0 and {MAX_MAGNITUDE}, got {list(magnitudes)}')
    space = {f'rand-m{m}-n{n}-p1.0-mmax{MAX_MAGNITUDE}-tpublished' for n in num_layers for m in magnitudes}
    if num_policies > len(space):
        raise ValueError(
            f'{num_policies} branches need as many distinct policies, but the search space of {len(set(num_layers))} '
            f'layer counts x {len(set(magnitudes))} magnitudes holds {len(space)}')
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


def parse_policy(policy: str) -> dict[str, str]:
    """Split a policy string into its sections, ``{'family': 'rand', 'm': '9', …}``.

    Raises:
        ValueError: The family, a section or a value is neither timm's nor ours.
    """
    family, *sections = policy.split('-')
    if family not in _SECTIONS:
        raise ValueError(f"policy '{policy}' must begin with one of {', '.join(_SECTIONS)}")
    parsed = {'family': family}
    # Longest key first, so that `mstd0.5` is never read as key `m`.
    keys = sorted(_SECTIONS[family].items(), key=lambda item: -len(item[0]))
    for section in sections:
        key = next((key for key, value in keys if re.fullmatch(key + f'(?:{value})', section)), None)
        if key is None:
            raise ValueError(f"policy '{policy}': section '{section}' is not one of {family}'s "
                             f"({', '.join(_SECTIONS[family])})")
        if key in parsed:
            raise ValueError(f"policy '{policy}' has two sections '{key}'")
        parsed[key] = section[len(key):]
    if float(parsed.get('p', 1)) > 1:
        raise ValueError(f"policy '{policy}': the probability p{parsed['p']} is above 1")
    if parsed.get('t') == 'published' and 'inc' in parsed:
        raise ValueError(f"policy '{policy}': the published ops have one level scale, 'inc' does not go with it")
    return parsed


def check_policies(policies: Sequence[str]) -> None:
    """Raise ``ValueError`` if a policy is malformed or two of them mean the same."""
    seen: dict[frozenset, str] = {}
    for policy in policies:
        meaning = frozenset(_meaning(policy).items())
        if meaning in seen:
            raise ValueError(f"policies '{seen[meaning]}' and '{policy}' are the same; each branch needs its own")
        seen[meaning] = policy


def _meaning(policy: str) -> dict[str, str | float]:
    """Sections of a policy with timm's defaults filled in and a magnitude above its cap cut to it."""
    sections = {key: value if key in ('family', 't') else float(value) for key, value in parse_policy(policy).items()}
    if sections['family'] == 'rand':
        is_published = sections.get('t') == 'published'
        defaults = {'m': 10., 'n': 2., 'p': 1. if is_published else 0.5, 'mstd': 0., 'inc': 0., 't': '',
                    'mmax': float(MAX_MAGNITUDE) if is_published else 10.}
        sections = {**defaults, **sections}
        if not sections['mstd']:
            sections['m'] = min(sections['m'], sections.pop('mmax'))
    elif sections['family'] == 'augmix':
        sections = {'m': 3., 'w': 3., 'd': -1., 'a': 1., 'b': 0., **sections}
    elif 'mstd' in _SECTIONS[sections['family']]:
        sections = {'mstd': 0., **sections}
    return sections


def is_known_to_timm(policy: str) -> bool:
    """Whether timm's own ``auto_augment`` takes a policy, rather than ``create_policy`` alone."""
    sections = parse_policy(policy)
    return sections['family'] not in ('none', *AUTO_AUGMENT) and sections.get('t') != 'published'


def create_policy(
        policy: str,
        img_size: int | tuple[int, int] = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        interpolation: str = 'random',
        color_jitter: float | Sequence[float] | None = 0.4,
        op_backend: str = 'pillow',
) -> Callable:
    """The transform of one policy; the arguments are those of ``MultiPolicyRandAugment``.

    Raises:
        ValueError: The policy is malformed.
    """
    sections = parse_policy(policy)
    if op_backend == 'opencv':
        from .opencv_ops import OpenCVPolicy  # OpenCV is an extra
        return OpenCVPolicy(create_policy(policy, img_size, mean, interpolation, color_jitter))
    if sections['family'] == 'none':
        return identity
    if sections['family'] in AUTO_AUGMENT:
        return AutoAugment(AUTO_AUGMENT[sections['family']], fill=_fill(mean))
    if sections.get('t') == 'published':
        return _published_rand_augment(sections, mean, interpolation)
    # The second of timm's three stages is all that comes between crop and tensor. A call per policy keeps timm's
    # parser, which writes into its settings, from leaking one policy's into the next.
    return create_transform(
        img_size, is_training=True, separate=True, auto_augment=policy, mean=tuple(mean),
        interpolation=interpolation, color_jitter=color_jitter)[1]


def _fill(mean: Sequence[float]) -> list[int]:
    """Pixel that stands for an image's mean."""
    return [min(255, round(255 * channel)) for channel in mean]


def _published_rand_augment(sections: dict[str, str], mean: Sequence[float], interpolation: str) -> RandAugment:
    std = float(sections.get('mstd', 0))
    hparams = dict(
        img_mean=tuple(_fill(mean)),
        translate_pct=TRANSLATE_PCT,
        magnitude_max=int(sections.get('mmax', MAX_MAGNITUDE)),
        magnitude_std=math.inf if std > 100 else std,  # as timm reads it: infinite is uniform up to the magnitude
    )
    if interpolation and interpolation != 'random':
        hparams['interpolation'] = str_to_pil_interp(interpolation)
    prob, magnitude = float(sections.get('p', 1)), int(sections.get('m', 10))
    ops = [PublishedOp(name, prob=prob, magnitude=magnitude, hparams=hparams) for name in PUBLISHED_OPS]
    return RandAugment(ops, num_layers=int(sections.get('n', 2)))


class MultiPolicyRandAugment:
    """timm's RandAugment extended to ``N`` fixed candidate policies: one Pillow image in, ``N`` augmented views out.

    Which ops a policy draws, and their signs, is random per call; the policies themselves never change. An op set
    ``tpublished`` is RandAugment's published 14 ops with the published level scale, applied with probability 1 and
    magnitudes up to 30 unless the string says otherwise. Every other string gives the transform that timm's
    ``--aa`` gives for it (with the color jitter that timm adds to 3-Augment).

    Args:
        policies: ``N`` distinct policy strings.
        img_size: Side of the images in pixels, the scale of timm's absolute translations.
        mean: Per-channel mean in 0..1 that fills uncovered pixels; its length is the number of channels.
        interpolation: Pillow resampling of the geometric ops, ``random`` for bilinear or bicubic at random.
        color_jitter: Strength of the jitter that is part of timm's 3-Augment policies.
        allow_equal: Views that differ in something else may share a policy.
        op_backend: ``pillow``, whose ops are timm's, or ``opencv``, which is faster, close to Pillow's pixels (see
            ``opencv_ops``), and gives arrays ``[H, W, C]``.

    Raises:
        ValueError: A malformed policy, or two that mean the same.

    Source: A²-Aug §4.2; timm ``rand_augment_transform``.
    """

    def __init__(
            self,
            policies: Sequence[str],
            img_size: int | tuple[int, int] = 224,
            mean: Sequence[float] = (0.485, 0.456, 0.406),
            interpolation: str = 'random',
            color_jitter: float | Sequence[float] | None = 0.4,
            allow_equal: bool = False,
            op_backend: str = 'pillow',
    ):
        if not allow_equal:
            check_policies(policies)
        self.policies = tuple(policies)
        self.op_backend = op_backend
        self.transforms = [
            create_policy(policy, img_size, mean, interpolation, color_jitter, op_backend) for policy in policies]

    def __call__(self, img: Image.Image) -> tuple[Any, ...]:
        if self.op_backend == 'opencv':
            img = np.asarray(img)  # once for all
        return tuple(transform(img) for transform in self.transforms)

    def __len__(self) -> int:
        return len(self.transforms)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({list(self.policies)})'
