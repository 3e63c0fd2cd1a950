"""Modules with branches: a norm layer for each in the place of one for all, or a whole network for each."""
import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def is_backward() -> bool:
    """Whether backward runs, and asks again for activations that gradient checkpointing has not kept."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Selection:
    """Which branch answers in all modules that share this; None is joint training."""

    def __init__(self):
        self.branch: int | None = None


class MultiBranch(nn.Module):
    """One of N like modules for each augmentation branch.

    Joint (no branch selected, training): the batch is view-major, rows ``[i*B, (i+1)*B)`` are view
    ``i`` of the same ``B`` images and touch branch ``i`` alone. With a branch selected, every row
    uses it, in training and in eval.

    Args:
        branches: ``N`` modules, at least 2.

    Shape:
        ``[N*B, …]`` joint, ``[B, …]`` with a branch selected.

    Raises:
        ValueError: The joint batch is not a multiple of ``N``; fewer than 2 branches.
        RuntimeError: Eval without a selected branch; which branch answers must never be a guess.
    """

    def __init__(self, branches: Iterable[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        if len(self.branches) < 2:
            raise ValueError(f'a {type(self).__name__} has at least 2 branches, got {len(self.branches)}')
        self.selection = Selection()
        # What extract_branch() builds again if the branches have become synchronized since.
        self.branch_class = type(self.branches[0])
        self.training = self.branches[0].training

    @property
    def branch(self) -> int | None:
        """Index of the branch that answers; None is joint training."""
        return self.selection.branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.selection.branch
        if branch is not None:
            return self.branches[branch](x)
        num_branches = len(self.branches)
        if not self.training:
            raise RuntimeError(
                f'this model has {num_branches} branches; choose one with select_branch(model, i) before eval')
        if x.shape[0] % num_branches:
            raise ValueError(
                f'a joint batch holds {num_branches} views of each image, but {x.shape[0]} rows are not a multiple')
        return self._joint(x)

    def _joint(self, x: torch.Tensor) -> torch.Tensor:
        views = x.chunk(len(self.branches))
        return torch.cat([branch(view) for branch, view in zip(self.branches, views, strict=True)])

    def extra_repr(self) -> str:
        return f'branch={self.branch}'


class MultiBranchNetwork(MultiBranch):
    """N separate networks that share nothing, one a branch: "A²-Aug (ind.)", the ablation of Table 5.

    Args:
        networks: ``N`` timm models of one architecture.

    Shape:
        ``[N*B, C, H, W]`` -> logits ``[N*B, K]`` joint, ``[B, C, H, W]`` -> ``[B, K]`` with a branch selected.

    Source: A²-Aug §5.3.
    """

    def __init__(self, networks: Iterable[nn.Module]):
        super().__init__(networks)
        for name in ('num_classes', 'in_chans', 'pretrained_cfg'):
            if hasattr(self.branches[0], name):
                setattr(self, name, getattr(self.branches[0], name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.branch is not None and is_backward():
            network = self.branches[self.branch]
            with _frozen_statistics([module for module in network.modules() if isinstance(module, _BatchNorm)]):
                return network(x)
        return super().forward(x)


class MultiBranchNorm(MultiBranch):
    """A norm layer with one complete set of parameters and statistics per augmentation branch.

    Args:
        norm: Layer to branch; deep-copied, so fused activation, statistics and mode come along and
            all branches start equal.
        num_branches: ``N``, at least 2.

    Shape:
        ``[N*B, …]`` joint, ``[B, …]`` with a branch selected; the output has its input's shape. Rows may also be
        parts of an image (windows, heads), as long as those of one view lie together.

    Source: A²-Aug §4.3, Eq. 6.
    """

    def __init__(self, norm: nn.Module, num_branches: int):
        super().__init__(copy.deepcopy(norm) for _ in range(num_branches))


class MultiBranchBN(MultiBranchNorm):
    """``MultiBranchNorm`` of a batch norm, whose statistics a step moves once, also with gradient checkpointing.

    Shape:
        ``[N*B, C, H, W]`` joint, ``[B, C, H, W]`` with a branch selected; the output has its input's shape.
        BatchNorm1d's ``[N*B, C]`` and ``[N*B, C, L]`` likewise.
    """

    def __init__(self, norm: nn.Module, num_branches: int):
        super().__init__(norm, num_branches)
        # A fused activation without parameters of its own is the same for all branches.
        self.shares_activation = isinstance(norm, BatchNormAct2d) and not any(
            True for module in (norm.act, norm.drop) for _ in module.parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and is_backward():
            with _frozen_statistics(self.branches if self.branch is None else [self.branches[self.branch]]):
                return super().forward(x)
        return super().forward(x)

    def _joint(self, x: torch.Tensor) -> torch.Tensor:
        if not self.shares_activation:
            return super()._joint(x)
        # Activating the whole batch at once keeps one copy of it for backward instead of two.
        first, views = self.branches[0], x.chunk(len(self.branches))
        kind = nn.SyncBatchNorm if isinstance(first, nn.SyncBatchNorm) else nn.BatchNorm2d
        x = torch.cat([kind.forward(norm, view) for norm, view in zip(self.branches, views, strict=True)])
        return first.act(first.drop(x))


@contextmanager
def _frozen_statistics(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Let batch norms compute as in training without moving their running statistics."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        # SyncBatchNorm wants to count, so it counts where nobody looks.
        norm.num_batches_tracked = count.clone() if isinstance(norm, nn.SyncBatchNorm) else None
        norm.momentum = 0.
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
