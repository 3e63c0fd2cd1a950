"""One network, N sets of batch norm: convert a timm model, select a branch, extract it as a plain model."""
import copy
from collections.abc import Callable, Iterator

import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from timm.utils import unwrap_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class MultiBranchBN(nn.Module):
    """A batch norm with one complete set of parameters and statistics per augmentation branch.

    Joint (no branch selected, training): the batch is view-major, rows ``[i*B, (i+1)*B)`` are view
    ``i`` of the same ``B`` images and touch branch ``i`` alone. With a branch selected, every row
    uses it, in training and in eval.

    Args:
        norm: Layer to branch; deep-copied, so fused activation, statistics and mode come along and
            all branches start equal.
        num_branches: ``N``, at least 2.

    Shape:
        ``[N*B, C, H, W]`` joint, ``[B, C, H, W]`` with a branch selected; the output has its input's shape.
        BatchNorm1d's ``[N*B, C]`` and ``[N*B, C, L]`` likewise.

    Raises:
        ValueError: The joint batch is not a multiple of ``N``; fewer than 2 branches.
        RuntimeError: Eval without a selected branch; which branch answers must never be a guess.

    Source: A²-Aug §4.3, Eq. 6.
    """

    def __init__(self, norm: nn.Module, num_branches: int):
        super().__init__()
        if num_branches < 2:
            raise ValueError(f'a multi-branch norm has at least 2 branches, got {num_branches}')
        self.branches = nn.ModuleList(copy.deepcopy(norm) for _ in range(num_branches))
        self.branch: int | None = None
        # What extract_branch() builds again if the branches have become synchronized since.
        self.norm_class = type(norm)
        self.training = norm.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.branch is not None:
            return self.branches[self.branch](x)
        num_branches = len(self.branches)
        if not self.training:
            raise RuntimeError(
                f'this model has {num_branches} branches; choose one with select_branch(model, i) before eval')
        if x.shape[0] % num_branches:
            raise ValueError(
                f'a joint batch holds {num_branches} views of each image, but {x.shape[0]} rows are not a multiple')
        views = zip(self.branches, x.chunk(num_branches), strict=True)
        if not self._shares_activation():
            return torch.cat([norm(view) for norm, view in views])
        # Activating the whole batch at once keeps one copy of it for backward instead of two.
        kind = nn.SyncBatchNorm if isinstance(self.branches[0], nn.SyncBatchNorm) else nn.BatchNorm2d
        x = torch.cat([kind.forward(norm, view) for norm, view in views])
        return self.branches[0].act(self.branches[0].drop(x))

    def _shares_activation(self) -> bool:
        """Whether the branches have a fused activation, and one without parameters of its own."""
        norm = self.branches[0]
        return isinstance(norm, (BatchNormAct2d, SyncBatchNormAct)) and not any(
            True for module in (norm.act, norm.drop) for _ in module.parameters())

    def extra_repr(self) -> str:
        return f'branch={self.branch}'


def convert_multi_branch_bn(model: nn.Module, num_branches: int) -> nn.Module:
    """Replace every batch norm of a model by a ``MultiBranchBN``, in place, and return the model.

    BatchNorm1d/2d/3d, SyncBatchNorm and timm's BatchNormAct2d count; InstanceNorm does not. A layer that the model
    uses in several places stays shared. What changes the network comes before (``reset_classifier``, resizing) or
    after ``extract_branch`` (fusing, re-parameterising).

    Raises:
        ValueError: The model has no batch norm, or has branches already.
    """
    if any(isinstance(module, MultiBranchBN) for module in model.modules()):
        raise ValueError('the model has branches already')
    converted = _replace_modules(model, _BatchNorm, lambda norm: MultiBranchBN(norm, num_branches))
    if not any(isinstance(module, MultiBranchBN) for module in converted.modules()):
        norms = sorted({type(m).__name__ for m in model.modules() if 'norm' in type(m).__name__.lower()})
        raise ValueError(f'{type(model).__name__} has no batch norm to give each branch its own; its norms are: '
                         f'{", ".join(norms) or "none"}')
    return converted


def num_branches_of(model: nn.Module) -> int:
    """Number of branches of a model, 1 for a plain one."""
    return next((len(module.branches) for module in model.modules() if isinstance(module, MultiBranchBN)), 1)


