"""Ops of RandAugment and AutoAugment by OpenCV, on arrays, for training that waits for Pillow's ops.

Lookup tables (brightness, contrast, solarize, posterize, equalize, …) give Pillow's pixels, up to 1 level where a mean
is rounded. Color and sharpness differ by at most 2 levels for factors up to 2. Geometric ops interpolate with another
precision: inside the image, bilinear results differ by less than 1 level on average on photographs; for bicubic,
Pillow's kernel is sharper. Along the line between image and fill color the two blend differently.
"""
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import Compose

from ...upstream import draw_interpolation
from .published_ops import ops_of
from .published_ops import posterize as pillow_posterize

cv2.setNumThreads(0)  # the loader's workers already use all cores

_INTERPOLATION = {
    Image.Resampling.NEAREST: cv2.INTER_NEAREST, Image.Resampling.BILINEAR: cv2.INTER_LINEAR,
    Image.Resampling.BICUBIC: cv2.INTER_CUBIC}
_LEVELS = np.arange(256, dtype=np.float32)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13


class OpenCVPolicy:
    """A policy whose ops work on arrays: an image or an array ``[H, W, C]`` in, an array out.

    The policy itself draws the ops and their strengths, so the same random state gives the same ops as with Pillow.
    Transforms without an OpenCV version (blur, color jitter, Cutout, timm's AugMix, torchvision's policies) use Pillow.

    Args:
        policy: Transform of an image; the ops of timm's ``RandAugment`` and ``AutoAugment`` in it are replaced.
    """

    def __init__(self, policy: Callable[..., Any]):
        self.steps = [_on_arrays(step) for step in (policy.transforms if isinstance(policy, Compose) else [policy])]

    def __call__(self, img: Image.Image | np.ndarray) -> np.ndarray:
        array = np.asarray(img)
        for step in self.steps:
            array = step(array)
        return array

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.steps})'


def array_to_tensor(img: np.ndarray) -> torch.Tensor:
    """``[H, W, C]`` or ``[H, W]`` -> ``[C, H, W]``, without a copy."""
    return torch.from_numpy(img[None] if img.ndim == 2 else img.transpose(2, 0, 1))


