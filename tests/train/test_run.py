"""Runs of train.py: their files, their printed output and their flags."""
import json
import os
import socket
import subprocess
import sys

import pytest
import timm
import torch
import yaml

import a2aug_timm.train.__main__ as train
import a2aug_timm.validate.__main__ as validate
from a2aug_timm import sample_policies
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.engine.record import require_record
from tests import ROOT
from tests.commands import SMALL, THREE, built, refused, rows_of, run_train


@pytest.mark.parametrize('argv, num_epochs, top1', [
    (['--epochs', '2'], 2, 50), pytest.param([], 15, 95, marks=pytest.mark.slow)], ids=['two epochs', 'all epochs'])
def test_the_quickstart_trains_and_its_printed_commands_work(run_script, tmp_path, argv, num_epochs, top1):
    done = run_script('python', 'train.py', '-c', 'hparams/quickstart.yaml', '--output', tmp_path, *argv)
    run, = tmp_path.iterdir()
    assert done.stdout.count('ensemble') == len(rows_of(run)) == num_epochs
    for word in ('policy', 'μ', 'top-1', 'top-5', 'loss', sample_policies(3, 0)[2], 'Best: branch', f'{run}/export'):
        assert word in done.stdout
    assert max(float(row['eval_top1']) for row in rows_of(run)) > top1
    lines = [line.strip() for line in done.stdout.splitlines()]
    for line in (line for line in lines if line.startswith('timm.create_model')):
        assert eval(line, {'timm': timm}).num_classes == 10
    command, = (line.split() for line in lines if line.startswith('python validate.py'))
    assert 'ensemble' in run_script(*command).stdout


def test_a_run_writes_arguments_summary_checkpoints_and_an_export(tmp_path, capsys):
    run = run_train(tmp_path, *THREE, '--checkpoint-hist', '1', epochs=2)
    policies = sample_policies(3, 42)
    args = yaml.safe_load((run / 'args.yaml').read_text())
    assert args['a2aug_policies'] == policies and args['lr'] == 0.05 and args['a2aug_seed'] == 42
    rows = rows_of(run)
    assert [row['epoch'] for row in rows] == ['0', '1']
    for name in ('train_loss', 'train_ce_2', 'train_kl_0', 'train_ensemble_ce', 'eval_top1', 'mu_1', 'best_branch',
                 'eval_branch_2_top5', 'eval_ensemble_loss', 'lr'):
        float(rows[1][name])
    assert sum(float(rows[1][f'mu_{i}']) for i in range(3)) == pytest.approx(1)

    checkpoint = read_checkpoint(run / 'last.pth.tar')
    best = max(rows, key=lambda row: float(row['eval_top1']))
    record = require_record(checkpoint, 'last')
    assert record.policies == policies and record.best_branch == int(rows[1]['best_branch'])
    assert len(list(run.glob('checkpoint-*.pth.tar'))) == 1
    exported = torch.load(run / 'export' / 'checkpoint.pth.tar', weights_only=True)['metadata']
    assert exported['branch'] == int(best['best_branch'])
    assert exported['policy'] == policies[exported['branch']]
    assert exported['metrics']['top1'] == pytest.approx(float(best['eval_top1']))

    # args.yaml is a config file that repeats the run.
    train.main(['-c', str(run / 'args.yaml'), '--experiment', 'again'])
    assert rows_of(tmp_path / 'again') == rows
    assert 'holds a run already' in refused(capsys, train.main, ['-c', run / 'args.yaml'])