class select_branch:  # noqa: N801, it reads as a function
    """Select the branch that answers, or None for joint training: from now on, or for a ``with`` block.

    Called alone it stays; as a context manager it restores what was selected before. A DDP or compiled wrapper
    around the model does not matter.

    Args:
        model: A model with ``MultiBranchBN`` layers.
        branch: Index of the branch, or None.

    Raises:
        ValueError: The model has no branches, or no branch with that index.
    """

    def __init__(self, model: nn.Module, branch: int | None):
        self._layers = [module for module in model.modules() if isinstance(module, MultiBranchBN)]
        if not self._layers:
            raise ValueError('the model has no branches; convert it with convert_multi_branch_bn(model, num_branches)')
        if branch is not None:
            _check_branch(self._layers[0], branch)
        self._before = [layer.branch for layer in self._layers]
        for layer in self._layers:
            layer.branch = branch

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_) -> None:
        for layer, branch in zip(self._layers, self._before, strict=True):
            layer.branch = branch


def extract_branch(model: nn.Module, branch: int) -> nn.Module:
    """A new plain model, as timm built it, with one branch's batch norm; the source model is untouched.

    Raises:
        ValueError: The model has no branches, or no branch with that index.
    """
    model = unwrap_model(model)
    layer = next((module for module in model.modules() if isinstance(module, MultiBranchBN)), None)
    if layer is None:
        raise ValueError('the model has no branches to extract')
    _check_branch(layer, branch)
    # Some models (LeViT, EfficientFormer) cache tensors of the last forward, which deepcopy refuses with their graph.
    cached = (value for module in model.modules() for cache in vars(module).values() if isinstance(cache, dict)
              for value in cache.values() if isinstance(value, torch.Tensor) and not value.is_leaf)
    memo = {id(value): value.detach().clone() for value in cached}
    return _replace_modules(
        copy.deepcopy(model, memo), MultiBranchBN, lambda layer: _as_built(layer.branches[branch], layer.norm_class))


def branch_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits of every branch for the same images, each branch with its own batch norm; for eval.

    Shape:
        ``[B, C, H, W]`` -> ``[N, B, K]``; a plain model is one branch.
    """
    if num_branches_of(model) == 1:
        return _logits(model(images)).unsqueeze(0)
    logits = []
    for branch in range(num_branches_of(model)):
        with select_branch(model, branch):
            logits.append(_logits(model(images)))
    return torch.stack(logits)


def _logits(output: torch.Tensor | tuple | list) -> torch.Tensor:
    # Models with several heads answer with a tuple, their main logits first.
    return output[0] if isinstance(output, (tuple, list)) else output


def _check_branch(layer: MultiBranchBN, branch: int) -> None:
    if not 0 <= branch < len(layer.branches):
        raise ValueError(f'there is no branch {branch}; the model has branches 0 to {len(layer.branches) - 1}')


def _as_built(norm: nn.Module, norm_class: type[nn.Module]) -> nn.Module:
    """Undo SyncBatchNorm, which needs a process group and a GPU to train."""
    if type(norm) is norm_class:
        return norm
    built = norm_class(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if isinstance(built, BatchNormAct2d):
        built.act, built.drop = norm.act, norm.drop
    # The very parameters and buffers: their dtype, device and requires_grad come along.
    built._parameters, built._buffers = norm._parameters, norm._buffers
    return built.train(norm.training)


def _replace_modules(
        module: nn.Module,
        old: type[nn.Module],
        build: Callable[[nn.Module], nn.Module],
) -> nn.Module:
    """Replace every ``old`` below and including ``module`` by ``build(old)``, one new module for each old one."""
    new: dict[nn.Module, nn.Module] = {}

    def replacement(child: nn.Module) -> nn.Module:
        if child not in new:
            new[child] = build(child)
        return new[child]

    def parents(root: nn.Module) -> Iterator[nn.Module]:
        return (parent for parent in root.modules() if not isinstance(parent, old))

    if isinstance(module, old):
        return replacement(module)
    for parent in list(parents(module)):
        # `_modules` rather than named_children(), which names a shared child once.
        for name, child in parent._modules.items():
            if isinstance(child, old):
                parent._modules[name] = replacement(child)
    return module
