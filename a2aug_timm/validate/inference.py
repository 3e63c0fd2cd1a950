"""A model made ready to be measured: fused, pooled for larger images, placed, compiled, spread over GPUs."""
import argparse
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import apply_test_time_pool, set_fast_norm
from timm.utils import reparameterize_model, set_jit_fuser
from torch import nn

_logger = logging.getLogger('validate')


def set_backends(args: argparse.Namespace) -> None:
    """Switches of the whole process, for every model that is built from now on."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if args.fuser:
        set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()


def fuse(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    """A model in eval mode, re-parameterised if that is asked for."""
    model.eval()
    if args.fast_norm and not any(getattr(module, '_fast_norm', False) for module in model.modules()):
        _logger.warning('--fast-norm changes nothing: %s has no norm layer with a fast form', type(model).__name__)
    if not args.reparam:
        return model
    num_modules = sum(1 for _ in model.modules())
    model = reparameterize_model(model)
    if sum(1 for _ in model.modules()) == num_modules:
        _logger.warning('--reparam changes nothing: %s has nothing to fuse', type(model).__name__)
    return model


def pool_at_test_time(model: nn.Module, data_config: dict[str, Any]) -> tuple[nn.Module, bool]:
    """The model with its classifier applied before pooling, where images are larger than those it was trained on.

    Returns:
        The model, and whether it is another one than before.

    Raises:
        ValueError: The network's features or its classifier do not allow it.
    """
    trained, asked = model.default_cfg['input_size'][-2:], data_config['input_size'][-2:]
    if not all(new > old for new, old in zip(asked, trained, strict=True)):
        _logger.warning('--test-pool changes nothing: images of %s are not larger than those of training, %s',
                        tuple(asked), tuple(trained))
        return model, False
    name = type(model).__name__
    with torch.inference_mode():
        features = model.forward_features(torch.zeros(1, data_config['input_size'][0], *trained))
    if not isinstance(features, torch.Tensor) or features.ndim != 4 or features.shape[1] != model.num_features:
        raise ValueError(f'--test-pool needs a network that pools a [B, C, H, W] map, which {name} does not')
    if model.default_cfg.get('pool_size') is None:
        # timm forgets it where a model was trained on images of another size.
        model.default_cfg['pool_size'] = tuple(features.shape[-2:])
    try:
        return apply_test_time_pool(model, data_config)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(f'--test-pool does not fit {name}: {error}') from error


def place(args: argparse.Namespace, model: nn.Module) -> nn.Module:
    """The model on its device in its dtype and layout, compiled as asked for, on as many GPUs as asked for."""
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
        torch._dynamo.reset()  # of several models each may be compiled as often as one
        model = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    elif args.aot_autograd:
        model = FusedByShape(model)
    return nn.DataParallel(model, device_ids=list(range(args.num_gpu))) if args.num_gpu > 1 else model


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Leave out that TorchScript is deprecated, which torch says with every layer."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


class FusedByShape(nn.Module):
    """A network that functorch's AOT autograd fuses anew for each shape of images, for it fixes the shape that it sees.

    The last batch is smaller than the others more often than not.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._fused: dict[torch.Size, nn.Module] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape in self._fused:
            return self._fused[images.shape](images)
        from functorch.compile import memory_efficient_fusion
        fused = self._fused[images.shape] = memory_efficient_fusion(self.model)
        with _without_deprecations():
            return fused(images)


@contextmanager
def compilation_errors(args: argparse.Namespace) -> Iterator[None]:
    """Say in one sentence what a backend of ``--torchcompile`` cannot do; it compiles when the first images come."""
    if not args.torchcompile:
        yield
        return
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        lines = ' '.join(line.strip() for line in str(error).splitlines()[:2])
        raise ValueError(f'--torchcompile {args.torchcompile} failed: {lines}') from error


def first_line(error: BaseException) -> str:
    """What an error of a compiler says, without the source that it prints."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
