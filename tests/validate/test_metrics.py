"""Metrics of validation, for every branch and the ensemble, against references computed by hand."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score

from a2aug_timm.data.datasets import DigitsDataset, create_dataset
from tests.validate.reference import DIGITS, PLAIN, check, images_of, logits_of


@pytest.mark.parametrize('average', ['micro', 'macro', 'weighted'])
def test_precision_recall_and_f1_are_scikit_learns_for_every_branch_and_the_ensemble(
        run, branches, folder, data, results, average):
    images, target = images_of(folder)
    logits = logits_of(*branches, images)
    measured = results(*data, '--checkpoint', run / 'last.pth.tar', '--branch', 'all', '--metrics-avg', average, '-b',
                       '30')
    check(measured, logits, target)
    for result, one in zip(measured, logits, strict=True):
        for name, score in (('precision', precision_score), ('recall', recall_score), ('f1_score', f1_score)):
            reference = score(target.numpy(), one.argmax(1).numpy(), average=average, zero_division=0)
            assert result[f'{average}_{name}'] == pytest.approx(100 * reference, abs=1e-4)


def test_valid_labels_leave_the_logits_of_the_datas_classes(run, branches, plain, results, refused, partial, tmp_path):
    argv, folder, classes = partial
    images, target = images_of(folder)
    logits = logits_of(*branches, images)[..., classes]
    every = ['--checkpoint', run / 'last.pth.tar', '--branch', 'all']
    check(results(*argv, *every, '-b', '17'), logits, target)
    check([results(*argv, '--checkpoint', plain, *PLAIN)], logits[:1], target)

    # A checkpoint that knows its classes by name finds them in any order, since a result does not depend on it.
    argv[-1] = tmp_path / 'other.txt'
    argv[-1].write_text('\n'.join(map(str, classes[::-1])))
    check(results(*argv, *every), logits, target)
    for text, words in (('0\n1', 'the data has 6 classes, but --valid-labels names 2'), ('0\n0', 'a class index twice'),
                        ('0\n1\n4\n5\n7\n10', 'holds class 10, the model has 10'), ('', 'no class index'),
                        ('0\nx', "one class index per line, not 'x'")):
        argv[-1].write_text(text)
        assert words in refused(*argv, '--checkpoint', plain, *PLAIN)
    argv[-1].write_text('0\n1\n2\n3\n4\n5')
    assert 'classes that are not known: 7, 9' in refused(*argv, *every)


def test_real_labels_replace_the_accuracies(run, branches, results, refused, tmp_path):
    digits, generator = DigitsDataset('validation'), np.random.default_rng(0)
    labels = [generator.choice(10, generator.integers(0, 4), replace=False).tolist() for _ in range(40)]
    for i in range(40):
        folder = tmp_path / 'data' / str(digits.targets[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[i]).save(folder / f'ILSVRC2012_val_{i + 1:08d}.JPEG', quality=100)
    path = tmp_path / 'real.json'
    path.write_text(json.dumps(labels))
    argv = ['--data-dir', tmp_path / 'data', '--device', 'cpu', '-j', '0', '--checkpoint', run / 'last.pth.tar',
            '--branch', 'all', '--real-labels', path, '-b', '16']
    measured = results(*argv)
    names = create_dataset('', str(tmp_path / 'data'), 'validation', allow_no_split=True).filenames(basename=True)
    order = [int(name[15:23]) - 1 for name in names]
    top5 = logits_of(*branches, images_of(tmp_path / 'data')[0]).topk(5).indices
    for result, one in zip(measured, top5, strict=True):
        for k in (1, 5):
            hits = [bool(set(one[row, :k].tolist()) & set(labels[index]))
                    for row, index in enumerate(order) if labels[index]]
            assert result[f'top{k}'] == pytest.approx(100 * np.mean(hits), abs=1e-4)
    for text, words in (('[[0]]', 'the labels of 1 images'), ('{', 'no JSON list'),
                        (json.dumps([[10]] * 40), 'holds class 10')):
        path.write_text(text)
        assert words in refused(*argv)
    assert 'needs a folder' in refused(*argv, *DIGITS)


def test_ema_weights_are_those_that_are_evaluated(run, data, results, tmp_path):
    checkpoint = torch.load(run / 'export' / 'checkpoint.pth.tar', weights_only=True)
    worse = {key: torch.zeros_like(value) if 'fc' in key else value for key, value in checkpoint['state_dict'].items()}
    torch.save({'state_dict': checkpoint['state_dict'], 'state_dict_ema': worse}, tmp_path / 'ema.pth.tar')
    argv = [*data, '--checkpoint', tmp_path / 'ema.pth.tar', *PLAIN]
    assert results(*argv)['top1'] > 50 > results(*argv, '--use-ema')['top1']
