"""Policies in files: lists of sub-policies, as AutoAugment and the searches after it publish them.

A file is JSON (``.json``) or YAML. It holds a list of sub-policies, each a list of ``[op, probability, magnitude]``:

    - [[Invert, 0.1, 7], [Contrast, 0.2, 6]]
    - [[Rotate, 0.7, 2], [TranslateX, 0.3, 9]]

or a mapping with that list as ``sub_policies`` and, optionally, ``translate`` and ``cutout``: the shift and the side of
the square at magnitude 10 as shares of the image side, for papers whose ranges differ from AutoAugment's.

The package ships published policies in this format, in ``hparams/policies/``; they are found by name, without a path:
``file:fast_autoaugment_cifar10``.
"""
import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP, AutoAugment

from ..shipped import is_file, nearest_name, shipped_policies
from .published_ops import OpTable, PublishedOp, identity, op_settings


class PolicyFile(NamedTuple):
    """Content of a policy file.

    Attributes:
        sub_policies: Each a tuple of ops with their name, probability and magnitude (0 to 10).
        translate: Shift at magnitude 10, as a share of the image side.
        cutout: Side of Cutout's square at magnitude 10, as a share of the image side.
    """
    sub_policies: tuple[tuple[tuple[str, float, float], ...], ...]
    # AutoAugment's 150 and 60 pixels of 331.
    translate: float = 150 / 331
    cutout: float = 60 / 331


def cutout(img: Image.Image, share: float, *, fillcolor: Sequence[int], **_: Any) -> Image.Image:
    """A copy of an image with one square of a color; its centre is uniform over the image, its border is clipped.

    Args:
        share: Side of the square as a share of the smaller image side.
        fillcolor: Color of the square, one value per channel.
    """
    side = round(share * min(img.size))
    left, top = (random.randrange(size) - side // 2 for size in img.size)
    img = img.copy()
    img.paste(fillcolor[0] if len(img.getbands()) == 1 else tuple(fillcolor), (left, top, left + side, top + side))
    return img


def _cutout_level_to_arg(level: float, hparams: dict[str, Any]) -> tuple[float]:
    return level / 10 * hparams['cutout_pct'],


def _posterize_level_to_arg(level: float, _: dict[str, Any], *, increasing: bool = False) -> tuple[int]:
    # The published op keeps at least 1 bit.
    return max(1, 4 - int(level / 10 * 4)) if increasing else 4 + int(level / 10 * 4),


# Ops of a file, with the ranges of AutoAugment's Table 6. The code that Google released
# differs in two ops, which have names of their own, timm's: they grow stronger with the magnitude.
FILE_OPS: OpTable = {
    'Identity': (identity, None),
    'Posterize': (NAME_TO_OP['Posterize'], _posterize_level_to_arg),
    'PosterizeIncreasing': (NAME_TO_OP['Posterize'], partial(_posterize_level_to_arg, increasing=True)),
    'TranslateX': (NAME_TO_OP['TranslateXRel'], LEVEL_TO_ARG['TranslateXRel']),
    'TranslateY': (NAME_TO_OP['TranslateYRel'], LEVEL_TO_ARG['TranslateYRel']),
    'Cutout': (cutout, _cutout_level_to_arg),
    **{name: (NAME_TO_OP[name], LEVEL_TO_ARG[name]) for name in (
        'ShearX', 'ShearY', 'Rotate', 'AutoContrast', 'Invert', 'Equalize', 'Solarize', 'SolarizeIncreasing',
        'SolarizeAdd', 'Contrast', 'Color', 'Brightness', 'Sharpness')},
}


def read_policy_file(path: str | Path) -> PolicyFile:
    """Read and check a policy file.

    Args:
        path: A file, or the name of a published policy that the package ships. A file of that name wins.

    Raises:
        ValueError: The file is missing or not in this format.
    """
    path = _found(path)
    try:
        text = Path(path).read_text(encoding='utf-8')
        content = json.loads(text) if Path(path).suffix == '.json' else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"policy file '{path}' cannot be read: {error}") from error
    ranges = {}
    if isinstance(content, dict):
        ranges = {name: value for name, value in content.items() if name != 'sub_policies'}
        content = content.get('sub_policies')
    if not isinstance(content, list) or not content:
        raise ValueError(f"policy file '{path}' must hold a list of sub-policies")
    for name, value in ranges.items():
        if name not in ('translate', 'cutout'):
            raise ValueError(f"policy file '{path}': '{name}' is not one of sub_policies, translate, cutout")
        if not _is_number(value, 1):
            raise ValueError(f"policy file '{path}': {name} must be a share of the image side, 0 to 1, got {value!r}")
    return PolicyFile(tuple(_checked(sub_policy, path) for sub_policy in content), **ranges)


def _found(path: str | Path) -> str | Path:
    """A path as it is, or the path of the published policy that a name without folders stands for."""
    if is_file(path) or Path(path).name != str(path):
        return path
    policies = shipped_policies()
    name = str(path).removesuffix('.yaml')
    if name not in policies:
        raise ValueError(f"policy file '{path}' cannot be read: there is no such file and no such published policy"
                         f'{nearest_name(name, policies)}')
    return policies[name]


def _checked(sub_policy: Any, path: str | Path) -> tuple[tuple[str, float, float], ...]:
    if not isinstance(sub_policy, list) or not sub_policy:
        raise ValueError(f"policy file '{path}': a sub-policy is a list of ops, got {sub_policy!r}")
    for op in sub_policy:
        if not isinstance(op, list) or len(op) != 3:
            raise ValueError(f"policy file '{path}': an op is [name, probability, magnitude], got {op!r}")
        name, prob, magnitude = op
        if not isinstance(name, str) or name not in FILE_OPS:
            raise ValueError(f"policy file '{path}': there is no op '{name}'; the ops are {', '.join(FILE_OPS)}")
        if not _is_number(prob, 1) or not _is_number(magnitude, 10):
            raise ValueError(f"policy file '{path}': {name} needs a probability from 0 to 1 and a magnitude from 0 to "
                             f'10, got {op!r}')
    return tuple((name, float(prob), float(magnitude)) for name, prob, magnitude in sub_policy)


def _is_number(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most


def create_file_policy(path: str | Path, mean: Sequence[float], interpolation: str) -> AutoAugment:
    """The policy of a file: for each image one sub-policy at random, whose ops are applied in order.

    Args:
        path: The policy file, or the name of a shipped one.
        mean: Per-channel mean in 0..1 that fills uncovered pixels.
        interpolation: Pillow resampling of the geometric ops; ``random`` is bilinear or bicubic at random.

    Raises:
        ValueError: See ``read_policy_file``.

    Source: AutoAugment (arXiv:1805.09501), §3 and Table 6.
    """
    content = read_policy_file(path)
    hparams = dict(op_settings(mean, interpolation), translate_pct=content.translate, cutout_pct=content.cutout)
    return AutoAugment([
        [PublishedOp(name, prob, magnitude, hparams, FILE_OPS) for name, prob, magnitude in sub_policy]
        for sub_policy in content.sub_policies])