def _on_arrays(step: Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(step, (auto_augment.RandAugment, auto_augment.AutoAugment)):
        return partial(_on_image, step)
    ops: list[Any] = list(ops_of(step))  # timm declares no type for the function of an op
    for op in ops:
        op.aug_fn = _OPS.get(op.aug_fn) or partial(_on_image, op.aug_fn)
    return step


def _on_image(function: Callable[..., Any], img: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
    return np.array(function(Image.fromarray(img), *args, **kwargs))


def _affine(img: np.ndarray, matrix: tuple[float, ...], resample: Any, fillcolor: Any) -> np.ndarray:
    """Sample at ``(a·x + b·y + c, d·x + e·y + f)``, like Pillow's ``transform``, whose origin is a pixel corner."""
    a, b, c, d, e, f = matrix
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    flags = _INTERPOLATION[draw_interpolation({'resample': resample})] | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(img, centred, img.shape[1::-1], flags=flags, borderMode=cv2.BORDER_CONSTANT,
                          borderValue=fillcolor)


def _shift(img: np.ndarray, pixels: float, axis: int, resample: Any, fillcolor: Any) -> np.ndarray:
    """Sample ``pixels`` further along an axis; bilinear results are weighted sums of two shifted images."""
    resample = draw_interpolation({'resample': resample})
    if resample != Image.Resampling.BILINEAR:
        return _affine(img, (1, 0, 0 if axis == 0 else pixels, 0, 1, pixels if axis == 0 else 0), resample, fillcolor)
    size, whole = img.shape[axis], math.floor(pixels)
    # Positions whose sample is inside the image; its border pixels extend half a pixel beyond their centres.
    first, last = max(0, math.ceil(-pixels - 0.5)), min(size, math.ceil(size - pixels - 0.5))
    if first >= last:
        return np.full_like(img, fillcolor)
    sides = (1, 1, 0, 0) if axis == 0 else (0, 0, 1, 1)
    padded = cv2.copyMakeBorder(img, *sides, cv2.BORDER_REPLICATE)
    one, other = (padded[start:start + last - first] if axis == 0 else padded[:, start:start + last - first]
                  for start in (first + whole + 1, first + whole + 2))
    middle = cv2.addWeighted(one, 1 - (pixels - whole), other, pixels - whole, 0)
    sides = (first, size - last, 0, 0) if axis == 0 else (0, 0, first, size - last)
    return cv2.copyMakeBorder(middle, *sides, cv2.BORDER_CONSTANT, value=fillcolor)


def shear_x(img: np.ndarray, factor: float, *, resample: Any, fillcolor: Any) -> np.ndarray:
    return _affine(img, (1, factor, 0, 0, 1, 0), resample, fillcolor)


def shear_y(img: np.ndarray, factor: float, *, resample: Any, fillcolor: Any) -> np.ndarray:
    return _affine(img, (1, 0, 0, factor, 1, 0), resample, fillcolor)


def translate_x_abs(img: np.ndarray, pixels: float, **kwargs: Any) -> np.ndarray:
    return _shift(img, pixels, 1, **kwargs)


def translate_y_abs(img: np.ndarray, pixels: float, **kwargs: Any) -> np.ndarray:
    return _shift(img, pixels, 0, **kwargs)


def translate_x_rel(img: np.ndarray, pct: float, **kwargs: Any) -> np.ndarray:
    return translate_x_abs(img, pct * img.shape[1], **kwargs)


def translate_y_rel(img: np.ndarray, pct: float, **kwargs: Any) -> np.ndarray:
    return translate_y_abs(img, pct * img.shape[0], **kwargs)


def rotate(img: np.ndarray, degrees: float, *, resample: Any, fillcolor: Any) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = img.shape[1] / 2, img.shape[0] / 2  # the centre is fixed
    return _affine(img, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), resample, fillcolor)


def _table(img: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Replace each level; ``levels`` are ``[256]``, or one column per channel."""
    return cv2.LUT(img, np.clip(levels, 0, 255).astype(np.uint8).reshape(1, 256, -1))


def _histograms(img: np.ndarray) -> list[np.ndarray]:
    channels = 1 if img.ndim == 2 else img.shape[2]
    return [cv2.calcHist([img], [c], None, [256], [0, 256]).ravel().astype(np.int64) for c in range(channels)]


def auto_contrast(img: np.ndarray, **_: Any) -> np.ndarray:
    columns = []
    for channel in cv2.split(img):
        low, high = cv2.minMaxLoc(channel)[:2]
        scale = 255 / (high - low) if high > low else 1.
        columns.append(np.trunc(np.arange(256) * scale - (low * scale if high > low else 0)))
    return _table(img, np.stack(columns, axis=1))


def equalize(img: np.ndarray, **_: Any) -> np.ndarray:
    columns = []
    for histogram in _histograms(img):
        step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
        columns.append((step // 2 + np.cumsum(histogram) - histogram) // step if step else np.arange(256))
    return _table(img, np.stack(columns, axis=1))


def invert(img: np.ndarray, **_: Any) -> np.ndarray:
    return cv2.bitwise_not(img)


def solarize(img: np.ndarray, thresh: float, **_: Any) -> np.ndarray:
    return _table(img, np.where(_LEVELS < thresh, _LEVELS, 255 - _LEVELS))


def solarize_add(img: np.ndarray, add: int, thresh: int = 128, **_: Any) -> np.ndarray:
    return _table(img, np.where(_LEVELS < thresh, _LEVELS + add, _LEVELS))


def posterize(img: np.ndarray, bits_to_keep: int, **_: Any) -> np.ndarray:
    if bits_to_keep >= 8:
        return img
    return _table(img, np.arange(256) & (256 - 2 ** (8 - bits_to_keep)))


def brightness(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    return _table(img, np.trunc(np.float32(factor) * _LEVELS))


def contrast(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    mean = np.float32(int(cv2.mean(_gray(img))[0] + 0.5))
    return _table(img, np.trunc(mean + np.float32(factor) * (_LEVELS - mean)))


def color(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    if img.ndim == 2:
        return img
    gray = cv2.cvtColor(_gray(img), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(img, factor, gray, 1 - factor, -0.499)  # Pillow truncates, OpenCV rounds


def desaturate(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    return color(img, min(1., max(0., 1. - factor)))


def sharpness(img: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    kernel = (1 - factor) * _SMOOTH
    kernel[1, 1] += factor
    out = cv2.filter2D(img, -1, kernel, delta=-0.499, borderType=cv2.BORDER_REPLICATE)
    # Pillow does not smooth the border.
    out[0], out[-1], out[:, 0], out[:, -1] = img[0], img[-1], img[:, 0], img[:, -1]
    return out


def _gray(img: np.ndarray) -> np.ndarray:
    return img if img.ndim == 2 else cv2.cvtColor(img, cv2.COLOR_RGB2GRAY)


_OPS = {getattr(auto_augment, op.__name__): op for op in (
    shear_x, shear_y, translate_x_abs, translate_y_abs, translate_x_rel, translate_y_rel, rotate, auto_contrast,
    equalize, invert, solarize, solarize_add, posterize, brightness, contrast, color, desaturate, sharpness)}
_OPS[pillow_posterize] = posterize
