#!/usr/bin/env python3
"""Evaluate a plain timm checkpoint, an export folder, or the branches of a run.

    python validate.py --data-dir /data/imagenet --checkpoint output/train/RUN/export
    python validate.py --data-dir /data/imagenet --checkpoint output/train/RUN/last.pth.tar --branch all
"""
import argparse
import csv
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm import utils
from timm.data import create_loader, resolve_input_data_config
from torch import nn

from a2aug_timm.branches import branch_logits, extract_branch, num_branches_of
from a2aug_timm.checkpoint import atomic_write, load_weights, read_checkpoint
from a2aug_timm.cli.checks import check_common, flag
from a2aug_timm.cli.console import branch_table, print_table
from a2aug_timm.cli.validate_arguments import validate_parser
from a2aug_timm.datasets import check_split, create_dataset, names_of_classes
from a2aug_timm.engine import evaluate
from a2aug_timm.export import build_model, load_branches, read_config, resolve_branches
from a2aug_timm.views import SkippingDataset

_logger = logging.getLogger('validate')


def main(argv: list[str] | None = None) -> None:
    parser = validate_parser()
    args, explicit = parser.parse(argv)
    with parser.user_errors(RuntimeError, TypeError, KeyError, AssertionError, OSError, ImportError):
        check_common(args, explicit)
        if args.results_file and not Path(args.results_file).resolve().parent.is_dir():
            raise ValueError(f"there is no folder for --results-file '{args.results_file}'")
        check_split(args.dataset, args.data_dir, args.split, allow_no_split=True)
        model, rows, label_names = load(args, explicit)
        data_config = resolve_input_data_config(
            model, vars(args), use_test_size=not args.use_train_size, verbose=True)
        mode = args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L')
        dataset = SkippingDataset(create_dataset(
            args.dataset, args.data_dir, args.split, allow_no_split=True, class_map=args.class_map,
            class_names=label_names, download=args.dataset_download,
            input_img_mode=mode), mode)
        names = names_of_classes(dataset.dataset)
        if names and len(names) > model.num_classes:
            raise ValueError(f'the data has {len(names)} classes, the model {model.num_classes}')
    utils.random_seed(args.seed)
    device = torch.device(args.device)
    loader = create_loader(
        dataset, data_config['input_size'], args.batch_size, use_prefetcher=not args.no_prefetcher,
        interpolation=data_config['interpolation'], mean=data_config['mean'], std=data_config['std'],
        num_workers=args.workers, crop_pct=data_config['crop_pct'], crop_mode=data_config['crop_mode'],
        pin_memory=args.pin_mem, device=device)
    model.to(device=device, memory_format=torch.channels_last if args.channels_last else None).eval()
    metrics = evaluate(
        partial(branch_logits, model), torch.tensor([row.get('mu', 1.) for row in rows]), loader, device=device,
        autocast=autocast(args, device), channels_last=args.channels_last,
        on_batch=lambda batch: log_batch(batch, len(loader), args.log_freq))

    if num_skipped := dataset.take_num_skipped():
        _logger.warning('Skipped %d broken images', num_skipped)
    results = describe(args, rows, metrics, model, data_config)
    print_table(args.checkpoint or args.model, branch_table(
        [row.get('policy') or row['model'] for row in rows], metrics, [row.get('mu', 1.) for row in rows], best=None))
    if args.results_file:
        write_results(Path(args.results_file), results, args.results_format)
    print('--result\n' + json.dumps(results if len(results) > 1 else results[0], indent=4))


def load(
        args: argparse.Namespace,
        explicit: set[str],
) -> tuple[nn.Module, list[dict[str, Any]], list[str] | None]:
    """The model to evaluate, what is known of each of its branches (one of a plain model), the names of its classes.

    Raises:
        ValueError: The checkpoint does not fit what the command line says, or cannot be read.
    """
    path = Path(args.checkpoint)
    if not args.checkpoint:
        _refuse_branch(args, explicit)
        model = timm.create_model(
            args.model, pretrained=True, num_classes=args.num_classes, in_chans=_in_chans(args), global_pool=args.gp,
            **args.model_kwargs)
        return model, [{'model': args.model}], None
    if path.is_dir():
        path = path / 'model.safetensors'
    checkpoint = read_checkpoint(path)
    if 'a2aug' in checkpoint:
        return load_run(args, explicit, checkpoint, str(path))

    _refuse_branch(args, explicit)
    config = read_config(path)
    if config is not None:
        _check_config(args, explicit, config)
        model = build_model(config)
    else:
        model = timm.create_model(
            args.model, num_classes=args.num_classes, in_chans=_in_chans(args), global_pool=args.gp,
            **args.model_kwargs)
    load_weights(model, checkpoint, str(path), args.use_ema)
    row = {'model': config['architecture'] if config else args.model}
    if policy := checkpoint.get('metadata', {}).get('policy'):
        row['policy'] = policy
    return model, [row], (config or {}).get('label_names')


