"""Export: four ways back, bit for bit, in a process that has never heard of this package."""
import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors import safe_open

import a2aug_timm
from a2aug_timm import convert_multi_branch_bn, export_branch, select_branch
from a2aug_timm.engine.checkpoint import read_checkpoint
from a2aug_timm.engine.files import remove_unfinished
from a2aug_timm.export import create_from_config, model_config, read_config

FOREIGN = '''
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'a2aug_timm':
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
import timm, torch
folder, arch, num_classes, in_chans, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
images = torch.load(out + '.images')
chans = {} if in_chans == 3 else {'in_chans': in_chans}
routes = [
    timm.create_model('local-dir:' + folder, pretrained=True),
    timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=dict(
        file=folder + '/model.safetensors', num_classes=num_classes), **chans),
    timm.create_model(arch, num_classes=num_classes, checkpoint_path=folder + '/checkpoint.pth.tar', **chans),
]
with torch.no_grad():
    torch.save([model.eval()(images) for model in routes], out)
'''


def trained_model(arch, in_chans, num_classes=6):
    torch.manual_seed(0)
    model = convert_multi_branch_bn(timm.create_model(arch, num_classes=num_classes, in_chans=in_chans), 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        views = torch.randn(6, in_chans, 32, 32) * torch.tensor([1., 1., 2., 2., 3., 3.])[:, None, None, None]
        model(views).square().mean().backward()
        optimizer.step()
    return model.eval()


DATA = dict(input_size=(1, 32, 32), mean=(0.3,), std=(0.35,), interpolation='bilinear', crop_pct=1., crop_mode='center')


@pytest.mark.parametrize('arch, in_chans', [('test_resnet', 1), ('test_efficientnet', 3), ('test_resnet', 4)])
def test_every_route_gives_the_branchs_logits_bit_for_bit(tmp_path, arch, in_chans):
    model = trained_model(arch, in_chans).to(memory_format=torch.channels_last)
    images = torch.randn(4, in_chans, 32, 32)
    data = {**DATA, 'input_size': (in_chans, 32, 32), 'mean': (0.3,) * in_chans, 'std': (0.35,) * in_chans}
    folder = tmp_path / 'export'
    export_branch(model, 1, folder, data_config=data)
    model.to(memory_format=torch.contiguous_format)
    with torch.no_grad(), select_branch(model, 1):
        expected = model(images)

    torch.save(images, tmp_path / 'out.images')
    subprocess.run([sys.executable, '-c', FOREIGN, folder, arch, '6', str(in_chans), tmp_path / 'out'], check=True)
    logits = torch.load(tmp_path / 'out')
    for name in ('model.safetensors', 'checkpoint.pth.tar'):
        ours = timm.create_model(arch, pretrained_file=folder / name)
        with torch.no_grad():
            logits.append(ours.eval()(images))
    assert len(logits) == 5
    for one in logits:
        assert torch.equal(one, expected)


def test_the_folder_says_what_it_is(tmp_path):
    model = trained_model('test_resnet', 1)
    metadata = {'policy': 'rand-m9-n2', 'mu': 0.4, 'metrics': {'top1': 90.}}
    export_branch(model, 2, tmp_path, data_config=DATA, label_names=list('abcdef'), metadata=metadata)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['architecture'] == 'test_resnet' and config['num_classes'] == 6
    assert config['label_names'] == list('abcdef') and 'num_classes' not in config['model_args']
    for key in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode'):
        value = config['pretrained_cfg'][key]
        assert (tuple(value) if isinstance(value, list) else value) == DATA[key]
    with safe_open(tmp_path / 'model.safetensors', 'pt') as file:
        assert json.loads(file.metadata()['metadata']) == {**metadata, 'branch': 2}
    checkpoint = torch.load(tmp_path / 'checkpoint.pth.tar', weights_only=True)
    assert checkpoint['metadata'] == {**metadata, 'branch': 2} and checkpoint['arch'] == 'test_resnet'
    assert checkpoint['metric'] == 90.  # what timm's avg_checkpoints.py ranks by
    assert timm.create_model(f'local-dir:{tmp_path}', pretrained=True).pretrained_cfg['label_names'] == list('abcdef')


def test_a_model_is_built_again_with_the_arguments_it_had(tmp_path):
    model = timm.create_model(
        'test_efficientnet', num_classes=4, in_chans=2, global_pool='max', bn_eps=1e-3, drop_rate=0.3)
    again = create_from_config(model_config(model))
    assert (again.num_classes, again.conv_stem.in_channels, again.bn1.eps) == (4, 2, 1e-3)
    images = torch.randn(2, 2, 32, 32)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images), model.eval()(images))


