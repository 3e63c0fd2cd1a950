"""Model of a training run: timm's, with branches, on its device."""
import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from timm import utils
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from torch import nn

from ..branches import create_branches, networks_of, select_branch
from ..cli.config import user_error_from
from ..cli.resolve import dtype_of
from ..engine.checkpoint import check_weights, load_weights, read_checkpoint, state_dict_of
from ..engine.process import Process
from ..engine.record import record_of


def set_backends(args: argparse.Namespace, process: Process) -> None:
    """Seed this process, and set the switches that hold for the whole process."""
    utils.random_seed(args.seed, process.rank)
    if args.fuser:
        utils.set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()


def build_model(args: argparse.Namespace, checkpoint: dict[str, Any] | None, process: Process) -> nn.Module:
    """Build the model: pretrained weights, then branches, then SyncBatchNorm, so that each step sees what it needs.

    Raises:
        ValueError: timm cannot build the model, or weights or sizes do not fit it.
    """
    is_fresh = checkpoint is None
    initial = _read_initial(args) if args.initial_checkpoint and is_fresh else None
    # Plain weights start all branches; those of a multi-branch run are a branch's own.
    has_branches = initial is not None and _num_branches(initial, args.initial_checkpoint) > 1

    def create() -> nn.Module:
        model: Any = _create_model(args, is_fresh)
        if initial is not None and not has_branches:
            load_weights(model, initial, args.initial_checkpoint, use_ema=None)
        if args.grad_checkpointing:
            model.set_grad_checkpointing(enable=True)
        return model

    try:
        model = create_branches(create, args.a2aug_branches, owned_by_branches(args))
    except ValueError as error:
        if 'has no batch norm' not in str(error):
            raise
        raise ValueError(f'{error}; --a2aug-norm all gives each branch norms of every kind') from error
    _check_sizes(args, model)
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    if initial is not None and has_branches:
        load_weights(model, initial, args.initial_checkpoint, use_ema=None)
    _init_heads(args, model)
    if checkpoint is not None:
        check_weights(model, state_dict_of(checkpoint), args.resume)
    model.to(device=process.device, dtype=dtype_of(args.model_dtype))
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return convert_sync_batchnorm(model) if process.is_distributed and args.sync_bn else model


def _check_sizes(args: argparse.Namespace, model: nn.Module) -> None:
    """Raise ``ValueError`` if the network does not take the images of some branch."""
    for size in args.a2aug_branch_sizes or ():
        network: Any = networks_of(model)[0]
        try:
            with torch.inference_mode(), select_branch(model, 0):
                model.eval()(torch.zeros(1, network.in_chans, size, size))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f'--a2aug-branch-sizes: {args.model} takes no images of {size} pixels: {error}') from error
    model.train()


def owned_by_branches(args: argparse.Namespace) -> str:
    """Modules that the flags give each branch of its own, as ``create_branches`` names them."""
    if args.a2aug_shared_bn:
        return 'nothing'
    return 'network' if args.a2aug_independent else {'bn': 'bn', 'all': 'norms'}[args.a2aug_norm]


def _create_model(args: argparse.Namespace, is_fresh: bool) -> nn.Module:
    pretrained = read_checkpoint(args.pretrained_path) if args.pretrained_path and is_fresh else None
    overlay = None if pretrained is None else dict(file=args.pretrained_path, num_classes=-1)
    with user_error_from(
            TypeError, AssertionError, RuntimeError, KeyError, IndexError, AttributeError,
            what=f'--model {args.model}'):
        model = timm.create_model(
            args.model,
            pretrained=bool(args.pretrained or args.pretrained_path) and is_fresh,
            pretrained_cfg_overlay=overlay,
            in_chans=args.in_chans or (args.input_size[0] if args.input_size else None),
            num_classes=args.num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            drop_block_rate=args.drop_block,
            global_pool=args.gp,
            bn_momentum=args.bn_momentum,
            bn_eps=args.bn_eps,
            scriptable=args.torchscript or None,
            **args.model_kwargs,
        )
    if pretrained is not None:
        _check_pretrained(pretrained, args.pretrained_path, model)
    return model


def _init_heads(args: argparse.Namespace, model: nn.Module) -> None:
    """Start the classifiers as the flags say, whatever weights they have."""
    if args.head_init_scale is None and args.head_init_bias is None:
        return
    networks: list[Any] = networks_of(model)
    for head in (network.get_classifier() for network in networks):
        if not isinstance(getattr(head, 'weight', None), nn.Parameter):
            raise ValueError(f'--head-init-scale and --head-init-bias need one classifier layer; {args.model} has a '
                             f'{type(head).__name__}')
        with torch.no_grad():
            if args.head_init_scale is not None:
                head.weight.mul_(args.head_init_scale)
                if head.bias is not None:
                    head.bias.mul_(args.head_init_scale)
            if args.head_init_bias is not None:
                if head.bias is None:
                    raise ValueError(f'--head-init-bias: the classifier of {args.model} has no bias')
                head.bias.fill_(args.head_init_bias)


def _read_initial(args: argparse.Namespace) -> dict[str, Any]:
    path = Path(args.initial_checkpoint)
    return read_checkpoint(path / 'model.safetensors' if path.is_dir() else path)


def _num_branches(checkpoint: dict[str, Any], source: str) -> int:
    record = record_of(checkpoint, source)
    return 1 if record is None else record.num_model_branches


def _check_pretrained(checkpoint: dict[str, Any], path: str, model: nn.Module) -> None:
    """timm adapts head and stem and so takes any file; refuse what it would take nothing or the wrong things of."""
    if (num_branches := _num_branches(checkpoint, path)) > 1:
        raise ValueError(f"'{path}' holds {num_branches} branches; export one of them first")
    if not state_dict_of(checkpoint, use_ema=None).keys() & model.state_dict().keys():
        raise ValueError(f"'{path}' holds no weights of {type(model).__name__}")
