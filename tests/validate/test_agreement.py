"""Validation agrees with what training measured."""
import csv
import json

import pytest
import torch

import a2aug_timm.validate.__main__ as validate
from tests.commands import rows_of


def test_validation_of_branches_export_and_plain_files_agrees_with_training(finished, tmp_path, capsys):
    row, = rows_of(finished)
    data = ['--dataset', 'sklearn/digits', '--device', 'cpu', '-j', '0']

    def results(*argv):
        capsys.readouterr()
        validate.main([*data, *map(str, argv)])
        return json.loads(capsys.readouterr().out.split('--result\n')[1])

    last = finished / 'last.pth.tar'
    everything = results('--checkpoint', last, '--branch', 'all', '--results-file', tmp_path / 'r.csv')
    for i, result in enumerate(everything):
        name = f'branch_{i}' if i < 3 else 'ensemble'
        for metric in ('top1', 'top5', 'loss'):
            assert result[metric] == pytest.approx(float(row[f'eval_{name}_{metric}']), abs=1e-4)
    with open(tmp_path / 'r.csv', encoding='utf-8') as file:
        assert [line['branch'] for line in csv.DictReader(file)] == ['0', '1', '2', 'ensemble']
    results('--checkpoint', last, '--branch', 'all', '--results-file', tmp_path / 'r.json', '--results-format', 'json')
    assert json.loads((tmp_path / 'r.json').read_text()) == everything

    best = everything[int(row['best_branch'])]
    assert results('--checkpoint', last) == best
    assert results('--checkpoint', last, '--branch', '1', '--model', 'test_resnet') == everything[1]
    plain = finished.parent / 'plain.pth'
    torch.save(torch.load(finished / 'export' / 'checkpoint.pth.tar', weights_only=True)['state_dict'], plain)
    given = ['--model', 'test_resnet', '--num-classes', '10', '--input-size', '1', '32', '32', '--mean', '0.3', '--std',
             '0.35', '--crop-pct', '0.95']
    for argv in (['--checkpoint', finished / 'export'], ['--checkpoint', finished / 'export' / 'model.safetensors'],
                 ['--checkpoint', finished / 'export' / 'checkpoint.pth.tar'], ['--checkpoint', plain, *given]):
        assert results(*argv)['top1'] == best['top1']
