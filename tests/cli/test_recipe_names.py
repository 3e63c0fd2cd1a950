"""Recipes by name: a file wins, a name finds its recipe, a wrong name is one sentence with the nearest."""
import re

import pytest
import yaml

from a2aug_timm.cli.recipes import find_config
from a2aug_timm.train.arguments import train_parser


@pytest.mark.parametrize('name', ['quickstart', 'quickstart.yaml', 'hparams/quickstart.yaml'])
def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with open(find_config(name), encoding='utf-8') as file:
        assert yaml.safe_load(file)['model'] == 'test_resnet'


def test_a_recipe_of_a_data_set_is_found_by_folder_and_name():
    path = find_config('cifar100/wide_resnet40_2_a2aug')
    assert path.endswith('cifar100/wide_resnet40_2_a2aug.yaml')
    with open(path, encoding='utf-8') as file:
        assert yaml.safe_load(file)['num_classes'] == 100


def test_a_file_wins_over_a_recipe_of_its_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'quickstart').mkdir()
    assert find_config('quickstart') != 'quickstart'
    (tmp_path / 'quickstart').rmdir()
    (tmp_path / 'quickstart').write_text('epochs: 3\n')
    assert find_config('quickstart') == 'quickstart'


@pytest.mark.parametrize('name, nearest', [
    ('quikstart', 'quickstart'), ('hparams/imagenet/resnet50_a2au.yaml', 'imagenet/resnet50_a2aug'),
    ('wide_resnet28_10_cutout', 'cifar10/wide_resnet28_10_cutout')])
def test_an_unknown_name_is_answered_with_the_nearest_recipe(name, nearest):
    with pytest.raises(ValueError, match=re.escape(f"'{name}'") + f".*did you mean '{nearest}'"):
        find_config(name)
    with pytest.raises(ValueError, match='no such recipe$'):
        find_config('zzz')


def test_the_command_line_takes_a_recipes_name_and_refuses_a_wrong_one_in_one_sentence(capsys):
    args, explicit = train_parser().parse(['-c', 'quickstart', '--epochs', '2'])
    assert (args.model, args.a2aug_branches, args.epochs) == ('test_resnet', 3, 2) and 'model' in explicit
    with pytest.raises(SystemExit) as exit_info:
        train_parser().parse(['-c', 'quikstart'])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and "did you mean 'quickstart'?" in error and error.count('\n') == 1
