"""Random state of all processes of a run: its ranks and the workers of their loaders.

Views are seeded per image, so their workers have no state to keep. In plain training, timm's own transforms and mixup
draw from one stream per worker, and a resumed run must continue each stream where it stopped.
"""
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, get_worker_info

_SLOT_BYTES = 1 << 16


def cpu_rng_state() -> dict[str, Any]:
    """State of the global generators of this process on the CPU, as primitives and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    keys = np.asarray(keys).tolist()
    return {'python': random.getstate(), 'numpy': (name, keys, *rest), 'torch': torch.get_rng_state()}


def rng_state() -> dict[str, Any]:
    """State of the global generators of this process, the GPU's included, as primitives and tensors."""
    state = cpu_rng_state()
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` returned.

    Raises:
        ValueError: The state is damaged.
    """
    try:
        version, keys, gauss = state['python']
        random.setstate((version, tuple(keys), gauss))
        np.random.set_state(tuple(state['numpy']))
        torch.set_rng_state(state['torch'])
        if 'cuda' in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state['cuda'])
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f'the random state of the checkpoint is damaged: {error}') from error


def gather_rng_states(workers: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """``rng_state`` of every rank; every rank must call this.

    Args:
        workers: Random state of each worker of this rank, which becomes the entry ``workers``.
    """
    own = {**rng_state(), 'workers': workers}
    if not dist.is_initialized():
        return [own]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, own)
    return states


class RememberingCollate:
    """A collate that writes the random state of its worker to shared memory after each batch.

    Args:
        collate: The collate that makes the batch.
        num_workers: Number of workers of the loader.
    """

    def __init__(self, collate: Callable[[Any], Any], num_workers: int):
        self.collate = collate
        self._slots: torch.Tensor = torch.zeros(num_workers, _SLOT_BYTES, dtype=torch.uint8)
        self._slots.share_memory_()

    def __call__(self, batch: Any) -> Any:
        collated = self.collate(batch)
        worker = get_worker_info()
        assert worker is not None, 'this collate is for loaders with workers'
        self.remember(worker.id)
        return collated

    def remember(self, worker_id: int) -> None:
        """Write the current state of the calling worker."""
        state = cpu_rng_state()
        pickled = pickle.dumps({**state, 'torch': state['torch'].tolist()})
        self._slots[worker_id, :len(pickled)] = torch.frombuffer(bytearray(pickled), dtype=torch.uint8)

    def read(self) -> list[dict[str, Any]] | None:
        """State of each worker after its last batch, or after its start; None before all have started."""
        if not self._slots.any(dim=1).all():
            return None
        states = [pickle.loads(slot.numpy().tobytes()) for slot in self._slots]
        return [{**state, 'torch': torch.tensor(state['torch'], dtype=torch.uint8)} for state in states]


def remember_workers(loader: Any) -> RememberingCollate | None:
    """Let a timm loader remember the random states of its workers; None if it has no workers that could continue.

    The workers of streams, NaFlex batches and timm's multi-epochs loader cannot: they look ahead, so at the end of an
    epoch they have already drawn for the next one.
    """
    data_loader = getattr(loader, 'loader', loader)
    if not data_loader.num_workers or type(data_loader) is not DataLoader or data_loader.batch_sampler is None:
        return None
    data_loader.collate_fn = RememberingCollate(data_loader.collate_fn, data_loader.num_workers)
    # A worker that gets no batch in an epoch keeps the state of its start.
    data_loader.worker_init_fn = _ThenDo(data_loader.worker_init_fn, data_loader.collate_fn.remember)
    return data_loader.collate_fn


def start_workers(loader: Any, states: list[dict[str, Any]] | None = None) -> None:
    """Start the persistent workers of a timm loader now instead of in its first epoch.

    The start draws from torch's global generator. A resumed run starts its workers before it restores that generator,
    so its epochs begin in the same state as those of a run without a stop.

    Args:
        loader: timm's loader, or a ``DataLoader``; nothing happens without persistent workers.
        states: Random state of each worker, as ``RememberingCollate.read`` returned them.
    """
    data_loader = getattr(loader, 'loader', loader)
    if not data_loader.num_workers or not data_loader.persistent_workers:
        return
    if states is not None and len(states) == data_loader.num_workers:
        data_loader.worker_init_fn = _ThenDo(data_loader.worker_init_fn, _Restore(states))
    batches = data_loader.batch_sampler
    if batches is None:
        iter(data_loader)
        return
    # An empty sampler: batches that are loaded ahead here would be thrown away, after they drew random numbers.
    sampler, batches.sampler = batches.sampler, ()
    try:
        iter(data_loader)
    finally:
        batches.sampler = sampler


class _ThenDo:
    """A worker's start: that of timm, then another function of the worker's number."""

    def __init__(self, init: Callable[[int], None] | None, then: Callable[[int], None]):
        self._init = init
        self._then = then

    def __call__(self, worker_id: int) -> None:
        if self._init is not None:
            self._init(worker_id)
        self._then(worker_id)


class _Restore:
    """A function that gives a worker the random state from which it continues."""

    def __init__(self, states: list[dict[str, Any]]):
        self._states = states

    def __call__(self, worker_id: int) -> None:
        set_rng_state(self._states[worker_id])
