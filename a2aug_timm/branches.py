"""One network, N sets of norm layers: convert a timm model, select or draw branches, extract one as a plain model."""
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from timm.layers import BatchNormAct2d
from timm.models.mlp_mixer import Affine
from timm.utils import unwrap_model
from torch import nn

from .multi_branch import MultiBranch, MultiBranchBN, MultiBranchNetwork, MultiBranchNorm, check_drawn
from .upstream import AnyBatchNorm, AnyInstanceNorm, base_optimizer, child_modules

# ResMLP uses Affine in the place of a norm.
_NORMS = (AnyBatchNorm, AnyInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, Affine)
# timm's own norm layers, by the modules that define them.
_TIMM_NORMS = {f'timm.layers.{name}' for name in (
    'norm', 'norm_act', 'evo_norm', 'filter_response_norm', 'grn', 'inplace_abn')}
# timm's networks with attention over the images of a batch, by their modules: one view would affect another.
_MIX_IMAGES = {'timm.models.csatv2'}


def create_branches(create: Callable[[], nn.Module], num_branches: int, own: str = 'bn') -> nn.Module:
    """A model with N branches, built from the plain models that ``create`` returns.

    Args:
        create: Returns a plain model; called once per branch if the branches share nothing.
        num_branches: ``N``; 1 gives a plain model.
        own: The part that each branch has of its own: ``bn`` (the paper's method), all ``norms``, the whole
            ``network``, or ``nothing``, which gives a plain model too.

    Raises:
        ValueError: See ``convert_multi_branch_bn`` and ``convert_multi_branch_norm``.
    """
    if num_branches == 1 or own == 'nothing':
        return create()
    if own == 'network':
        return MultiBranchNetwork(create() for _ in range(num_branches))
    return (convert_multi_branch_norm if own == 'norms' else convert_multi_branch_bn)(create(), num_branches)


def convert_multi_branch_bn(model: nn.Module, num_branches: int) -> nn.Module:
    """Replace every batch norm of a model by a ``MultiBranchBN``, in place, and return the model.

    BatchNorm1d/2d/3d, SyncBatchNorm and timm's BatchNormAct2d are replaced; InstanceNorm is not. A layer that the model
    uses in several places stays shared. Change the network itself before the conversion (``reset_classifier``,
    resizing) or after ``extract_branch`` (fusing, re-parameterising).

    Raises:
        ValueError: The model has no batch norm, or has branches already.
    """
    return _convert(model, num_branches, lambda module: isinstance(module, AnyBatchNorm), 'batch norm')


def convert_multi_branch_norm(model: nn.Module, num_branches: int) -> nn.Module:
    """Replace every norm layer of a model, batch norm or not, by a ``MultiBranchNorm``, in place, and return the model.

    LayerNorm, GroupNorm, RMSNorm, InstanceNorm, EvoNorm, FilterResponseNorm, GlobalResponseNorm, timm's variants of
    them and ResMLP's Affine are replaced. Layers without parameters and statistics are not, since their copies could
    not differ.

    Differs from paper: §4.3 gives each branch its own batch norm, and no other norm.

    Raises:
        ValueError: The model has no norm layer, has branches already, or mixes the images of a batch (CSATv2).
    """
    return _convert(model, num_branches, _is_norm, 'norm layer')


def _is_norm(module: nn.Module) -> bool:
    is_norm = isinstance(module, _NORMS) or any(kind.__module__ in _TIMM_NORMS for kind in type(module).__mro__)
    return is_norm and any(True for tensors in (module.parameters(), module.buffers()) for _ in tensors)


def _convert(model: nn.Module, num_branches: int, is_norm: Callable[[nn.Module], bool], what: str) -> nn.Module:
    if num_branches_of(model) > 1:
        raise ValueError('the model has branches already')
    if any(type(module).__module__ in _MIX_IMAGES for module in model.modules()):
        raise ValueError(f'{type(model).__name__} mixes the images of a batch, so its views cannot be trained jointly')
    converted = _replace_modules(
        model, is_norm,
        lambda norm: (MultiBranchBN if isinstance(norm, AnyBatchNorm) else MultiBranchNorm)(norm, num_branches))
    share_selection(converted)
    if num_branches_of(converted) == 1:
        norms = sorted({type(m).__name__ for m in model.modules()
                        if 'norm' in type(m).__name__.lower() and not any(m.children())})
        raise ValueError(f'{type(model).__name__} has no {what} to copy for each branch; its norms are: '
                         f'{", ".join(norms) or "none"}')
    return converted


def num_branches_of(model: nn.Module) -> int:
    """Number of branches of a model, 1 for a plain one."""
    return next((len(module.branches) for module in model.modules() if isinstance(module, MultiBranch)), 1)


def share_selection(model: nn.Module) -> None:
    """Let all modules with branches in a model share one selection; converting a model does this."""
    layers = [module for module in model.modules() if isinstance(module, MultiBranch)]
    for layer in layers:
        layer.selection = layers[0].selection


def networks_of(model: nn.Module) -> list[nn.Module]:
    """The networks of a model: N if its branches share nothing, else one, the model itself."""
    return list(model.branches) if isinstance(model, MultiBranchNetwork) else [model]


def plain_parameter_names(model: nn.Module) -> dict[str, str]:
    """Name of each parameter -> its name in the plain model; the parameters of all branches have the same."""
    prefixes = {f'{name}.branches.'.lstrip('.'): name for name, module in model.named_modules(remove_duplicate=False)
                if isinstance(module, MultiBranch)}

    def plain(name: str) -> str:
        # By the place of the wrapper, not by its name: HRNet has modules that are named `branches` too.
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        return name if prefix is None else f'{prefixes[prefix]}.{name[len(prefix):].partition(".")[2]}'.lstrip('.')

    return {name: plain(name) for name, _ in model.named_parameters()}


