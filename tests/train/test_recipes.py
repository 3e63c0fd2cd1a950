"""Recipes: every file equals the output of its script, passes the parser, and trains one step."""
import importlib.util
import sys

import pytest
import torch
import yaml

from a2aug_timm.branches import num_branches_of
from tests import ROOT
from tests.commands import built, checked

HPARAMS = ROOT / 'hparams'
FILES = sorted(str(path.relative_to(HPARAMS)) for path in HPARAMS.rglob('*.yaml') if path.parent.name != 'policies')
# One recipe per data set and family of networks, with every method among them.
FAST = {
    'quickstart.yaml', 'fashion_mnist.yaml', 'cifar10/wide_resnet40_2_cutout.yaml',
    'cifar10/shake_shake26_2x32d_aa.yaml', 'cifar10/pyramidnet272_a200_shakedrop_ra.yaml',
    'cifar100/wide_resnet40_2_fastaa.yaml', 'cifar100/wide_resnet40_2_a2aug.yaml',
    'cifar100/shake_shake26_2x96d_baseline.yaml', 'imagenet/resnet50_a2aug.yaml',
    'imagenet/resnet50_a2aug_multiscale.yaml'}
spec = importlib.util.spec_from_file_location('recipes', ROOT / 'docs' / 'recipes.py')
recipes = sys.modules['recipes'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipes)


def test_the_recipes_equal_the_output_of_their_script():
    written = {recipe.path: recipe.text() for recipe in recipes.recipes()}
    assert set(FILES) - set(written) == {
        'fashion_mnist.yaml', 'fashion_mnist_1000.yaml', 'fashion_mnist_5000.yaml', 'quickstart.yaml'}
    for path, text in written.items():
        assert (HPARAMS / path).read_text(encoding='utf-8') == text
        assert max(map(len, text.splitlines())) <= 120


def test_no_recipe_forces_bfloat16_which_many_processors_emulate_slowly():
    assert not [name for name in FILES if 'amp_dtype: bfloat16' in (HPARAMS / name).read_text(encoding='utf-8')]


def test_every_cell_of_the_papers_tables_has_a_recipe():
    expected = {recipe.path: recipe.expected for recipe in recipes.recipes()}
    columns = {method: sum(path.endswith(f'_{method}.yaml') for path in expected) for method in recipes.METHODS}
    assert columns == {'baseline': 10, 'cutout': 7, 'aa': 10, 'fastaa': 10, 'dada': 9, 'ra': 5, 'a2aug': 10}
    for text, path in (('98.9', 'cifar10/pyramidnet272_a200_shakedrop_a2aug'),
                       ('81.3', 'cifar100/wide_resnet40_2_a2aug'),
                       ('74.7', 'imagenet/resnet50_a2aug_shared_bn'), ('81.5', 'imagenet/resnet200_a2aug'),
                       ('79.1', 'imagenet/resnet50_a2aug_multiscale'), ('85.2', 'cifar100/wide_resnet28_10_a2aug'),
                       ('80.6', 'imagenet/resnet200_fastaa'), ('84.7', 'cifar100/shake_shake26_2x96d_dada')):
        assert expected[f'{path}.yaml'].startswith(text)


def test_recipes_of_fast_autoaugment_say_where_the_papers_figure_is_not_that_of_the_published_policy():
    """Against the errors in the README of its code, transfer and direct."""
    errors = {'cifar10/wide_resnet40_2': (3.6, 3.7), 'cifar10/wide_resnet28_10': (2.7, 2.7),
              'cifar10/shake_shake26_2x32d': (2.7, 2.5), 'cifar10/shake_shake26_2x96d': (2.0, 2.0),
              'cifar10/pyramidnet272_a200_shakedrop': (1.8, 1.7), 'cifar100/wide_resnet40_2': (20.7, 20.6),
              'cifar100/wide_resnet28_10': (17.3, 17.3), 'cifar100/shake_shake26_2x96d': (14.9, 14.6)}
    written = {recipe.path: recipe for recipe in recipes.recipes()}
    for cell, (transfer, direct) in errors.items():
        recipe = written[f'{cell}_fastaa.yaml']
        figure = float(recipe.expected.split()[0])
        assert figure == pytest.approx(100 - min(transfer, direct), abs=1e-9), cell
        assert any(f'reports {100 - transfer:.1f}.' in note for note in recipe.notes) == (direct < transfer), cell
    assert any('reports 80.0.' in note for note in written['imagenet/resnet200_fastaa.yaml'].notes)


@pytest.mark.parametrize('name', FILES)
def test_a_recipe_is_accepted_by_the_command_line(name):
    recipe = yaml.safe_load((HPARAMS / name).read_text(encoding='utf-8'))
    args = checked(['-c', str(HPARAMS / name), '--data-dir', '.'])
    assert {key: getattr(args, key) for key in recipe} == recipe


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in FILES])
def test_a_recipe_trains_one_step_on_two_images(name, image_folder, tmp_path):
    argv = ['--dataset', '', '--data-dir', str(image_folder), '-b', '2', '-j', '0',
            '--device', 'cpu']
    if name.startswith('fashion_mnist_'):
        argv += ['--holdout', '8', '--train-subset', '6']
    if name.startswith('imagenet/'):
        argv += ['--a2aug-branch-sizes', '64', '48', '40', '32'] if 'multiscale' in name else ['--img-size', '32']
    # Pinned memory and mixed precision are for a GPU.
    recipe = yaml.safe_load((HPARAMS / name).read_text(encoding='utf-8'))
    config = tmp_path / 'recipe.yaml'
    config.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if key not in (
        'pin_mem', 'amp', 'amp_dtype')}), encoding='utf-8')
    run = built(['-c', config, *argv])
    args, model, loader, step = run.args, run.model, run.data.train, run.training.step
    assert num_branches_of(model) == (1 if args.a2aug_shared_bn else args.a2aug_branches)
    assert run.training.num_epochs == args.epochs

    before = [parameter.detach().clone() for parameter in model.parameters()]
    images, target = next(iter(loader))
    assert len(images) == 2 * args.a2aug_branches
    for group in step.optimizer.param_groups:
        group['lr'] = 0.1  # a warm-up may begin at 0
    step.task.get_trainable_module().train()
    terms = step.accumulate(images, target, 1, need_update=True)
    assert terms['loss'].isfinite() and terms['output'].shape == (2 * args.a2aug_branches, model.num_classes)
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    # The last norms of residual blocks begin as zeros and stop the gradients of the layers before them.
    assert sum(moved) > len(moved) / 3
