"""Checkpoints: atomic, best k, closed to code, and complete."""
import argparse
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from torch import nn

from a2aug_timm.engine.checkpoint import (
    check_weights,
    load_training_state,
    read_checkpoint,
    state_dict_of,
    training_state,
)
from a2aug_timm.engine.files import atomic_write, remove_unfinished
from a2aug_timm.engine.keeper import CheckpointKeeper
from a2aug_timm.engine.random_state import rng_state, set_rng_state


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['file']


def test_a_kill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path):
    code = ('import sys, torch; from a2aug_timm.engine.keeper import CheckpointKeeper\n'
            'keeper = CheckpointKeeper(sys.argv[1], max_history=2)\n'
            'for epoch in range(100000): keeper.save({"state_dict": {"w": torch.full((300000,), float(epoch))}}, '
            'epoch, epoch)\n')
    for pause in (0.05, 0.1, 0.15, 0.2, 0.25):
        process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)])
        while not (tmp_path / 'last.pth.tar').exists():
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name in ('last.pth.tar', 'model_best.pth.tar'):
            checkpoint = read_checkpoint(tmp_path / name)
            assert (checkpoint['state_dict']['w'] == checkpoint['epoch']).all()


def test_last_best_and_the_best_k_are_kept_and_continue_after_a_resume(tmp_path):
    keeper = CheckpointKeeper(tmp_path, max_history=2)
    metrics = [1., 5., 3., 5., 2.]
    bests = [keeper.save({}, epoch, metric) for epoch, metric in enumerate(metrics)]
    assert bests == [True, True, False, False, False]
    files = {'last.pth.tar', 'model_best.pth.tar', 'checkpoint-1.pth.tar', 'checkpoint-3.pth.tar'}
    assert set(os.listdir(tmp_path)) == files
    assert read_checkpoint(tmp_path / 'last.pth.tar')['epoch'] == 4
    assert read_checkpoint(tmp_path / 'model_best.pth.tar')['metric'] == 5.

    resumed = CheckpointKeeper(tmp_path, max_history=2)
    resumed.load(read_checkpoint(tmp_path / 'last.pth.tar'), start_epoch=99, source='last')
    assert (resumed.best_metric, resumed.best_epoch) == (5., 1)
    assert not resumed.save({}, 5, 4.) and resumed.save({}, 6, 6.)
    assert set(os.listdir(tmp_path)) == files - {'checkpoint-3.pth.tar'} | {'checkpoint-6.pth.tar'}


def test_a_kill_in_the_middle_of_a_save_spoils_no_other_file(tmp_path, monkeypatch):
    keeper = CheckpointKeeper(tmp_path)
    keeper.save({}, 0, 1.)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed
    with monkeypatch.context() as patch:
        # After best and numbered file are in place, before `last` is; no clean-up runs in a process that is killed.
        replace = os.replace
        patch.setattr(os, 'replace', lambda a, b: die() if str(b).endswith('last.pth.tar') else replace(a, b))
        patch.setattr(type(tmp_path), 'unlink', lambda *_, **__: None)
        with pytest.raises(Killed):
            keeper.save({}, 1, 2.)
    assert list(tmp_path.glob('.*.tmp'))
    assert read_checkpoint(tmp_path / 'last.pth.tar')['epoch'] == 0
    resumed = CheckpointKeeper(tmp_path)
    resumed.load(read_checkpoint(tmp_path / 'last.pth.tar'), start_epoch=99, source='last')
    remove_unfinished(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', lambda a, b: die() if str(b).endswith('last.pth.tar') else replace(a, b))
        with pytest.raises(Killed):
            resumed.save({}, 1, 2.)
    for name, epoch in (('last', 0), ('model_best', 1), ('checkpoint-0', 0), ('checkpoint-1', 1)):
        assert read_checkpoint(tmp_path / f'{name}.pth.tar')['epoch'] == epoch


def test_lower_is_better_where_the_metric_decreases(tmp_path):
    keeper = CheckpointKeeper(tmp_path, max_history=1, decreasing=True)
    assert [keeper.save({}, epoch, metric) for epoch, metric in enumerate([2., 3., 1.])] == [True, False, True]
    assert (tmp_path / 'checkpoint-2.pth.tar').exists() and not (tmp_path / 'checkpoint-0.pth.tar').exists()


@pytest.mark.parametrize('damage, words', [
    ([], 'must be a dict'), ({'best_metric': [1.]}, "the field 'best_metric'"), ({'best_epoch': '1'}, "'best_epoch'"),
    ({'kept': [('checkpoint-0.pth.tar',)]}, "the field 'kept'"), ({'kept': None}, "the field 'kept'")])
def test_a_damaged_keeper_entry_is_refused_by_name(tmp_path, damage, words):
    good = {'best_metric': 1., 'best_epoch': 0, 'kept': []}
    checkpoint = {'keeper': {**good, **damage} if isinstance(damage, dict) else damage}
    with pytest.raises(ValueError, match=f"{words}.*keeper.*last|keeper.*last.*{words}"):
        CheckpointKeeper(tmp_path).load(checkpoint, start_epoch=9, source='last')


def test_a_keeper_never_removes_files_outside_its_folder(tmp_path):
    folder, other = tmp_path / 'run', tmp_path / 'checkpoint-0.pth.tar'
    folder.mkdir()
    other.write_text('of somebody else')
    keeper = CheckpointKeeper(folder, max_history=1)
    kept = [['../checkpoint-0.pth.tar', 0.], [str(other), 0.], ['checkpoint-1.pth.tar', 1.]]
    keeper.load({'keeper': {'best_metric': 1., 'best_epoch': 1, 'kept': kept}}, start_epoch=2, source='last')
    keeper.save({}, 2, 5.)
    assert other.exists() and not (folder / 'checkpoint-1.pth.tar').exists()


class Bomb:
    def __reduce__(self):
        return os.system, ('touch exploded',)


def test_pickles_with_code_damaged_files_and_missing_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {}, 'bomb': Bomb()}, 'bomb.pth.tar')
    with pytest.raises(ValueError, match='more than tensors'):
        read_checkpoint('bomb.pth.tar')
    assert not (tmp_path / 'exploded').exists()

    torch.save({'w': torch.zeros(1000)}, 'good.pth.tar')
    for name, data in (('cut.pth.tar', (tmp_path / 'good.pth.tar').read_bytes()[:800]), ('text.pth', b'hello'),
                       ('empty.pth', b''), ('cut.safetensors', b'12345678{}')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match='damaged'):
            read_checkpoint(name)
    with pytest.raises(ValueError, match='no checkpoint'):
        read_checkpoint('nowhere.pth')