class select_branch:  # noqa: N801, it reads as a function
    """Select the branch that every row goes through, or None for joint training: from now on, or in a ``with`` block.

    A call alone lasts; a context manager restores the selection before it. The model may be wrapped by DDP or
    compiled. A model that was built from several converted models needs ``share_selection`` first.

    Args:
        model: A model with branches.
        branch: Index of the branch, or None.

    Raises:
        ValueError: The model has no branches, or no branch with that index.
    """

    def __init__(self, model: nn.Module, branch: int | None):
        layer = _first_layer(model)
        if branch is not None:
            _check_branch(layer, branch)
        self._selection = layer.selection
        self._before = layer.selection.branch
        self._selection.branch = branch

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._selection.branch = self._before


def draw_branches(model: nn.Module, branches: Sequence[int] | None) -> None:
    """Draw the branches of the joint batches that follow; None means all.

    Rows ``[i*B, (i+1)*B)`` of a joint batch are the views of the i-th drawn branch. The other branches take no part:
    their parameters get no gradient and their statistics do not move. With gradient checkpointing, a draw must last
    until backward is done.

    Args:
        model: A model with branches; it may be wrapped by DDP or compiled.
        branches: Indices of the branches, ascending.

    Raises:
        ValueError: The model has no branches, or the indices are not ascending numbers of its branches.
    """
    layer = _first_layer(model)
    layer.selection.drawn = check_drawn(branches, len(layer.branches))


@torch.no_grad()
def synchronize_branches(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, source: int = 0) -> None:
    """Copy the parameters, statistics and optimizer state of one branch to all others, in place.

    All branches then continue from the same point, as after the conversion of a plain model (late branches). A model
    without branches stays as it is.

    Args:
        model: The model.
        optimizer: Optimizer of its parameters, if its state must follow.
        source: Index of the branch to copy.

    Raises:
        ValueError: The model has no branch with that index.
    """
    for layer in [module for module in model.modules() if isinstance(module, MultiBranch)]:
        _check_branch(layer, source)
        origin = layer.branches[source]
        for branch in layer.branches:
            if branch is origin:
                continue
            for own, other in zip(branch.buffers(), origin.buffers(), strict=True):
                own.copy_(other)
            for own, other in zip(branch.parameters(), origin.parameters(), strict=True):
                own.copy_(other)
                if optimizer is not None:
                    _copy_state(optimizer, other, own)


def _copy_state(optimizer: torch.optim.Optimizer, source: nn.Parameter, target: nn.Parameter) -> None:
    states = base_optimizer(optimizer).state
    if source in states:
        states[target] = copy.deepcopy(states[source])
    else:
        states.pop(target, None)


def extract_branch(model: nn.Module, branch: int) -> nn.Module:
    """A new plain model, as timm builds it, with the norms of one branch; the source model does not change.

    Raises:
        ValueError: The model has no branches, or no branch with that index.
    """
    model = unwrap_model(model)
    _check_branch(_first_layer(model), branch)
    # Some models (LeViT, EfficientFormer) cache tensors of the last forward, whose graph deepcopy refuses.
    cached = (value for module in model.modules() for cache in vars(module).values() if isinstance(cache, dict)
              for value in cache.values() if isinstance(value, torch.Tensor) and not value.is_leaf)
    memo = {id(value): value.detach().clone() for value in cached}

    def plain(layer: nn.Module) -> nn.Module:
        assert isinstance(layer, MultiBranch)
        return _as_built(layer.branches[branch], layer.branch_class)

    return _replace_modules(copy.deepcopy(model, memo), lambda module: isinstance(module, MultiBranch), plain)


def _first_layer(model: nn.Module) -> MultiBranch:
    layer = next((module for module in model.modules() if isinstance(module, MultiBranch)), None)
    if layer is None:
        raise ValueError('the model has no branches; convert it with convert_multi_branch_bn(model, num_branches)')
    return layer


def _check_branch(layer: MultiBranch, branch: int) -> None:
    if not 0 <= branch < len(layer.branches):
        raise ValueError(f'there is no branch {branch}; the model has branches 0 to {len(layer.branches) - 1}')


def _as_built(norm: nn.Module, norm_class: type[nn.Module]) -> nn.Module:
    """Undo SyncBatchNorm, which needs a process group and a GPU to train."""
    if type(norm) is norm_class:
        return norm
    built = norm_class(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if isinstance(built, BatchNormAct2d):
        built.act, built.drop = norm.get_submodule('act'), norm.get_submodule('drop')
    # The same parameters and buffers, with their dtype, device and requires_grad.
    for tensors in (norm.named_parameters(recurse=False), norm.named_buffers(recurse=False)):
        for name, tensor in tensors:
            setattr(built, name, tensor)
    return built.train(norm.training)


def _replace_modules(
        module: nn.Module,
        is_old: Callable[[nn.Module], bool],
        build: Callable[[nn.Module], nn.Module],
) -> nn.Module:
    """Replace each module for which ``is_old`` is true, ``module`` included, by the result of ``build``, once."""
    new: dict[nn.Module, nn.Module] = {}

    def replacement(child: nn.Module) -> nn.Module:
        if child not in new:
            new[child] = build(child)
        return new[child]

    def parents(root: nn.Module) -> Iterator[nn.Module]:
        return (parent for parent in root.modules() if not is_old(parent))

    if is_old(module):
        return replacement(module)
    for parent in list(parents(module)):
        children = child_modules(parent)
        for name, child in children.items():
            if child is not None and is_old(child):
                children[name] = replacement(child)
    return module
