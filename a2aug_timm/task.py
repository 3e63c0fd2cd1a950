"""A²-Aug as a timm training task, so that the training loop does not know of branches."""
from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import torch
from timm.task import DistillationTeacher, TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .branches import (
    draw_branches,
    networks_of,
    num_branches_of,
    plain_parameter_names,
    share_selection,
    synchronize_branches,
)
from .logits import joint_logits
from .loss import A2AugLoss, temperature_kl
from .multi_branch import check_drawn
from .upstream import allow_graphs, group_with_matcher


class _A2AugModule(nn.Module):
    """Network and loss in one module, so that DDP averages the gradient of μ and EMA tracks μ."""

    def __init__(self, model: nn.Module, loss: A2AugLoss, branch_sizes: Sequence[int] | None, sequential: bool):
        super().__init__()
        self.model = model
        self.loss = loss
        self.branch_sizes = branch_sizes
        self.sequential = sequential
        self.drawn: tuple[int, ...] | None = None
        share_selection(model)

    def draw_branches(self, branches: Sequence[int] | None) -> None:
        self.drawn = check_drawn(branches, self.loss.num_branches)
        if num_branches_of(self.model) > 1:  # not the ablation with shared batch norm
            draw_branches(self.model, self.drawn)

    def forward(self, images: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = joint_logits(
            self.model, images, self.loss.num_branches, self.branch_sizes, self.sequential, self.drawn)
        return {**self.loss(logits, target, self.drawn), 'output': logits}

    def no_weight_decay(self) -> set[str]:
        """Patterns of parameters without weight decay: those of the network, and μ."""
        names = {'loss.mu_logits'}
        for i, network in enumerate(networks := networks_of(self.model)):
            prefix = f'model.branches.{i}' if len(networks) > 1 else 'model'
            names.update(f'{prefix}.{name}' for name in getattr(network, 'no_weight_decay', set)())
        return names

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layer of a parameter for layer-wise learning rates, as the network defines it; μ belongs to the head."""
        network: Any = networks_of(self.model)[0]
        if not hasattr(network, 'group_matcher'):
            raise ValueError(f'{type(network).__name__} does not say which layer a parameter belongs to')
        plain = plain_parameter_names(self.model)
        layers = group_with_matcher(
            ((name, None) for name in plain.values()), network.group_matcher(coarse=coarse), reverse=True)
        layer_of = {f'model.{name}': layers[plain_name] for name, plain_name in plain.items()}
        return lambda name: layer_of.get(name, max(layers.values()))


class A2AugTask(TrainingTask):
    """Joint training of N branches with A²-Aug's loss.

    ``task(images, target)`` takes a view-major batch and returns the dict of ``A2AugLoss`` with the logits as
    ``output``. μ is trained with the network, averaged under DDP, tracked by EMA, and stored in checkpoints as the
    state of the task, so that their ``state_dict`` is that of the network alone.

    Every step trains all branches unless ``draw_branches`` draws ``V`` of them for the next batches.

    Args:
        model: Network with ``num_branches`` branches, or a plain one for the ablation with shared batch norm.
        criterion: Classification loss of ``[B, K]`` logits and targets; returns a scalar.
        num_branches: ``N``.
        loss_kwargs: The other arguments of ``A2AugLoss``.
        branch_sizes: Resolution of each branch, to which its views are resized (default: that of the images).
        sequential: Keep the activations of one branch at a time, at the price of a second forward pass for
            all but one.
        num_views: ``V``, the number of branches that a step draws (default: all). DDP and ``compile`` depend on it.
        starts_late: Some steps draw branch 0 alone, as those of late branches do before their start.
        device: Device that the model is moved to (default: the model stays on its device).
        dtype: Dtype of the task.
        verbose: Log what timm's tasks log.

    Shape:
        Images ``[V*B, C, H, W]``, targets ``[B]`` or soft ``[B, K]``.

    Source: A²-Aug §4, Eq. 5; timm ``TrainingTask``.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
            num_branches: int,
            *,
            loss_kwargs: dict[str, Any] | None = None,
            branch_sizes: Sequence[int] | None = None,
            sequential: bool = False,
            num_views: int | None = None,
            starts_late: bool = False,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
            verbose: bool = True,
    ):
        if device is None:
            device = next((parameter.device for parameter in model.parameters()), None)
        else:
            model.to(device)
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        loss = A2AugLoss(num_branches, criterion, **(loss_kwargs or {})).to(self.device)
        self.num_views = num_branches if num_views is None else num_views
        if not 1 <= self.num_views <= num_branches:
            raise ValueError(f'a step trains 1 to {num_branches} of {num_branches} branches, got {num_views}')
        self.starts_late = starts_late
        self.trainable_module: nn.Module = _A2AugModule(model, loss, branch_sizes, sequential)

    def _module(self, ema: bool = False) -> _A2AugModule:
        module = self._unwrapped(None, ema)
        assert module is not None, 'this task has no EMA'
        return module

    def _unwrapped(self, module: nn.Module | None, ema: bool) -> _A2AugModule | None:
        """The given module without DDP and compilation (default: the task's own, None for an EMA that is off)."""
        module = self.get_trainable_module(ema=ema) if module is None else module
        return None if module is None else unwrap_model(module)

    @property
    def mu_logits(self) -> nn.Parameter:
        """Logits of μ, ``[N]``; a buffer if the ensemble is the average."""
        return self._module().loss.mu_logits

    def mu(self, ema: bool = False) -> torch.Tensor:
        """Weights of the branches in the ensemble, ``[N]``, without gradient."""
        return self._module(ema).loss.mu.detach()

    def draw_branches(self, branches: Sequence[int] | None) -> None:
        """Draw the branches of the batches that follow, ascending; None means all.

        Raises:
            ValueError: The indices are not ascending numbers of branches.
        """
        self._module().draw_branches(branches)

    def synchronize_branches(self, optimizer: torch.optim.Optimizer | None = None, source: int = 0) -> None:
        """Copy one branch, its EMA and its optimizer state to all other branches, see ``synchronize_branches``."""
        synchronize_branches(self._module().model, optimizer, source)
        if self.has_ema():
            synchronize_branches(self._module(ema=True).model, source=source)

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> 'A2AugTask':
        """Wrap network and loss in DDP, which looks for unused parameters if a step may leave branches out."""
        if self.num_views < self._module().loss.num_branches or self.starts_late:
            ddp_kwargs.setdefault('find_unused_parameters', True)
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    # timm's tasks return the compiled model, torch's modules nothing.
    def compile(  # type: ignore[override]
            self,
            backend: str = 'inductor',
            mode: str | None = None,
            **kwargs: Any,
    ) -> nn.Module:
        """Compile network and loss in one graph per set of drawn branches, and for eval the network once per branch."""
        num_branches = self._module().loss.num_branches
        allow_graphs(comb(num_branches, self.num_views) + self.starts_late + 2 * num_branches)
        # torch.compile gives a module for a module, and its annotation says a function.
        eval_model: Any = torch.compile(self._module().model, backend=backend, mode=mode, **kwargs)
        trainable_module: Any = torch.compile(self.trainable_module, backend=backend, mode=mode, **kwargs)
        self.eval_model, self.trainable_module = eval_model, trainable_module
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        compiled = getattr(self, 'eval_model_ema' if ema else 'eval_model', None)
        if module is None and compiled is not None:
            return compiled
        own = self._unwrapped(module, ema)
        return None if own is None else own.model

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        module = self._module()
        if not exclude_head:
            return list(module.parameters())
        # μ is the head of the ensemble. Adaptive clipping, relative to its length, would keep it at zero.
        return [parameter for network in networks_of(module.model) for parameter in list(network.parameters())[:-2]]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        own = self._unwrapped(module, ema)
        return {} if own is None else {'mu_logits': own.loss.mu_logits.detach()}

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        if not state:
            if strict:
                raise ValueError('the checkpoint has no μ, so it is not from an A²-Aug run')
            return
        own = self._unwrapped(module, ema)
        assert own is not None, 'this task has no EMA'
        with torch.no_grad():
            own.loss.mu_logits.copy_(state['mu_logits'])

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.trainable_module(input, target)


