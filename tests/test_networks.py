"""The paper's networks that timm lacks: their size, what they compute, what they draw, and timm's interface."""
import copy
import subprocess
import sys

import pytest
import timm
import torch
from joint_and_separate import N, create, differences, make_branches_differ, separate_models
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

from a2aug_timm import convert_multi_branch_bn, export_branch, select_branch
from a2aug_timm.export import load_line
from a2aug_timm.models import PyramidNet, ShakeShakeNet, WideResNet
from a2aug_timm.models.shake import ShakeDrop, ShakeShake

# Of each network a narrow one of two blocks a stage, and one of a block a stage, where a stage may begin without a
# projection.
SMALL = {
    'wide_resnet16_2': {'depth': 16, 'width_factor': 2},
    'shake_shake26_2x32d': {'depth': 14, 'base_width': 8},
    'pyramidnet20_a30_shakedrop': {'depth': 20, 'widening': 30},
}
SMALLEST = {
    'wide_resnet16_2': {'depth': 10, 'width_factor': 1},
    'shake_shake26_2x32d': {'depth': 8, 'base_width': 16},
    'pyramidnet20_a30_shakedrop': {'depth': 11, 'widening': 30},
}
REGISTERED = [*SMALL, 'wide_resnet10_1', 'wide_resnet28_10', 'wide_resnet40_2', 'shake_shake26_2x96d',
              'pyramidnet272_a200_shakedrop']
small = pytest.mark.parametrize('arch', SMALL)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# Parameters, added up by hand: a norm of C channels has 2C, a k x k convolution k²·in·out, the classifier 10·C + 10.

def wide_resnet_parameters(num_blocks, width_factor):
    count, before = 9 * 3 * 16, 16
    for channels in (16 * width_factor, 32 * width_factor, 64 * width_factor):
        count += (2 * before + 9 * before * channels) + (2 * channels + 9 * channels ** 2)
        count += before * channels if before != channels else 0
        count += (num_blocks - 1) * 2 * (2 * channels + 9 * channels ** 2)
        before = channels
    return count + 2 * before + 10 * before + 10


