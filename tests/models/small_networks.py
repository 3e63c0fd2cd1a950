"""Small networks of each family, for tests."""
import pytest
import torch

from a2aug_timm.models.shake import ShakeShake
from tests.joint_and_separate import create

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


def without_chance(arch, settings):
    """A network in training mode whose Shake-Shake takes the mean and whose ShakeDrop keeps."""
    model = create(arch, **settings[arch])
    for module in model.modules():
        if isinstance(module, ShakeShake):
            module.eval()
    return model


def step(model, images):
    """Outputs and gradients of one step with the same draws every time."""
    model.zero_grad()
    torch.manual_seed(1)
    outputs = model(images)
    outputs.square().sum().backward()
    return [outputs.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
