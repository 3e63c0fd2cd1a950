"""Policies that the package ships: their counts and figures, their heads, and how a name finds them."""
import re

import numpy as np
import pytest
from PIL import Image

from a2aug_timm.cli.recipes import find_config
from a2aug_timm.data.policies import create_policy
from a2aug_timm.data.policies.files import read_policy_file
from a2aug_timm.data.policies.grammar import check_policies
from tests import ROOT

FOLDER = ROOT / 'hparams' / 'policies'
# Number of sub-policies; the first and the last as their authors published them: op, probability, level from 0 to 1.
PUBLISHED = {
    'fast_autoaugment_cifar10': (493, [
        ('Contrast', 0.8320659688593578, 0.49884310562180767), ('TranslateX', 0.41849883971249136, 0.394023086494538),
        ('Cutout', 0.7550520024859294, 0.08982367300605598), ('ShearX', 0.5844942417320858, 0.36051195083380105)]),
    'fast_autoaugment_svhn': (497, [
        ('TranslateX', 0.001576965129744562, 0.43180488809874773), ('Invert', 0.7395307279252639, 0.7538444307982558),
        ('Contrast', 0.9932891064746089, 0.46930062926732646), ('Posterize', 0.9033014136780437, 0.5745902253320527)]),
    'fast_autoaugment_imagenet': (498, [
        ('ShearY', 0.14143816458479197, 0.513124791615952), ('Sharpness', 0.9290316227291179, 0.9788406212603302),
        ('AutoContrast', 0.5404508567155423, 0.7472387762067986),
        ('Equalize', 0.05649876539221024, 0.5628180219887216)]),
    'dada_cifar10': (25, [
        ('TranslateX', 0.5183464288711548, 0.5752825736999512), ('Rotate', 0.5693835616111755, 0.5274667739868164),
        ('ShearX', 0.5757555961608887, 0.563892662525177), ('TranslateX', 0.4761257469654083, 0.49035176634788513)]),
    'dada_cifar100': (25, [
        ('ShearY', 0.5558360815048218, 0.2755777835845947), ('Sharpness', 0.4881928265094757, 0.21691159904003143),
        ('ShearY', 0.4626863896846771, 0.08647401630878448), ('Posterize', 0.5513173341751099, 0.3414877951145172)]),
    'dada_svhn': (25, [
        ('Solarize', 0.6144442558288574, 0.5266356468200684), ('Brightness', 0.6407432556152344, 0.49594756960868835),
        ('Rotate', 0.5409624576568604, 0.5262851119041443), ('Equalize', 0.5241876244544983, 0.5)]),
    'dada_imagenet': (25, [
        ('TranslateY', 0.8485236167907715, 0.6384843587875366), ('Contrast', 0.6994985342025757, 0.4658013582229614),
        ('Posterize', 0.1463455855846405, 0.3278478980064392), ('Color', 0.49619558453559875, 0.5923987030982971)]),
}
# Arguments of the published ops at levels 0 and 1; signs of these are drawn.
SIGNED_RANGES = {'ShearX': (-0.3, 0.3), 'ShearY': (-0.3, 0.3), 'TranslateX': (-0.45, 0.45),
                 'TranslateY': (-0.45, 0.45), 'Rotate': (-30, 30)}


def test_every_shipped_policy_is_tested_here():
    assert {path.stem for path in FOLDER.iterdir()} == set(PUBLISHED)


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_shipped_policy_has_the_published_number_of_sub_policies_and_their_figures(name):
    num_sub_policies, published = PUBLISHED[name]
    content = read_policy_file(name)
    assert (content.translate, content.cutout) == (0.45, 0.2)
    assert len(content.sub_policies) == len(set(content.sub_policies)) == num_sub_policies
    assert {len(sub_policy) for sub_policy in content.sub_policies} == {2}
    shipped = (*content.sub_policies[0], *content.sub_policies[-1])
    for (op, prob, magnitude), (published_op, published_prob, level) in zip(shipped, published, strict=True):
        assert op == published_op and prob == pytest.approx(published_prob, abs=5.1e-5)
        low, high = SIGNED_RANGES.get(op, (0, 1))
        argument = abs(low + level * (high - low))
        assert magnitude / 10 * high == pytest.approx(argument, abs=5.1e-6 * high)


@pytest.mark.parametrize('name', PUBLISHED)
def test_the_head_of_a_shipped_policy_says_its_source_license_conversion_and_count(name):
    head = (FOLDER / f'{name}.yaml').read_text(encoding='utf-8').split('translate:')[0]
    lines = head.splitlines()
    assert all(line.startswith('# ') and len(line) <= 120 for line in lines)
    text = ' '.join(line[2:] for line in lines)
    assert re.search(r'Source: https://github\.com/\S+/\S+, \S+\.py, \w+, commit [0-9a-f]{40}\.', text)
    assert 'License of the source: MIT, Copyright' in text and 'Conversion: ' in text and 'Differences: ' in text
    assert f' {PUBLISHED[name][0]} sub-policies.' in text


def test_the_table_names_every_shipped_policy_with_its_count():
    table = (ROOT / 'hparams' / 'README.md').read_text(encoding='utf-8')
    listed = {name: int(count) for name, count in re.findall(r'`file:(\w+)`, (\d+)', table)}
    assert listed == {name: num_sub_policies for name, (num_sub_policies, _) in PUBLISHED.items()}


def test_a_shipped_policy_transforms_images_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_policies([f'file:{name}' for name in PUBLISHED])
    with pytest.raises(ValueError, match='are the same'):
        check_policies(['file:dada_svhn', f'file:{FOLDER / "dada_svhn.yaml"}'])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for name, (num_sub_policies, _) in PUBLISHED.items():
        policy = create_policy(f'file:{name}', 32)
        assert len(policy.policy) == num_sub_policies
        views = {policy(image).tobytes() for _ in range(20)}
        assert len(views) > 5


def test_a_file_wins_over_a_shipped_policy_of_its_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'dada_svhn').mkdir()
    assert len(read_policy_file('dada_svhn').sub_policies) == len(read_policy_file('dada_svhn.yaml').sub_policies) == 25
    (tmp_path / 'dada_svhn').rmdir()
    (tmp_path / 'dada_svhn').write_text('- [[Invert, 1, 0]]\n')
    assert read_policy_file('dada_svhn').sub_policies == ((('Invert', 1, 0),),)


def test_an_unknown_name_is_answered_with_the_nearest_policy():
    with pytest.raises(ValueError, match="'dada_cifar'.*no such published policy, did you mean 'dada_cifar10'?"):
        read_policy_file('dada_cifar')
    with pytest.raises(ValueError, match='no such published policy$'):
        read_policy_file('zzz')
    with pytest.raises(ValueError, match='cannot be read: .*No such file'):
        read_policy_file('elsewhere/dada_cifar10')


def test_a_policy_is_no_recipe():
    with pytest.raises(ValueError, match='no such recipe'):
        find_config('policies/dada_cifar10')
