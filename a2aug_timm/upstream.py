"""Private names of torch, torchvision and timm: the one place that imports them.

Each entry says why the package needs the name, and which public way there is. Check this file first with a new version
of these libraries.
"""
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch._dynamo
import torch._inductor

# The draw of an op's interpolation, for ops that must draw like timm's; no public name.
from timm.data.auto_augment import _interpolation as draw_interpolation

# timm's names of the splits, and of torchvision's data sets that have these splits; no public list.
from timm.data.dataset_factory import _EVAL_SYNONYM as EVAL_SYNONYMS
from timm.data.dataset_factory import _TORCH_BASIC_DS as TORCH_DATASETS
from timm.data.dataset_factory import _TRAIN_SYNONYM as TRAIN_SYNONYMS

# Seeding of a worker as in timm's `create_loader`, which takes no transforms from outside; no public name.
from timm.data.loader import _worker_init as worker_init

# The module whose `create_model` timm's own code calls; the public `timm.create_model` is another reference to it.
from timm.models import _factory as timm_factory

# Indices of the features to return, for networks with timm's `forward_intermediates`; no public name.
from timm.models._features import feature_take_indices

# timm's config.json. The public `save_for_hf` writes the weights too.
from timm.models._hub import save_config_for_hf

# Layers of parameters by name. The public `group_parameters` takes a module, but the names here are the plain model's.
from timm.models._manipulate import group_with_matcher

# The class of compiled modules; no public name.
from torch._dynamo import OptimizedModule

# The base class of all errors of torch.compile's first stage; no public name.
from torch._dynamo.exc import TorchDynamoException

# The base class of BatchNorm1d, 2d and 3d, SyncBatchNorm and timm's batch norms; no public name.
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

# The base class of InstanceNorm1d, 2d and 3d; no public name.
from torch.nn.modules.instancenorm import _InstanceNorm as AnyInstanceNorm

__all__ = [
    'EVAL_SYNONYMS', 'LABEL_ATTRIBUTES', 'TORCH_DATASETS', 'TRAIN_SYNONYMS', 'AnyBatchNorm', 'AnyInstanceNorm',
    'OptimizedModule', 'TorchDynamoException', 'allow_graphs', 'base_optimizer', 'call_after_backward',
    'child_modules', 'compile_modes', 'current_graph_task', 'draw_interpolation', 'feature_take_indices',
    'group_with_matcher', 'has_fast_norm', 'mark_dynamic', 'save_config_for_hf', 'timm_factory', 'worker_init',
]

# Names of the list of classes in torchvision's data sets, some of which have no public list.
LABEL_ATTRIBUTES = ('targets', 'labels', '_labels')

# Number of the backward pass that this thread computes, -1 outside of backward; no public way.
current_graph_task: Callable[[], int] = torch._C._current_graph_task_id

# Compile once for all sizes of a dimension. torch documents it under this name, without a public module.
mark_dynamic: Callable[[torch.Tensor, int], None] = torch._dynamo.maybe_mark_dynamic


def call_after_backward(callback: Callable[[], Any]) -> None:
    """Call a function at the end of the backward pass that is running; no public way."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def allow_graphs(num_graphs: int) -> None:
    """Let ``torch.compile`` keep at least this many graphs of a function.

    ``torch.compiler.config`` is the public way, which the oldest supported torch, 2.6, does not have.
    """
    config: ModuleType = torch._dynamo.config
    # The second of each pair is torch 2.6's name.
    for names in (('recompile_limit', 'cache_size_limit'),
                  ('accumulated_recompile_limit', 'accumulated_cache_size_limit')):
        limit = next(name for name in names if hasattr(config, name))
        setattr(config, limit, max(getattr(config, limit), num_graphs))


def compile_modes() -> list[str]:
    """Modes of ``torch.compile``'s default backend. torch documents the list under this private name."""
    return list(torch._inductor.list_mode_options())


def child_modules(module: torch.nn.Module) -> dict[str, torch.nn.Module | None]:
    """Children of a module by name, to read and to replace; ``named_children()`` names a shared child once."""
    return module._modules


def base_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that keeps the state of the parameters: in timm's Lookahead, the one it wraps; no public way."""
    base: torch.optim.Optimizer = getattr(optimizer, '_base_optimizer', optimizer)
    return base


def has_fast_norm(module: torch.nn.Module) -> bool:
    """Whether one of timm's norm layers uses its fast form; ``is_fast_norm()`` is the switch of the process."""
    return bool(getattr(module, '_fast_norm', False))
