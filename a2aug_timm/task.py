"""A²-Aug as a timm training task: the loop never learns that there are branches."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from timm.task import DistillationTeacher, TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .branches import networks_of, plain_parameter_names, share_selection
from .logits import joint_logits
from .loss import A2AugLoss, temperature_kl


class _A2AugModule(nn.Module):
    """Network and loss in one module, so that DDP averages μ's gradient and EMA tracks μ."""

    def __init__(self, model: nn.Module, loss: A2AugLoss, branch_sizes: Sequence[int] | None, sequential: bool):
        super().__init__()
        self.model = model
        self.loss = loss
        self.branch_sizes = branch_sizes
        self.sequential = sequential
        share_selection(model)

    def forward(self, images: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = joint_logits(self.model, images, self.loss.num_branches, self.branch_sizes, self.sequential)
        return {**self.loss(logits, target), 'output': logits}

    def no_weight_decay(self) -> set[str]:
        """Patterns of parameters without weight decay: the network's own, and μ."""
        names = {'loss.mu_logits'}
        for i, network in enumerate(networks := networks_of(self.model)):
            prefix = f'model.branches.{i}' if len(networks) > 1 else 'model'
            names.update(f'{prefix}.{name}' for name in getattr(network, 'no_weight_decay', set)())
        return names

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layer of a parameter for layer-wise learning rates: the network's own; μ is with the head."""
        network = networks_of(self.model)[0]
        if not hasattr(network, 'group_matcher'):
            raise ValueError(f'{type(network).__name__} does not tell which layer a parameter is in')
        plain = plain_parameter_names(self.model)
        layers = group_with_matcher(
            ((name, None) for name in plain.values()), network.group_matcher(coarse=coarse), reverse=True)
        layer_of = {f'model.{name}': layers[plain_name] for name, plain_name in plain.items()}
        return lambda name: layer_of.get(name, max(layers.values()))


class A2AugTask(TrainingTask):
    """Joint training of N branches with A²-Aug's loss.

    ``task(images, target)`` takes a view-major batch and returns the dict of ``A2AugLoss`` with the logits as
    ``output``. μ is trained with the network, averaged under DDP, tracked by EMA, and kept in checkpoints as the
    task's own state, so that their ``state_dict`` is the network's alone.

    Args:
        model: Network with ``num_branches`` branches, or a plain one for the ablation with shared batch norm.
        criterion: Classification loss of ``[B, K]`` logits and targets, returning a scalar.
        num_branches: ``N``.
        loss_kwargs: The other arguments of ``A2AugLoss``.
        branch_sizes: Resolution of each branch, to which its views are resized; the images' own if not given.
        sequential: Keep the activations of one branch at a time, at the price of a second forward pass for
            all but one.
        device: Device of the task.
        dtype: Dtype of the task.
        verbose: Log what timm's tasks log.

    Shape:
        Images ``[N*B, C, H, W]``, targets ``[B]`` or soft ``[B, K]``.

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
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
            verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        loss = A2AugLoss(num_branches, criterion, **(loss_kwargs or {}))
        self.trainable_module = _A2AugModule(model, loss, branch_sizes, sequential).to(self.device)

    def _module(self, ema: bool = False) -> _A2AugModule | None:
        module = self.get_trainable_module(ema=ema)
        return None if module is None else unwrap_model(module)

    @property
    def mu_logits(self) -> nn.Parameter:
        """What μ is the softmax of, ``[N]``; a buffer where the ensemble is the average."""
        return self._module().loss.mu_logits

    def mu(self, ema: bool = False) -> torch.Tensor:
        """Weights of the branches in the ensemble, ``[N]``, without gradient."""
        return self._module(ema).loss.mu.detach()

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs) -> 'A2AugTask':
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: str | None = None, **kwargs) -> nn.Module:
        """Compile network and loss in one graph for training, and the network alone for eval, once a branch."""
        config = torch._dynamo.config
        limit = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'  # torch 2.6's name
        setattr(config, limit, max(getattr(config, limit), 2 * self._module().loss.num_branches))
        self.eval_model = torch.compile(self._module().model, backend=backend, mode=mode, **kwargs)
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **kwargs)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        compiled = getattr(self, 'eval_model_ema' if ema else 'eval_model', None)
        if module is None and compiled is not None:
            return compiled
        module = unwrap_model(module) if module is not None else self._module(ema)
        return None if module is None else module.model

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        module = self._module()
        if not exclude_head:
            return list(module.parameters())
        # μ is the head of the ensemble: adaptive clipping, relative to its length, would hold it at its zeros.
        return [parameter for network in networks_of(module.model) for parameter in list(network.parameters())[:-2]]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        module = unwrap_model(module) if module is not None else self._module(ema)
        return {} if module is None else {'mu_logits': module.loss.mu_logits.detach()}

    def load_task_state(
            self,
            state: dict[str, Any] | None,
            strict: bool = True,
            module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        if not state:
            if strict:
                raise ValueError('the checkpoint holds no μ; it is not one of an A²-Aug run')
            return
        module = unwrap_model(module) if module is not None else self._module(ema)
        with torch.no_grad():
            module.loss.mu_logits.copy_(state['mu_logits'])

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.trainable_module(input, target)


class A2AugDistillationTask(A2AugTask):
    """``A2AugTask`` with an external teacher, whose softened logits on each view are added to that branch's loss.

    The loss is ``task_loss_weight`` times A²-Aug's plus ``distill_loss_weight`` times the teacher's, which is
    reduced over the branches like A²-Aug's terms and stands in the result as ``kd``, ``[N]``.

    Args:
        model: As for ``A2AugTask``; its ``pretrained_cfg`` says how images are normalised.
        teacher: Frozen teacher, of as many classes.
        temperature: Of both softmaxes.
        distill_loss_weight: 1 if not given, or what ``task_loss_weight`` alone leaves of 1.
        task_loss_weight: 1 if not given.
        kwargs: Of ``A2AugTask``.

    Source: Hinton et al. 2015; timm ``LogitDistillationTask``, whose weights and temperature mean the same.
    """

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

    def compile(self, backend: str = 'inductor', mode: str | None = None, **kwargs) -> nn.Module:
        self.teacher.compile(backend=backend, mode=mode, **kwargs)
        return super().compile(backend=backend, mode=mode, **kwargs)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        terms = super().forward(input, target)
        with torch.no_grad():
            teacher = self.teacher(self.teacher.normalize_input(input, self.student_mean, self.student_std))
        loss = self._module().loss
        kd = temperature_kl(
            terms['output'].unflatten(0, (loss.num_branches, -1)), teacher.unflatten(0, (loss.num_branches, -1)),
            self.temperature)
        total = self.task_loss_weight * terms['loss'] + self.distill_loss_weight * loss.reduce(kd)
        return {**terms, 'loss': total, 'kd': kd}
