"""timm's flags: the parsers hold all of them, and docs/flags.md says truly what they mean with branches."""
import csv
import json
import os
import runpy
from pathlib import Path

import pytest

from a2aug_timm import sample_policies
from a2aug_timm.train.arguments import train_parser
from a2aug_timm.train.arguments.with_branches import NOTES, REFUSED
from a2aug_timm.train.checks import check_train
from a2aug_timm.validate.arguments import validate_parser

TESTS = Path(__file__).resolve().parent
TYPES = {'int': int, 'float': float, 'str': None, '': None}

# A value other than the default for each flag that takes one, and what must stand beside it.
VALUES = {
    'data': '.', 'data_dir': '.', 'dataset': 'torch/cifar10', 'class_map': 'map.txt', 'input_img_mode': 'L',
    'train_split': 'a', 'val_split': 'b', 'model': 'resnet18', 'pretrained_path': '.', 'initial_checkpoint': '.',
    'num_classes': 7, 'gp': 'max', 'img_size': 64, 'in_chans': 1, 'input_size': '3 64 64', 'crop_pct': 0.5,
    'mean': 0.4, 'std': 0.3, 'interpolation': 'bicubic', 'batch_size': 6, 'validation_batch_size': 5, 'fuser': 'te',
    'head_init_scale': 0.1, 'head_init_bias': -5, 'torchcompile': 'eager', 'grad_accum_steps': 2,
    'model_kwargs': 'a=1', 'device': 'cpu', 'amp_dtype': 'bfloat16', 'model_dtype': 'bfloat16', 'local_rank': 1,
    'device_modules': 'math', 'opt': 'adamw', 'opt_eps': 1e-3, 'opt_betas': '0.9 0.95', 'clip_mode': 'agc',
    'layer_decay': 0.7, 'opt_kwargs': 'a=1', 'sched': 'step', 'lr_base_scale': 'sqrt', 'lr_noise': '0.4 0.9',
    'train_crop_mode': 'rkrc', 'scale': '0.5 1', 'ratio': '0.5 2', 'aa': 'v0', 'aug_splits': 2, 'remode': 'const',
    'cutmix_minmax': '0.2 0.8', 'train_interpolation': 'bicubic', 'dist_bn': 'broadcast', 'eval_metric': 'loss',
    'worker_seeding': 'part', 'output': 'out', 'experiment': 'e', 'tta': 1, 'decay_milestones': '3 4',
    'train_img_sizes': '64 96', 'naflex_train_seq_lens': '16 32', 'naflex_patch_sizes': '8 16',
    'naflex_patch_size_probs': '0.5 0.5', 'naflex_loss_scale': 'sqrt', 'kd_model_name': 'resnet50',
    'kd_distill_type': 'feature', 'kd_token_distill_type': 'hard', 'variable_batch_loss_scale': 'sqrt',
    'train_size_schedule': 'progressive', 'train_batch_sizes': '4 8', 'train_size_probs': '1 2', 'mixup_mode': 'elem',
    'input_key': 'img', 'target_key': 'cls', 'aug_repeats': 3, 'torchcompile_mode': 'max-autotune',
    'kd_loss_type': 'kl', 'resume': '', 'wandb_resume_id': '', 'wandb_project': 'p', 'wandb_tags': 'a b'}
TOGETHER = {
    **dict.fromkeys(('bce_sum', 'bce_target_thresh', 'bce_pos_weight'), '--bce-loss'),
    **dict.fromkeys((
        'train_batch_sizes', 'train_size_probs', 'train_size_schedule', 'train_size_schedule_spread',
        'train_size_random_mix', 'train_batches_per_epoch', 'variable_batch_loss_scale'), '--train-img-sizes 64 96'),
    **dict.fromkeys((
        'kd_loss_type', 'kd_distill_type', 'distill_loss_weight', 'task_loss_weight', 'kd_temperature',
        'kd_student_feature_dim', 'kd_teacher_feature_dim', 'kd_token_distill_type'), '--kd-model-name resnet50'),
    **dict.fromkeys(('layer_decay_min_scale', 'layer_decay_no_opt_scale'), '--layer-decay 0.5'),
    **dict.fromkeys(('mixup_prob', 'mixup_switch_prob', 'mixup_mode', 'mixup_off_epoch'), '--mixup 0.2'),
    **dict.fromkeys(('input_key', 'target_key', 'dataset_trust_remote_code'), '--dataset hfds/x'),
    **dict.fromkeys(('train_num_samples', 'val_num_samples', 'epoch_repeats'), '--dataset wds/x'),
    'dataset_download': '--dataset torch/cifar10', 'torchcompile_mode': '--torchcompile',
    'crop_padding': '--train-crop-mode pad',
    'resplit': '--reprob 0.5', 'wandb_project': '--log-wandb',
    'wandb_tags': '--log-wandb'}


def flags_of(name):
    with open(TESTS / 'timm_flags' / f'{name}.csv', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def held_against(parser, rows):
    """Rows of timm's flags that a parser lacks or has otherwise."""
    actions = {name: action for action in parser._actions for name in action.option_strings or [action.dest]}
    for row in rows:
        for name in row['flags'].split():
            action = actions.get(name)
            own = action and (
                type(action).__name__.strip('_').removesuffix('Action'), action.type,
                '' if action.nargs is None else str(action.nargs), action.default, ' '.join(action.choices or ()))
            if own != (row['action'], TYPES[row['type']], row['nargs'], json.loads(row['default']), row['choices']):
                yield name, own


def test_train_takes_timms_flags_with_their_types_defaults_and_choices():
    assert list(held_against(train_parser(), flags_of('train'))) == []


def test_validate_takes_timms_flags_with_their_types_defaults_and_choices():
    assert list(held_against(validate_parser(), flags_of('validate'))) == []


def test_the_page_of_flags_is_what_its_script_writes_today():
    script = runpy.run_path(str(TESTS.parent / 'docs' / 'flag_table.py'))
    assert script['PATH'].read_text(encoding='utf-8') == script['flag_table'](), 'run: python docs/flag_table.py'
    dests = {action.dest for action in train_parser()._actions}
    assert REFUSED.keys() | NOTES.keys() <= dests and not REFUSED.keys() & NOTES.keys()


def checked(argv):
    parser = train_parser()
    args, explicit = parser.parse(argv)
    check_train(args, explicit, {action.dest: action.default for action in parser._actions})
    return args


@pytest.mark.parametrize('action', [
    action for action in train_parser()._actions if not action.dest.startswith(('a2aug', 'help', 'config'))],
    ids=lambda action: action.dest)
def test_a_flag_is_refused_with_branches_if_and_only_if_the_page_says_so(action, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    if action.dest == 'sync_bn':
        monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    value = VALUES.get(action.dest, 0.25 if action.type is float else 3)
    given = [] if action.nargs == 0 else str(value).split() or ['']
    name = action.option_strings[-1:] or []
    together = TOGETHER.get(action.dest, '').split()
    argv = [*given, '--a2aug-branches', '3', *together] if not name else [
        '--data-dir', '.', '--a2aug-branches', '3', *together, *name, *given]
    if action.dest == 'dataset':
        argv += ['--data-dir', os.fspath(TESTS)]
    if action.dest not in REFUSED:
        assert len(checked(argv).a2aug_policies) == 3
        return
    with pytest.raises(ValueError, match='contradicts --a2aug-branches 3') as error:
        checked(argv)
    assert REFUSED[action.dest] in str(error.value) and '\n' not in str(error.value)


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