class A2AugDistillationTask(A2AugTask):
    """``A2AugTask`` with an external teacher, which distills its softened logits of each view into that view's branch.

    The loss is ``task_loss_weight`` times that of A²-Aug plus ``distill_loss_weight`` times the distillation loss. The
    latter is reduced over the drawn branches like the other terms, and is returned as ``kd``, ``[N]``, which is NaN
    for branches that are not drawn.

    Args:
        model: As for ``A2AugTask``; its ``pretrained_cfg`` has the normalisation of the images.
        teacher: Frozen teacher with the same number of classes.
        temperature: Temperature of both softmaxes.
        distill_loss_weight: Weight of the distillation loss (default: 1, or 1 minus ``task_loss_weight`` if only that
            is given).
        task_loss_weight: Weight of A²-Aug's loss (default: 1).
        kwargs: The arguments of ``A2AugTask``.

    Source: Hinton et al. 2015; timm ``LogitDistillationTask``, whose weights and temperature mean the same.
    """
    student_mean: torch.Tensor
    student_std: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            teacher: DistillationTeacher,
            *args: Any,
            temperature: float = 1.,
            distill_loss_weight: float | None = None,
            task_loss_weight: float | None = None,
            **kwargs: Any,
    ):
        super().__init__(model, *args, **kwargs)
        self.teacher = teacher.to(self.device).requires_grad_(False)
        self.temperature = temperature
        if distill_loss_weight is None:
            distill_loss_weight = 1. if task_loss_weight is None else 1 - task_loss_weight
        self.distill_loss_weight = distill_loss_weight
        self.task_loss_weight = 1. if task_loss_weight is None else task_loss_weight
        for name in ('mean', 'std'):
            value = torch.tensor(unwrap_model(model).pretrained_cfg[name], device=self.device, dtype=self.dtype)
            self.register_buffer(f'student_{name}', value.view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> 'A2AugDistillationTask':
        super().train(mode)
        self.teacher.eval()
        return self

    # timm's tasks return the compiled model, torch's modules nothing.
    def compile(  # type: ignore[override]
            self,
            backend: str = 'inductor',
            mode: str | None = None,
            **kwargs: Any,
    ) -> nn.Module:
        self.teacher.compile(backend=backend, mode=mode, **kwargs)
        return super().compile(backend=backend, mode=mode, **kwargs)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        terms = super().forward(input, target)
        with torch.no_grad():
            teacher = self.teacher(self.teacher.normalize_input(input, self.student_mean, self.student_std))
        module = self._module()
        loss, num_views = module.loss, module.loss.num_branches if module.drawn is None else len(module.drawn)
        kd = temperature_kl(
            terms['output'].unflatten(0, (num_views, -1)), teacher.unflatten(0, (num_views, -1)), self.temperature)
        total = self.task_loss_weight * terms['loss'] + self.distill_loss_weight * loss.reduce(kd)
        return {**terms, 'loss': total, 'kd': loss.spread(kd, module.drawn)}