@pytest.mark.parametrize('argv', [
    ['--a2aug-shared-bn'], ['--a2aug-independent'], ['--a2aug-ensemble', 'average', '--a2aug-loss-reduction', 'mean'],
    ['--a2aug-independent-crops', '--no-prefetcher', '--channels-last', '--reprob', '0.5'],
    ['--a2aug-no-logit-norm', '--a2aug-kl-weight', '0.5', '--smoothing', '0', '--clip-grad', '1', '--clip-mode', 'agc'],
    ['--a2aug-logit-scale', '4', '--amp', '--amp-dtype', 'bfloat16', '--grad-accum-steps', '2'],
    ['--a2aug-policies', 'rand-m9-n2-mstd0.5-inc1', 'original', 'augmix-m3', '--opt', 'adamw', '--sched', 'step'],
    ['--model-ema', '--model-ema-decay', '0.5', '--val-interval', '2', '--eval-metric', 'loss', '-j', '1'],
    ['--mixup', '0.2', '--cutmix', '1', '--mixup-mode', 'elem', '--mixup-off-epoch', '1', '-j', '1'],
    ['--cutmix', '1', '--no-prefetcher', '--mixup-off-epoch', '1'],
    ['--val-split', '', '--sched-on-updates']], ids=lambda argv: argv[0])
def test_flags_work_with_branches(tmp_path, argv):
    run = run_train(tmp_path, *THREE, '--train-subset', '600', *argv, epochs=2)
    assert (run / 'export' / 'model.safetensors').exists()
    rows = rows_of(run)
    assert len(rows) == (1 if '--val-interval' in argv else 2)
    assert sum(float(row['train_views']) for row in rows) == 2 * 3 * 512  # the last of 600 images fill no batch
    mu = [float(rows[-1][f'mu_{i}']) for i in range(3)]
    assert (mu == pytest.approx([1 / 3] * 3)) == ('average' in argv)
    assert ('eval_top1' in rows[0]) == ('--val-split' not in argv)
    assert ('eval_ensemble_top1' in rows[0]) == ('--val-split' not in argv and '--a2aug-shared-bn' not in argv)


def test_flags_reach_the_objects_that_they_configure(tmp_path):
    run = built([
        *SMALL, *THREE, '--output', tmp_path, '--a2aug-ensemble-weight', '0.5', '--a2aug-kl-weight', '0.25',
        '--a2aug-logit-scale', '3', '--a2aug-mu-lr-scale', '5', '--a2aug-loss-reduction', 'mean',
        '--a2aug-independent-crops', '--smoothing', '0.2', '--reprob', '0.5', '--remode', 'const', '--recount', '2',
        '--clip-grad', '0.7', '--clip-mode', 'value', '--amp', '--amp-dtype', 'bfloat16', '--hflip', '0.25', '--drop',
        '0.4'])
    step, loader = run.training.step, run.data.train
    task, optimizer = step.task, step.optimizer
    loss = task.trainable_module.loss
    assert (loss.ensemble_weight, loss.kl_weight, loss.logit_scale, loss.reduction) == (0.5, 0.25, 3., 'mean')
    assert loss.logit_norm and loss.criterion.smoothing == 0.2 and task.get_eval_model().drop_rate == 0.4
    assert loader.dataset.transform.independent_crops and loader.random_erasing.probability == 0.5
    assert (loader.random_erasing.mode, loader.random_erasing.max_count) == ('const', 2)
    assert any(getattr(part, 'p', None) == 0.25 for part in loader.dataset.transform.base.transforms)
    # No color jitter after the policies.
    assert all(branch.after.transforms == [] for branch in loader.dataset.transform.branches)
    assert (step.clip_grad, step.clip_mode) == (0.7, 'value')
    of_mu, others = ([group['initial_lr'] * group.get('lr_scale', 1) for group in optimizer.param_groups
                      if is_of_mu == any(one is task.mu_logits for one in group['params'])]
                     for is_of_mu in (True, False))
    assert of_mu == [5 * others[0]] and len(set(others)) == 1
    assert step.autocast.keywords == dict(device_type='cpu', dtype=torch.bfloat16)


def test_accumulation_memory_format_and_log_interval_follow_the_flags(tmp_path, caplog):
    caplog.set_level('INFO')
    run = run_train(tmp_path, *THREE, '--grad-accum-steps', '2', '--channels-last', '--log-interval', '2')
    # 1,437 images in batches of 256 are five batches, so three updates, of which 0 and 2 are logged.
    assert [record.args[1] for record in caplog.records if record.msg.startswith('Train:')] == [0, 2]
    model = built([*SMALL, *THREE, '--output', tmp_path / 'again', '--channels-last']).model
    assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert read_checkpoint(run / 'last.pth.tar')['epoch'] == 0


