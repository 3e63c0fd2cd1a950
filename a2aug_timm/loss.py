"""Adaptive ensemble and normalised distillation: the objective of A²-Aug, Eq. 4 to 8."""
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .multi_branch import check_drawn

LOGIT_SCALES = ('capped', 'literal', 'teacher-norm')
ENSEMBLES = ('adaptive', 'average')
REDUCTIONS = ('sum', 'mean')

# Smallest logit norm to divide by. Untrained heads may give zero logits; 1e-4 keeps the gradient of Eq. 8 (at most
# 1 / 1e-4) within float16's range when it reaches half-precision logits.
MIN_NORM = 1e-4


def ensemble_logits(logits: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the branches' logits, Eq. 7: ``[N, B, K]`` and weights ``[N]`` -> ``[B, K]``."""
    # Not a matrix product: GPUs may round it to TF32.
    return (mu.view(-1, 1, 1) * logits).sum(dim=0)


def teacher_scale(teacher: torch.Tensor, logit_scale: str | float) -> torch.Tensor:
    """Scale ``s`` of the normalised logits, per sample: ``[B, K]`` -> ``[B, 1]``.

    The paper gives no scale, and unit-norm logits (``literal``) have an almost flat softmax. ``capped`` is
    ``min(‖Q_ens‖, 2·√K)``: never steeper than the teacher itself, never more confident than the cap, at which the
    gradient matches that of plain KL for any number of classes. ``teacher-norm`` has no cap; a number is a constant.
    """
    norm = torch.linalg.vector_norm(teacher, dim=-1, keepdim=True)
    if logit_scale == 'capped':
        return norm.clamp(max=2 * math.sqrt(teacher.shape[-1]))
    if logit_scale == 'teacher-norm':
        return norm
    return torch.full_like(norm, 1. if logit_scale == 'literal' else float(logit_scale))


def distillation_kl(students: torch.Tensor, teacher: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """KL divergence of each student from the teacher: natural log, summed over classes, mean over the batch.

    Args:
        students: Logits, ``[N, B, K]``.
        teacher: Logits, ``[B, K]``; gradients stop here.
        scale: Length to which both logit vectors are normalised, ``[B, 1]`` (Eq. 8). None does not normalise them.

    Returns:
        ``[N]``.
    """
    teacher = teacher.detach()
    if scale is not None:
        scale = scale.detach()
        teacher = scale * F.normalize(teacher, dim=-1, eps=MIN_NORM)
        students = scale * F.normalize(students, dim=-1, eps=MIN_NORM)
    return _mean_kl(students, teacher)


def temperature_kl(students: torch.Tensor, teachers: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T²`` times the KL divergence of each student from its own teacher, both softened by ``T``, in float32.

    Shape:
        Logits ``[N, B, K]`` and ``[N, B, K]`` -> ``[N]``; gradients stop at the teachers.
    """
    dtype = torch.promote_types(students.dtype, torch.float32)
    with torch.autocast(students.device.type, enabled=False):
        return temperature ** 2 * _mean_kl(
            students.to(dtype) / temperature, teachers.detach().to(dtype) / temperature)


def _mean_kl(students: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_p = F.log_softmax(teacher, dim=-1)
    log_q = F.log_softmax(students, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean(dim=-1)


class A2AugLoss(nn.Module):
    """A²-Aug's objective: ``Σ_i CE(Q_i, y) + w_ens · CE(Q_ens, y) + w_kl · Σ_i KL_i``.

    The ensemble ``Q_ens = Σ softmax(μ)_i · Q_i`` uses detached logits, so its cross-entropy trains μ alone; as the
    teacher of the KL terms it gets no gradient. The arithmetic is float32 (float64 for float64 logits) under any mixed
    precision.

    Differs from paper: a step may train ``V < N`` drawn branches. All sums then run over these, and μ's softmax is
    restricted to them. With ``V = 1`` the loss is the cross-entropy alone, and μ gets no gradient.

    Args:
        num_branches: ``N``.
        criterion: Classification loss of ``[B, K]`` logits and the targets; returns a scalar.
        ensemble: ``adaptive`` learns μ from zeros; ``average`` keeps ``1/N`` (Table 7) and has no parameter.
        ensemble_weight: ``w_ens``.
        kl_weight: ``w_kl``.
        logit_norm: Normalise logits before the KL (Eq. 8); False is plain KL (Table 8).
        logit_scale: ``capped``, ``literal`` (1, the paper as printed), ``teacher-norm`` or a positive number.
        reduction: ``sum`` (Eq. 5) or ``mean`` over the branches' CE and KL terms.

    Shape:
        View-major logits ``[V*B, K]`` of the drawn branches, targets ``[B]`` or soft ``[B, K]``. Returns a dict of the
        scalars ``loss`` and ``ensemble_ce``, and of ``ce`` and ``kl``, each ``[N]``. A term that the step does not
        have is NaN: ``ce`` and ``kl`` of branches that are not drawn; with ``V = 1`` also ``ensemble_ce`` and all of
        ``kl``.

    Raises:
        ValueError: An argument is out of range, or the logits do not have ``V`` times as many rows as the targets.

    Source: A²-Aug §4.2 and §4.4, Eq. 4, 5, 7, 8.
    """

    def __init__(
            self,
            num_branches: int,
            criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
            ensemble: str = 'adaptive',
            ensemble_weight: float = 1.,
            kl_weight: float = 1.,
            logit_norm: bool = True,
            logit_scale: str | float = 'capped',
            reduction: str = 'sum',
    ):
        super().__init__()
        for name, value, choices in (('ensemble', ensemble, ENSEMBLES), ('reduction', reduction, REDUCTIONS)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got '{value}'")
        if isinstance(logit_scale, str) and logit_scale not in LOGIT_SCALES:
            raise ValueError(f"logit_scale must be a number or one of {', '.join(LOGIT_SCALES)}, got '{logit_scale}'")
        if not isinstance(logit_scale, str) and not 0 < logit_scale < math.inf:
            raise ValueError(f'logit_scale must be positive and finite, got {logit_scale}')
        if num_branches < 2:
            raise ValueError(f'an ensemble needs at least 2 branches, got {num_branches}')
        self.num_branches = num_branches
        self.criterion = criterion
        self.ensemble_weight = ensemble_weight
        self.kl_weight = kl_weight
        self.logit_norm = logit_norm
        self.logit_scale = logit_scale
        self.reduction = reduction
        mu_logits = torch.zeros(num_branches)
        if ensemble == 'adaptive':
            self.mu_logits = nn.Parameter(mu_logits)
        else:
            self.register_buffer('mu_logits', mu_logits)

    @property
    def mu(self) -> torch.Tensor:
        """Weights of the branches in the ensemble, ``[N]``, positive and summing to 1."""
        return self.mu_logits.softmax(dim=0)

    def reduce(self, terms: torch.Tensor) -> torch.Tensor:
        """Sum or mean of the terms of the drawn branches, ``[V]``."""
        return terms.sum() if self.reduction == 'sum' else terms.mean()

    def spread(self, terms: torch.Tensor, branches: Sequence[int] | None) -> torch.Tensor:
        """Terms of all branches, NaN for those that are not drawn: ``[V]`` -> ``[N]``."""
        if branches is None:
            return terms
        missing, places = terms.new_full((), math.nan), {branch: i for i, branch in enumerate(branches)}
        return torch.stack([terms[places[i]] if i in places else missing for i in range(self.num_branches)])

    def forward(
            self,
            logits: torch.Tensor,
            target: torch.Tensor,
            branches: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        branches = check_drawn(branches, self.num_branches)
        num_views = self.num_branches if branches is None else len(branches)
        if logits.shape[0] != num_views * target.shape[0]:
            raise ValueError(f'{num_views} views of {target.shape[0]} targets need {num_views * target.shape[0]} rows '
                             f'of logits, got {logits.shape[0]}')
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logits = logits.unflatten(0, (num_views, -1))
            ce = torch.stack([self.criterion(branch, target) for branch in logits])
            if num_views == 1:
                missing = torch.full_like(ce.detach(), math.nan)
                return {'loss': ce[0], 'ce': self.spread(ce, branches), 'ensemble_ce': missing[0],
                        'kl': self.spread(missing, branches)}
            mu = self.mu if branches is None else self.mu_logits[list(branches)].softmax(dim=0)
            teacher = ensemble_logits(logits.detach(), mu.to(logits.dtype))
            ensemble_ce = self.criterion(teacher, target)
            scale = teacher_scale(teacher.detach(), self.logit_scale) if self.logit_norm else None
            kl = distillation_kl(logits, teacher, scale)
            loss = self.reduce(ce) + self.ensemble_weight * ensemble_ce + self.kl_weight * self.reduce(kl)
        return {'loss': loss, 'ce': self.spread(ce, branches), 'ensemble_ce': ensemble_ce,
                'kl': self.spread(kl, branches)}