def test_a_plain_model_is_branch_0_and_wrong_branches_are_refused(tmp_path):
    model = timm.create_model('test_resnet', num_classes=4)
    export_branch(model, 0, tmp_path)
    loaded = timm.create_model('test_resnet', pretrained_file=tmp_path / 'model.safetensors')
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match='no branch 1'):
        export_branch(model, 1, tmp_path)
    with pytest.raises(ValueError, match='no branch 3'):
        export_branch(trained_model('test_resnet', 1), 3, tmp_path)


def test_pretrained_file_passes_other_calls_through_and_adapts_the_head(tmp_path, monkeypatch):
    model = timm.create_model('test_resnet', num_classes=4, in_chans=1)
    export_branch(model, 0, tmp_path)
    file = tmp_path / 'model.safetensors'
    wrapped = timm.create_model
    a2aug_timm.add_pretrained_file()
    assert timm.create_model is wrapped is timm.models.create_model
    assert timm.create_model('test_resnet', num_classes=7).num_classes == 7

    other_head = timm.create_model('test_resnet', num_classes=9, pretrained_file=file)
    assert other_head.num_classes == 9 and torch.equal(other_head.conv1[0].weight, model.conv1[0].weight)
    alone = tmp_path / 'elsewhere' / 'weights.safetensors'
    alone.parent.mkdir()
    alone.write_bytes(file.read_bytes())
    assert timm.create_model('test_resnet', pretrained_file=alone).num_classes == 4
    with pytest.raises(ValueError, match='holds a test_resnet, not a resnet18'):
        timm.create_model('resnet18', pretrained_file=file)
    with pytest.raises(ValueError, match='no checkpoint'):
        timm.create_model('test_resnet', pretrained_file=tmp_path / 'nowhere.safetensors')


def test_plain_weights_take_their_config_from_the_folder_or_the_call(tmp_path):
    model = timm.create_model('test_resnet', num_classes=4)
    torch.save(model.state_dict(), tmp_path / 'plain.pth')
    assert read_config(tmp_path / 'plain.pth') is None
    loaded = timm.create_model('test_resnet', num_classes=4, pretrained_file=tmp_path / 'plain.pth')
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    (tmp_path / 'config.json').write_text(json.dumps(model_config(model)))
    assert timm.create_model('test_resnet', pretrained_file=tmp_path / 'plain.pth').num_classes == 4


@pytest.mark.parametrize('beside', ['null', '[1]', '{"model_type": "bert"}', '{"architecture": 1, "num_classes": 2}'])
def test_a_config_of_another_library_is_no_description(tmp_path, beside):
    torch.save({'state_dict': {}, 'config': {'lr': 0.1}}, tmp_path / 'theirs.pth')
    assert read_config(tmp_path / 'theirs.pth') is None
    torch.save({'state_dict': {}}, tmp_path / 'plain.pth')
    (tmp_path / 'config.json').write_text(beside)
    assert read_config(tmp_path / 'plain.pth') is None


def test_a_damaged_config_beside_the_weights_is_refused(tmp_path):
    torch.save({'state_dict': {}}, tmp_path / 'plain.pth')
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(ValueError, match='config.json. is not a JSON file'):
        read_config(tmp_path / 'plain.pth')


@pytest.mark.parametrize('changes, words', [
    ({'architecture': 'no_such_net'}, "no model 'no_such_net'"),
    ({'model_args': {'pretrained': True}}, "must not set the argument 'pretrained'"),
    ({'model_args': {'checkpoint_path': 'code.pth'}}, "must not set the argument 'checkpoint_path'"),
    ({'model_args': {'no_such_argument': 1}}, 'does not fit it'),
    ({'model_args': {'global_pool': 1.5}}, 'does not fit it'),
    ({'pretrained_cfg': {'no_such_field': 1}}, 'does not fit it')])
def test_a_description_that_timm_cannot_build_or_that_names_other_weights_is_refused(changes, words):
    config = {'architecture': 'test_resnet', 'num_classes': 3, 'pretrained_cfg': {}}
    assert create_from_config(config).num_classes == 3
    with pytest.raises(ValueError, match=words):
        create_from_config({**config, **changes})


KILLED = '''
import os, random, signal, sys, time
import timm, torch
from a2aug_timm import export_branch
torch.set_num_threads(1)
model = timm.create_model('resnet18')
export_branch(model, 0, sys.argv[1])
for _ in range(6):
    child = os.fork()
    if not child:
        while True:
            export_branch(model, 0, sys.argv[1])
    time.sleep(0.4 + 0.3 * random.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
'''


def test_a_killed_export_leaves_whole_files_and_only_leftovers_that_a_restart_removes(tmp_path):
    subprocess.run([sys.executable, '-c', KILLED, tmp_path], check=True)
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'config.json', 'checkpoint.pth.tar', 'model.safetensors'}
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    checkpoint = read_checkpoint(tmp_path / 'checkpoint.pth.tar')
    assert all(torch.equal(value, checkpoint['state_dict'][key]) for key, value in model.state_dict().items())