def test_ema_weights_are_evaluated_and_exported(tmp_path):
    run = run_train(tmp_path, *THREE, '--model-ema', '--model-ema-decay', '0.5')
    checkpoint = read_checkpoint(run / 'last.pth.tar')
    exported = torch.load(run / 'export' / 'checkpoint.pth.tar', weights_only=True)['state_dict']
    for weights, equal in (('state_dict', False), ('state_dict_ema', True)):
        assert torch.equal(exported['fc.weight'], checkpoint[weights]['fc.weight']) == equal
    assert checkpoint['task_state_ema']['mu_logits'].tolist() != checkpoint['task_state']['mu_logits'].tolist()


def test_one_branch_trains_a_plain_timm_model_on_a_folder_with_a_broken_image(image_folder, tmp_path, capsys):
    broken = image_folder / 'train' / 'cat' / '3.jpg'
    broken.write_bytes(broken.read_bytes()[:300])
    train.main(['--data-dir', str(image_folder), '--model', 'test_resnet', '--num-classes', '2', '--img-size', '32',
                '-b', '8', '-j', '0', '--device', 'cpu', '--epochs', '1', '--lr', '0.01', '--warmup-epochs', '0',
                '--aa', 'rand-m9', '--output', str(tmp_path), '--experiment', 'plain'])
    assert list(rows_of(tmp_path / 'plain')[0]) == ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr',
                                                    'train_views']
    printed = capsys.readouterr()
    assert 'skipped 1 broken image' in printed.out
    model = timm.create_model(f'local-dir:{tmp_path}/plain/export', pretrained=True)
    assert model.pretrained_cfg['label_names'] == ['cat', 'dog']
    assert not any('branches' in key for key in read_checkpoint(tmp_path / 'plain' / 'last.pth.tar')['state_dict'])


def test_three_branches_train_on_a_folder_of_color_images(image_folder, tmp_path):
    train.main(['--data-dir', str(image_folder), '--model', 'test_efficientnet', '--num-classes', '2', '--img-size',
                '32', '-b', '6', '-j', '2', '--device', 'cpu', '--epochs', '1', '--lr', '0.01', '--warmup-epochs', '0',
                *THREE, '--output', str(tmp_path), '--experiment', 'color'])
    assert len(rows_of(tmp_path / 'color')) == 1


def test_a_later_start_epoch_has_the_learning_rate_of_that_epoch(tmp_path):
    run = run_train(tmp_path, '--start-epoch', '2', '--lr', '1', '-b', '512', epochs=4)
    assert [float(row['lr']) for row in rows_of(run)] == pytest.approx([0.5, 0.5 * (1 - 2 ** -0.5)])
    assert [row['epoch'] for row in rows_of(run)] == ['2', '3']


def test_initial_weights_are_loaded_as_timm_loads_them(finished, tmp_path, capsys):
    def first_conv(*argv):
        run_train(tmp_path, '--experiment', argv[-1], '--lr', '1e-12', *argv[:-1])
        state_dict = read_checkpoint(tmp_path / argv[-1] / 'last.pth.tar')['state_dict']
        return state_dict['conv1.0.weight'], state_dict

    exported = torch.load(finished / 'export' / 'checkpoint.pth.tar', weights_only=True)['state_dict']
    export = finished / 'export'
    for name, argv in (('a', ['--initial-checkpoint', export]),
                       ('b', ['--pretrained-path', export / 'model.safetensors']),
                       ('c', ['--initial-checkpoint', finished / 'last.pth.tar', *THREE, '--head-init-bias', '-3'])):
        conv, state_dict = first_conv(*map(str, argv), name)
        torch.testing.assert_close(conv, exported['conv1.0.weight'], rtol=0, atol=1e-6)
    theirs = read_checkpoint(finished / 'last.pth.tar')['state_dict']
    torch.testing.assert_close(state_dict['bn1.branches.2.weight'], theirs['bn1.branches.2.weight'], rtol=0, atol=1e-6)
    torch.testing.assert_close(state_dict['fc.bias'], torch.full((10,), -3.))
    foreign = tmp_path / 'foreign.pth'
    torch.save({'w': torch.zeros(1)}, foreign)
    for argv, words in ((['--pretrained-path', foreign], 'holds no weights of ResNet'),
                        (['--pretrained-path', finished / 'last.pth.tar'], 'holds 3 branches; export one'),
                        (['--initial-checkpoint', foreign], "lacks 'bn1.bias'")):
        assert words in refused(capsys, train.main, [*SMALL, '--epochs', '1', '--output', tmp_path / 'no', *argv])


