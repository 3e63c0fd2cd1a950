"""Preparation of a model for evaluation: fused, pooled for larger images, placed, compiled, spread over GPUs."""
import argparse
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import apply_test_time_pool, set_fast_norm
from timm.utils import reparameterize_model, set_jit_fuser
from torch import nn

from ..upstream import TorchDynamoException, has_fast_norm

_logger = logging.getLogger('validate')


def set_backends(args: argparse.Namespace) -> None:
    """Set the switches of the whole process, before any model is built."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if args.fuser:
        set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()


def fuse(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    """Put a model in eval mode, and re-parameterise it if asked for."""
    model.eval()
    if args.fast_norm and not any(has_fast_norm(module) for module in model.modules()):
        _logger.warning('--fast-norm changes nothing: %s has no norm layer with a fast form', type(model).__name__)
    if not args.reparam:
        return model
    num_modules = sum(1 for _ in model.modules())
    model = reparameterize_model(model)
    if sum(1 for _ in model.modules()) == num_modules:
        _logger.warning('--reparam changes nothing: %s has nothing to fuse', type(model).__name__)
    return model


def pool_at_test_time(model: nn.Module, data_config: dict[str, Any]) -> tuple[nn.Module, bool]:
    """Apply the classifier before pooling, where images are larger than in training.

    Returns:
        The model, and whether it was changed.

    Raises:
        ValueError: The network's features or its classifier do not allow it.
    """
    network: Any = model
    trained, asked = network.default_cfg['input_size'][-2:], data_config['input_size'][-2:]
    if not all(new > old for new, old in zip(asked, trained, strict=True)):
        _logger.warning('--test-pool changes nothing: images of %s are not larger than those of training, %s',
                        tuple(asked), tuple(trained))
        return model, False
    name = type(model).__name__
    with torch.inference_mode():
        features = network.forward_features(torch.zeros(1, data_config['input_size'][0], *trained))
    if not isinstance(features, torch.Tensor) or features.ndim != 4 or features.shape[1] != network.num_features:
        raise ValueError(f'--test-pool needs a network that pools a [B, C, H, W] map, which {name} does not')
    if network.default_cfg.get('pool_size') is None:
        # timm forgets it where a model was trained on images of another size.
        network.default_cfg['pool_size'] = tuple(features.shape[-2:])
    try:
        return apply_test_time_pool(model, data_config)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f'--test-pool does not fit {name}: {error}') from error


def place(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    """Place a model on its device, compile it and spread it over GPUs, as the flags say."""
    model = model.to(device=args.device, dtype=getattr(torch, args.model_dtype) if args.model_dtype else None).eval()
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.torchscript:
        with _without_deprecations():
            try:
                model = torch.jit.script(model)
            except Exception as error:  # whatever the compiler meets in a model's source
                raise ValueError(f'{type(model).__name__} cannot be scripted: {first_line(error)}') from error
    elif args.torchcompile:
        torch.compiler.reset()  # of several models each may be compiled as often as one
        compiled: Any = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
        model = compiled
    elif args.aot_autograd:
        model = FusedByShape(model)
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu))) if args.num_gpu > 1 else model


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Silence the deprecation warning of TorchScript, which torch repeats for every layer."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


class FusedByShape(nn.Module):
    """Network that functorch's AOT autograd fuses once per shape of images, since it fixes the shape that it sees.

    The last batch is usually smaller than the others.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._fused: dict[torch.Size, Callable[[torch.Tensor], torch.Tensor]] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape in self._fused:
            return self._fused[images.shape](images)
        from functorch.compile import memory_efficient_fusion
        fused = self._fused[images.shape] = memory_efficient_fusion(self.model)
        with _without_deprecations():
            return fused(images)


@contextmanager
def compilation_errors(args: argparse.Namespace) -> Iterator[None]:
    """Turn an error of the compiler, which runs at the first batch, into ``ValueError``."""
    if not args.torchcompile:
        yield
        return
    try:
        yield
    except TorchDynamoException as error:
        lines = ' '.join(line.strip() for line in str(error).splitlines()[:2])
        raise ValueError(f'--torchcompile {args.torchcompile} failed: {lines}') from error


def first_line(error: BaseException) -> str:
    """First line of a compiler's error, without the source that it prints."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