def shake_shake_parameters(num_blocks, width):
    count, before = 9 * 3 * 16 + 2 * 16, 16
    for channels in (width, 2 * width, 4 * width):
        count += 2 * (9 * before * channels + 2 * channels + 9 * channels ** 2 + 2 * channels)
        count += 2 * before * (channels // 2) + 2 * channels
        count += (num_blocks - 1) * 2 * 2 * (9 * channels ** 2 + 2 * channels)
        before = channels
    return count + 10 * before + 10


def pyramidnet_parameters(num_blocks, widening):
    count, before = 9 * 3 * 16 + 2 * 16, 16
    for block in range(1, 3 * num_blocks + 1):
        # 16 + the block's share of α, rounded to the nearest by whole numbers.
        channels = (2 * (16 * 3 * num_blocks + block * widening) + 3 * num_blocks) // (2 * 3 * num_blocks)
        count += 2 * before + before * channels + 2 * channels + 9 * channels ** 2
        count += 2 * channels + 4 * channels ** 2 + 2 * 4 * channels
        before = 4 * channels
    return count + 2 * before + 10 * before + 10


@pytest.mark.parametrize('arch, by_hand, published', [
    ('wide_resnet10_1', wide_resnet_parameters(1, 1), 77_850),
    ('wide_resnet16_2', wide_resnet_parameters(2, 2), 691_674),
    ('wide_resnet40_2', wide_resnet_parameters(6, 2), 2_243_546),
    ('wide_resnet28_10', wide_resnet_parameters(4, 10), 36_479_194),
    ('shake_shake26_2x32d', shake_shake_parameters(4, 32), 2_923_162),
    ('shake_shake26_2x96d', shake_shake_parameters(4, 96), 26_192_922),
    ('pyramidnet20_a30_shakedrop', pyramidnet_parameters(2, 30), 123_245),
    ('pyramidnet272_a200_shakedrop', pyramidnet_parameters(30, 200), 26_210_842),
])
def test_a_network_has_as_many_parameters_as_its_architecture_says(arch, by_hand, published):
    with torch.device('meta'):
        assert num_parameters(timm.create_model(arch)) == by_hand == published


# Millions of parameters, to a decimal, in the table of depths and widths of "Wide Residual Networks".
@pytest.mark.parametrize('depth, width_factor, millions', [
    (40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (40, 8, 35.7), (28, 10, 36.5), (28, 12, 52.5), (22, 8, 17.2),
    (22, 10, 26.8), (16, 8, 11.0), (16, 10, 17.1)])
def test_any_wide_resnet_has_the_papers_number_of_parameters(depth, width_factor, millions):
    with torch.device('meta'):
        assert round(num_parameters(WideResNet(depth, width_factor)) / 1e6, 1) == millions


def test_a_wide_resnet_may_have_a_fractional_width():
    model = timm.create_model('wide_resnet10_1', width_factor=1.5)
    assert [info['num_chs'] for info in model.feature_info] == [24, 48, 96]
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


# Millions of parameters and features, in the table of bottlenecks in github.com/jhkim89/PyramidNet; some of it leaves
# out the norms, which are 0.2 M.
@pytest.mark.parametrize('depth, widening, millions, features', [
    (164, 48, 1.7, 256), (164, 84, 3.8, 400), (164, 270, 27.0, 1144), (200, 240, 26.6, 1024), (236, 220, 26.8, 944),
    (272, 200, 26.0, 864)])
def test_any_pyramidnet_has_the_papers_number_of_parameters(depth, widening, millions, features):
    with torch.device('meta'):
        model = PyramidNet(depth, widening)
    assert model.num_features == features
    assert abs(num_parameters(model) / 1e6 - millions) < 0.25


@pytest.mark.parametrize('build, match', [
    (lambda: WideResNet(28 + 1, 2), '6n \\+ 4'), (lambda: WideResNet(4, 2), '6n \\+ 4'),
    (lambda: ShakeShakeNet(28, 32), '6n \\+ 2'), (lambda: ShakeShakeNet(26, 31), 'even'),
    (lambda: PyramidNet(110, 48), None), (lambda: PyramidNet(112, 48), '9n \\+ 2')])
def test_a_depth_that_does_not_exist_is_refused(build, match):
    if match is None:
        build()
    else:
        with pytest.raises(ValueError, match=match):
            build()


@pytest.mark.parametrize('size', [28, 32])
@pytest.mark.parametrize('in_chans', [1, 3])
@small
def test_images_of_mnist_and_cifar_give_logits(arch, in_chans, size):
    model = timm.create_model(arch, in_chans=in_chans, num_classes=7, **SMALL[arch])
    images = torch.randn(2, in_chans, size, size)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, size // 4, size // 4)
    assert model(images).shape == (2, 7)


# What the networks compute, written once more with functions alone.

def batch_norm(x, weights, name, training):
    return F.batch_norm(
        x, weights[f'{name}.running_mean'].clone(), weights[f'{name}.running_var'].clone(), weights[f'{name}.weight'],
        weights[f'{name}.bias'], training)


def wide_resnet(x, w, num_blocks, training):
    x = F.conv2d(x, w['stem.conv.weight'], padding=1)
    for stage in range(3):
        for block in range(num_blocks):
            name, stride = f'stages.{stage}.{block}', 2 if stage and not block else 1
            first = F.relu(batch_norm(x, w, f'{name}.norm1', training))
            second = F.conv2d(first, w[f'{name}.conv1.weight'], stride=stride, padding=1)
            second = F.relu(batch_norm(second, w, f'{name}.norm2', training))
            second = F.conv2d(second, w[f'{name}.conv2.weight'], padding=1)
            projects = x.shape[1] != second.shape[1]
            x = second + (F.conv2d(first, w[f'{name}.shortcut.weight'], stride=stride) if projects else x)
    x = F.relu(batch_norm(x, w, 'norm', training))
    return F.linear(x.mean((2, 3)), w['head.fc.weight'], w['head.fc.bias'])


def shake_shake(x, w, num_blocks, training):
    x = batch_norm(F.conv2d(x, w['stem.conv.weight'], padding=1), w, 'stem.norm', training)
    for stage in range(3):
        for block in range(num_blocks):
            name, stride, y = f'stages.{stage}.{block}', 2 if stage and not block else 1, F.relu(x)
            total = 0
            for residual in (f'{name}.residual1', f'{name}.residual2'):
                z = F.conv2d(y, w[f'{residual}.conv1.weight'], stride=stride, padding=1)
                z = F.relu(batch_norm(z, w, f'{residual}.norm1', training))
                z = F.conv2d(z, w[f'{residual}.conv2.weight'], padding=1)
                total = total + 0.5 * batch_norm(z, w, f'{residual}.norm2', training)
            if f'{name}.shortcut.conv1.weight' in w:
                moved = torch.zeros_like(y)
                moved[:, :, 1:, 1:] = y[:, :, :-1, :-1]
                x = torch.cat([
                    torch.einsum('oi,bihw->bohw', w[f'{name}.shortcut.conv{i}.weight'][..., 0, 0], z)
                    for i, z in ((1, y[:, :, ::stride, ::stride]), (2, moved[:, :, ::stride, ::stride]))], 1)
                x = batch_norm(x, w, f'{name}.shortcut.norm', training)
            x = x + total
    return F.linear(F.relu(x).mean((2, 3)), w['head.fc.weight'], w['head.fc.bias'])


def pyramidnet(x, w, num_blocks, training):
    x = batch_norm(F.conv2d(x, w['stem.conv.weight'], padding=1), w, 'stem.norm', training)
    for stage in range(3):
        for block in range(num_blocks):
            name, stride = f'stages.{stage}.{block}', 2 if stage and not block else 1
            y = F.conv2d(batch_norm(x, w, f'{name}.norm1', training), w[f'{name}.conv1.weight'])
            y = F.relu(batch_norm(y, w, f'{name}.norm2', training))
            y = F.relu(batch_norm(
                F.conv2d(y, w[f'{name}.conv2.weight'], stride=stride, padding=1), w, f'{name}.norm3', training))
            y = batch_norm(F.conv2d(y, w[f'{name}.conv3.weight']), w, f'{name}.norm4', training)
            # ShakeDrop's expectation: 1 - 0.5 l / L.
            y = y if training else y * (1 - 0.5 * (stage * num_blocks + block + 1) / (3 * num_blocks))
            if stride == 2:
                x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
            y[:, :x.shape[1]] += x
            x = y
    x = F.relu(batch_norm(x, w, 'norm', training))
    return F.linear(x.mean((2, 3)), w['head.fc.weight'], w['head.fc.bias'])


def without_chance(arch, settings):
    """A network in training mode whose Shake-Shake takes the mean and whose ShakeDrop keeps."""
    model = create(arch, **settings[arch])
    for module in model.modules():
        if isinstance(module, ShakeShake):
            module.eval()
    return model


@pytest.mark.parametrize('settings', [SMALL, SMALLEST], ids=['small', 'smallest'])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('arch, reference', [*zip(SMALL, (wide_resnet, shake_shake, pyramidnet), strict=True)])
def test_a_network_computes_what_its_paper_says(arch, reference, training, settings):
    model = without_chance(arch, settings) if training else timm.create_model(arch, **settings[arch]).eval()
    model.double()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and 'conv' not in name and 'shortcut.weight' not in name:
            tensor.copy_(1 + 0.3 * torch.rand_like(tensor))
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = reference(images, weights, len(model.stages[0]), training)
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('arch, fan', [*zip(SMALL, (0, 1, 1), strict=True)])
def test_weights_start_as_in_the_authors_code(arch, fan):
    model = timm.create_model(arch)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            inputs_or_outputs = (module.in_channels, module.out_channels)[fan] * module.weight[0, 0].numel()
            assert abs(module.weight.std() / (2 / inputs_or_outputs) ** 0.5 - 1) < 0.06
            assert module.bias is None
    assert not model.head.fc.bias.any()


# What Shake-Shake and ShakeDrop draw: ones show the factors of the forward pass, gradients those of the other.

IMAGES = 4096


def factors(module, *inputs):
    """Factors of each input in the forward pass (with the others 0) and in the backward pass, one an image."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = module(*inputs)
    grads = torch.autograd.grad(output.sum(), inputs)
    for tensor in (output, *grads):
        assert torch.equal(tensor, tensor[:, :1, :1, :1].expand_as(tensor)), 'a factor is one of the whole image'
    return [tensor.detach()[:, 0, 0, 0] for tensor in (output, *grads)]


def test_shake_shake_draws_other_shares_for_each_image_and_each_pass():
    ones, zeros = torch.ones(IMAGES, 2, 2, 2), torch.zeros(IMAGES, 2, 2, 2)
    torch.manual_seed(0)
    alpha, beta, other_beta = factors(ShakeShake(), ones, zeros)
    torch.manual_seed(0)
    other_alpha, *_ = factors(ShakeShake(), zeros, ones)
    torch.testing.assert_close(alpha + other_alpha, torch.ones(IMAGES))
    torch.testing.assert_close(beta + other_beta, torch.ones(IMAGES))
    for share in (alpha, beta):
        assert share.unique().numel() > 0.99 * IMAGES and 0 <= share.min() < 0.01 and 0.99 < share.max() <= 1
        assert abs(share.mean() - 1 / 2) < 0.02 and abs(share.var() - 1 / 12) < 0.005
    assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1]) < 0.05


def test_shake_shake_in_eval_is_its_mean_and_has_its_own_gradient():
    a, b = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64).expand(2, IMAGES, 3, 2, 2)
    shake = ShakeShake()
    mean = shake(a, b).mean(0)
    assert (mean - shake.eval()(a, b)[0]).abs().max() < 0.03 * (a - b).abs().max()
    for factor in factors(shake, torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)):
        assert factor.tolist() == [0.5, 0.5]


@pytest.mark.parametrize('drop_prob', [0., 0.3, 1.])
def test_shake_drop_keeps_an_image_or_draws_other_factors_for_each_pass(drop_prob):
    alpha, beta = factors(ShakeDrop(drop_prob), torch.ones(IMAGES, 2, 2, 2))
    kept = alpha == 1
    assert torch.equal(kept, beta == 1) and abs(kept.double().mean() - (1 - drop_prob)) < 0.02
    assert abs(alpha.mean() - (1 - drop_prob)) < 0.03
    alpha, beta = alpha[~kept], beta[~kept]
    if drop_prob:
        assert -1 <= alpha.min() < -0.99 and 0.99 < alpha.max() < 1 and 0 <= beta.min() < 0.01 and 0.99 < beta.max() < 1
        assert abs(alpha.mean()) < 0.05 and abs(alpha.var() - 1 / 3) < 0.02
        assert abs(beta.mean() - 1 / 2) < 0.03 and abs(beta.var() - 1 / 12) < 0.01
        assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1]) < 0.08
    for factor in factors(ShakeDrop(drop_prob).eval(), torch.ones(2, 1, 1, 1)):
        torch.testing.assert_close(factor, torch.full((2,), 1 - drop_prob))


def test_the_chance_of_shake_drop_grows_evenly_up_to_the_last_block():
    with torch.device('meta'):
        model = timm.create_model('pyramidnet272_a200_shakedrop')
    chances = [module.drop_prob for module in model.modules() if isinstance(module, ShakeDrop)]
    assert chances == pytest.approx([0.5 * block / 90 for block in range(1, 91)])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_shaking_keeps_dtype_and_memory_format(dtype):
    a, b = torch.randn(2, 4, 3, 5, 5, dtype=dtype)
    a, b = (x.to(memory_format=torch.channels_last).requires_grad_() for x in (a, b))
    for output in (ShakeShake()(a, b), ShakeDrop(0.5)(a)):
        assert output.dtype == dtype and output.is_contiguous(memory_format=torch.channels_last)
        grad, = torch.autograd.grad(output.square().sum(), a)
        assert grad.dtype == dtype and grad.is_contiguous(memory_format=torch.channels_last)


# What training does to a network.

def step(model, images):
    """Outputs and gradients of one step with the same draws every time."""
    model.zero_grad()
    torch.manual_seed(1)
    outputs = model(images)
    outputs.square().sum().backward()
    return [outputs.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


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


# timm's interface.

def test_the_names_are_registered_and_timms_stay_timms():
    assert all(timm.is_model(arch) for arch in REGISTERED)
    assert timm.model_entrypoint('wide_resnet50_2').__module__ == 'timm.models.resnet'
    assert not set(REGISTERED) & set(timm.list_models(pretrained=True))


@pytest.mark.parametrize('arch', REGISTERED)
def test_the_description_is_that_of_the_network(arch):
    with torch.device('meta'):
        model = timm.create_model(arch)
    cfg, modules = model.pretrained_cfg, dict(model.named_modules())
    assert modules[cfg['first_conv']].in_channels == 3 and modules[cfg['classifier']].out_features == cfg['num_classes']
    assert (cfg['input_size'], cfg['pool_size'], cfg['fixed_input_size']) == ((3, 32, 32), (8, 8), False)
    data = timm.data.resolve_model_data_config(model)
    assert data['crop_pct'] == 1 and data['mean'] == (0.4914, 0.4822, 0.4465) and data['std'] == (0.247, 0.2435, 0.2616)


@small
def test_the_classifier_can_be_taken_away_and_replaced(arch):
    model = timm.create_model(arch, **SMALL[arch]).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(images), model.get_classifier()(pooled))
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(images), features)
    model.reset_classifier(4, 'catavgmax')
    assert model(images).shape == (2, 4) and model.head_hidden_size == 2 * model.num_features
    assert timm.create_model(arch, num_classes=0, global_pool='', **SMALL[arch])(images).shape == features.shape


@small
def test_dropout_comes_before_the_classifier(arch):
    model = timm.create_model(arch, drop_rate=1., **SMALL[arch])
    assert not model(torch.randn(2, 3, 32, 32)).any()


@pytest.mark.parametrize('feature_cls', ['list', 'getter'])
@small
def test_feature_maps_are_those_of_the_stages(arch, feature_cls):
    model = timm.create_model(arch, **SMALL[arch]).eval()
    backbone = timm.create_model(arch, features_only=True, feature_cls=feature_cls, **SMALL[arch]).eval()
    backbone.load_state_dict({
        key: value for key, value in zip(
            backbone.state_dict(), model.state_dict().values(), strict=False)})
    images = torch.randn(2, 3, 32, 32)
    final, stages = model.forward_intermediates(images)
    torch.testing.assert_close(final, model.forward_features(images))
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (channels, 32 // reduction, 32 // reduction) for channels, reduction in
        zip(backbone.feature_info.channels(), backbone.feature_info.reduction(), strict=True)]
    torch.testing.assert_close(backbone(images), stages)
    first, = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(first, stages[0])
    normed = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed[0], final)


@small
def test_layer_decay_gives_each_block_its_depth(arch):
    model = timm.create_model(arch, **SMALL[arch])
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scales = {id(parameter): group['lr_scale'] for group in groups for parameter in group['params']}
    assert len(scales) == len(list(model.parameters()))
    by_name = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    blocks = [f'stages.{stage}.{block}.' for stage in range(3) for block in range(len(model.stages[0]))]
    depths = [{scale for name, scale in by_name.items() if name.startswith(prefix)}
              for prefix in ('stem.', *blocks, 'head.')]
    assert depths == [{0.5 ** (len(blocks) + 1 - depth)} for depth in range(len(blocks) + 2)]
    assert timm.models.group_parameters(model, model.group_matcher(coarse=True)).keys() == {*range(5)}


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