def test_a_non_finite_loss_exits_with_code_1_and_keeps_the_last_good_checkpoint(finished, tmp_path, caplog):
    argv = ['--resume', str(finished / 'last.pth.tar'), '--epochs', '3', '--lr', '1e20', '--sched', 'none',
            '--no-resume-opt', '--output', str(tmp_path), '--experiment', 'nan', '--device', 'cpu']
    with pytest.raises(SystemExit) as exit_info:
        train.main(argv)
    assert exit_info.value.code == 1 and 'the loss is not finite at epoch 1, step' in caplog.text
    assert str(tmp_path / 'nan' / 'last.pth.tar') in caplog.text
    assert read_checkpoint(tmp_path / 'nan' / 'last.pth.tar')['epoch'] == 0


# The 1,437 validation images cannot be shared evenly by two ranks.
TWO_RANKS = [*SMALL, *THREE, '-b', '128', '--epochs', '2', '--val-split', 'train']


def test_two_processes_train_together(run_script, tmp_path, capsys):
    done = run_script('./distributed_train.sh', '2', *TWO_RANKS, '--output', tmp_path, '--experiment', 'processes')
    assert done.stderr.count(f'Policies: {" ".join(sample_policies(3, 42))}') == 2
    assert run_script('./distributed_train.sh', check=False).returncode == 2

    # One process measures the same with the saved weights and statistics.
    validate.main(['--dataset', 'sklearn/digits', '--split', 'train', '--device', 'cpu', '-j', '0', '--branch', 'all',
                   '--checkpoint', str(tmp_path / 'processes' / 'last.pth.tar')])
    alone = json.loads(capsys.readouterr().out.split('--result\n')[1])
    together = rows_of(tmp_path / 'processes')[-1]
    for i, result in enumerate(alone):
        name = f'branch_{i}' if i < 3 else 'ensemble'
        assert result['top1'] == pytest.approx(float(together[f'eval_{name}_top1']), abs=1e-3)
        assert result['loss'] == pytest.approx(float(together[f'eval_{name}_loss']), rel=1e-3)
    checkpoint = read_checkpoint(tmp_path / 'processes' / 'last.pth.tar')
    assert len(checkpoint['rng']) == 2 and require_record(checkpoint, 'last').policies == sample_policies(3, 42)


@pytest.mark.slow
def test_two_nodes_of_one_process_train_like_two_processes_of_one_node(run_script, tmp_path):
    argv = [*TWO_RANKS, '--output', tmp_path]
    run_script('./distributed_train.sh', '2', *argv, '--experiment', 'processes')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = {**os.environ, 'NNODES': '2', 'RDZV_ENDPOINT': f'127.0.0.1:{port}', 'OMP_NUM_THREADS': '1',
                   'PATH': f'{os.path.dirname(sys.executable)}{os.pathsep}{os.environ["PATH"]}'}
    agents = [subprocess.Popen(
        ['./distributed_train.sh', '1', *map(str, argv), '--experiment', 'nodes'], env=environment,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum('Best: branch' in output for output in outputs) == 1

    one, other = (read_checkpoint(tmp_path / name / 'last.pth.tar') for name in ('processes', 'nodes'))
    for key, value in one['state_dict'].items():
        torch.testing.assert_close(other['state_dict'][key], value)
    assert all(require_record(checkpoint, 'last').policies == sample_policies(3, 42) for checkpoint in (one, other))
