"""Fixtures: folders of digits, a folder like a run's, and the command as a function."""
import json
import shutil

import pytest
import timm
import torch
import torch.nn.functional as F

import a2aug_timm.validate.__main__ as validate
from a2aug_timm import convert_multi_branch_bn, extract_branch, select_branch
from a2aug_timm.data.datasets import DigitsDataset
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.engine.record import require_record
from a2aug_timm.export import export_branch, load_branches, model_config
from tests import commands
from tests.records import make_record
from tests.validate.reference import INPUT, images_of, write_digits


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """A folder of 80 handwritten digits."""
    folder = tmp_path_factory.mktemp('digits')
    write_digits(folder / 'validation', range(10), 8)
    return folder


@pytest.fixture(scope='session')
def data(folder):
    """The command line for them."""
    return ['--data-dir', folder, '--device', 'cpu', '-j', '0']


@pytest.fixture(scope='session')
def run(tmp_path_factory):
    """A folder like a run's: branches with statistics of their own, and one classifier, fitted to the first."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('run')
    model = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    config = model_config(model, INPUT, [str(label) for label in range(10)])
    convert_multi_branch_bn(model, 3)
    images, target = (part[:500] for part in images_of(DigitsDataset('train')))
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        for branch in range(3):
            select_branch(model.train(), branch)
            model(images + branch * torch.rand_like(images))
        select_branch(model.eval(), 0)
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        fitted = torch.linalg.lstsq(features, 10 * F.one_hot(target, 10).float()).solution
        for epoch, noise in ((0, 0.1), (1, 0.)):
            model.fc.weight.copy_((fitted + noise * torch.randn_like(fitted)).T)
            model.fc.bias.zero_()
            record = make_record(3, config=config, mu=[0.5, 0.2, 0.3], epoch=epoch)
            torch.save({'state_dict': model.state_dict(), **record.to_entry()}, folder / f'checkpoint-{epoch}.pth.tar')
    shutil.copy(folder / 'checkpoint-1.pth.tar', folder / 'last.pth.tar')
    export_branch(model, 0, folder / 'export', data_config=INPUT, label_names=config['label_names'],
                  metadata={'policy': 'v0'})
    return folder


@pytest.fixture(scope='session')
def branches(run):
    """Its branches as plain models, and their weights in the ensemble."""
    checkpoint = read_checkpoint(run / 'last.pth.tar')
    model = load_branches(checkpoint, 'last')
    return [extract_branch(model, i).eval() for i in range(3)], torch.tensor(require_record(checkpoint, 'last').mu)


@pytest.fixture(scope='session')
def plain(run, tmp_path_factory):
    """A state dict of the run's first branch, which says nothing of how it was trained."""
    path = tmp_path_factory.mktemp('plain') / 'plain.pth'
    torch.save(torch.load(run / 'export' / 'checkpoint.pth.tar', weights_only=True)['state_dict'], path)
    return path


@pytest.fixture
def results(capsys):
    """What a command line prints as its results."""
    def call(*argv):
        capsys.readouterr()
        validate.main(list(map(str, argv)))
        return json.loads(capsys.readouterr().out.split('--result\n')[1])
    return call


@pytest.fixture
def refused(capsys):
    """The sentence that a command line is refused with."""
    return lambda *argv: commands.refused(capsys, validate.main, argv)


@pytest.fixture
def partial(tmp_path):
    """Command line, folder and classes of a data set that holds some digits alone."""
    classes = [0, 1, 4, 5, 7, 9]
    write_digits(tmp_path / 'partial' / 'validation', classes, 10)
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, classes)) + '\n')
    argv = ['--data-dir', tmp_path / 'partial', '--device', 'cpu', '-j', '0', '--valid-labels', tmp_path / 'valid.txt']
    return argv, tmp_path / 'partial', classes