def load_run(
        args: argparse.Namespace,
        explicit: set[str],
        checkpoint: dict[str, Any],
        source: str,
) -> tuple[nn.Module, list[dict[str, Any]], list[str] | None]:
    """The branches of a run that ``--branch`` names: one of them as a plain model, or all of them."""
    run = checkpoint['a2aug']
    _check_config(args, explicit, run['config'])
    model = load_branches(checkpoint, source, use_ema=True if args.use_ema else None)
    branches = resolve_branches(args.branch, run, model)
    rows = [{'model': run['config']['architecture'], 'branch': branch,
             'policy': None if run['shared_bn'] else run['policies'][branch],
             'mu': 1. if run['shared_bn'] else run['mu'][branch]} for branch in branches]
    if num_branches_of(model) > 1 and len(branches) == 1:
        model = extract_branch(model, branches[0])
    return model, rows, run['config'].get('label_names')


def _refuse_branch(args: argparse.Namespace, explicit: set[str]) -> None:
    if 'branch' in explicit and args.branch != 'best':
        raise ValueError(f"there is no branch '{args.branch}'; '{args.checkpoint or args.model}' is a plain model")


def _check_config(args: argparse.Namespace, explicit: set[str], config: dict[str, Any]) -> None:
    for name, value in (('model', config['architecture']), ('num_classes', config['num_classes'])):
        given = getattr(args, name)
        if name in explicit and str(given).split('.')[0] != str(value):
            raise ValueError(f'{flag(name)} {given} contradicts the checkpoint, which has {value}')
    for name in ('gp', 'model_kwargs'):
        if name in explicit:
            raise ValueError(f'{flag(name)} has no effect; the checkpoint says how its model was built')


def _in_chans(args: argparse.Namespace) -> int | None:
    return args.in_chans or (args.input_size[0] if args.input_size else None)


def autocast(args: argparse.Namespace, device: torch.device) -> Callable:
    """Mixed precision of the forward pass, if it is asked for."""
    return partial(torch.autocast, device.type, getattr(torch, args.amp_dtype)) if args.amp else nullcontext


def log_batch(batch: int, num_batches: int, log_freq: int) -> None:
    if batch % log_freq == 0 or batch == num_batches - 1:
        _logger.info('Test: [%4d/%d]', batch, num_batches - 1)


def describe(
        args: argparse.Namespace,
        rows: list[dict[str, Any]],
        metrics: list[dict[str, float]],
        model: nn.Module,
        data_config: dict[str, Any],
) -> list[dict[str, Any]]:
    """Results under timm's names, a dict a branch and one of the ensemble if there are several."""
    plain = extract_branch(model, 0) if num_branches_of(model) > 1 else model
    common = dict(
        param_count=round(sum(parameter.numel() for parameter in plain.parameters()) / 1e6, 2),
        img_size=data_config['input_size'][-1], crop_pct=data_config['crop_pct'],
        interpolation=data_config['interpolation'])
    if len(metrics) > len(rows):
        rows = [*rows, {'model': rows[0]['model'], 'branch': 'ensemble', 'policy': None, 'mu': None}]
    results = []
    for row, one in zip(rows, metrics, strict=True):
        accuracies = {}
        for name in ('top1', 'top5'):
            accuracies.update({name: round(one[name], 4), f'{name}_err': round(100 - one[name], 4)})
        results.append({**row, **accuracies, 'loss': round(one['loss'], 4), **common})
    return results


def write_results(path: Path, results: list[dict[str, Any]], results_format: str) -> None:
    with atomic_write(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        if results_format == 'json':
            json.dump(results, file, indent=4)
        else:
            writer = csv.DictWriter(file, list(results[0]))
            writer.writeheader()
            writer.writerows(results)


if __name__ == '__main__':
    utils.setup_default_logging()
    main()
