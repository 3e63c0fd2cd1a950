"""Command lines that training refuses before any work, each with one sentence."""
import pytest
import torch

import a2aug_timm.train.__main__ as train
import a2aug_timm.validate.__main__ as validate
from a2aug_timm.data.datasets import create_dataset, names_of_classes
from a2aug_timm.data.skipping import SkippingDataset
from tests.commands import SMALL, THREE, command_id, refused


@pytest.mark.parametrize('argv, words', [
    (['--a2aug-branches', '0'], 'at least 1'), (['--a2aug-branches', '19'], 'holds 18'),
    ([*THREE, '--a2aug-policies', 'v0', '3a'], 'needs as many policies, got 2'),
    (['--a2aug-branches', '2', '--a2aug-policies', 'v0', 'v9'], "'v9' must begin with one of"),
    (['--a2aug-branches', '2', '--a2aug-policies', 'rand-m9-n2', 'rand-n2-m9'], 'are the same'),
    (['--a2aug-branches', '2', '--a2aug-policies', 'v0', '3a', '--a2aug-magnitudes', '5'], 'samples policies'),
    (['--a2aug-policies', 'v0', '3a'], '2 policies need --a2aug-branches 2'),
    (['--a2aug-kl-weight', '2'], '--a2aug-kl-weight needs --a2aug-branches 2 or more'),
    ([*THREE, '--aa', 'v0', '--a2aug-policies', '3a', 'v0', 'none'], 'begins with 3a'),
    ([*THREE, '--no-aug'], '--no-aug contradicts'),
    ([*THREE, '--a2aug-independent', '--a2aug-shared-bn'], 'separate networks share no'),
    ([*THREE, '--a2aug-branch-sizes', '32', '24'], 'a size for each of 3'), (['--holdout', '0'], 'a number of images'),
    ([*THREE, '--a2aug-branch-sizes', '48', '32', '32'], 'but images have 32x32'),
    ([*THREE, '--a2aug-branch-sizes', '32', '24', '24', '--a2aug-policies', 'v0', 'none', 'none'], 'are the same'),
    (['--holdout', '1437'], 'cannot be held out'),
    (['--aa', 'autoaugment_svhn', '--aug-splits', '2'], 'not one of timm'),
    ([*THREE, '--model', 'test_vit', '--a2aug-norm', 'all', '--a2aug-branch-sizes', '32', '24', '8'],
     'takes no images'),
    ([*THREE, '--a2aug-space', 'cifar10', '--a2aug-num-layers', '1', '2', '3'], 'contradicts --a2aug-space'),
    ([*THREE, '--a2aug-branch-sizes', '32', '24', '16', '--a2aug-shared-bn'], 'over all views together'),
    ([*THREE, '--a2aug-sequential', '--torchcompile', 'eager'], 'use aot_eager'),
    ([*THREE, '--a2aug-no-logit-norm', '--a2aug-logit-scale', '2'], 'have no scale'),
    ([*THREE, '--a2aug-ensemble', 'average', '--a2aug-ensemble-weight', '2'], 'nothing to learn'),
    ([*THREE, '--a2aug-ensemble', 'average', '--a2aug-mu-lr-scale', '2'], 'nothing to learn'),
    (['--train-subset', '1438'], 'cannot be taken'),
    ([*THREE, '--model', 'test_vit'], 'norms are: LayerNorm; --a2aug-norm all gives'),
    (['--model', 'resnet51'], "did you mean 'resnet5"), (['--model-kwargs', 'flavour=3'], 'flavour'),
    (['--dataset', '', '--data-dir', '/nowhere'], "no data folder '/nowhere'"), (['--dataset', ''], 'no data'),
    (['--dataset', 'torch/fashion_mnist', '--data-dir', '.'], "cannot read data set 'torch/fashion_mnist'"),
    (['--val-split', 'test'], 'the splits train and validation'), (['--num-classes', '3'], '10 classes, the model 3'),
    (['--resume', 'nowhere.pth.tar'], "no checkpoint 'nowhere.pth.tar'"),
    (['--initial-checkpoint', 'nowhere.pth'], "no checkpoint 'nowhere.pth'"),
    (['--a2aug-branches', '2', '--a2aug-policies', 'rand-m9', 'rand-m9-n2-p0.5-mstd0'], 'are the same'),
    (['--aa', 'rand-m9-z3'], "section 'z3'"), (['--aa', 'foo'], 'must begin with one of'),
    ([*THREE, '--a2aug-logit-scale', 'nan'], 'positive number'), ([*THREE, '--color-jitter', '0.2'], 'replace it'),
    (['--val-split', 'trian'], 'train and validation, not'), (['--lr', '-1'], '--lr: must be at least 0, got -1'),
    (['--crop-pct', '0'], '--crop-pct: must be above 0 and at most 1'),
    (['--input-img-mode', 'BGR'], "invalid choice: 'BGR'"),
    (['--ratio', '0', '0'], '--ratio: must be above 0'),
    (['--smoothing', '1.5'], 'between 0 and 1'), (['--scale', '0.5'], '--scale: expected 2 arguments'),
    (['--opt', 'adamw', '--opt-betas', '0.9'], 'takes 2 or 3 values'), (['--opt-kwargs', 'foo=1'], 'foo'),
    (['--sched', 'plateau', '--sched-on-updates'], 'steps on epochs'), (['--device', 'foo'], "no device 'foo'"),
    (['--model', 'local-dir:/nowhere'], 'no exported model'), (['--gp', 'foo'], 'foo'), (['--conf', 'x'], '--conf'),
    (['--interpolation', 'foo'], "--interpolation: invalid choice: 'foo'"),
    (['--pretrained-path', 'x'], "no checkpoint 'x'"),
    (['--start-epoch', '-1'], 'at least 0'), (['--mixup', '0.2', '-b', '3'], 'must hold an even number, got 3'),
    (['--cutmix-minmax', '0.8', '0.2'], 'no box to draw in images of 32'),
    (['--cutmix-minmax', '0.2'], '--cutmix-minmax: expected 2 arguments'),
    (['--mixup', '1', '--mixup-mode', 'half', '--no-prefetcher'], 'leave --no-prefetcher out'),
    (['-b', '0'], '--batch-size: must be at least 1'), (['-b', '5000'], 'more than the 1437 training images'),
    (['--opt', 'sdg'], "no optimizer 'sdg'"), (['--decay-milestones', '30', '10'], 'must ascend'),
    (['--sched', 'cosinus'], "--sched: invalid choice: 'cosinus'"),
    (['--sync-bn'], 'needs a GPU'), (['--eval-metric', 'f1'], "--eval-metric: invalid choice: 'f1'"),
    (['--mean', '0.1', '0.2'], 'mean must have one value or 1')], ids=command_id)
