"""Reference of joint training: N separate plain models, compared with one network of N branches."""
import copy
import re
from collections.abc import Callable, Iterator

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from a2aug_timm import MultiBranchNorm

N = 2
NUM_CLASSES = 5


def create(arch: str, **kwargs) -> nn.Module:
    """A timm model in training mode whose forward draws nothing and whose every layer matters to its outputs."""
    classes = {} if kwargs.get('features_only') else {'num_classes': NUM_CLASSES}
    model = timm.create_model(arch, **classes, **kwargs).train()
    for module in model.modules():
        for name, value in list(vars(module).items()):
            # `p` is a dropout's rate, but a pooling's exponent.
            is_rate = re.search('drop', name) or (name == 'p' and isinstance(module, nn.modules.dropout._DropoutNd))
            if is_rate and isinstance(value, float):
                setattr(module, name, 0.)
        if isinstance(module, _BatchNorm):
            # Statistics close to those of the batch; others let deep networks overflow in eval.
            module.momentum = 0.9
    with torch.no_grad():
        for parameter in model.parameters():
            # Last norms of blocks start at 0 and layer scales near 0, so the layers before them would have no effect.
            if not parameter.is_meta and parameter.numel() and parameter.abs().max() < 0.01:
                parameter.normal_(std=0.2)
    return model


def make_branches_differ(model: nn.Module) -> None:
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, MultiBranchNorm):
                for tensor in [*layer.branches.parameters(), *layer.branches.buffers()]:
                    if tensor.is_floating_point():
                        tensor.add_(0.4 * torch.rand_like(tensor))


def separate_models(plain: nn.Module, joint: nn.Module) -> list[nn.Module]:
    """N plain models with the joint model's weights, each with one branch's norms."""
    keys = joint_keys(joint)
    models = []
    for branch in range(N):
        model = copy.deepcopy(plain)
        state_dict = joint.state_dict()
        model.load_state_dict({key: state_dict[keys(key, branch)] for key in plain.state_dict()})
        models.append(model)
    return models


def joint_keys(joint: nn.Module) -> Callable[[str, int], str]:
    """A function from a plain model's key and a branch to the joint model's key."""
    # By module and not by the text `branches`, which HRNet uses too.
    layers = {name for name, module in joint.named_modules(remove_duplicate=False)
              if isinstance(module, MultiBranchNorm)}

    def joint_key(key: str, branch: int) -> str:
        parts = key.split('.')
        for end in range(len(parts)):
            layer = '.'.join(parts[:end])
            if layer in layers:
                return '.'.join([*parts[:end], 'branches', str(branch), *parts[end:]])
        return key
    return joint_key


def tensors(outputs: object) -> Iterator[torch.Tensor]:
    """All tensors of a model's outputs: a tensor, or tensors in a tuple, list or dict."""
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list, dict)):
        for one in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors(one)


def projection(outputs: list[torch.Tensor]) -> torch.Tensor:
    """A random sum of outputs; a plain sum has no gradient through a norm."""
    generator = torch.Generator().manual_seed(0)
    return sum((output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum()
               for output in outputs)


def differences(
        separate: list[nn.Module],
        joint: nn.Module,
        images: torch.Tensor,
        objective: Callable[[list[torch.Tensor]], torch.Tensor] = projection,
) -> dict[str, float]:
    """Largest relative differences of one joint training step to N separate ones.

    Args:
        separate: Result of ``separate_models``.
        joint: The model with branches; gets its gradients.
        images: View-major batch.
        objective: Scalar of the joint batch's outputs.

    Returns:
        ``outputs``, ``statistics`` and ``gradients``; the gradient of a shared parameter is the models' sum.
    """
    outputs = list(tensors(joint(images)))
    views = zip(*(tensors(model(view)) for model, view in zip(separate, images.chunk(N), strict=True)), strict=True)
    expected = [torch.cat(view) for view in views]
    objective(outputs).backward()
    objective(expected).backward()

    keys = joint_keys(joint)
    state_dict = joint.state_dict()
    statistics = [
        relative(state_dict[keys(key, branch)], buffer)
        for branch, model in enumerate(separate) for key, buffer in model.named_buffers() if key in model.state_dict()]
    sums: dict[str, torch.Tensor] = {}
    for branch, model in enumerate(separate):
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                key = keys(key, branch)
                sums[key] = sums[key] + parameter.grad if key in sums else parameter.grad
    gradients = {key: parameter.grad for key, parameter in joint.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == sums.keys(), f'gradients of {sorted(gradients.keys() ^ sums.keys())[:3]}'
    # A bias before a norm has no gradient but rounding, which has no scale of its own.
    floor = 1e-6 * max((gradient.abs().max().item() for gradient in sums.values()), default=1.)
    return {
        'outputs': max(relative(own, other) for own, other in zip(outputs, expected, strict=True)),
        'statistics': max(statistics, default=0.),
        'gradients': max(relative(gradients[key], sums[key], floor) for key in sums),
    }


def relative(own: torch.Tensor, other: torch.Tensor, floor: float = 1e-12) -> float:
    assert own.shape == other.shape, f'{own.shape} is not {other.shape}'
    if torch.equal(own, other):  # covers infinite values, which some networks have
        return 0.
    own, other = own.detach().double(), other.detach().double()
    difference = (own - other).abs().max() / other.abs().max().clamp(min=floor)
    return difference.item() if difference.isfinite() else float('inf')
