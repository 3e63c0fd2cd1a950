"""The pages of flags agree with the parser, and say truly what timm's flags mean with branches."""
import os
import re
import runpy

import pytest

from a2aug_timm.train.arguments import train_parser
from a2aug_timm.train.arguments.with_branches import NOTES, REFUSED
from tests import ROOT
from tests.commands import checked

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


def test_the_pages_of_flags_are_what_their_script_writes_today():
    script = runpy.run_path(str(ROOT / 'docs' / 'flag_table.py'))
    for path, table in (('PATH', 'flag_table'), ('A2AUG_PATH', 'a2aug_flag_table')):
        assert script[path].read_text(encoding='utf-8') == script[table](), 'run: python docs/flag_table.py'
    assert REFUSED.keys() | NOTES.keys() <= train_parser().defaults.keys() and not REFUSED.keys() & NOTES.keys()


def test_every_flag_is_on_one_of_the_two_pages():
    pages = [(ROOT / 'docs' / name).read_text(encoding='utf-8') for name in ('flags.md', 'a2aug_flags.md')]
    actions = [action for flags in train_parser().flags().values() for action in flags]
    names = {action.option_strings[-1] for action in actions if action.option_strings}
    on_page = [set(re.findall(r'`(--[a-z0-9_-]+)', page.partition('|---|')[2])) for page in pages]
    assert names - {'--help', '--config'} <= on_page[0] | on_page[1]
    assert {name for name in names if name.startswith('--a2aug')} <= on_page[1]


@pytest.mark.parametrize('action', [
    action for flags in train_parser().flags().values() for action in flags
    if not action.dest.startswith(('a2aug', 'help', 'config'))],
    ids=lambda action: action.dest)
def test_a_flag_is_refused_with_branches_if_and_only_if_the_page_says_so(action, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    if action.dest == 'sync_bn':
        monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    value = VALUES.get(action.dest, 0.25 if getattr(action.type, 'kind', action.type) is float else 3)
    given = [] if action.nargs == 0 else str(value).split() or ['']
    name = action.option_strings[-1:] or []
    together = TOGETHER.get(action.dest, '').split()
    argv = [*given, '--a2aug-branches', '3', *together] if not name else [
        '--data-dir', '.', '--a2aug-branches', '3', *together, *name, *given]
    if action.dest == 'dataset':
        argv += ['--data-dir', os.fspath(ROOT)]
    if action.dest not in REFUSED:
        assert len(checked(argv).a2aug_policies) == 3
        return
    with pytest.raises(ValueError, match='contradicts --a2aug-branches 3') as error:
        checked(argv)
    assert REFUSED[action.dest] in str(error.value) and '\n' not in str(error.value)
