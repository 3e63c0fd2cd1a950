"""Validation of several checkpoints or models with one command."""
import csv
import shutil

import pytest
import timm
import torch

import a2aug_timm.validate.__main__ as validate
from a2aug_timm.export import export_branch
from tests.validate.reference import DIGITS


@pytest.fixture
def folder_of_checkpoints(run, tmp_path):
    """A run's folder as training leaves it, with a broken checkpoint, a foreign one and a plain one."""
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    shutil.copy(run / 'checkpoint-0.pth.tar', folder / 'checkpoint-2.pth.tar')
    shutil.copy(run / 'checkpoint-1.pth.tar', folder / 'checkpoint-10.pth.tar')
    shutil.copy(run / 'export' / 'model.safetensors', folder / 'best.safetensors')
    (folder / 'broken.pth').write_bytes((run / 'last.pth.tar').read_bytes()[:1000])
    torch.save({'weight': torch.zeros(1)}, folder / 'foreign.pth')
    (folder / 'notes.txt').write_text('no checkpoint')
    return folder


def test_a_folder_of_checkpoints_is_validated_file_by_file_and_one_that_fails_loses_no_other(
        data, folder_of_checkpoints, results, tmp_path, caplog, refused):
    folder, path = folder_of_checkpoints, tmp_path / 'all.csv'
    argv = [*data, '--model', 'test_resnet', '--branch', 'all']
    measured = results(*argv, '--checkpoint', folder, '--results-file', path)
    order = [result['top1'] for result in measured]
    assert order == sorted(order, reverse=True) and len(measured) == 9
    for name in ('checkpoint-2.pth.tar', 'checkpoint-10.pth.tar', 'best.safetensors'):
        own = [result for result in measured if result['checkpoint'] == str(folder / name)]
        alone = results(*data, '--checkpoint', folder / name, *([] if name.startswith('best') else argv[-2:]))
        alone = alone if isinstance(alone, list) else [alone]
        assert sorted(own, key=str) == sorted([{**one, 'checkpoint': str(folder / name)} for one in alone], key=str)
    with open(path, encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['checkpoint'] for row in rows] == [result['checkpoint'] for result in measured]
    assert {row['branch'] for row in rows} == {'0', '1', '2', 'ensemble', ''}
    assert "broken.pth' is not a checkpoint or is damaged" in caplog.text
    assert f'2 of 5 failed: {folder}/broken.pth, {folder}/foreign.pth' in caplog.text

    caplog.clear()
    alone = results(*data, '--checkpoint', folder, '--branch', '2')
    assert {result['branch'] for result in alone} == {2} and "there is no branch '2'" in caplog.text
    (tmp_path / 'empty').mkdir()
    assert 'no checkpoint in the folder' in refused(*argv, '--checkpoint', tmp_path / 'empty')


def test_an_interrupted_bulk_run_keeps_what_it_has(data, folder_of_checkpoints, results, tmp_path, monkeypatch):
    real = validate.measure

    def measure(args, candidate, batch_size):
        if args.checkpoint.endswith('checkpoint-10.pth.tar'):  # pytest's own folder may have a -10 too
            assert len((tmp_path / 'part.csv').read_text().splitlines()) == 3  # written before the next one begins
            raise KeyboardInterrupt
        return real(args, candidate, batch_size)

    monkeypatch.setattr(validate, 'measure', measure)
    measured = results(*data, '--checkpoint', folder_of_checkpoints, '--results-file', tmp_path / 'part.csv')
    assert {result['checkpoint'].rsplit('/')[-1] for result in measured} == {'best.safetensors', 'checkpoint-2.pth.tar'}


def test_a_bulk_run_without_any_result_ends_with_code_1(tmp_path, capsys):
    (tmp_path / 'broken.pth').write_text('')
    with pytest.raises(SystemExit) as exit_info:
        validate.main([*DIGITS, '--model', 'test_resnet', '--checkpoint', str(tmp_path), '--results-file',
                       str(tmp_path / 'r.csv')])
    assert exit_info.value.code == 1 and capsys.readouterr().out.endswith('--result\n[]\n')
    assert (tmp_path / 'r.csv').exists()


def test_models_by_wildcard_all_or_a_file_of_names_are_validated_with_pretrained_weights(
        image_folder, results, refused, monkeypatch, tmp_path, caplog):
    names = ['test_resnet.r160_in1k', 'test_vit.r160_in1k', 'test_efficientnet.r160_in1k']
    for name in names[:2]:  # the third has to be fetched, which fails here
        path = tmp_path / f'{name}.pth'
        torch.save(timm.create_model(name).state_dict(), path)
        monkeypatch.setattr(timm.models.get_pretrained_cfg(name, allow_unregistered=False), 'file', str(path))
        monkeypatch.setattr(
            timm.models._registry._model_pretrained_cfgs[name], 'file', str(path))
    data = ['--data-dir', image_folder, '--device', 'cpu', '-j', '0', '--img-size', '64']
    alone = [results(*data, '--model', name) for name in names[:2]]
    ranked = sorted(alone, key=lambda result: result['top1'], reverse=True)
    listed = tmp_path / 'names.txt'
    listed.write_text('\n'.join(names) + '\n\n')
    assert sorted(results(*data, '--model', listed), key=str) == sorted(ranked, key=str)
    assert '1 of 3 failed: test_efficientnet.r160_in1k' in caplog.text
    assert results(*data, '--model', 'test_resne*') == [alone[0]]
    asked = {}

    def list_models(**kwargs):
        asked.update(kwargs)
        return names[:1]

    monkeypatch.setattr(timm, 'list_models', list_models)
    assert results(*data, '--model', 'all') == [alone[0]]
    assert asked['pretrained'] and '*_in21k' in asked['exclude_filters']
    monkeypatch.undo()
    listed.write_text('test_resnet\nresnet51\n')
    assert "no model 'resnet51'" in refused(*data, '--model', listed)
    assert 'names 2' in refused(*data, '--model', listed, '--checkpoint', 'x.pth')
    assert "no pretrained model like 'nonesuch*'" in refused(*data, '--model', 'nonesuch*')
    listed.write_text('\n')
    assert 'names no model' in refused(*data, '--model', listed)


def test_an_export_in_a_folder_is_one_model(data, results, tmp_path):
    model = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    export_branch(model, 0, tmp_path / 'export', data_config={'input_size': (1, 32, 32)})
    assert isinstance(results(*data, '--checkpoint', tmp_path / 'export'), dict)
