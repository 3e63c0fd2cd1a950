"""What training images go through: timm's transforms, with pad-and-crop, the policies and Cutout put among them."""
import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset
from torchvision.transforms import Compose, RandomCrop, Resize

from ..data.cutout import Cutout
from ..data.policies import MultiPolicyRandAugment, create_policy, is_known_to_timm
from ..data.views import BranchTransform, ViewTransform

_logger = logging.getLogger(__name__)


def is_policy_ours(args: argparse.Namespace) -> bool:
    """Whether we put the policies among timm's transforms, because they are several or one that timm does not know."""
    return args.a2aug_branches > 1 or bool(args.aa) and not is_known_to_timm(args.aa)


def transform_settings(args: argparse.Namespace, data_config: dict[str, Any]) -> dict[str, Any]:
    """How a training image becomes a tensor, in the words that timm's loader and its transforms share."""
    is_timms = not is_policy_ours(args)
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


def extend_transforms(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        train_set: Dataset,
        loader: Any,
        settings: dict[str, Any],
) -> None:
    """Extend the transforms that timm's loader has set, for each image size that is trained.

    Args:
        settings: What timm's loader made the transforms of.
    """
    sizes = [data_config['input_size'][-2:]]
    if args.train_img_sizes is not None:
        sizes = [(size, size) for size in args.train_img_sizes]
    transforms = [train_set.transform] if args.train_img_sizes is None else list(loader.dataset.transforms)
    parts = [(transform, transform) for transform in transforms]
    if is_policy_ours(args):
        common = dict(is_training=True, separate=True, mean=data_config['mean'], std=data_config['std'],
                      use_prefetcher=not args.no_prefetcher)
        parts = [create_transform(size, **common, **settings) for size in sizes]
        transforms = [_with_policies(args, data_config, size, stages)
                      for size, stages in zip(sizes, parts, strict=True)]
        _logger.info('Policies: %s', ' '.join(args.a2aug_policies or [args.aa]))
    for size, (first, *_, last) in zip(sizes, parts, strict=True):
        if args.train_crop_mode == 'pad':
            first.transforms[0] = Compose([Resize(size), RandomCrop(size, padding=args.crop_padding)])
        if args.cutout and args.no_prefetcher:
            last.transforms.append(Cutout(args.cutout))
    if args.train_img_sizes is None:
        train_set.transform = transforms[0]
    else:
        loader.dataset.transforms = tuple(transforms)
    if not args.no_prefetcher:
        _extend_prefetcher(args, loader)


def _with_policies(
        args: argparse.Namespace,
        data_config: dict[str, Any],
        size: Sequence[int],
        stages: Sequence[Callable],
) -> Callable:
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
    return ViewTransform(base, branches, to_tensor, args.a2aug_independent_crops)


def _from_arrays(stages: Sequence[Callable], is_uint8: bool) -> Sequence[Callable]:
    """timm's three stages where policies give arrays, which need not become images where nothing wants one."""
    from ..data.opencv_ops import array_to_tensor  # OpenCV is an extra
    base, after_policy, to_tensor = stages
    base = Compose([base, np.asarray])  # once for all policies
    if is_uint8 and not after_policy.transforms and len(to_tensor.transforms) == 1:
        return base, after_policy, Compose([array_to_tensor])
    return base, Compose([Image.fromarray, *after_policy.transforms]), to_tensor


def _extend_prefetcher(args: argparse.Namespace, loader: Any) -> None:
    """What timm's prefetcher does to normalised batches on their device, where it erases at random."""
    erasing = loader.random_erasing
    if erasing is not None and args.resplit and args.a2aug_branches > 1:
        erasing.num_splits = args.a2aug_branches
    if args.cutout:
        loader.random_erasing = Compose([*filter(None, [erasing]), Cutout(args.cutout)])
