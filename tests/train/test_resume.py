"""Resumed runs: equal weights after a kill, and the effects of another command line."""
import os
import shutil
import signal
import subprocess
import sys

import pytest
import timm
import torch
import yaml

import a2aug_timm.train.__main__ as train
from a2aug_timm import sample_policies
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.train.arguments import train_parser
from a2aug_timm.train.run_folder import choose_folder
from tests import ROOT
from tests.commands import SMALL, THREE, command_id, refused, rows_of, run_train


@pytest.mark.parametrize('argv', [THREE, ['--aa', 'rand-m9-mstd0.5']], ids=['three branches', 'plain'])
def test_a_run_killed_during_an_epoch_resumes_to_bitwise_equal_weights(tmp_path, argv):
    argv = [*SMALL, *argv, '-b', '64', '-j', '2', '--epochs', '3', '--train-subset', '640', '--model-ema', '--mixup',
            '0.2', '--cutmix', '1', '--grad-accum-steps', '2', '--drop', '0.2', '--reprob', '0.3', '--output',
            str(tmp_path)]
    train.main([*argv, '--experiment', 'whole'])

    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(
        [sys.executable, 'train.py', *argv, '--experiment', 'killed', '--log-interval', '1'], env=environment,
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if line.startswith('Train: 1 [   3/'):
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stderr.close()
    last = tmp_path / 'killed' / 'last.pth.tar'
    assert read_checkpoint(last)['epoch'] == 0

    train.main(['--device', 'cpu', '--resume', str(last)])
    whole, resumed = (read_checkpoint(tmp_path / name / 'last.pth.tar') for name in ('whole', 'killed'))
    names = {name for name in whole if name.startswith(('state_dict', 'task_state'))}
    assert len(names) == (4 if '--a2aug-branches' in argv else 2)
    for name in names:
        assert whole[name].keys() == resumed[name].keys()
        assert all(torch.equal(value, resumed[name][key]) for key, value in whole[name].items()), name
    assert rows_of(tmp_path / 'whole') == rows_of(tmp_path / 'killed')
    for key in ('best_metric', 'best_epoch', 'kept'):
        assert whole['keeper'][key] == resumed['keeper'][key]


@pytest.mark.parametrize('argv, words', [
    (['--model', 'test_efficientnet'], '--model test_efficientnet contradicts the checkpoint, which has test_resnet'),
    (['--num-classes', '12'], '--num-classes 12 contradicts'), (['--a2aug-branches', '2'], '--a2aug-branches 2'),
    (['--a2aug-policies', 'v0', '3a', 'v0r'], '--a2aug-policies v0 3a v0r contradicts'),
    (['--a2aug-seed', '7'], 'contradicts'), (['--a2aug-shared-bn'], 'contradicts'),
    (['--opt', 'adamw'], 'add --no-resume-opt'), (['--eval-metric', 'loss'], 'contradicts'),
    (['--val-split', ''], 'contradicts the checkpoint, which has validation'),
    (['--weight-decay', '0'], 'leave it behind with --no-resume-opt')], ids=command_id)
def test_a_resume_that_contradicts_its_checkpoint_is_refused(finished, capsys, argv, words):
    before = {path: path.read_bytes() for path in finished.glob('*.*')}
    assert words in refused(capsys, train.main, ['--resume', finished / 'last.pth.tar', '--device', 'cpu', *argv])
    assert before == {path: path.read_bytes() for path in finished.glob('*.*')}


def test_a_resume_accepts_another_data_folder_with_and_without_its_flag(finished, tmp_path):
    checkpoint = read_checkpoint(finished / 'last.pth.tar')
    checkpoint['args']['data_dir'] = 'old'
    torch.save(checkpoint, tmp_path / 'last.pth.tar')
    for argv, data_dir in (([], 'old'), (['new'], 'new'), (['--data-dir', 'new'], 'new')):
        args, *_ = train.read_arguments(train_parser(), [
            *argv, '--resume', str(tmp_path / 'last.pth.tar'), '--device', 'cpu', '--output', str(tmp_path)])
        assert args.data_dir == data_dir


def test_the_folder_of_an_earlier_run_is_refused_with_the_flag_that_resumes_it(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'args.yaml').touch()
    for name, words in ((None, 'no checkpoint yet, remove it'), ('recovery-0-5.pth.tar', '--resume .*recovery-0-5'),
                        ('last.pth.tar', '--resume .*last')):
        if name:
            (tmp_path / 'run' / name).touch()
        with pytest.raises(ValueError, match=words):
            choose_folder(tmp_path, 'run', '')


def test_a_resume_completes_a_run_killed_between_its_last_checkpoint_and_the_summary(finished, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(finished, run)
    (run / 'summary.csv').unlink()
    (run / 'result.json').unlink()
    # The state after a kill between the export of a better epoch and its checkpoint.
    (run / 'model_best.pth.tar').unlink()
    (run / 'export' / 'model.safetensors').write_bytes(b'of the next epoch')
    (run / 'recovery-0-1.pth.tar').write_bytes(b'of an epoch that is complete')
    train.main(['--resume', str(run / 'last.pth.tar'), '--device', 'cpu'])
    for name in ('model_best.pth.tar', 'export/model.safetensors'):
        ours, others = (read_checkpoint(folder / name) for folder in (run, finished))
        torch.testing.assert_close(ours['state_dict'], others['state_dict'], rtol=0, atol=0)
    assert rows_of(run) == rows_of(finished)
    assert (run / 'result.json').read_text() == (finished / 'result.json').read_text()
    assert not list(run.glob('recovery-*'))


def test_a_resume_in_another_folder_copies_the_history_and_trains_longer(finished, tmp_path):
    train.main(['--resume', str(finished / 'last.pth.tar'), '--epochs', '2', '--output', str(tmp_path), '--device',
                'cpu', '--experiment', 'longer', '--a2aug-branches', '3', '--a2aug-seed', '42'])
    rows = rows_of(tmp_path / 'longer')
    assert rows[:1] == rows_of(finished) and [row['epoch'] for row in rows] == ['0', '1']
    assert len(rows_of(finished)) == 1


def test_settings_given_on_resume_replace_those_of_the_saved_optimizer(finished, tmp_path):
    train.main(['--resume', str(finished / 'last.pth.tar'), '--epochs', '2', '--device', 'cpu', '--sched', 'none',
                '--lr', '1e-9', '--momentum', '0.5', '--weight-decay', '0.1', '--output', str(tmp_path),
                '--experiment', 'new'])
    groups = read_checkpoint(tmp_path / 'new' / 'last.pth.tar')['optimizer']['param_groups']
    assert [(group['lr'], group['momentum'], group['weight_decay']) for group in groups] == [
        (1e-9, 0.5, 0.), (1e-9, 0.5, 0.1)]
    # The second epoch learns nothing, so the epoch of the first run stays the best, with its files.
    run = tmp_path / 'new'
    args = yaml.safe_load((run / 'args.yaml').read_text())
    assert 'resume' not in args and args['a2aug_policies'] == sample_policies(3, 42)
    for name in ('export/model.safetensors', 'model_best.pth.tar'):
        assert (run / name).exists()


def test_a_resume_from_an_earlier_epoch_writes_its_own_folder_and_reports_its_own_epochs(tmp_path, capsys):
    run = run_train(tmp_path, *THREE, '--train-subset', '600', '--checkpoint-hist', '3', epochs=3)
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    resumes = [['--resume', run / 'checkpoint-0.pth.tar', '--epochs', '2'],
               ['--resume', run / 'last.pth.tar', '--start-epoch', '0', '--epochs', '1', '--lr', '1e-9']]
    for argv, epochs in zip(resumes, (['0', '1'], ['0']), strict=True):
        capsys.readouterr()
        train.main([*map(str, argv), '--device', 'cpu', '--output', str(tmp_path / 'back')])
        folder, = (tmp_path / 'back').iterdir()
        rows = rows_of(folder)
        assert [row['epoch'] for row in rows] == epochs
        best = max(rows, key=lambda row: (float(row['eval_top1']), -int(row['epoch'])))
        exported = torch.load(folder / 'export' / 'checkpoint.pth.tar', weights_only=True)['metadata']
        assert exported['metrics']['top1'] == pytest.approx(float(best['eval_top1']))
        assert f"at epoch {int(best['epoch']) + 1}" in capsys.readouterr().out
        kept = {path.name for path in folder.glob('checkpoint-*')}
        assert kept == {f'checkpoint-{epoch}.pth.tar' for epoch in epochs}
        assert read_checkpoint(folder / 'model_best.pth.tar')['epoch'] == int(best['epoch'])
        folder.rename(tmp_path / f'back-{len(epochs)}')
    # The learning rate of the first epoch comes from the command line, not from the checkpoint.
    assert float(rows[0]['lr']) == 1e-9
    assert before == {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}


def test_a_resume_keeps_a_given_learning_rate_and_computes_a_computed_one_again(tmp_path):
    def rates(name, *argv):
        train.main([*map(str, argv), '--device', 'cpu', '--output', str(tmp_path), '--experiment', name])
        return [float(row['lr']) for row in rows_of(tmp_path / name)]

    small = [part for part in SMALL if part not in ('--lr', '0.05')]
    constant = ['--sched', 'none', '--epochs', '1', *THREE]
    assert rates('computed', *small, '--lr-base', '0.1', *constant) == [pytest.approx(0.1)]
    assert rates('given', '-c', tmp_path / 'computed' / 'args.yaml', '--lr', '0.003') == [0.003]
    assert rates('given2', '--resume', tmp_path / 'given' / 'last.pth.tar', '--epochs', '2') == [0.003, 0.003]
    assert rates('computed2', '--resume', tmp_path / 'computed' / 'last.pth.tar', '--epochs', '2', '-b', '512') == [
        pytest.approx(0.1), pytest.approx(0.2)]


def test_a_resume_of_a_plain_timm_run_leaves_its_folder_unchanged(tmp_path):
    theirs = tmp_path / 'theirs'
    theirs.mkdir()
    model = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.save({'epoch': 0, 'arch': 'test_resnet', 'state_dict': model.state_dict(), 'version': 2,
                'optimizer': optimizer.state_dict()}, theirs / 'last.pth.tar')
    (theirs / 'args.yaml').write_text('model: test_resnet\n')
    (theirs / 'summary.csv').write_text('epoch,train_loss\n0,2.3\n')
    before = {path: path.read_bytes() for path in theirs.iterdir()}
    train.main([*SMALL, '--resume', str(theirs / 'last.pth.tar'), '--epochs', '2', '--no-resume-opt', '--output',
                str(tmp_path / 'ours')])
    assert before == {path: path.read_bytes() for path in theirs.iterdir()}
    run, = (tmp_path / 'ours').iterdir()
    assert [row['epoch'] for row in rows_of(run)] == ['1']


def test_args_yaml_of_a_fine_tuning_run_repeats_that_run(finished, tmp_path):
    train.main([*SMALL, '--initial-checkpoint', str(finished / 'export'), '--epochs', '1', '--output', str(tmp_path),
                '--experiment', 'a'])
    train.main(['-c', str(tmp_path / 'a' / 'args.yaml'), '--device', 'cpu', '--experiment', 'b'])
    assert rows_of(tmp_path / 'a') == rows_of(tmp_path / 'b')
    # A resume does not load the initial checkpoint again.
    last = tmp_path / 'b' / 'last.pth.tar'
    train.main(['-c', str(tmp_path / 'b' / 'args.yaml'), '--device', 'cpu', '--resume', str(last), '--epochs', '2'])
    assert len(rows_of(tmp_path / 'b')) == 2
    train.main(['--device', 'cpu', '--resume', str(last), '--epochs', '3'])
    args = yaml.safe_load((tmp_path / 'b' / 'args.yaml').read_text())
    assert args['initial_checkpoint'] == str(finished / 'export') and args['epochs'] == 3
