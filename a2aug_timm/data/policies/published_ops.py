"""Ops of policies with the level functions that their papers published, for timm's ``RandAugment``."""
import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP, AugmentOp, AugMixAugment, AutoAugment, RandAugment
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.transforms import str_to_pil_interp

MAX_MAGNITUDE = 30
# Largest shift as a share of the image side: the published 10 pixels at 32 pixels.
TRANSLATE_PCT = 10 / 32


def identity(img: Any, **_: Any) -> Any:
    """The image itself."""
    return img


def _posterize_level_to_arg(level: float, _hparams: dict[str, Any]) -> tuple[int]:
    # 0.4 bits per level. Level 2 and below would keep 0 bits, a black image; the published TensorFlow op cannot shift
    # a byte by more than 7, so it keeps 1.
    return max(1, int(level * 0.4)),


# Name of an op -> (its function, level -> arguments); timm's table of functions has no types.
OpTable = dict[str, tuple[Any, Callable[..., Any] | None]]

# RandAugment's ops. The level functions are AutoAugment's, not timm's "increasing" ones.
PUBLISHED_OPS: OpTable = {
    'Identity': (identity, None),
    'Posterize': (NAME_TO_OP['Posterize'], _posterize_level_to_arg),
    'TranslateX': (NAME_TO_OP['TranslateXRel'], LEVEL_TO_ARG['TranslateXRel']),
    'TranslateY': (NAME_TO_OP['TranslateYRel'], LEVEL_TO_ARG['TranslateYRel']),
    **{name: (NAME_TO_OP[name], LEVEL_TO_ARG[name]) for name in (
        'AutoContrast', 'Equalize', 'Rotate', 'Solarize', 'Color', 'Contrast', 'Brightness', 'Sharpness', 'ShearX',
        'ShearY')},
}


class PublishedOp(AugmentOp):
    """One op on a Pillow image with its published level function.

    Args:
        name: Key of ``ops``.
        prob: Probability that the op is applied.
        magnitude: Level on RandAugment's scale, where 10 is AutoAugment's maximum; levels above 10 extrapolate.
        hparams: timm's op settings; ``magnitude_max`` clamps the level, ``img_mean`` fills uncovered pixels.
        ops: Table of ops, name -> (function, level -> arguments); by default RandAugment's 14.

    Source: RandAugment (arXiv:1909.13719), Figure 2 and its released code.
    """

    def __init__(
            self,
            name: str,
            prob: float,
            magnitude: float,
            hparams: dict[str, Any],
            ops: OpTable = PUBLISHED_OPS,
    ):
        super().__init__('AutoContrast', prob=prob, magnitude=magnitude, hparams=hparams)
        self.name = name
        self.aug_fn, self.level_fn = ops[name]


def published_rand_augment(sections: dict[str, str], mean: Sequence[float], interpolation: str) -> RandAugment:
    """RandAugment with its published ops, from the sections of a policy string with ``tpublished``.

    Args:
        sections: As ``parse_policy`` returns them.
        mean: Per-channel mean in 0..1 that fills uncovered pixels.
        interpolation: Pillow resampling of the geometric ops; ``random`` is bilinear or bicubic at random.
    """
    std = float(sections.get('mstd', 0))
    hparams = dict(
        op_settings(mean, interpolation),
        translate_pct=TRANSLATE_PCT,
        magnitude_max=int(sections.get('mmax', MAX_MAGNITUDE)),
        magnitude_std=math.inf if std > 100 else std,  # as timm reads it: infinite is uniform up to the magnitude
    )
    prob, magnitude = float(sections.get('p', 1)), int(sections.get('m', 10))
    ops = [PublishedOp(name, prob=prob, magnitude=magnitude, hparams=hparams) for name in PUBLISHED_OPS]
    return RandAugment(ops, num_layers=int(sections.get('n', 2)))


def op_settings(mean: Sequence[float], interpolation: str) -> dict[str, Any]:
    """timm's op settings for fill color and interpolation."""
    settings: dict[str, Any] = {'img_mean': tuple(fill_color(mean))}
    if interpolation and interpolation != 'random':
        settings['interpolation'] = str_to_pil_interp(interpolation)
    return settings


def fill_color(mean: Sequence[float]) -> list[int]:
    """Pixel with the mean of the data."""
    return [min(255, round(255 * channel)) for channel in mean]


def ops_of(step: Any) -> list[AugmentOp]:
    """The ops of timm's ``RandAugment``, ``AutoAugment`` or ``AugMixAugment``; none of other transforms."""
    if isinstance(step, AutoAugment):
        return sum(step.policy, [])
    return step.ops if isinstance(step, (RandAugment, AugMixAugment)) else []


def mend_posterize(transform: Any) -> Any:
    """Let the posterize ops of a timm transform accept 0 bits, in place, and return the transform.

    timm's level functions reach 0 bits and fewer. Pillow before 13 makes such an image black, and Pillow 13 raises an
    error in the middle of an epoch. The result here is that of the earlier Pillow, with every version.
    """
    for step in getattr(transform, 'transforms', [transform]):
        for op in ops_of(step):
            if op.name.startswith('Posterize'):
                op.aug_fn = posterize
    return transform


def posterize(img: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's posterize; 0 bits and fewer make the image black."""
    if bits_to_keep >= 1:
        return timm_posterize(img, bits_to_keep)
    return img.point([0] * (256 * len(img.getbands())))
