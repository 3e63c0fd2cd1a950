"""The paper's networks that timm lacks: their size, what they compute and how their weights start."""
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from a2aug_timm.models import PyramidNet, ShakeShakeNet, WideResNet
from tests.models.small_networks import SMALL, SMALLEST, small, without_chance


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
