"""Transforms of training images: timm's, with pad-and-crop, policies and Cutout at their places."""
import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import Compose, RandomCrop, Resize

from ..data.cutout import Cutout
from ..data.policies import MultiPolicyRandAugment, create_anchor, create_policy, identity, is_known_to_timm
from ..data.policies.published_ops import mend_posterize
from ..data.views import BranchTransform, ViewTransform


def build_transforms(args: argparse.Namespace, data_config: dict[str, Any]) -> list[Callable[..., Any]]:
    """Transform of a training image, one per image size (``--train-img-sizes``, else one).

    With ``--aug-splits`` a transform is timm's tuple of three stages.
    """
    settings = transform_settings(args, data_config)
    sizes = [(size, size) for size in args.train_img_sizes or ()] or [data_config['input_size'][-2:]]
    return [_build_transform(args, data_config, size, settings) for size in sizes]


def transform_settings(args: argparse.Namespace, data_config: dict[str, Any]) -> dict[str, Any]:
    """Settings of timm's training transforms."""
    is_timms = not _is_policy_ours(args)
    interpolation = args.train_interpolation
    if args.no_aug or not interpolation:
        interpolation = data_config['interpolation']
    return dict(
        no_aug=args.no_aug, train_crop_mode=None if args.train_crop_mode == 'pad' else args.train_crop_mode,
        scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip,
        color_jitter=args.color_jitter if is_timms else None, color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob, gaussian_blur_prob=args.gaussian_blur_prob,
        auto_augment=args.aa if is_timms else None, interpolation=interpolation, re_prob=args.reprob,
        re_mode=args.remode, re_count=args.recount)


def _is_policy_ours(args: argparse.Namespace) -> bool:
    """Whether we place the policies among timm's transforms: several, or one that timm does not know."""
    return args.a2aug_branches > 1 or bool(args.aa) and not is_known_to_timm(args.aa)


def _build_transform(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        size: tuple[int, int],
        settings: dict[str, Any],
) -> Callable[..., Any]:
    is_ours = _is_policy_ours(args)
    is_separate = is_ours or args.aug_splits > 0
    transform = create_transform(
        size, is_training=True, separate=is_separate, mean=data_config['mean'], std=data_config['std'],
        use_prefetcher=not args.no_prefetcher, **settings)
    stages = transform if is_separate else (transform,)
    for stage in stages:
        mend_posterize(stage)
    if args.train_crop_mode == 'pad':
        stages[0].transforms[0] = Compose([Resize(size), RandomCrop(size, padding=args.crop_padding)])
    if args.cutout and args.no_prefetcher:  # else it follows normalisation on the device
        stages[-1].transforms.append(Cutout(args.cutout))
    return _with_policies(args, data_config, size, stages) if is_ours else transform


def _with_policies(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        size: tuple[int, int],
        stages: Sequence[Any],
) -> Callable[..., Any]:
    kwargs = dict(img_size=size, mean=data_config['mean'], interpolation=args.train_interpolation,
                  color_jitter=args.color_jitter)
    if args.a2aug_branches == 1:
        base, after_policy, to_tensor = stages
        return Compose([base, create_policy(args.aa, **kwargs), after_policy, to_tensor])
    policies = MultiPolicyRandAugment(
        args.a2aug_policies, allow_equal=args.a2aug_branch_sizes is not None, op_backend=args.a2aug_op_backend,
        **kwargs)
    if args.a2aug_op_backend == 'opencv':
        stages = _from_arrays(stages, is_uint8=not args.no_prefetcher)
    base, after_policy, to_tensor = stages
    branches = [BranchTransform(policy, after_policy) for policy in policies.transforms]
    if args.aa is not None:
        # Branch 0 is the plain recipe: timm's own stage for --aa, with color jitter, grayscale and blur.
        anchor = create_anchor(
            args.aa, op_backend=args.a2aug_op_backend, color_jitter_prob=args.color_jitter_prob,
            grayscale_prob=args.grayscale_prob or 0., gaussian_blur_prob=args.gaussian_blur_prob or 0., **kwargs)
        is_converted = args.a2aug_op_backend == 'opencv' and bool(after_policy.transforms)
        branches[0] = BranchTransform(anchor, after_policy.transforms[0] if is_converted else identity)
    return ViewTransform(base, branches, to_tensor, args.a2aug_independent_crops)


def _from_arrays(stages: Sequence[Any], is_uint8: bool) -> Sequence[Any]:
    """timm's three stages for policies that give arrays, which become images only where a later stage needs one."""
    from ..data.policies.opencv_ops import array_to_tensor  # OpenCV is an extra
    base, after_policy, to_tensor = stages
    base = Compose([base, np.asarray])  # once for all policies
    if is_uint8 and not after_policy.transforms and len(to_tensor.transforms) == 1:
        return base, after_policy, Compose([array_to_tensor])
    return base, Compose([Image.fromarray, *after_policy.transforms]), to_tensor