def test_timms_own_checkpoints_are_read_with_their_namespace_and_ddp_prefixes(tmp_path):
    path = tmp_path / 'timm.pth.tar'
    torch.save({'args': argparse.Namespace(model='x'), 'state_dict': {'module.w': torch.ones(1)},
                'state_dict_ema': {'module.w': torch.zeros(1)}}, path)
    checkpoint = read_checkpoint(path)
    assert state_dict_of(checkpoint) == {'w': torch.ones(1)}
    assert state_dict_of(checkpoint, use_ema=True) == {'w': torch.zeros(1)}
    with pytest.raises(ValueError, match='no EMA'):
        state_dict_of({'state_dict': {}}, use_ema=True)
    with pytest.raises(ValueError, match='no state_dict'):
        state_dict_of({'epoch': 3})


@pytest.mark.parametrize('other, words', [
    (nn.Linear(3, 2, bias=False), "lacks 'bias'"), (nn.Linear(4, 2), r"'weight' is \[2, 4\]"),
    (nn.Sequential(nn.Linear(3, 2)), 'has an unknown')])
def test_weights_that_do_not_fit_are_named(other, words):
    with pytest.raises(ValueError, match=words):
        check_weights(nn.Linear(3, 2), other.state_dict(), 'file')


def draws():
    return random.random(), np.random.randn(), torch.randn(2).tolist()


def test_random_state_survives_a_file(tmp_path):
    np.random.randn()  # leaves a second Gaussian in NumPy's generator
    torch.save({'rng': rng_state()}, tmp_path / 'rng')
    expected = draws()
    draws()
    set_rng_state(read_checkpoint(tmp_path / 'rng')['rng'])
    assert draws() == expected


def plateau_run(epochs, path=None, noise=None):
    torch.manual_seed(0)
    task = ClassificationTask(nn.Linear(2, 2), nn.CrossEntropyLoss(), verbose=False)
    optimizer = torch.optim.SGD(task.parameters(), lr=1., momentum=0.9)
    scheduler, _ = create_scheduler_v2(optimizer, 'plateau', num_epochs=10, patience_epochs=1, warmup_epochs=0,
                                       noise=noise)
    if path:
        checkpoint = read_checkpoint(path)
        load_training_state(checkpoint, task, optimizer, scheduler)
    rates = []
    for epoch in epochs:
        task(torch.ones(1, 2), torch.tensor([0]))['loss'].backward()
        optimizer.step()
        scheduler.step(epoch + 1, 50.)  # never better
        rates.append(optimizer.param_groups[0]['lr'])
    return rates, task, optimizer, scheduler


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated')
@pytest.mark.parametrize('noise', [None, [0., 1.]])
def test_a_plateau_schedule_resumes_with_its_patience_and_noise(tmp_path, noise):
    whole, *_ = plateau_run(range(6), noise=noise)
    first, task, optimizer, scheduler = plateau_run(range(3), noise=noise)
    torch.save(training_state(task, optimizer, scheduler), tmp_path / 'c')
    second, *_ = plateau_run(range(3, 6), tmp_path / 'c', noise)
    assert first + second == whole and len(set(whole)) > 1
