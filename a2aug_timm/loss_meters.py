"""What is measured during an epoch without a word between device and host: loss averages, and a guard of the loss."""
import torch
from torch import distributed as dist


class Averages:
    """Running means of a task's loss terms, kept on the device; reading them is the only synchronisation."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def update(self, terms: dict[str, torch.Tensor], count: int) -> None:
        for name, value in terms.items():
            value = wide(value.detach()) * count
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += count

    def read(self) -> dict[str, float]:
        """Means over all ranks; a term of N values becomes ``name_0 … name_{N-1}``. Every rank must call this."""
        means = {}
        for name, value in self._sums.items():
            value = value / self._count
            if dist.is_initialized():
                dist.all_reduce(value)
                value = value / dist.get_world_size()
            if value.ndim == 0:
                means[name] = value.item()
            else:
                means.update((f'{name}_{i}', item) for i, item in enumerate(value.tolist()))
        return means


def wide(value: torch.Tensor) -> torch.Tensor:
    """Float64, in which timm's meters sum on the host, where the device has it."""
    return value if value.device.type == 'mps' else value.double()


class FiniteLossGuard:
    """Remembers on the device the first step whose loss was not finite; ``check`` reads it.

    Raises:
        FloatingPointError: From ``check``, on every rank at once, naming the step.
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
