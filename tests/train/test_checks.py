"""What follows from the flags of a training run, and which of them are refused together."""
import pytest

from a2aug_timm import sample_policies
from tests.commands import checked


@pytest.mark.parametrize('argv, words', [
    (['--bce-sum'], '--bce-sum has no effect without --bce-loss'),
    (['--train-batch-sizes', '3'], 'no effect without --train-img-sizes'),
    (['--naflex-max-seq-len', '3'], 'no effect without --naflex-loader'),
    (['--kd-temperature', '3'], 'no effect without --kd-model-name'), (['--jsd-loss'], 'without --aug-splits'),
    (['--resplit'], 'no effect without --reprob'), (['--torchcompile-mode', 'x'], 'no effect without --torchcompile'),
    (['--torchscript', '--torchcompile'], '--torchscript and --torchcompile do not go together'),
    (['--train-img-sizes', '32', '64', '--train-batch-sizes', '3'], 'each of the 2 --train-img-sizes, got 1'),
    (['--drop-connect', '0.1', '--drop-path', '0.2'], 'do not go together'), (['--aug-splits', '1'], 'splits nothing'),
    (['--crop-padding', '2'], 'no effect without --train-crop-mode pad'), (['--cutout', '-1'], 'at least 0'),
    (['--train-crop-mode', 'pad', '--scale', '0.5', '1'], 'no effect with --train-crop-mode pad'),
    (['--a2aug-branches', '3', '--a2aug-space', 'svhn', '--a2aug-magnitudes', '5'], 'contradicts --a2aug-space svhn'),
    (['--split-bn'], 'needs a batch that is split'), (['--tta', '2'], "timm's loaders repeat none"),
    (['--amp', '--model-dtype', 'bfloat16'], '--amp needs float32'), (['--aug-repeats', '3'], 'several processes'),
    (['--device-modules', 'no_such_module'], "cannot import 'no_such_module'"),
    (['--epoch-repeats', '2'], 'has no effect on a folder; it is for hfids/, tfds/, wds/'),
    (['--kd-loss-type', 'mse'], 'must be one of'),
    (['--kd-model-name', 'resnet51'], "timm has no model 'resnet51'"), (['--fuser', 'x'], '--fuser must be one of'),
    (['--dataset', 'wds/x', '--train-img-sizes', '32'], 'needs images in any order'),
    (['--aug-splits', '2', '--jsd-loss', '--mixup', '1'], 'takes class indices'),
    (['--aug-splits', '2', '--mixup', '1'], 'needs --no-prefetcher')], ids=lambda value: ' '.join(value)[:40])
def test_what_would_be_ignored_or_cannot_be_is_refused(argv, words):
    with pytest.raises(ValueError, match=words.replace('(', r'\(')):
        checked(['--data-dir', '.', *argv])


def test_wandb_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install wandb'):
        checked(['--data-dir', '.', '--log-wandb'])


def test_a_published_space_is_what_policies_are_sampled_from():
    args = checked(['--data-dir', '.', '--a2aug-branches', '4', '--a2aug-space', 'cifar10', '--seed', '3'])
    assert args.a2aug_policies == sample_policies(4, 3, [3], [4, 5, 7, 9, 11])
    assert args.a2aug_num_layers == [3] and args.a2aug_magnitudes == [4, 5, 7, 9, 11]


def test_schedules_that_end_with_a_decay_have_timms_length_of_it_unless_it_is_given():
    for argv, epochs in (([], 90), (['--sched', 'wsd'], 0.2), (['--sched', 'rsqrt', '--decay-epochs', '90'], 90),
                         (['--sched', 'constant'], 90)):
        assert checked(['--data-dir', '.', *argv]).decay_epochs == epochs


@pytest.mark.parametrize('name', ['WORLD_SIZE', 'SLURM_NTASKS'])
def test_repeated_augmentation_is_for_the_processes_of_either_launcher(monkeypatch, name):
    monkeypatch.setenv(name, '2')
    assert checked(['--data-dir', '.', '--aug-repeats', '3']).aug_repeats == 3


def test_the_old_name_of_drop_path_means_drop_path():
    args = checked(['--data-dir', '.', '--drop-connect', '0.1'])
    assert args.drop_path == 0.1 and args.drop_connect is None
