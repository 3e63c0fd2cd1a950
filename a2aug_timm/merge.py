"""One plain model from all branches: the mean of their norms, with running statistics estimated again."""
from collections.abc import Iterable
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from .branches import extract_branch, num_branches_of
from .multi_branch import MultiBranch, MultiBranchNetwork
from .upstream import AnyBatchNorm


@torch.no_grad()
def merge_branches(model: nn.Module) -> nn.Module:
    """A new plain model, as timm builds it, with the mean of the branches' norms; the source model does not change.

    Each parameter of a norm is the plain mean over all branches, and so is each running statistic. The mean of the
    statistics is not that of the merged network, so ``estimate_statistics`` should follow.

    Raises:
        ValueError: The model has no branches, or its branches are separate networks.
    """
    model = unwrap_model(model)
    if isinstance(model, MultiBranchNetwork):
        raise ValueError('branches that are separate networks cannot be merged, since they share no weights')
    merged = extract_branch(model, 0)
    for name, layer in model.named_modules():
        if not isinstance(layer, MultiBranch):
            continue
        branches = [branch.state_dict() for branch in layer.branches]
        for key, tensor in merged.get_submodule(name).state_dict().items():
            if tensor.is_floating_point():  # not the counter of batches
                tensor.copy_(torch.stack([branch[key] for branch in branches]).mean(dim=0))
    return merged


@torch.no_grad()
def estimate_statistics(model: nn.Module, loader: Iterable[Any], device: torch.device | str) -> int:
    """Estimate the running statistics of the batch norms of a plain model again, in place.

    They become the mean over the batches of the mean and variance of each batch, as with a momentum of None. Unlike
    in ``torch.optim.swa_utils.update_bn``, all other layers are in eval mode, so dropout and stochastic depth have no
    influence. The statistics of other norms stay as they are.

    Args:
        model: On ``device``; the modes of its modules are the same afterwards.
        loader: Batches of images ``[B, C, H, W]``, alone or first in a tuple or list, of about equal size. It is not
            read if the model has no batch norm with statistics.
        device: Device of the images.

    Returns:
        Number of images.

    Raises:
        ValueError: The model has branches, or there are no images.
    """
    if num_branches_of(model) > 1:
        raise ValueError('the model has branches; merge them or extract one first')
    norms = [module for module in model.modules() if isinstance(module, AnyBatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    modes, momenta = [(module, module.training) for module in model.modules()], [norm.momentum for norm in norms]
    num_images = 0
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.training, norm.momentum = True, None
        for batch in loader:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(images.to(device, non_blocking=True))
            num_images += len(images)
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not num_images:
        raise ValueError('there are no images to estimate statistics on')
    return num_images
