"""Decisions, refusals and warnings that follow from the flags of a training run."""
import copy

import pytest

from a2aug_timm import sample_policies
from a2aug_timm.train.arguments import train_parser
from a2aug_timm.train.checks import check_train
from a2aug_timm.train.resolve import resolve
from tests.commands import checked, command_id


@pytest.mark.parametrize('argv, words', [
    (['--jsd-loss'], 'add --aug-splits'),
    (['--torchscript', '--torchcompile'], '--torchscript and --torchcompile do not go together'),
    (['--train-img-sizes', '32', '64', '--train-batch-sizes', '3'], 'each of the 2 --train-img-sizes, got 1'),
    (['--drop-connect', '0.1', '--drop-path', '0.2'], 'the old name of --drop-path'),
    (['--aug-splits', '1'], 'splits nothing'), (['--train-crop-mode', 'pad', '--no-aug'], 'do not go together'),
    (['--a2aug-branches', '3', '--a2aug-space', 'svhn', '--a2aug-magnitudes', '5'], 'contradicts --a2aug-space svhn'),
    (['--split-bn'], 'needs a batch that is split'), (['--tta', '2'], "timm's loaders repeat none"),
    (['--amp', '--model-dtype', 'bfloat16'], '--amp needs float32'), (['--aug-repeats', '3'], 'several processes'),
    (['--device-modules', 'no_such_module'], "cannot import 'no_such_module'"),
    (['--target-key', 'label'], '--target-key has no effect on a folder; it is for hfds/, hfids/, tfds/, wds/'),
    (['--kd-model-name', 'resnet51'], "timm has no model 'resnet51'"),
    (['--dataset', 'wds/x', '--train-img-sizes', '32'], 'needs images in any order'),
    (['--aug-splits', '2', '--jsd-loss', '--mixup', '1'], 'takes class indices'),
    (['--aug-splits', '2', '--mixup', '1'], 'needs --no-prefetcher')], ids=command_id)
def test_contradicting_flags_are_refused(argv, words):
    with pytest.raises(ValueError, match=words):
        checked(['--data-dir', '.', *argv])


@pytest.mark.parametrize('argv, words', [
    (['--bce-sum'], '--bce-sum has no effect without --bce-loss'),
    (['--train-batch-sizes', '3'], '--train-batch-sizes has no effect without --train-img-sizes'),
    (['--naflex-max-seq-len', '3'], 'no effect without --naflex-loader'),
    (['--kd-temperature', '3'], 'no effect without --kd-model-name'),
    (['--resplit'], '--resplit has no effect without --reprob'), (['--remode', 'const'], 'no effect without --reprob'),
    (['--torchcompile-mode', 'x'], 'no effect without --torchcompile'),
    (['--amp-dtype', 'bfloat16'], 'no effect without --amp'), (['--clip-mode', 'agc'], 'no effect without --clip-grad'),
    (['--model-ema-decay', '0.5'], 'no effect without --model-ema'),
    (['--mixup-mode', 'elem'], 'no effect without --mixup, --cutmix or --cutmix-minmax'),
    (['--crop-padding', '2'], 'no effect without --train-crop-mode pad'),
    (['--train-crop-mode', 'pad', '--scale', '0.5', '1'], '--scale has no effect with --train-crop-mode pad'),
    (['--epoch-repeats', '2'], '--epoch-repeats has no effect on a folder; it is for hfids/, tfds/, wds/')],
    ids=command_id)
def test_a_flag_without_effect_gives_a_warning_on_the_first_rank_only(argv, words, caplog, monkeypatch):
    checked(['--data-dir', '.', *argv])
    assert [words in record.message for record in caplog.records] == [True]
    caplog.clear()
    monkeypatch.setenv('RANK', '1')
    checked(['--data-dir', '.', *argv])
    assert not caplog.records


def test_checks_change_no_argument():
    parser = train_parser()
    for argv in ([], ['--a2aug-branches', '3', '--a2aug-branch-sizes', '32', '24', '16', '--mixup-mode', 'elem']):
        args, explicit = parser.parse(['--data-dir', '.', *argv])
        parsed = copy.deepcopy(vars(args))
        resolved = resolve(args, explicit)
        assert vars(args) == parsed
        before = copy.deepcopy(vars(resolved))
        check_train(resolved, explicit, parser.changed(resolved))
        assert vars(resolved) == before


def test_a_missing_wandb_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install wandb'):
        checked(['--data-dir', '.', '--log-wandb'])


def test_policies_are_sampled_from_the_published_space_of_the_flag():
    args = checked(['--data-dir', '.', '--a2aug-branches', '4', '--a2aug-space', 'cifar10', '--seed', '3'])
    assert args.a2aug_policies == sample_policies(4, 3, [3], [4, 5, 7, 9, 11])
    assert args.a2aug_num_layers == [3] and args.a2aug_magnitudes == [4, 5, 7, 9, 11]


def test_the_default_length_of_a_decay_is_timms():
    for argv, epochs in (([], 90), (['--sched', 'wsd'], 0.2), (['--sched', 'rsqrt', '--decay-epochs', '90'], 90),
                         (['--sched', 'constant'], 90)):
        assert checked(['--data-dir', '.', *argv]).decay_epochs == epochs


@pytest.mark.parametrize('name', ['WORLD_SIZE', 'SLURM_NTASKS'])
def test_repeated_augmentation_is_accepted_with_both_launchers(monkeypatch, name):
    monkeypatch.setenv(name, '2')
    assert checked(['--data-dir', '.', '--aug-repeats', '3']).aug_repeats == 3


def test_drop_connect_sets_drop_path():
    args = checked(['--data-dir', '.', '--drop-connect', '0.1'])
    assert args.drop_path == 0.1 and args.drop_connect is None


@pytest.mark.parametrize('capability, is_warned', [('AVX2', True), ('AVX512', False)])
def test_mixed_precision_that_a_processor_emulates_is_warned_of(monkeypatch, caplog, capability, is_warned):
    monkeypatch.setattr('torch.backends.cpu.get_cpu_capability', lambda: capability)
    checked(['--data-dir', '.', '--device', 'cpu', '--amp', '--amp-dtype', 'bfloat16'])
    assert ('--amp is emulated on this processor (AVX2)' in caplog.text) == is_warned
    caplog.clear()
    checked(['--data-dir', '.', '--device', 'cpu'])
    assert not caplog.text
