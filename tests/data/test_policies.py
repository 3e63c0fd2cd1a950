"""Policies: sampling, parsing, and comparison of each op with Pillow and timm."""
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import create_transform
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from a2aug_timm import MultiPolicyRandAugment, sample_policies
from a2aug_timm.data.policies import create_policy
from a2aug_timm.data.policies.grammar import AUTO_AUGMENT, check_policies, is_known_to_timm, parse_policy
from a2aug_timm.data.policies.published_ops import PUBLISHED_OPS, PublishedOp

HPARAMS = dict(img_mean=(124, 116, 104), translate_pct=10 / 32, magnitude_max=30, interpolation=Image.BILINEAR)


def noise(mode='RGB', size=(32, 32)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pixels(image):
    return np.asarray(image)


def affine(image, matrix):
    return image.transform(image.size, Image.AFFINE, matrix, resample=Image.BILINEAR, fillcolor=(124, 116, 104))


def published(name, image, m, sign):
    """RandAugment's ops as in its paper and released code, written only with Pillow."""
    side = image.size[0]
    enhance = 0.1 + 0.18 * m
    return {
        'Identity': lambda: image,
        'AutoContrast': lambda: ImageOps.autocontrast(image),
        'Equalize': lambda: ImageOps.equalize(image),
        'Rotate': lambda: image.rotate(sign * 3 * m, resample=Image.BILINEAR, fillcolor=(124, 116, 104)),
        'Solarize': lambda: ImageOps.solarize(image, min(256, int(25.6 * m))),
        'Posterize': lambda: image if 0.4 * m >= 8 else ImageOps.posterize(image, max(1, int(0.4 * m))),
        'Color': lambda: ImageEnhance.Color(image).enhance(enhance),
        'Contrast': lambda: ImageEnhance.Contrast(image).enhance(enhance),
        'Brightness': lambda: ImageEnhance.Brightness(image).enhance(enhance),
        'Sharpness': lambda: ImageEnhance.Sharpness(image).enhance(enhance),
        'ShearX': lambda: affine(image, (1, sign * 0.03 * m, 0, 0, 1, 0)),
        'ShearY': lambda: affine(image, (1, 0, 0, sign * 0.03 * m, 1, 0)),
        'TranslateX': lambda: affine(image, (1, 0, sign * m * side / 32, 0, 1, 0)),
        'TranslateY': lambda: affine(image, (1, 0, 0, 0, 1, sign * m * side / 32)),
    }[name]()


@pytest.mark.parametrize('name', PUBLISHED_OPS)
@pytest.mark.parametrize('magnitude', [2, 5, 9, 10, 15, 30])
def test_published_ops_equal_the_papers_at_every_magnitude(name, magnitude):
    image = noise()
    outcomes = {pixels(PublishedOp(name, 1., magnitude, HPARAMS)(image)).tobytes() for _ in range(20)}
    expected = {pixels(published(name, image, magnitude, sign)).tobytes() for sign in (-1, 1)}
    assert outcomes == expected


def test_the_published_ops_are_the_fourteen_of_randaugment():
    assert len(PUBLISHED_OPS) == 14 and 'Invert' not in PUBLISHED_OPS and 'SolarizeAdd' not in PUBLISHED_OPS


def test_a_published_policy_draws_n_of_14_ops_uniformly_with_probability_one():
    transform = MultiPolicyRandAugment(['rand-m9-n3-p1.0-mmax30-tpublished']).transforms[0]
    drawn = []
    for op in transform.ops:
        assert (op.prob, op.magnitude, op.magnitude_max) == (1., 9, 30)
        op.aug_fn = lambda image, *_, name=op.name, **__: drawn.append(name) or image
    for _ in range(2000):
        transform(None)
    counts = [drawn.count(name) for name in PUBLISHED_OPS]
    assert sum(counts) == 6000 and min(counts) > 350 and max(counts) < 510  # 429 expected, 4 standard deviations are 80


@pytest.mark.parametrize('suffix', ['', '-tpublished'])
def test_a_std_above_100_draws_uniform_magnitudes_as_in_timm(suffix):
    (transform,) = MultiPolicyRandAugment([f'rand-m9-n1-mstd101{suffix}']).transforms
    ops = getattr(transform, 'ops', None) or transform.transforms[-1].ops
    levels = []
    op = ops[-1]
    op.prob, op.level_fn, op.aug_fn = 1., lambda level, _: levels.append(level) or (), lambda image, **_: image
    for _ in range(300):
        op(None)
    assert 0 <= min(levels) < 1 and 8 < max(levels) <= 9 and len(set(levels)) > 250


@pytest.mark.parametrize('policy', [
    'rand-m9-n2-p1.0', 'rand-m9-mstd0.5-inc1', 'rand-m12-n3-mmax20', 'rand-m7-n2-tweights', 'rand-m9-t3a',
    'original', 'originalr-mstd0.5', 'v0', 'v0r', '3a', 'augmix-m5-w4-d2', 'augmix-m3-b1'])
def test_other_strings_give_timms_transform(policy):
    ours = MultiPolicyRandAugment([policy], img_size=32, mean=(0.5, 0.4, 0.3), interpolation='bilinear')
    timms = create_transform(
        32, is_training=True, separate=True, auto_augment=policy, mean=(0.5, 0.4, 0.3), interpolation='bilinear')[1]
    for seed in range(20):
        views = []
        for transform in (ours, timms):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            views.append(transform(noise()))
        assert pixels(views[0][0]).tobytes() == pixels(views[1]).tobytes()


def test_settings_of_one_policy_do_not_affect_the_next():
    loud, quiet = MultiPolicyRandAugment(['rand-m20-n1-mmax30-mstd5', 'rand-m20-n1']).transforms
    assert loud.transforms[0].ops[0].magnitude_max == 30
    assert quiet.transforms[0].ops[0].magnitude_max is None and quiet.transforms[0].ops[0].magnitude_std == 0


@pytest.mark.parametrize('policy', [
    'rand-m15-n3-p1.0-mmax30-tpublished', 'rand-m9-n2-p1.0', 'original', 'v0', '3a', 'augmix-m5', 'rand-m9-t3a'])
def test_every_family_of_policies_works_on_grayscale_images(policy):
    transform = MultiPolicyRandAugment([policy], img_size=28, mean=(0.3,))
    for _ in range(60):
        view, = transform(noise('L', (28, 28)))
        assert view.mode == 'L' and view.size == (28, 28)


@pytest.mark.parametrize('policy', ['rand-m10-n1-p1.0-inc1', 'rand-m30-n1-p1.0-mmax30-inc1', 'rand-m0-n1-p1.0'])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_posterize_with_0_bits_gives_a_black_image_with_every_version_of_pillow(policy, mode):
    transform = MultiPolicyRandAugment([policy]).transforms[0].transforms[0]
    op, = (op for op in transform.ops if op.name.startswith('Posterize'))
    assert op.level_fn(op.magnitude, {})[0] <= 0  # which Pillow 13 refuses
    image = op(noise(mode))
    assert image.mode == mode and not pixels(image).any()


@pytest.mark.parametrize('policy', ['rand-m{}-n1-p1.0-mmax30{}', 'augmix-m{}{}'])
def test_posterize_equals_timms_if_timm_keeps_at_least_one_bit(policy):
    for magnitude in range(0, 11):
        for inc in ('', '-inc1') if policy.startswith('rand') else ('',):
            string = policy.format(magnitude, inc)
            ours, = MultiPolicyRandAugment([string]).transforms
            timms = create_transform(224, is_training=True, separate=True, auto_augment=string)[1]
            for one, other in zip(ours.transforms[0].ops, timms.transforms[0].ops, strict=True):
                bits = one.level_fn(magnitude, {})[0] if one.name.startswith('Posterize') else 0
                if bits >= 1:
                    assert np.array_equal(pixels(one.aug_fn(noise(), bits)), pixels(other.aug_fn(noise(), bits)))
                    assert pickle.loads(pickle.dumps(one))


def test_an_image_becomes_one_view_per_policy_in_order():
    transform = MultiPolicyRandAugment(['rand-m9-n1-p0-tpublished', 'rand-m9-n2-p1.0-tpublished', '3a'])
    views = transform(noise())
    assert len(views) == len(transform) == 3
    assert pixels(views[0]).tobytes() == pixels(noise()).tobytes()


def test_the_policy_none_changes_nothing_and_torchvisions_policies_equal_torchvisions():
    image = noise()
    untouched, augmented = MultiPolicyRandAugment(['none', 'autoaugment_cifar10'], mean=(0.5, 0.4, 0.3))(image)
    assert untouched is image
    expected = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=[128, 102, 76])
    for seed in range(20):
        torch.manual_seed(seed)
        one = create_policy('autoaugment_cifar10', mean=(0.5, 0.4, 0.3))(image)
        torch.manual_seed(seed)
        assert one.tobytes() == expected(image).tobytes()
    for policy in AUTO_AUGMENT:
        assert create_policy(policy, mean=(0.5,))(image.convert('L')).mode == 'L'
    assert not is_known_to_timm('none') and not is_known_to_timm('rand-m9-tpublished') and is_known_to_timm('rand-m9')


