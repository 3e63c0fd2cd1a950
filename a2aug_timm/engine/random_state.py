"""Random state of all processes of a run: of the ranks, and of the workers of their loaders.

Views are seeded image by image and need nothing of their workers. timm's own transforms and mixup, in plain training,
draw from one stream a worker, which a resumed run must take up where it stopped.
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
    """State of this process's global generators but for a GPU's, as primitives and tensors."""
    name, keys, *rest = np.random.get_state()
    return {'python': random.getstate(), 'numpy': (name, keys.tolist(), *rest), 'torch': torch.get_rng_state()}


def rng_state() -> dict[str, Any]:
    """State of this process's global generators, as primitives and tensors."""
    state = cpu_rng_state()
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` returned."""
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state['numpy']))
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


def gather_rng_states(workers: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """``rng_state`` of every rank, and of its workers where they are given; every rank must call this."""
    own = {**rng_state(), 'workers': workers}
    if not dist.is_initialized():
        return [own]
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, own)
    return states


class RememberingCollate:
    """A collate that leaves the random state of its worker in memory which all processes share.

    Args:
        collate: What it does otherwise.
        num_workers: Number of workers.
    """

    def __init__(self, collate: Callable, num_workers: int):
        self.collate = collate
        self._slots = torch.zeros(num_workers, _SLOT_BYTES, dtype=torch.uint8).share_memory_()

    def __call__(self, batch: Any) -> Any:
        collated = self.collate(batch)
        self.remember(get_worker_info().id)
        return collated

    def remember(self, worker_id: int) -> None:
        """Called in a worker: leave its state now."""
        state = cpu_rng_state()
        pickled = pickle.dumps({**state, 'torch': state['torch'].tolist()})
        self._slots[worker_id, :len(pickled)] = torch.frombuffer(bytearray(pickled), dtype=torch.uint8)

    def read(self) -> list[dict[str, Any]] | None:
        """State of each worker after its last batch, or its start; None before they have started."""
        if not self._slots.any(dim=1).all():
            return None
        states = [pickle.loads(slot.numpy().tobytes()) for slot in self._slots]
        return [{**state, 'torch': torch.tensor(state['torch'], dtype=torch.uint8)} for state in states]


def remember_workers(loader: Any) -> RememberingCollate | None:
    """Remember the random states of a timm loader's workers from now on; None if it has none that could go on.

    Workers that look ahead (of streams, of NaFlex batches, of timm's multi-epochs loader) have drawn for the next epoch
    when one ends, so nothing is remembered of them.
    """
    data_loader = getattr(loader, 'loader', loader)
    if not data_loader.num_workers or type(data_loader) is not DataLoader or data_loader.batch_sampler is None:
        return None
    data_loader.collate_fn = RememberingCollate(data_loader.collate_fn, data_loader.num_workers)
    # A worker that gets no batch in an epoch is still where it started.
    data_loader.worker_init_fn = _ThenDo(data_loader.worker_init_fn, data_loader.collate_fn.remember)
    return data_loader.collate_fn


def start_workers(loader: Any, states: list[dict[str, Any]] | None = None) -> None:
    """Start the persistent workers of a timm loader now rather than at its first epoch.

    Starting draws from torch's global generator. A resumed run does it before it restores that generator, so that
    its epochs begin in the same state as those of a run which never stopped.

    Args:
        states: Random state for each worker, as ``RememberingCollate.read`` gave them.
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
    # Nothing to load yet: what workers fetch ahead here would be thrown away, but not its draws.
    sampler, batches.sampler = batches.sampler, ()
    try:
        iter(data_loader)
    finally:
        batches.sampler = sampler


class _ThenDo:
    """timm's start of a worker, then something else with the worker's number."""

    def __init__(self, init: Callable[[int], None], then: Callable[[int], None]):
        self._init = init
        self._then = then

    def __call__(self, worker_id: int) -> None:
        self._init(worker_id)
        self._then(worker_id)


class _Restore:
    """Give a worker the state that it goes on from."""

    def __init__(self, states: list[dict[str, Any]]):
        self._states = states

    def __call__(self, worker_id: int) -> None:
        set_rng_state(self._states[worker_id])
