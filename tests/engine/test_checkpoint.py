"""Checkpoints: closed to code, loaded exactly, and complete."""
import argparse
import json
import os

import pytest
import safetensors.torch
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


def test_metadata_of_safetensors_files_is_read_or_refused_as_json(tmp_path):
    path = tmp_path / 'weights.safetensors'
    values = {'config': {'architecture': 'x'}, 'metadata': {'mu': 0.5}}
    safetensors.torch.save_file({'w': torch.ones(2)}, path, {key: json.dumps(value) for key, value in values.items()})
    checkpoint = read_checkpoint(path)
    assert checkpoint.pop('state_dict')['w'].tolist() == [1, 1] and checkpoint == values
    for text in ('{', '[' * 100000):
        safetensors.torch.save_file({'w': torch.ones(2)}, path, {'config': text})
        with pytest.raises(ValueError, match='metadata of .*weights.safetensors. is not JSON'):
            read_checkpoint(path)


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


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated')
@pytest.mark.parametrize('damage', [
    {'plateau': []}, {'plateau': {'best': 1.}}, {'plateau_restore_lr': 'x'},
    {'plateau': {'best': 1., 'num_bad_epochs': 0, 'cooldown_counter': 0, 'last_epoch': 1, 'step': 0}}])
def test_a_damaged_plateau_state_is_refused(tmp_path, damage):
    _, task, optimizer, scheduler = plateau_run(range(1))
    state = {**training_state(task, optimizer, scheduler), **damage}
    with pytest.raises(ValueError, match='plateau'):
        load_training_state(state, task, optimizer, scheduler)