def test_bad_input_gives_one_sentence_exit_code_2_and_no_folder(tmp_path, capsys, argv, words):
    sentence = refused(capsys, train.main, [*SMALL, '--epochs', '1', '--output', tmp_path / 'out', *argv])
    assert words in sentence and not (tmp_path / 'out').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_cuda_is_refused_on_a_machine_without_a_gpu(capsys):
    assert 'no GPU' in refused(capsys, train.main, [*SMALL, '--device', 'cuda'])


def test_splits_and_classes_that_do_not_match_are_refused(image_folder, tmp_path, capsys):
    def argv(*more):
        return ['--data-dir', image_folder, '--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '-b',
                '8', '-j', '0', '--device', 'cpu', '--epochs', '1', '--output', tmp_path / 'out', *more]

    for split in ('--train-split', '--val-split'):
        assert "no split 'trian'" in refused(capsys, train.main, argv(split, 'trian'))
    (image_folder / 'validation' / 'dog').rename(image_folder / 'validation' / 'wolf')
    assert 'classes that are not known: wolf' in refused(capsys, train.main, argv())
    (image_folder / 'validation' / 'wolf').rename(image_folder / 'wolf')
    (image_folder / 'train' / 'ant').mkdir()
    (image_folder / 'train' / 'cat' / '0.jpg').rename(image_folder / 'train' / 'ant' / '0.jpg')
    names = names_of_classes(create_dataset('', str(image_folder), 'train'))
    assert names == ['ant', 'cat', 'dog']
    cats = create_dataset('', str(image_folder), 'validation', class_names=names)
    assert {target for _, target in SkippingDataset(cats)} == {1}
    (image_folder / 'validation').rename(tmp_path / 'elsewhere')
    assert "no split 'validation'" in refused(capsys, train.main, argv())
    assert "no split 'validation'" in refused(capsys, validate.main, [
        '--data-dir', image_folder, '--model', 'test_resnet', '--device', 'cpu'])
    assert "no split 'validation'" in refused(capsys, train.main, argv('--dataset', 'ImageFolder'))
    assert "no data set 'tourch/cifar10'" in refused(capsys, train.main, argv('--dataset', 'tourch/cifar10'))
    assert len(create_dataset('', str(tmp_path / 'elsewhere'), 'validation', allow_no_split=True)) == 4
