"""The package as it is installed: what its wheel carries, and its commands in an environment without the checkout."""
import configparser
import importlib
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import timm
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import a2aug_timm
from tests import ROOT

COMMANDS = ('train', 'validate', 'export', 'report', 'study')


def run(*command, cwd):
    """Run a command that cannot see the checkout; return its output."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that nothing is left in the checkout and nothing of an earlier build is taken."""
    source = tmp_path_factory.mktemp('source')
    for name in ('a2aug_timm', 'hparams'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '.', cwd=source)
    (path,) = source.glob('*.whl')
    return path


def test_the_wheel_carries_the_whole_package_and_every_recipe_and_policy_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if '.dist-info/' not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'a2aug_timm').rglob('*.py')}
    recipes = {f'a2aug_timm/{path.relative_to(ROOT).as_posix()}' for path in (ROOT / 'hparams').rglob('*.yaml')}
    assert len(recipes) >= 45
    assert sum(name.startswith('a2aug_timm/hparams/policies/') for name in recipes) >= 7
    assert carried == modules | recipes | {'a2aug_timm/py.typed'}


def test_the_metadata_names_the_version_and_a_working_entry_point_for_every_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        message = message_from_bytes(archive.read(metadata))
        entry_points = configparser.ConfigParser()
        entry_points.read_string(archive.read(metadata.replace('METADATA', 'entry_points.txt')).decode())
    assert message['Version'] == a2aug_timm.__version__ and message['License'] == 'Apache-2.0'
    scripts = dict(entry_points['console_scripts'])
    assert set(scripts) == {f'a2aug-{command}' for command in COMMANDS}
    for name, target in scripts.items():
        module, function = target.split(':')
        assert module == f'a2aug_timm.{name.removeprefix("a2aug-")}.__main__'
        assert callable(getattr(importlib.import_module(module), function))


def test_the_installed_timm_is_one_that_setup_cfg_allows_and_the_next_minor_release_is_not():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    requirements = map(Requirement, config['options']['install_requires'].strip().splitlines())
    (bound,) = (requirement.specifier for requirement in requirements if requirement.name == 'timm')
    installed = Version(timm.__version__)
    assert bound.contains(installed, prereleases=True)
    assert not bound.contains(f'{installed.major}.{installed.minor + 1}')


def test_every_public_name_is_there_and_every_imported_name_is_public():
    assert all(hasattr(a2aug_timm, name) for name in a2aug_timm.__all__)
    assert a2aug_timm.__all__ == sorted(set(a2aug_timm.__all__))
    modules = {name: getattr(value, '__module__', '') for name, value in vars(a2aug_timm).items()}
    assert {name for name, module in modules.items() if module.startswith('a2aug_timm')} <= set(a2aug_timm.__all__)


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
    """Programs of an environment that has the wheel and the libraries of this one, but not its editable install."""
    folder = tmp_path_factory.mktemp('environment')
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob('lib/python*/site-packages')
    # Folders that a .pth file adds are searched for modules, while .pth files in them are not read.
    (site_packages / 'libraries.pth').write_text(
        '\n'.join(path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))))
    run(sys.executable, '-m', 'pip', '--python', folder / 'bin' / 'python', 'install', '-q', '--no-deps', '--no-index',
        wheel, cwd=folder)
    where = run(folder / 'bin' / 'python', '-c', 'import a2aug_timm; print(a2aug_timm.__file__)', cwd=folder)
    assert Path(where.strip()).is_relative_to(site_packages)
    return folder / 'bin'


@pytest.mark.slow
def test_an_installed_package_trains_exports_validates_reports_and_studies_without_the_checkout(environment, tmp_path):
    quick = ['-c', 'quickstart', '--device', 'cpu', '--epochs', '1', '--output', 'runs']
    out = run(environment / 'a2aug-train', *quick, '--experiment', 'one', cwd=tmp_path)
    assert 'Best: branch' in out
    run(environment / 'python', '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m',
        'a2aug_timm.train', *quick, '--experiment', 'two', cwd=tmp_path)
    one, two = (json.loads((tmp_path / 'runs' / name / 'result.json').read_text()) for name in ('one', 'two'))
    assert one['epoch'] == two['epoch'] == 0
    # Two ranks have half as many updates per epoch.
    rows = [(tmp_path / 'runs' / name / 'summary.csv').read_text().splitlines() for name in ('one', 'two')]
    assert rows[0][0] == rows[1][0] and rows[0][1] != rows[1][1]

    run(environment / 'a2aug-export', 'runs/one/last.pth.tar', '--branch', 'all', '-o', 'exports', cwd=tmp_path)
    assert len(list(tmp_path.glob('exports/branch-*/model.safetensors'))) == 3
    best = f'exports/branch-{one["branch"]}'
    result = run(environment / 'a2aug-validate', '--dataset', 'sklearn/digits', '--checkpoint', best, '--device', 'cpu',
                 '-b', '360', '-j', '0', cwd=tmp_path)
    assert json.loads(result.split('--result\n')[1])['top1'] == pytest.approx(one['chosen_with']['top1'], abs=1e-3)
    run(environment / 'a2aug-report', 'runs/one', 'runs/two', '-o', 'page', cwd=tmp_path)
    assert (tmp_path / 'page' / 'report.html').is_file()

    # A study draws the policies itself, so it refuses quickstart, which fixes their seed.
    settings = yaml.safe_load((ROOT / 'hparams' / 'quickstart.yaml').read_text())
    del settings['a2aug_seed']
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(settings))
    study = ['table6', '-c', 'recipe.yaml', '--device', 'cpu', '--epochs', '1', '--seeds', '1', '-o', 'study']
    plan = run(environment / 'a2aug-study', *study, '--plan', cwd=tmp_path)
    assert '1 runs, 0 of them done' in plan
    run(environment / 'a2aug-study', *study, cwd=tmp_path)
    assert '| ensemble |' in (tmp_path / 'study' / 'table6.md').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_answers_help_as_a_module_and_as_a_script_and_names_itself_in_errors(
        environment, tmp_path, command):
    script = environment / f'a2aug-{command}'
    module = [environment / 'python', '-m', f'a2aug_timm.{command}']
    assert run(script, '--help', cwd=tmp_path).startswith(f'usage: a2aug-{command} ')
    assert run(*module, '--help', cwd=tmp_path).startswith('usage: ')
    wrong = subprocess.run([script, '--nonsense'], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith(f'a2aug-{command}: error: ')