def test_views_may_share_a_policy_if_that_is_allowed():
    assert len(MultiPolicyRandAugment(['none', 'none'], allow_equal=True)) == 2
    with pytest.raises(ValueError, match='are the same'):
        MultiPolicyRandAugment(['none', 'none'])


def test_sampling_is_a_fixed_function_of_its_arguments():
    assert sample_policies(3, 0) == [
        'rand-m15-n2-p1.0-mmax30-tpublished', 'rand-m15-n1-p1.0-mmax30-tpublished', 'rand-m7-n2-p1.0-mmax30-tpublished']
    code = 'from a2aug_timm import sample_policies; print(sample_policies(18, 7))'
    lists = {subprocess.run([sys.executable, '-c', code], env={'PYTHONHASHSEED': seed}, capture_output=True,
                            text=True, check=True).stdout for seed in '12'}
    assert lists == {f'{sample_policies(18, 7)}\n'}


def test_sampling_draws_distinct_policies_and_does_not_depend_on_the_order_of_the_grid():
    everything = sample_policies(18, 3)
    assert len(set(everything)) == 18
    assert everything[:4] == sample_policies(4, 3) == sample_policies(4, 3, (3, 2, 1), (15, 13, 11, 9, 7, 5, 5))
    assert sample_policies(4, 4) != sample_policies(4, 3)
    firsts = [sample_policies(1, seed)[0] for seed in range(1800)]
    assert all(60 < firsts.count(policy) < 140 for policy in everything)  # 100 expected, 4 standard deviations are 39
    check_policies(everything)


