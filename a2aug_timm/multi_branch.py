"""Modules with branches: one norm layer per branch, or one whole network per branch."""
import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from .upstream import AnyBatchNorm, current_graph_task


def is_backward() -> bool:
    """Whether backward is running, in which gradient checkpointing computes activations again."""
    return not torch.compiler.is_compiling() and current_graph_task() != -1


def check_drawn(branches: Sequence[int] | None, num_branches: int) -> tuple[int, ...] | None:
    """The drawn branches as a tuple; None if these are all branches.

    Raises:
        ValueError: The branches are not ascending and distinct numbers of branches, or there is none.
    """
    if branches is None or list(branches) == list(range(num_branches)):
        return None
    if not branches or sorted(set(branches)) != list(branches) or not 0 <= branches[0] <= branches[-1] < num_branches:
        raise ValueError(f'drawn branches must be ascending and distinct numbers from 0 to {num_branches - 1}, got '
                         f'{list(branches)}')
    return tuple(branches)


class Selection:
    """The branches that compute in all modules that share this object.

    Attributes:
        branch: Branch that every row goes through; None is joint training.
        drawn: Branches of a joint batch, ascending; None means all.
    """

    def __init__(self) -> None:
        self.branch: int | None = None
        self.drawn: tuple[int, ...] | None = None


class MultiBranch(nn.Module):
    """One of N modules of the same kind for each augmentation branch.

    Joint (no branch selected, training): the batch is view-major, rows ``[i*B, (i+1)*B)`` are the views of the i-th
    drawn branch and touch that branch alone; all N branches are drawn unless ``draw_branches`` says otherwise. With a
    branch selected, every row goes through it, in training and in eval.

    Args:
        branches: ``N`` modules, at least 2.

    Shape:
        ``[V*B, …]`` joint with ``V`` drawn branches, ``[B, …]`` with a branch selected.

    Raises:
        ValueError: The joint batch is not a multiple of ``V``; fewer than 2 branches.
        RuntimeError: Eval without a selected branch; the module must never guess which branch to use.
    """

    def __init__(self, branches: Iterable[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        if len(self.branches) < 2:
            raise ValueError(f'a {type(self).__name__} has at least 2 branches, got {len(self.branches)}')
        self.selection = Selection()
        # The class that extract_branch() restores after a conversion to SyncBatchNorm.
        self.branch_class = type(self.branches[0])
        self.training = self.branches[0].training

    @property
    def branch(self) -> int | None:
        """Index of the selected branch; None is joint training."""
        return self.selection.branch

    def drawn_branches(self) -> nn.ModuleList | list[nn.Module]:
        """The ``V`` modules that a joint batch goes through, in the order of its views."""
        drawn = self.selection.drawn
        return self.branches if drawn is None else [self.branches[i] for i in drawn]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.selection.branch
        if branch is not None:
            return self.branches[branch](x)
        if not self.training:
            raise RuntimeError(f'this model has {len(self.branches)} branches; choose one with select_branch(model, i) '
                               'before eval')
        drawn = self.drawn_branches()
        if x.shape[0] % len(drawn):
            raise ValueError(
                f'a joint batch holds {len(drawn)} views of each image, but {x.shape[0]} rows are not a multiple')
        return drawn[0](x) if len(drawn) == 1 else self._joint(x, drawn)

    def _joint(self, x: torch.Tensor, drawn: nn.ModuleList | list[nn.Module]) -> torch.Tensor:
        return torch.cat([branch(view) for branch, view in zip(drawn, x.chunk(len(drawn)), strict=True)])

    def extra_repr(self) -> str:
        drawn = '' if self.selection.drawn is None else f', drawn={self.selection.drawn}'
        return f'branch={self.branch}{drawn}'


class MultiBranchNetwork(MultiBranch):
    """N separate networks that share nothing, one per branch: "A²-Aug (ind.)", the ablation of Table 5.

    Args:
        networks: ``N`` timm models of one architecture.

    Shape:
        ``[V*B, C, H, W]`` -> logits ``[V*B, K]`` joint, ``[B, C, H, W]`` -> ``[B, K]`` with a branch selected.

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
            with _frozen_statistics([module for module in network.modules() if isinstance(module, AnyBatchNorm)]):
                return network(x)
        return super().forward(x)


class MultiBranchNorm(MultiBranch):
    """A norm layer with one complete set of parameters and statistics per augmentation branch.

    Args:
        norm: Layer to copy for each branch, with its fused activation, statistics and mode; all branches start equal.
        num_branches: ``N``, at least 2.

    Shape:
        ``[V*B, …]`` joint, ``[B, …]`` with a branch selected; the output has the input's shape. Rows may also be
        parts of an image (windows, heads), as long as the rows of one view are adjacent.

    Source: A²-Aug §4.3, Eq. 6.
    """

    def __init__(self, norm: nn.Module, num_branches: int):
        super().__init__(copy.deepcopy(norm) for _ in range(num_branches))


class MultiBranchBN(MultiBranchNorm):
    """``MultiBranchNorm`` of a batch norm, whose statistics move once per step, also with gradient checkpointing.

    Shape:
        ``[V*B, C, H, W]`` joint, ``[B, C, H, W]`` with a branch selected; the output has the input's shape.
        BatchNorm1d's ``[V*B, C]`` and ``[V*B, C, L]`` likewise.
    """

    def __init__(self, norm: nn.Module, num_branches: int):
        super().__init__(norm, num_branches)
        # A fused activation without parameters is the same for all branches.
        self.shares_activation = isinstance(norm, BatchNormAct2d) and not any(
            True for module in (norm.act, norm.drop) for _ in module.parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and is_backward():
            with _frozen_statistics(self.drawn_branches() if self.branch is None else [self.branches[self.branch]]):
                return super().forward(x)
        return super().forward(x)

    def _joint(self, x: torch.Tensor, drawn: nn.ModuleList | list[nn.Module]) -> torch.Tensor:
        if not self.shares_activation:
            return super()._joint(x, drawn)
        # Activating the whole batch at once keeps one copy of it for backward instead of two.
        first: Any = drawn[0]
        kind: Any = nn.SyncBatchNorm if isinstance(first, nn.SyncBatchNorm) else nn.BatchNorm2d
        x = torch.cat([kind.forward(norm, view) for norm, view in zip(drawn, x.chunk(len(drawn)), strict=True)])
        return first.act(first.drop(x))


@contextmanager
def _frozen_statistics(norms: Iterable[Any]) -> Iterator[None]:
    """Let batch norms compute as in training, but keep their running statistics."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        # SyncBatchNorm needs a counter, so it gets a copy.
        norm.num_batches_tracked = count.clone() if isinstance(norm, nn.SyncBatchNorm) else None
        norm.momentum = 0.
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
