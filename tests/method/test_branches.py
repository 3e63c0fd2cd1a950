"""Branches: joint training equals separate plain models, and an extracted branch is what timm builds."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

from a2aug_timm import (
    MultiBranchBN,
    MultiBranchNetwork,
    MultiBranchNorm,
    convert_multi_branch_bn,
    convert_multi_branch_norm,
    extract_branch,
    select_branch,
)
from a2aug_timm.branches import create_branches, num_branches_of, plain_parameter_names
from a2aug_timm.logits import branch_logits, joint_logits

N, B = 3, 4


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), BatchNormAct2d(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))


def sequence_net():
    return nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(
        6 * 79, 4))


def momentless_net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6, track_running_stats=False), nn.Flatten(), nn.LazyLinear(4))


def separate_models(plain):
    """N plain models with the same weights, each with batch norm parameters and statistics of its own."""
    models = []
    for branch in range(N):
        model = copy.deepcopy(plain)
        for norm in norms(model):
            with torch.no_grad():
                norm.weight.add_(0.1 * branch)
                norm.bias.sub_(0.2 * branch)
                if norm.track_running_stats:
                    norm.running_mean.add_(0.3 * branch)
        models.append(model)
    return models


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def joint_model(plain, separate):
    joint = convert_multi_branch_bn(copy.deepcopy(plain), N)
    layers = [module for module in joint.modules() if isinstance(module, MultiBranchBN)]
    for branch, model in enumerate(separate):
        for layer, norm in zip(layers, norms(model), strict=True):
            layer.branches[branch].load_state_dict(norm.state_dict())
    return joint


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('build', [conv_net, sequence_net, momentless_net])
def test_a_joint_forward_pass_equals_n_separate_ones_with_their_statistics_and_gradients(build, channels_last):
    images = torch.randn(N * B, 3, 9, 9, dtype=torch.float64)
    plain = build().double()
    plain(images)
    separate = separate_models(plain)
    joint = joint_model(plain, separate)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
        joint.to(memory_format=torch.channels_last)

    weights = torch.randn(N * B, 4, dtype=torch.float64)
    for _ in range(2):  # twice, so that running statistics have moved
        outputs = joint(images)
        expected = torch.cat([model(view) for model, view in zip(separate, images.chunk(N), strict=True)])
        torch.testing.assert_close(outputs, expected)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()

    for branch, model in enumerate(separate):
        extracted = extract_branch(joint, branch)
        torch.testing.assert_close(extracted.state_dict(), model.state_dict())
    sums = {}
    for branch, model in enumerate(separate):
        for name, parameter in model.named_parameters():
            owner, _, leaf = name.rpartition('.')
            is_norm = isinstance(model.get_submodule(owner), nn.modules.batchnorm._BatchNorm)
            key = f'{owner}.branches.{branch}.{leaf}' if is_norm else name
            sums[key] = sums.get(key, 0) + parameter.grad
    assert sums.keys() == dict(joint.named_parameters()).keys()
    for name, parameter in joint.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name], msg=lambda text, name=name: f'{name}: {text}')


@pytest.mark.parametrize('build', [conv_net, sequence_net])
def test_a_selected_branch_equals_its_plain_model_in_eval_and_in_training(build):
    images = torch.randn(B, 3, 9, 9)
    plain = build()
    separate = separate_models(plain)
    joint = joint_model(plain, separate)
    joint.eval()
    for branch, model in enumerate(separate):
        with select_branch(joint, branch):
            assert torch.equal(joint(images), model.eval()(images))
    assert torch.equal(branch_logits_of(joint, images), torch.stack([model(images) for model in separate]))
    joint.train()
    before = copy.deepcopy(joint.state_dict())
    with select_branch(joint, 1):
        assert torch.equal(joint(images), separate[1].train()(images))
    moved = {name for name, value in joint.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all('.branches.1.' in name for name in moved)


def test_separate_networks_equal_as_many_plain_models():
    torch.manual_seed(0)
    separate = [timm.create_model('test_resnet', num_classes=3) for _ in range(N)]
    images, weights = torch.randn(N * B, 3, 32, 32), torch.randn(N * B, 3)
    joint = MultiBranchNetwork(copy.deepcopy(model) for model in separate)
    expected = torch.cat([model(view) for model, view in zip(separate, images.chunk(N), strict=True)])
    logits = joint(images)
    assert torch.equal(logits, expected)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    plain = plain_parameter_names(joint)
    for name, parameter in joint.named_parameters():
        branch = int(name.split('.')[1])
        assert plain[name] == name.removeprefix(f'branches.{branch}.')
        torch.testing.assert_close(parameter.grad, separate[branch].get_parameter(plain[name]).grad)
    for branch in range(N):
        extracted = extract_branch(joint, branch)
        assert type(extracted) is type(separate[0])
        torch.testing.assert_close(extracted.state_dict(), separate[branch].state_dict())
    assert torch.equal(branch_logits_of(joint.eval(), images),
                       torch.stack([extract_branch(joint, branch)(images) for branch in range(N)]))


@pytest.mark.parametrize('own', ['nothing', 'bn', 'norms', 'network'])
def test_branches_of_different_sizes_equal_plain_models_on_resized_views(own):
    model = create_branches(lambda: timm.create_model('test_resnet', num_classes=3), N, own)
    sizes = [32, 24, 20][:N]
    images = torch.randn(N * B, 3, 32, 32)
    plain = [model if own == 'nothing' else extract_branch(model, branch) for branch in range(N)]
    views = [F.interpolate(view, (size, size), mode='bilinear', antialias=True)
             for view, size in zip(images.chunk(N), sizes, strict=True)]
    expected = torch.cat([one.train()(view) for one, view in zip(plain, views, strict=True)])
    torch.testing.assert_close(joint_logits(model.train(), images, N, sizes), expected)
    logits = branch_logits(model.eval(), images[:B], sizes)
    if own == 'nothing':  # a shared network is evaluated on images of their own size
        torch.testing.assert_close(logits, model(images[:B]).unsqueeze(0))
        return
    for branch, size in enumerate(sizes):
        small = F.interpolate(images[:B], (size, size), mode='bilinear', antialias=True)
        torch.testing.assert_close(logits[branch], extract_branch(model, branch)(small))


def branch_logits_of(model, images):
    logits = branch_logits(model, images)
    assert all(module.branch is None for module in model.modules() if isinstance(module, MultiBranchBN))
    return logits


@pytest.mark.parametrize('name, size', [('test_resnet', 32), ('test_efficientnet', 32), ('levit_128s', 224)])
def test_timm_models_train_jointly_and_extract_as_timm_built_them(name, size):
    plain = timm.create_model(name, num_classes=5)
    model = convert_multi_branch_bn(timm.create_model(name, num_classes=5), 2)
    model(torch.randn(4, 3, size, size)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    before = copy.deepcopy(model.state_dict())
    with select_branch(model.eval(), 1):
        expected = model(torch.ones(1, 3, size, size))  # with a graph, since some models cache tensors of it

    extracted = extract_branch(model, 1)
    assert torch.equal(extracted(torch.ones(1, 3, size, size)), expected)
    assert [(key, type(module)) for key, module in extracted.named_modules()] == [
        (key, type(module)) for key, module in plain.named_modules()]
    assert list(extracted.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        for parameter in extracted.parameters():
            parameter.zero_()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_all_branches_start_as_copies_of_the_original_layer_in_its_mode():
    norm = BatchNormAct2d(4, eps=0.1, act_layer=nn.SiLU).eval()
    norm.running_mean.fill_(3.)
    layer = MultiBranchBN(norm, 2)
    assert not layer.training and not layer.branches[0].training
    layer.branches[0].running_mean.zero_()
    assert layer.branches[1].running_mean[0] == norm.running_mean[0] == 3
    assert isinstance(layer.branches[1].act, nn.SiLU) and layer.branches[1].eps == 0.1


@pytest.mark.parametrize('norm', [
    BatchNormAct2d(6, act_layer=nn.PReLU), BatchNormAct2d(6, act_layer=nn.SiLU), nn.BatchNorm2d(6, affine=False),
    nn.BatchNorm2d(6, eps=1e-2, momentum=None)], ids=['prelu', 'silu', 'not affine', 'cumulative'])
def test_a_layer_equals_its_separate_branches_up_to_the_second_derivative(norm):
    layer = MultiBranchBN(norm.double(), N)
    for branch in layer.branches:
        for parameter in branch.parameters():
            nn.init.normal_(parameter)
    x = torch.randn(N * B, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    apart = copy.deepcopy(layer)

    def derivatives(function, layer):
        out = function(x)
        first = torch.autograd.grad((out ** 2).sum(), [x, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(sum((one ** 2).sum() for one in first), [x, *layer.parameters()])
        return out, first, second

    expected = derivatives(
        lambda x: torch.cat([branch(view) for branch, view in zip(apart.branches, x.chunk(N), strict=True)]), apart)
    torch.testing.assert_close(derivatives(layer, layer), expected)
    torch.testing.assert_close(layer.state_dict(), apart.state_dict())
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        layer(torch.randn(N, 6, 1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match='expected 4D'):
        MultiBranchBN(nn.BatchNorm2d(6), N)(torch.randn(N * B, 6))


def test_a_frozen_branch_keeps_its_statistics():
    layer = MultiBranchBN(nn.BatchNorm2d(6), N)
    layer.branches[1].eval().requires_grad_(False)
    before = copy.deepcopy(layer.branches[1].state_dict())
    x = torch.randn(N * B, 6, 5, 5)
    out = layer(x)
    assert torch.equal(out[B:2 * B], layer.branches[1](x[B:2 * B]))
    out.sum().backward()
    torch.testing.assert_close(layer.branches[1].state_dict(), before)
    assert layer.branches[1].weight.grad is None and layer.branches[0].weight.grad is not None


def test_eval_without_a_branch_and_an_indivisible_batch_raise_errors():
    layer = MultiBranchBN(nn.BatchNorm2d(4), 3)
    with pytest.raises(ValueError, match='4 rows'):
        layer(torch.randn(4, 4, 2, 2))
    with pytest.raises(RuntimeError, match='select_branch'):
        layer.eval()(torch.randn(3, 4, 2, 2))
    with pytest.raises(ValueError, match='at least 2'):
        MultiBranchBN(nn.BatchNorm2d(4), 1)


def test_select_branch_restores_the_previous_branch_even_after_an_error():
    model = convert_multi_branch_bn(conv_net(), N)
    layer = next(module for module in model.modules() if isinstance(module, MultiBranchBN))
    select_branch(model, 2)
    with select_branch(model, 0):
        with pytest.raises(KeyError), select_branch(model, None):
            assert layer.branch is None
            raise KeyError
        assert layer.branch == 0
    assert layer.branch == 2
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f'no branch {wrong}'):
            select_branch(model, wrong)
        with pytest.raises(ValueError, match=f'no branch {wrong}'):
            extract_branch(model, wrong)
    with pytest.raises(ValueError, match='no branches'):
        select_branch(conv_net(), 0)
    with pytest.raises(ValueError, match='no branches'):
        extract_branch(conv_net(), 0)


def test_conversion_replaces_only_batch_norms_and_names_the_norms_that_it_found_instead():
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.SyncBatchNorm(3), nn.GroupNorm(1, 3))
    assert convert_multi_branch_bn(model, 2) is model
    assert [type(module).__name__ for module in model] == ['InstanceNorm2d', 'MultiBranchBN', 'GroupNorm']
    assert num_branches_of(model) == 2 and num_branches_of(conv_net()) == 1
    with pytest.raises(ValueError, match='branches already'):
        convert_multi_branch_bn(model, 2)
    with pytest.raises(ValueError, match='LayerNorm'):
        convert_multi_branch_bn(timm.create_model('test_vit'), 2)
    assert isinstance(convert_multi_branch_bn(nn.BatchNorm2d(3), 2), MultiBranchBN)


def test_a_layer_that_is_used_twice_stays_one_layer():
    norm = nn.BatchNorm2d(3)
    model = convert_multi_branch_bn(nn.ModuleDict({'a': norm, 'b': norm, 'c': nn.Sequential(norm)}), 2)
    assert model['a'] is model['b'] is model['c'][0]
    extracted = extract_branch(model, 0)
    assert extracted['a'] is extracted['b'] is extracted['c'][0] and type(extracted['a']) is nn.BatchNorm2d


def test_synchronized_branches_extract_as_plain_batch_norms():
    plain = conv_net().double().eval()
    plain[1].weight.requires_grad_(False)
    model = convert_sync_batchnorm(convert_multi_branch_bn(copy.deepcopy(plain), 2))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    extracted = extract_branch(model, 1)
    assert [type(module) for module in extracted.modules()] == [type(module) for module in plain.modules()]
    assert [p.requires_grad for p in extracted.parameters()] == [p.requires_grad for p in plain.parameters()]
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert torch.equal(extracted(images), plain(images))


@pytest.mark.parametrize('kind', [BatchNormAct2d, nn.BatchNorm2d])
def test_synchronized_branches_can_be_recomputed(kind):  # without a process group they compute plain batch norms
    layer = convert_sync_batchnorm(MultiBranchBN(kind(6), 2))
    assert isinstance(layer.branches[0], nn.SyncBatchNorm)
    x = torch.randn(8, 6, 4, 4, requires_grad=True)
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert all(branch.num_batches_tracked == 1 for branch in layer.branches)
    assert not torch.equal(layer.branches[0].running_mean, torch.zeros(6))


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_gradient_checkpointing_changes_no_gradient_and_updates_statistics_once(use_reentrant):
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None), BatchNormAct2d(6))
    model = convert_multi_branch_bn(plain, N)
    checkpointed = copy.deepcopy(model)
    images = torch.randn(N * B, 3, 8, 8, requires_grad=True)
    weights = torch.randn(N * B, 6, 6, 6)
    (model(images) * weights).sum().backward()
    (torch.utils.checkpoint.checkpoint(checkpointed, images, use_reentrant=use_reentrant) * weights).sum().backward()
    assert all(layer.branches[0].num_batches_tracked == 1 for layer in checkpointed[1:])
    for own, other in ((model.state_dict(), checkpointed.state_dict()),
                       *(({'': p.grad}, {'': q.grad}) for p, q in zip(
                           model.parameters(), checkpointed.parameters(), strict=True))):
        for key, value in own.items():
            torch.testing.assert_close(other[key], value)


@pytest.mark.parametrize('name', ['test_vit', 'test_convnext', 'test_mambaout', 'test_byobnet'])
def test_every_norm_layer_of_a_network_can_have_branches(name):
    plain = timm.create_model(name, num_classes=5).double()
    model = convert_multi_branch_norm(copy.deepcopy(plain), N).train()
    layers = [module for module in model.modules() if isinstance(module, MultiBranchNorm)]
    with torch.no_grad():
        for layer in layers:
            for branch, norm in enumerate(layer.branches):
                norm.weight.mul_(1 + 0.2 * branch)
    copies = [extract_branch(model, branch) for branch in range(N)]
    assert [type(module) for module in copies[0].modules()] == [type(module) for module in plain.modules()]
    images = torch.randn(N * B, *plain.pretrained_cfg['input_size'], dtype=torch.float64)
    outputs = [one(view) for one, view in zip(copies, images.chunk(N), strict=True)]
    torch.testing.assert_close(model(images), torch.cat(outputs))
    assert not torch.allclose(outputs[0][0], copies[1](images[:B])[0])


def test_a_network_without_norms_and_layers_without_parameters_get_no_branches():
    with pytest.raises(ValueError, match='Linear has no norm layer'):
        convert_multi_branch_norm(nn.Linear(2, 2), N)
    model = convert_multi_branch_norm(nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False)), N)
    assert isinstance(model[0], MultiBranchNorm) and isinstance(model[1], nn.LayerNorm)
