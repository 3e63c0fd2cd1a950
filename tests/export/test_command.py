"""The export command: any branch of any checkpoint."""
import torch

from a2aug_timm import sample_policies
from a2aug_timm.export.__main__ import main as export_main
from tests.commands import refused


def test_any_branch_is_exported_from_any_checkpoint(finished, tmp_path, capsys):
    export_main([str(finished / 'last.pth.tar'), '--branch', 'all', '-o', str(tmp_path / 'all')])
    for i in range(3):
        metadata = torch.load(tmp_path / 'all' / f'branch-{i}' / 'checkpoint.pth.tar', weights_only=True)['metadata']
        assert metadata['branch'] == i and metadata['policy'] == sample_policies(3, 42)[i]
    export_main([str(finished / 'last.pth.tar'), '-o', str(tmp_path / 'best')])
    exported, original = (torch.load(folder / 'checkpoint.pth.tar', weights_only=True)
                          for folder in (tmp_path / 'best', finished / 'export'))
    assert exported['metadata'] == original['metadata'] and exported['config'] == original['config']
    assert all(torch.equal(value, original['state_dict'][key]) for key, value in exported['state_dict'].items())
    for argv, words in (([finished / 'last.pth.tar', '--branch', '5'], "no branch '5'"), (['nowhere'], 'no checkpoint'),
                        ([finished / 'export' / 'checkpoint.pth.tar'], 'not a checkpoint of')):
        assert words in refused(capsys, export_main, [*argv, '-o', tmp_path / 'no'])
    (tmp_path / 'file').touch()
    assert 'File exists' in refused(capsys, export_main, [finished / 'last.pth.tar', '-o', tmp_path / 'file'])
    assert not (tmp_path / 'no').exists()
