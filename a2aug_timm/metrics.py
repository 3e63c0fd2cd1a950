"""Metrics beside top-1, top-5 and loss: they meet every batch of ``engine.evaluate`` and answer at its end."""
import torch
from timm.data import RealLabelsImagenet


class PrecisionRecallF1:
    """Precision, recall and F1 score over all classes, in percent, for each branch and the ensemble.

    Args:
        average: ``micro``, ``macro`` or ``weighted``, as scikit-learn defines them; a class that is never predicted
            counts as 0.
    """

    def __init__(self, average: str):
        self.average = average
        self._predictions: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []

    def update(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Take logits ``[N, B, K]`` and targets ``[B]``."""
        self._predictions.append(logits.argmax(-1).cpu())
        self._targets.append(target.cpu())

    def read(self) -> list[dict[str, float]]:
        """The three metrics of each of the N."""
        from sklearn.metrics import precision_recall_fscore_support  # only for who asks for it
        target = torch.cat(self._targets).numpy()
        results = []
        for predictions in torch.cat(self._predictions, dim=1).numpy():
            values = precision_recall_fscore_support(target, predictions, average=self.average, zero_division=0)
            names = (f'{self.average}_{name}' for name in ('precision', 'recall', 'f1_score'))
            results.append({name: 100 * float(value) for name, value in zip(names, values, strict=False)})
        return results


class RealLabels:
    """Top-1 and top-5 by reassessed ImageNet labels, several an image or none, for each branch and the ensemble.

    Args:
        filenames: Name of each image without its folder, in the order in which they come.
        path: JSON file, a list of labels for each image of ImageNet's validation set in that set's order.

    Source: Beyer et al., Are we done with ImageNet? (arXiv 2006.07159).
    """

    def __init__(self, filenames: list[str], path: str):
        self._filenames = filenames
        self._path = path
        self._evaluators: list[RealLabelsImagenet] = []

    def update(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Take logits ``[N, B, K]``; the targets are what is replaced."""
        if not self._evaluators:
            self._evaluators = [RealLabelsImagenet(self._filenames, self._path) for _ in logits]
        for evaluator, one in zip(self._evaluators, logits, strict=True):
            evaluator.add_result(one)

    def read(self) -> list[dict[str, float]]:
        """``top1`` and ``top5`` of each of the N, over the images that have a label."""
        return [{f'top{k}': evaluator.get_accuracy(k) for k in (1, 5)} for evaluator in self._evaluators]
