"""The record of a checkpoint: what is written is read, and what is damaged is refused with a sentence."""
import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.engine.fields import fits
from a2aug_timm.engine.record import VERSION, CheckpointRecord, record_of, require_record
from tests.records import make_record

METRICS = [{'top1': 90., 'loss': 0.3}, {'top1': 92., 'loss': float('nan')}, {'top1': 91., 'loss': 0.2}, {'top1': 93.}]


@pytest.mark.parametrize('record', [
    make_record(3), make_record(3, metrics=METRICS, branch_sizes=[32, 24, 16], best_branch=2, is_lr_computed=True),
    make_record(1, policies=[None], epoch=-1), make_record(2, own='nothing', metrics=METRICS[:1])])
def test_a_record_survives_a_file(tmp_path, record):
    torch.save({'state_dict': {}, **record.to_entry()}, tmp_path / 'file')
    read = require_record(read_checkpoint(tmp_path / 'file'), 'file')
    assert repr(read) == repr(record)  # NaN equals NaN in text alone


def test_a_record_from_before_formats_had_numbers_is_read():
    value = make_record(2).to_dict()
    assert value.pop('version') == VERSION
    del value['is_lr_computed']
    assert CheckpointRecord.from_dict(value, 'file') == make_record(2)


def test_a_checkpoint_without_a_record_has_none_and_may_be_refused():
    assert record_of({'state_dict': {}}, 'file') is None
    with pytest.raises(ValueError, match="'file' is not a checkpoint of a2aug_timm"):
        require_record({'state_dict': {}}, 'file')


DAMAGED = {
    'epoch': ['1', -2, None, 1.5, True], 'num_branches': [0, True, 4, '3'], 'own': ['batch norm', None, ['bn']],
    'branch_sizes': [[32], [32, 24, 0], 32, ['a', 'b', 'c']], 'judged_ema': [None, 1, 'yes'],
    'mu': [[0.5, 0.5], ['a', 'b', 'c'], 0.3, None], 'policies': ['abc', ['v0'], [1, 2, 3], None],
    'metrics': [[{}], [1, 2, 3], {}, [{'top1': 'good'}] * 3, [{1: 2.}] * 3], 'best_branch': [3, -1, None, '1', [0]],
    'config': [{}, None, {'architecture': 'test_resnet', 'num_classes': 3}, [],
               {'architecture': 'x', 'num_classes': 3, 'pretrained_cfg': {'mean': torch.ones(3)}},
               {'architecture': ['x'], 'num_classes': 3, 'pretrained_cfg': {}},
               {'architecture': 'x', 'num_classes': 3, 'pretrained_cfg': {}, 'model_args': [1]}],
    'data_config': [{}, {'input_size': 32}, {'input_size': [3, 32]}, {'input_size': ['3', 32, 32]}, None,
                    {'input_size': [3, 32, 32], 'mean': b'x'}],
    'is_lr_computed': ['no', None]}


@pytest.mark.parametrize('field, value', [(field, value) for field, values in DAMAGED.items() for value in values])
def test_a_wrong_field_is_refused_by_the_names_of_field_and_file(field, value):
    damaged = {**make_record(3).to_dict(), field: value}
    with pytest.raises(ValueError, match="the record of 'some/file'") as error:
        record_of({'a2aug': damaged}, 'some/file')
    # With another N it is the entries per branch that do not fit.
    assert f"the field '{field}'" in str(error.value) or field == 'num_branches'
    assert '\n' not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize('value', [None, [], 'record', 3, torch.zeros(2)])
def test_a_record_that_is_no_dict_is_refused(value):
    with pytest.raises(ValueError, match="the record of 'file' must be a dict"):
        record_of({'a2aug': value}, 'file')


@pytest.mark.parametrize('field', [
    field.name for field in dataclasses.fields(CheckpointRecord) if field.name != 'is_lr_computed'])
def test_a_missing_field_is_refused_by_name(field):
    value = make_record(3).to_dict()
    del value[field]
    with pytest.raises(ValueError, match=f"the record of 'file' lacks the field '{field}'"):
        CheckpointRecord.from_dict(value, 'file')


