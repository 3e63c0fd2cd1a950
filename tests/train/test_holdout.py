"""Runs with a holdout choose a branch on the held-out images and report the validation split once."""
import csv
import json

import pytest

import a2aug_timm.train.__main__ as train
import a2aug_timm.validate.__main__ as validate
from a2aug_timm.engine.epoch import evaluate
from tests.commands import SMALL, built


@pytest.mark.parametrize('branches', ['1', '2'])
def test_a_run_chooses_on_held_out_images_and_evaluates_the_validation_split_once(
        tmp_path, capsys, monkeypatch, branches):
    evaluated = []

    def counted(predict, mu, loader, **kwargs):
        evaluated.append(len(loader.dataset))
        return evaluate(predict, mu, loader, **kwargs)

    monkeypatch.setattr('a2aug_timm.train.run.evaluate', counted)
    argv = [*SMALL, '--epochs', '2', '--a2aug-branches', branches, '--holdout', '100', '--train-subset', '600']
    train.main([*argv, '--output', str(tmp_path), '--experiment', 'run'])
    data = built([*argv, '--output', tmp_path / 'again']).data
    parts = [set(data.train.dataset.indices), set(data.eval.dataset.indices)]
    assert len(parts[0]) == 600 and len(parts[1]) == 100 and not parts[0] & parts[1]
    assert evaluated == [100, 100, 360] and len(data.test.dataset) == 360
    with open(tmp_path / 'run' / 'summary.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [float(row['train_views']) for row in rows] == [512 * int(branches)] * 2  # the last 88 do not fill a batch
    assert all(float(row['train_seconds']) > 0 for row in rows)

    result = json.loads((tmp_path / 'run' / 'result.json').read_text(encoding='utf-8'))
    assert result['chosen_on'] == '100 held out of train' and result['test_split'] == 'validation'
    sentence = f"On validation, which had no part in the choice: top1 {result['test']['top1']:.4g}"
    assert sentence in capsys.readouterr().out

    # Validation of the export gives the reported accuracy.
    validate.main(['--dataset', 'sklearn/digits', '--checkpoint', str(tmp_path / 'run' / 'export'), '--device', 'cpu',
                   '-j', '0', '--results-file', str(tmp_path / 'out.json'), '--results-format', 'json'])
    measured = json.loads((tmp_path / 'out.json').read_text())
    assert measured['top1'] == pytest.approx(result['test']['top1'], abs=1e-3)


def test_the_result_of_a_run_without_a_holdout_says_that_it_chose_on_the_validation_split(tmp_path):
    train.main([*SMALL, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run'])
    result = json.loads((tmp_path / 'run' / 'result.json').read_text(encoding='utf-8'))
    assert result['chosen_on'] == 'validation' and result['test'] is None and result['chosen_with']['top1'] > 0
