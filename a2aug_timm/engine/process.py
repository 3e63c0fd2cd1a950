"""The process of a run: its rank and its device."""
import logging
from dataclasses import dataclass

import torch
from timm.utils.distributed import init_distributed_device_so

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """One of the processes that train together.

    Attributes:
        device: Device of this process.
        rank: Number of this process among all.
        world_size: Number of processes.
        is_distributed: A process group exists, also of a single process.
    """
    device: torch.device
    rank: int = 0
    world_size: int = 1
    is_distributed: bool = False

    @property
    def is_primary(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def start_process(device: str) -> Process:
    """Join the process group that the launcher's environment describes, and take this process's device.

    Raises:
        ValueError: The device cannot be used.
    """
    try:
        found = init_distributed_device_so(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use the device '{device}': {error}") from error
    process = Process(torch.device(found['device']), found['global_rank'], found['world_size'], found['distributed'])
    if process.device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    _logger.info('Rank %d of %d on %s', process.rank, process.world_size, process.device)
    return process