def test_a_newer_format_and_unknown_fields_are_refused():
    value = make_record(3).to_dict()
    with pytest.raises(ValueError, match=r"newer version of a2aug_timm wrote the record of 'file' \(format 99"):
        CheckpointRecord.from_dict({**value, 'version': 99, 'mu': 'of another kind'}, 'file')
    with pytest.raises(ValueError, match="unknown field 'num_heads'"):
        CheckpointRecord.from_dict({**value, 'num_heads': 2}, 'file')
    with pytest.raises(ValueError, match="the field 'version'"):
        CheckpointRecord.from_dict({**value, 'version': 'x'}, 'file')


@dataclass
class LaterRecord(CheckpointRecord):
    num_views: int = 7
    draws: list[int] = dataclasses.field(default_factory=list)


def test_a_field_with_a_default_reads_older_files_and_is_checked_in_its_own():
    older = make_record(3).to_dict()
    read = LaterRecord.from_dict(older, 'file')
    assert (read.num_views, read.draws) == (7, [])
    later = LaterRecord(**{**dataclasses.asdict(make_record(3)), 'num_views': 2}).to_dict()
    assert LaterRecord.from_dict(later, 'file').num_views == 2
    with pytest.raises(ValueError, match="the field 'num_views'"):
        LaterRecord.from_dict({**older, 'num_views': '2'}, 'file')


def test_any_value_in_any_field_is_read_or_refused_with_a_sentence():
    junk = [None, True, -1, 10 ** 30, float('inf'), '', 'bn', b'x', [], [[]], [None] * 3, {}, {1: {}}, torch.ones(3)]
    record = make_record(3).to_dict()
    outcomes = set()
    for field, value in itertools.product(record, junk):
        try:
            outcomes.add(type(CheckpointRecord.from_dict({**record, field: value}, 'file')))
        except ValueError as error:
            outcomes.add(type(error))
            assert 'file' in str(error)
    assert outcomes == {CheckpointRecord, ValueError}


def test_best_all_and_a_number_name_branches():
    record = make_record(3, best_branch=1)
    assert [record.resolve(name) for name in ('best', 'all', '2')] == [[1], [0, 1, 2], [2]]
    for name in ('3', '-1', 'one', ''):
        with pytest.raises(ValueError, match=f"there is no branch '{name}'; this checkpoint has branches 0 to 2"):
            record.resolve(name)
    shared = make_record(3, own='nothing')
    assert shared.resolve('all') == [0]
    with pytest.raises(ValueError, match='branches 0 to 0'):
        shared.resolve('1')


def test_a_branch_has_its_policy_size_and_metadata():
    record = make_record(
        2, policies=['v0', None], mu=[0.4, 0.6], branch_sizes=[32, 24], metrics=METRICS[:3], epoch=5,
        data_config={'input_size': (1, 64, 64), 'mean': (0.5,)})
    assert (record.policy_of(0), record.policy_of(1)) == ('v0', None)
    assert record.data_config_of(1) == {'input_size': (1, 24, 24), 'mean': (0.5,)}
    assert record.metadata(0) == {'policy': 'v0', 'mu': 0.4, 'metrics': METRICS[0], 'epoch': 5}
    assert record.data_config['input_size'] == (1, 64, 64)
    assert make_record(2).size_of(1) is None


def test_policies_that_share_the_model_are_named_together():
    record = make_record(2, own='nothing', policies=['v0', '3a'])
    assert record.policy_of(0) is None
    assert record.metadata(0) == {'policies': ['v0', '3a'], 'metrics': None, 'epoch': 0}


@pytest.mark.parametrize('value, hint, expected', [
    (1, float, True), (1., int, False), (True, int, False), (True, bool, True), (True, float, False),
    (None, int | None, True), ('', int | None, False), ([1, 2.], list[float], True), ((1, 2), list[int], True),
    ('ab', list[str], False), ([1, 'a'], tuple[int, str], True), ([1], tuple[int, str], False),
    ({'a': [1]}, dict[str, list[int]], True), ({'a': 1}, dict[str, list[int]], False), ({1: 1}, dict[str, Any], False),
    (object(), Any, True)])
def test_a_value_fits_a_type_or_not(value, hint, expected):
    assert fits(value, hint) is expected
