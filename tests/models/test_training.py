"""The paper's networks in training: checkpointing, compilation, low precision, branches and export."""
import copy
import subprocess
import sys

import pytest
import timm
import torch

from a2aug_timm import convert_multi_branch_bn, export_branch, select_branch
from a2aug_timm.export import load_line
from tests.joint_and_separate import N, differences, make_branches_differ, separate_models
from tests.models.small_networks import SMALL, SMALLEST, small, step, without_chance


@small
def test_gradient_checkpointing_repeats_the_draws(arch):
    model = timm.create_model(arch, **SMALL[arch]).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = step(model, images)
    model.set_grad_checkpointing()
    torch.testing.assert_close(step(model, images), expected)


@small
def test_a_network_compiles_in_eval_as_one_graph(arch):
    model = timm.create_model(arch, **SMALLEST[arch]).double().eval()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = step(model, images)
    torch.testing.assert_close(step(torch.compile(model, fullgraph=True, backend='eager'), images), expected)


@small
def test_autocast_and_channels_last_train(arch):
    model = timm.create_model(arch, **SMALL[arch]).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    assert model.forward_features(images).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
        logits = model(images)
    logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.filterwarnings('ignore:.*torch.jit.*:FutureWarning')
@pytest.mark.filterwarnings('ignore:.*torch.jit.*:DeprecationWarning')
@small
def test_torch_script_gives_the_logits_and_refuses_to_train_by_other_rules(arch):
    model = timm.create_model(arch, **SMALL[arch]).eval()
    images = torch.randn(2, 3, 32, 32)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(images), model(images))
    if not arch.startswith('wide'):
        with pytest.raises(torch.jit.Error, match='annotated to be ignored and cannot be run'):
            scripted.train()(images)


# Branches.

@small
def test_a_joint_step_is_n_separate_steps(arch):
    plain = without_chance(arch, SMALL).double()
    joint = convert_multi_branch_bn(copy.deepcopy(plain), N)
    make_branches_differ(joint)
    found = differences(separate_models(plain, joint), joint, torch.randn(N * 3, 3, 32, 32, dtype=torch.float64))
    assert found['outputs'] < 1e-9 and found['statistics'] < 1e-9 and found['gradients'] < 1e-6, found


@small
def test_branches_train_with_the_same_draws_compiled_as_one_graph_and_checkpointed(arch):
    model = convert_multi_branch_bn(timm.create_model(arch, **SMALLEST[arch]).double(), N)
    images = torch.randn(N * 3, 3, 16, 16, dtype=torch.float64)
    expected = step(model, images)
    torch.testing.assert_close(step(torch.compile(model, fullgraph=True, backend='eager'), images), expected)
    model.set_grad_checkpointing()
    torch.testing.assert_close(step(model, images), expected)


def test_the_line_that_loads_an_export_imports_this_package_where_timm_needs_it():
    assert load_line('resnet18', 'F') == "timm.create_model('local-dir:F', pretrained=True)"
    assert load_line('wide_resnet40_2', 'F') == "import a2aug_timm; timm.create_model('local-dir:F', pretrained=True)"


LOAD = '''
import sys, timm, torch
folder, archs = sys.argv[1], sys.argv[2:]
for arch in archs:
    try:
        timm.create_model(f'local-dir:{folder}/{arch}', pretrained=True)
    except RuntimeError as error:
        assert arch in str(error)
    else:
        raise SystemExit('timm alone knows this network')
import a2aug_timm
images = torch.load(f'{folder}/images')
for arch in archs:
    models = [
        timm.create_model(f'local-dir:{folder}/{arch}', pretrained=True),
        timm.create_model(arch, pretrained_file=f'{folder}/{arch}/model.safetensors'),
        timm.create_model(arch, checkpoint_path=f'{folder}/{arch}/checkpoint.pth.tar', num_classes=5, in_chans=1),
    ]
    with torch.no_grad():
        torch.save([model.eval()(images) for model in models], f'{folder}/{arch}/logits')
'''


def test_an_export_loads_where_this_package_is_imported(tmp_path):
    images = torch.randn(2, 1, 28, 28)
    torch.save(images, tmp_path / 'images')
    expected = {}
    for arch in SMALL:
        joint = convert_multi_branch_bn(timm.create_model(arch, in_chans=1, num_classes=5), N).eval()
        make_branches_differ(joint)
        export_branch(joint, 1, tmp_path / arch)
        with torch.no_grad(), select_branch(joint, 1):
            expected[arch] = joint(images)
    subprocess.run([sys.executable, '-c', LOAD, tmp_path, *SMALL], check=True)
    for arch in SMALL:
        assert all(torch.equal(logits, expected[arch]) for logits in torch.load(tmp_path / arch / 'logits'))
