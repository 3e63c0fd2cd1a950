"""Ops of OpenCV give the pixels of Pillow's ops, or differ by as much as the module says."""
import pickle
import random

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import auto_augment

from a2aug_timm import MultiPolicyRandAugment
from a2aug_timm.data.policies import create_policy, opencv_ops
from a2aug_timm.data.policies.opencv_ops import OpenCVPolicy, array_to_tensor

FILL = (124, 116, 104)
BILINEAR, BICUBIC, NEAREST = Image.BILINEAR, Image.BICUBIC, Image.NEAREST
PHOTOS = [Image.fromarray(pixels).resize((224, 224), BICUBIC) for pixels in load_sample_images().images]
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (57, 64, 3), dtype=np.uint8))
GRAY = PHOTOS[0].convert('L').resize((28, 28))
FLAT = Image.new('RGB', (9, 8), (7, 200, 7))


def seed_all(seed):
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(seed)


def difference(name, image, *args, resample=BILINEAR):
    """Difference of an op from Pillow's in levels, pixel by pixel, and the pixels that both fill."""
    fill = FILL if image.mode == 'RGB' else FILL[:1]
    kwargs = dict(resample=resample, fillcolor=fill)
    expected = np.asarray(getattr(auto_augment, name)(image, *args, **kwargs)).astype(int)
    result = getattr(opencv_ops, name)(np.asarray(image), *args, **kwargs)
    assert result.dtype == np.uint8 and result.shape == expected.shape
    return np.abs(result - expected), (expected == np.array(fill if image.mode == 'RGB' else fill[0])) & (
        result == expected)


@pytest.mark.parametrize('image', [*PHOTOS, NOISE, GRAY, FLAT], ids=['china', 'flower', 'noise', 'gray', 'flat'])
@pytest.mark.parametrize('name, args', [
    ('auto_contrast', ()), ('equalize', ()), ('invert', ()), ('solarize', (0,)), ('solarize', (256,)),
    ('solarize', (230.4,)), ('solarize_add', (50,)), ('posterize', (1,)), ('posterize', (4,)), ('posterize', (8,)),
    ('brightness', (0.1,)), ('brightness', (2.8,)), ('contrast', (0.1,)), ('contrast', (1.9,)), ('contrast', (5.5,))])
def test_lookup_tables_equal_pillows_up_to_a_rounded_mean(image, name, args):
    worst = difference(name, image, *args)[0].max()
    assert worst <= (np.ceil(abs(1 - args[0])) if name == 'contrast' else 0)


@pytest.mark.parametrize('image', [*PHOTOS, NOISE, GRAY, FLAT], ids=['china', 'flower', 'noise', 'gray', 'flat'])
@pytest.mark.parametrize('name, factor', [
    ('color', 0.1), ('color', 1.9), ('desaturate', 0.3), ('sharpness', 0.1), ('sharpness', 1.), ('sharpness', 1.9)])
def test_color_and_sharpness_are_within_2_levels(image, name, factor):
    assert difference(name, image, factor)[0].max() <= 2


@pytest.mark.parametrize('image', [*PHOTOS, NOISE, GRAY], ids=['china', 'flower', 'noise', 'gray'])
@pytest.mark.parametrize('name', ['translate_x_abs', 'translate_y_abs'])
@pytest.mark.parametrize('pixels', [0., 3., -7.25, 12.5, 20.75, -27.4, 500., -500.])
def test_translations_are_within_1_level_up_to_the_border(image, name, pixels):
    assert difference(name, image, pixels)[0].max() <= 1
    assert difference(name.replace('abs', 'rel'), image, pixels / max(image.size))[0].max() <= 1


@pytest.mark.parametrize('image', PHOTOS, ids=['china', 'flower'])
@pytest.mark.parametrize('resample, mean', [(BILINEAR, 0.7), (BICUBIC, 1.3)])
@pytest.mark.parametrize('name, value', [
    ('rotate', 27.), ('rotate', -9.), ('shear_x', 0.27), ('shear_x', -0.1), ('shear_y', 0.27), ('shear_y', -0.2),
    ('translate_x_rel', 0.1234), ('translate_y_rel', -0.3)])
def test_geometric_ops_are_close_on_photographs(image, resample, mean, name, value):
    levels, outside = difference(name, image, value, resample=resample)
    assert levels.mean() < mean
    # Only pixels along the border between image and fill may differ by more than 8 levels.
    assert (levels > 8).any(-1).sum() < 3 * 224
    assert 0.01 < outside.mean() < 0.5


def test_nearest_neighbour_sampling_equals_pillows():
    for name, value in (('shear_x', 0.27), ('translate_x_rel', 0.1234), ('translate_y_rel', 0.21)):
        assert difference(name, PHOTOS[0], value, resample=NEAREST)[0].max() == 0


@pytest.mark.parametrize('policy', [
    'rand-m9-n2-p1.0-mmax30-tpublished', 'rand-m9-n3-mstd0.5', 'rand-m7-inc1', 'rand-m7-t3a', 'original', 'v0-mstd0.5'])
@pytest.mark.parametrize('interpolation', ['bilinear', 'random'])
def test_a_policy_draws_the_same_ops_with_both_backends(policy, interpolation):
    slow, fast = (create_policy(policy, 224, interpolation=interpolation, op_backend=backend)
                  for backend in ('pillow', 'opencv'))
    fast = pickle.loads(pickle.dumps(fast))  # spawned workers receive it pickled
    means, drawn = [], []
    for seed in range(60):
        pictures = []
        for transform in (slow, fast):
            seed_all(seed)
            pictures.append(np.asarray(transform(PHOTOS[seed % 2])).astype(int))
            drawn.append(random.random())
        assert drawn[-1] == drawn[-2]
        means.append(np.abs(pictures[0] - pictures[1]).mean())
    assert np.median(means) < 0.7 and max(means) < 12  # levels may jump when they are equalized or posterized
    assert isinstance(fast, OpenCVPolicy) and 'OpenCVPolicy' in repr(fast)


@pytest.mark.parametrize('policy', ['none', '3a', 'augmix-m3', 'autoaugment_cifar10'])
def test_policies_without_an_opencv_version_use_pillow(policy):
    transform = create_policy(policy, 28, mean=(0.5,), interpolation='bilinear', op_backend='opencv')
    seed_all(0)
    fast = transform(GRAY)
    seed_all(0)
    slow = create_policy(policy, 28, mean=(0.5,), interpolation='bilinear')(GRAY)
    assert isinstance(fast, np.ndarray)
    assert np.abs(fast.astype(int) - np.asarray(slow)).max() <= (0 if policy != '3a' else 128)


def test_views_of_an_image_share_no_writable_memory():
    transform = MultiPolicyRandAugment(['none', 'rand-m9-n2-tpublished'], op_backend='opencv')
    before = np.array(PHOTOS[0])
    for _ in range(20):
        views = transform(PHOTOS[0])
    assert np.array_equal(views[0], before) and np.array_equal(np.asarray(PHOTOS[0]), before)
    assert torch.equal(array_to_tensor(views[0]), torch.from_numpy(before).permute(2, 0, 1))
    assert cv2.getNumThreads() == 1
