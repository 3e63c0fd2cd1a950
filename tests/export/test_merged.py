"""``--branch merged`` of the export and the validation command."""
import json

import pytest
import timm
import torch

import a2aug_timm.validate.__main__ as validate
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.export.__main__ import main as export_main
from tests.commands import refused, run_train

DATA = ['--dataset', 'sklearn/digits', '--device', 'cpu', '-j', '0']


def test_a_merged_export_is_the_mean_and_loads_with_timm(finished, tmp_path, capsys):
    last = finished / 'last.pth.tar'
    export_main([str(last), '--branch', 'merged', '--images', '300', '--device', 'cpu', '-j', '0', '-o',
                 str(tmp_path / 'merged')])
    assert 'statistics of 300 images' in capsys.readouterr().out
    model = timm.create_model(f'local-dir:{tmp_path}/merged', pretrained=True)
    weights, branches = model.state_dict(), read_checkpoint(last)['state_dict']
    mean = sum(branches[f'bn1.branches.{i}.weight'] for i in range(3)) / 3
    torch.testing.assert_close(weights['bn1.weight'], mean)
    assert not torch.allclose(weights['bn1.running_mean'], branches['bn1.branches.0.running_mean'])
    metadata = torch.load(tmp_path / 'merged' / 'checkpoint.pth.tar', weights_only=True)['metadata']
    assert metadata['branch'] == 'merged' and metadata['num_merge_images'] == 300 and len(metadata['policies']) == 3

    # The validation command merges by itself, and measures what the export has.
    capsys.readouterr()
    results = []
    for argv in (['--checkpoint', last, '--branch', 'merged', '--merge-images', '300'],
                 ['--checkpoint', tmp_path / 'merged']):
        validate.main([*DATA, *map(str, argv)])
        results.append(json.loads(capsys.readouterr().out.split('--result\n')[1]))
    assert results[0]['branch'] == 'merged' and results[0]['top1'] == results[1]['top1']
    assert results[0]['loss'] == pytest.approx(results[1]['loss'], abs=1e-4)


def test_merging_is_refused_where_it_has_no_meaning(tmp_path, capsys):
    for name, argv, words in (
            ('plain', [], 'it holds a plain run'),
            ('shared', ['--a2aug-branches', '2', '--a2aug-shared-bn'], 'share all'),
            ('networks', ['--a2aug-branches', '2', '--a2aug-independent'], 'separate networks'),
            ('sizes', ['--a2aug-branches', '2', '--a2aug-branch-sizes', '32', '24'], 'images of different sizes')):
        run = run_train(tmp_path / name, *argv, '--train-subset', '300')
        sentence = refused(capsys, export_main, [
            run / 'last.pth.tar', '--branch', 'merged', '--device', 'cpu', '-j', '0', '-o', tmp_path / 'no'])
        assert words in sentence and not (tmp_path / 'no').exists()


def test_missing_training_images_are_named_with_the_flag_of_their_folder(finished, tmp_path, capsys):
    checkpoint = read_checkpoint(finished / 'last.pth.tar')
    checkpoint['args'].update(dataset='', data_dir='gone')
    torch.save(checkpoint, tmp_path / 'last.pth.tar')
    sentence = refused(capsys, export_main, [
        tmp_path / 'last.pth.tar', '--branch', 'merged', '--device', 'cpu', '-j', '0', '-o', tmp_path / 'no'])
    assert '--data-dir names their folder' in sentence and "'gone'" in sentence


def test_flags_of_the_merge_are_warned_of_with_another_branch(finished, tmp_path, caplog):
    export_main([str(finished / 'last.pth.tar'), '--images', '10', '-o', str(tmp_path / 'best')])
    assert '--images has no effect without --branch merged' in caplog.text
