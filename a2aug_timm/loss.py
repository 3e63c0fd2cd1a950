"""Adaptive ensemble and normalised distillation: the objective of A²-Aug, Eq. 4 to 8."""
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

LOGIT_SCALES = ('capped', 'literal', 'teacher-norm')
ENSEMBLES = ('adaptive', 'average')
REDUCTIONS = ('sum', 'mean')

# Smallest logit norm that is divided by. Untrained heads may give zero logits; 1e-4 keeps the gradient of Eq. 8
# (at most 1 / 1e-4) within float16's range when it returns to half-precision logits.
MIN_NORM = 1e-4


def ensemble_logits(logits: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the branches' logits, Eq. 7: ``[N, B, K]`` and weights ``[N]`` -> ``[B, K]``."""
    # Not a matrix product, which GPUs may round to TF32.
    return (mu.view(-1, 1, 1) * logits).sum(dim=0)


def teacher_scale(teacher: torch.Tensor, logit_scale: str | float) -> torch.Tensor:
    """Scale ``s`` of the normalised logits, per sample: ``[B, K]`` -> ``[B, 1]``.

    The paper prints none, and unit-norm logits (``literal``) have an almost flat softmax. ``capped`` is
    ``min(‖Q_ens‖, 2·√K)``: never steeper than the teacher itself, never more confident than the cap, at which the
    gradient matches plain KL's for any number of classes. ``teacher-norm`` has no cap; a number is a constant.
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
        scale: Length to which both logit vectors are normalised, ``[B, 1]`` (Eq. 8). None leaves them as they are.

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
    """``T²`` times the KL divergence of each student from a teacher of its own, both softened by ``T``, in float32.

    Shape:
        Logits ``[N, B, K]`` and ``[N, B, K]``, gradients stop at the teachers -> ``[N]``.
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

    The ensemble ``Q_ens = Σ softmax(μ)_i · Q_i`` is taken of detached logits, so its cross-entropy trains μ alone,
    and as the teacher of the KL terms it gets no gradient. The arithmetic is float32 (float64 for float64 logits)
    under any mixed precision.

    Args:
        num_branches: ``N``.
        criterion: Classification loss of ``[B, K]`` logits and the targets, returning a scalar.
        ensemble: ``adaptive`` learns μ from zeros; ``average`` keeps ``1/N`` (Table 7) and has no parameter.
        ensemble_weight: ``w_ens``.
        kl_weight: ``w_kl``.
        logit_norm: Normalise logits before the KL (Eq. 8); False is plain KL (Table 8).
        logit_scale: ``capped``, ``literal`` (1, the paper as printed), ``teacher-norm`` or a positive number.
        reduction: ``sum`` (Eq. 5) or ``mean`` over the branches' CE and KL terms.

    Shape:
        View-major logits ``[N*B, K]``, targets ``[B]`` or soft ``[B, K]``. Returns a dict of scalars ``loss`` and
        ``ensemble_ce``, and of ``ce`` and ``kl``, each ``[N]``.

    Raises:
        ValueError: An argument out of range, or logits whose rows are not ``N`` times the targets'.

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
        """Sum or mean of the branches' terms, ``[N]``."""
        return terms.sum() if self.reduction == 'sum' else terms.mean()

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        if logits.shape[0] != self.num_branches * target.shape[0]:
            raise ValueError(f'{self.num_branches} views of {target.shape[0]} targets need '
                             f'{self.num_branches * target.shape[0]} rows of logits, got {logits.shape[0]}')
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logits = logits.unflatten(0, (self.num_branches, -1))
            teacher = ensemble_logits(logits.detach(), self.mu.to(logits.dtype))
            ce = torch.stack([self.criterion(branch, target) for branch in logits])
            ensemble_ce = self.criterion(teacher, target)
            scale = teacher_scale(teacher.detach(), self.logit_scale) if self.logit_norm else None
            kl = distillation_kl(logits, teacher, scale)
            loss = self.reduce(ce) + self.ensemble_weight * ensemble_ce + self.kl_weight * self.reduce(kl)
        return {'loss': loss, 'ce': ce, 'ensemble_ce': ensemble_ce, 'kl': kl}
