"""The keeper of checkpoints: last, best and the best k, after kills and resumes too."""
import os
import signal
import subprocess
import sys
import time

import pytest

from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.engine.files import remove_unfinished
from a2aug_timm.engine.keeper import CheckpointKeeper


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


def test_one_recovery_is_kept_until_its_epoch_is_complete(tmp_path):
    keeper = CheckpointKeeper(tmp_path)
    for epoch, update in ((0, 5), (1, 5), (1, 10)):
        keeper.save_recovery({}, epoch, update)
        assert os.listdir(tmp_path) == [f'recovery-{epoch}-{update}.pth.tar']
    assert read_checkpoint(tmp_path / 'recovery-1-10.pth.tar')['epoch'] == 0
    keeper.remove_recoveries(1)
    assert os.listdir(tmp_path) == ['recovery-1-10.pth.tar']
    keeper.remove_recoveries(2)
    assert os.listdir(tmp_path) == []
