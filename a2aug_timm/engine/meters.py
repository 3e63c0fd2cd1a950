"""Meters of an epoch: averages and a check of the loss in training, additional metrics in evaluation."""
import math

import torch
from timm.data import RealLabelsImagenet
from torch import distributed as dist


class Averages:
    """Running means of a task's loss terms, kept on the device; only reading them synchronises with it.

    NaN marks a value that a batch does not have, so the mean is taken over the other batches.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}

    def update(self, terms: dict[str, torch.Tensor], count: int) -> None:
        """Add the terms of a batch of ``count`` images."""
        for name, value in terms.items():
            value = wide(value.detach())
            is_missing = value.isnan()
            value = value.masked_fill(is_missing, 0.) * count
            counts = ~is_missing * count
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts[name] + counts if name in self._counts else counts

    def read(self) -> dict[str, float]:
        """Means over all ranks, without values that no batch had; a term of N values becomes ``name_0 … name_{N-1}``.

        Every rank must call this.
        """
        means = {}
        for name, value in self._sums.items():
            value = value / self._counts[name]
            if dist.is_initialized():
                dist.all_reduce(value)
                value = value / dist.get_world_size()
            items = {name: value.item()} if value.ndim == 0 else {
                f'{name}_{i}': item for i, item in enumerate(value.tolist())}
            means.update((key, item) for key, item in items.items() if not math.isnan(item))
        return means


def wide(value: torch.Tensor) -> torch.Tensor:
    """The value in float64, the precision of timm's meters, if the device supports it."""
    return value if value.device.type == 'mps' else value.double()


class FiniteLossGuard:
    """Record on the device of the first step whose loss was not finite.

    Raises:
        FloatingPointError: ``check`` found such a step; it is raised on all ranks and names the step.
    """

    def __init__(self, epoch: int, device: torch.device):
        self._epoch = epoch
        self._first_bad = torch.full((), torch.iinfo(torch.int64).max, device=device)

    def update(self, loss: torch.Tensor, step: int) -> None:
        bad = torch.where(torch.isfinite(loss.detach()), torch.iinfo(torch.int64).max, step)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def check(self) -> None:
        if dist.is_initialized():
            dist.all_reduce(self._first_bad, op=dist.ReduceOp.MIN)
        step = self._first_bad.item()
        if step < torch.iinfo(torch.int64).max:
            raise FloatingPointError(f'the loss is not finite at epoch {self._epoch}, step {step}')


class PrecisionRecallF1:
    """Precision, recall and F1 score over all classes, in percent, for each branch and the ensemble.

    Args:
        average: ``micro``, ``macro`` or ``weighted``, as scikit-learn defines them; a class without predictions
            counts as 0.
    """

    def __init__(self, average: str):
        self.average = average
        self._predictions: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []

    def update(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Add logits ``[N, B, K]`` and targets ``[B]``."""
        self._predictions.append(logits.argmax(-1).cpu())
        self._targets.append(target.cpu())

    def read(self) -> list[dict[str, float]]:
        """The three metrics of each of the N."""
        from sklearn.metrics import precision_recall_fscore_support  # an optional dependency
        target = torch.cat(self._targets).numpy()
        results = []
        for predictions in torch.cat(self._predictions, dim=1).numpy():
            values = precision_recall_fscore_support(target, predictions, average=self.average, zero_division=0)
            names = (f'{self.average}_{name}' for name in ('precision', 'recall', 'f1_score'))
            results.append({name: 100 * float(value) for name, value in zip(names, values, strict=False)})
        return results


class RealLabels:
    """Top-1 and top-5 by reassessed ImageNet labels for each branch and the ensemble; an image may have any number.

    Args:
        filenames: Name of each image without its folder, in the order of the loader.
        path: JSON file with a list of labels for each image of ImageNet's validation set, in the order of that set.

    Source: Beyer et al., Are we done with ImageNet? (arXiv 2006.07159).
    """

    def __init__(self, filenames: list[str], path: str):
        self._filenames = filenames
        self._path = path
        self._evaluators: list[RealLabelsImagenet] = []

    def update(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Add logits ``[N, B, K]``; the targets are ignored, since the reassessed labels replace them."""
        if not self._evaluators:
            self._evaluators = [RealLabelsImagenet(self._filenames, self._path) for _ in logits]
        for evaluator, one in zip(self._evaluators, logits, strict=True):
            evaluator.add_result(one)

    def read(self) -> list[dict[str, float]]:
        """``top1`` and ``top5`` of each of the N, over the images with a label."""
        return [{f'top{k}': evaluator.get_accuracy(k) for k in (1, 5)} for evaluator in self._evaluators]
