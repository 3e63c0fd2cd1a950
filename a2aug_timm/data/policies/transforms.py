"""Policy string -> transform, and N policies as one transform."""
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import AutoAugment, Compose, InterpolationMode, TrivialAugmentWide

from .files import create_file_policy
from .grammar import AUTO_AUGMENT, check_policies, is_known_to_timm, parse_policy
from .published_ops import fill_color, identity, mend_posterize, published_rand_augment

OP_BACKENDS = ('pillow', 'opencv')


def create_policy(
        policy: str,
        img_size: int | tuple[int, int] = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        interpolation: str = 'random',
        color_jitter: float | Sequence[float] | None = 0.4,
        op_backend: str = 'pillow',
) -> Callable[..., Any]:
    """The transform of one policy; the arguments are those of ``MultiPolicyRandAugment``.

    Raises:
        ValueError: The policy is malformed, or its file is.
    """
    sections = parse_policy(policy)
    family = sections['family']
    if family == 'mix':
        return Mixture([create_policy(one, img_size, mean, interpolation, color_jitter, op_backend)
                        for one in sections['policies'].split(',')])
    if op_backend == 'opencv':
        from .opencv_ops import OpenCVPolicy  # an optional dependency
        return OpenCVPolicy(create_policy(policy, img_size, mean, interpolation, color_jitter))
    if family == 'none':
        return identity
    if family in AUTO_AUGMENT:
        return AutoAugment(AUTO_AUGMENT[family], fill=fill_color(mean))
    if family == 'ta':
        return TrivialAugmentWide(interpolation=_torchvision_interpolation(interpolation), fill=fill_color(mean))
    if family == 'file':
        return create_file_policy(sections['path'], mean, interpolation)
    if sections.get('t') == 'published':
        return published_rand_augment(sections, mean, interpolation)
    return _timm_stage(policy, img_size, mean, interpolation, color_jitter=color_jitter)


def _timm_stage(policy: str | None, img_size: Any, mean: Sequence[float], interpolation: str, **kwargs: Any) -> Compose:
    # The second of timm's three stages is everything between crop and tensor. A call per policy keeps timm's parser,
    # which changes its settings, from passing one policy's settings to the next.
    return mend_posterize(create_transform(
        img_size, is_training=True, separate=True, auto_augment=policy, mean=tuple(mean),
        interpolation=interpolation, **kwargs)[1])


def _torchvision_interpolation(interpolation: str) -> InterpolationMode:
    if interpolation in ('', 'random'):
        return InterpolationMode.NEAREST  # torchvision's default
    mode = str_to_interp_mode(interpolation)
    if mode not in (InterpolationMode.NEAREST, InterpolationMode.BILINEAR, InterpolationMode.BICUBIC):
        raise ValueError(f"policy 'ta' interpolates by nearest, bilinear or bicubic, got '{interpolation}'")
    return mode


def create_anchor(
        policy: str | None,
        img_size: int | tuple[int, int] = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        interpolation: str = 'random',
        color_jitter: float | Sequence[float] | None = 0.4,
        op_backend: str = 'pillow',
        *,
        color_jitter_prob: float | None = None,
        grayscale_prob: float = 0.,
        gaussian_blur_prob: float = 0.,
) -> Callable[..., Any]:
    """The transform between crop and tensor that plain training with ``--aa policy`` uses, for the anchor branch.

    For a policy that timm knows this is timm's whole second stage: the policy, color jitter where timm adds it,
    grayscale and blur. For one of ours it is the policy, then grayscale and blur.

    Args:
        policy: The policy string; None is timm's stage without a policy.
        img_size, mean, interpolation, color_jitter, op_backend: As for ``MultiPolicyRandAugment``.
        color_jitter_prob, grayscale_prob, gaussian_blur_prob: timm's probabilities.

    Raises:
        ValueError: The policy is malformed.
    """
    probabilities = dict(grayscale_prob=grayscale_prob, gaussian_blur_prob=gaussian_blur_prob)
    is_timms = policy is None or is_known_to_timm(policy)
    stage = _timm_stage(
        policy if is_timms else None, img_size, mean, interpolation, color_jitter=color_jitter if is_timms else None,
        color_jitter_prob=color_jitter_prob, **probabilities)
    if op_backend == 'opencv':
        from .opencv_ops import OpenCVPolicy  # an optional dependency
        stage = OpenCVPolicy(stage)
    if policy is None or is_timms:
        return stage
    return Compose([create_policy(policy, img_size, mean, interpolation, op_backend=op_backend), stage])


class Mixture:
    """One of several transforms at random for each image, each with the same probability.

    Args:
        transforms: The transforms.
    """

    def __init__(self, transforms: Sequence[Callable[..., Any]]):
        self.transforms = list(transforms)

    def __call__(self, img: Any) -> Any:
        return random.choice(self.transforms)(img)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transforms})'


class MultiPolicyRandAugment:
    """timm's RandAugment extended to ``N`` fixed candidate policies: one Pillow image in, ``N`` augmented views out.

    The ops that a policy draws, and their signs, are random per call; the policies themselves never change. The op set
    ``tpublished`` is RandAugment's published 14 ops with the published level scale, applied with probability 1 and
    magnitudes up to 30 unless the string says otherwise. ``grammar`` lists our other policies. Every other
    string gives the transform that timm's ``--aa`` gives for it (with the color jitter that timm adds to 3-Augment).

    Args:
        policies: ``N`` distinct policy strings.
        img_size: Side of the images in pixels, the scale of timm's absolute translations.
        mean: Per-channel mean in 0..1 that fills uncovered pixels; its length is the number of channels.
        interpolation: Pillow resampling of the geometric ops; ``random`` is bilinear or bicubic at random.
        color_jitter: Strength of the jitter that is part of timm's 3-Augment policies.
        allow_equal: Allow equal policies, for views that differ in something else.
        op_backend: ``pillow``, with timm's ops, or ``opencv``, which is faster, close to Pillow's pixels (see
            ``opencv_ops``), and returns arrays ``[H, W, C]``.

    Raises:
        ValueError: A policy is malformed, or two policies mean the same.

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
        # An array once for all policies.
        image: Any = np.asarray(img) if self.op_backend == 'opencv' else img
        return tuple(transform(image) for transform in self.transforms)

    def __len__(self) -> int:
        return len(self.transforms)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({list(self.policies)})'