@pytest.mark.parametrize('kwargs, words', [
    (dict(num_policies=0), 'at least 1'), (dict(num_policies=19), 'holds 18'),
    (dict(num_policies=1, num_layers=(0,)), 'at least 1 layer'), (dict(num_policies=1, magnitudes=(31,)), '0 and 30')])
def test_sampling_refuses_impossible_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        sample_policies(seed=0, **kwargs)


@pytest.mark.parametrize('policy', [
    'random', 'rand-m9-x3', 'rand-m', 'rand-m9.5', 'rand-m9-n0', 'rand-p1.5', 'rand-m9-m7', 'rand-tfoo', 'v1', '',
    'rand-m9-inc1-tpublished', 'original-m9', 'none-m1', 'autoaugment',  'augmix-w0', 'rand--m9'])
def test_malformed_policies_are_refused_with_their_text(policy):
    with pytest.raises(ValueError, match='policy'):
        parse_policy(policy)


def test_different_policies_are_accepted():
    check_policies(['rand-m9', 'rand-m9-tpublished', 'rand-m15-mmax20', 'rand-m9-inc1', 'rand-m9-mstd0.5', 'rand-m10',
                    'v0', 'v0r', '3a', 'rand-m9-t3a', 'augmix', 'augmix-b1'])


@pytest.mark.parametrize('one, same', [
    ('rand-m9-n2', 'rand-m9-n2'), ('rand-m9-n2', 'rand-n2-m9'), ('rand-m9-p1', 'rand-m9-p1.0'),
    ('rand-m9', 'rand-m9-n2-p0.5-mstd0-inc0'), ('rand-m15', 'rand'), ('v0', 'v0-mstd0'), ('augmix', 'augmix-m3-w3'),
    ('rand-m9-n2-tpublished', 'rand-m9-n2-p1.0-mmax30-tpublished')])
def test_policies_with_the_same_meaning_are_refused(one, same):
    with pytest.raises(ValueError, match='are the same'):
        check_policies([one, 'original', same])
