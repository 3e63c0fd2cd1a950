"""Evaluate a plain timm checkpoint, an export folder, the branches of a run, or many of them.

    python validate.py --data-dir /data/imagenet --checkpoint output/train/RUN/export
    python validate.py --data-dir /data/imagenet --checkpoint output/train/RUN/last.pth.tar --branch all
    python validate.py --data-dir /data/imagenet --checkpoint output/train/RUN --branch all --results-file all.csv
    python validate.py --data-dir /data/imagenet --model 'resnet50*' --results-file all.csv
"""
import argparse
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm import utils
from timm.data import resolve_input_data_config

from ..cli.config import user_error_from
from ..cli.console import branch_labels, branch_table, print_table
from ..cli.resolve import dtype_of, replaced, resolve_common
from ..data.skipping import SkippingDataset
from ..engine.epoch import Autocast, evaluate
from ..logits import branch_logits, resize
from .arguments import validate_parser
from .checks import check_validate
from .data import build_dataset, build_loader, build_meters, check_classes, check_naflex, valid_labels
from .inference import compilation_errors, first_line, fuse, place, pool_at_test_time, set_backends
from .models import Branches, list_entries, load
from .results import describe, write_results

_logger = logging.getLogger('validate')


@dataclass
class Candidate:
    """Branches that are ready to be evaluated, and the data for it."""
    branches: Branches
    dataset: Any
    data_config: dict[str, Any]
    valid: list[int] | None
    num_classes: int
    param_count: int
    patch_size: tuple[int, int] | None


def main(argv: list[str] | None = None) -> None:
    parser = validate_parser()
    args, explicit = parser.parse(argv)
    with parser.user_errors():
        entries, are_several = list_entries(args.model, args.checkpoint)
        args = resolve_common(args, explicit)
        check_validate(args, explicit, entries)
    set_backends(args)
    if are_several:
        results = validate_all(args, explicit, entries)
        is_measured = bool(results)
    else:
        with parser.user_errors():
            candidate = build(args, explicit)
        with parser.user_errors():
            results, is_measured = validate_one(args, candidate)
    if args.results_file:
        write_results(Path(args.results_file), results, args.results_format)
    print('--result\n' + json.dumps(results, indent=4))
    if not is_measured:
        sys.exit(1)


def build(args: argparse.Namespace, explicit: set[str], is_one_of_several: bool = False) -> Candidate:
    """Load the models that the command line names and prepare them for evaluation. Raises ``ValueError``."""
    branches = load(args, explicit, is_one_of_several)
    models = [fuse(args, model) for model in branches.models]
    first: Any = models[0]
    if args.naflex_loader:
        check_naflex(first, branches.num_branches)
    with user_error_from(AssertionError, RuntimeError, what='the input settings do not go together'):
        data_config = resolve_input_data_config(
            first, vars(args), use_test_size=not args.use_train_size, verbose=True)
    valid = valid_labels(args.valid_labels, first.num_classes)
    label_names = branches.label_names
    if valid and label_names:
        label_names = [label_names[label] for label in valid]
    dataset = build_dataset(args, data_config, label_names)
    check_classes(dataset, first.num_classes, valid)
    build_meters(args, dataset, first.num_classes)  # which refuses labels that are not of these images
    candidate = Candidate(
        branches, dataset, data_config, valid, num_classes=first.num_classes,
        param_count=sum(parameter.numel() for parameter in first.parameters()),
        patch_size=first.embeds.patch_size if args.naflex_loader else None)
    if args.test_pool:
        pooled = [pool_at_test_time(model, data_config) for model in models]
        models = [model for model, _ in pooled]
        if pooled[0][1]:
            data_config['crop_pct'] = 1.  # the whole image, as timm takes it
    branches.models = [place(args, model) for model in models]
    return candidate


def validate_one(args: argparse.Namespace, candidate: Candidate) -> tuple[Any, bool]:
    """Evaluate one model; return its results, a dict or a list with one per branch, and whether there are any."""
    if not args.retry:
        results = measure(args, candidate, args.batch_size)
    else:
        try:
            results = measure_with_retry(args, candidate)
        except RuntimeError as error:
            _logger.error('%s failed to validate: %s', args.model, error)
            return {'model': args.model, 'error': str(error)}, False
    return (results if len(results) > 1 else results[0]), True


def validate_all(
        args: argparse.Namespace,
        explicit: set[str],
        entries: list[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Evaluate several models, the best first; a model that fails is reported and left out."""
    results, failed = [], []
    for model, checkpoint in entries:
        name = checkpoint or model
        one = replaced(args, model=model, checkpoint=checkpoint)
        try:
            measured = measure_with_retry(one, build(one, explicit, is_one_of_several=True))
        except KeyboardInterrupt:
            _logger.warning('Interrupted at %s', name)
            break
        except Exception as error:  # the other models must be evaluated whatever it is
            _logger.error('%s failed to validate: %s', name, error)
            failed.append(name)
            continue
        results += [{**result, 'checkpoint': checkpoint} if checkpoint else result for result in measured]
        results.sort(key=lambda result: result['top1'], reverse=True)
        if args.results_file:  # what there is, should the next one be the last
            write_results(Path(args.results_file), results, args.results_format)
    if failed:
        _logger.error('%d of %d failed: %s', len(failed), len(entries), ', '.join(failed))
    return results


def measure_with_retry(args: argparse.Namespace, candidate: Candidate) -> list[dict[str, Any]]:
    """Evaluate with smaller batches (per GPU) until one fits into memory."""
    batch_size = args.batch_size
    while True:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            return measure(args, candidate, batch_size * args.num_gpu)
        except RuntimeError as error:
            batch_size = utils.decay_batch_step(batch_size) if utils.check_batch_size_retry(str(error)) else 0
            if not batch_size:
                raise
            _logger.error('%s; trying again with batches of %d', first_line(error), batch_size)


def measure(args: argparse.Namespace, candidate: Candidate, batch_size: int) -> list[dict[str, Any]]:
    """Evaluate all branches on all images and print the results."""
    utils.random_seed(args.seed)
    rows, dataset, data_config = candidate.branches.rows, candidate.dataset, candidate.data_config
    loader = build_loader(args, dataset, data_config, candidate.patch_size, batch_size)
    mu = [row.get('mu', 1.) for row in rows]
    num_batches = -(-len(dataset) // batch_size) or None  # a stream may not know its length
    metrics = evaluate(
        partial(predict, args, candidate), torch.tensor(mu), loader, device=torch.device(args.device),
        autocast=autocast(args), channels_last=args.channels_last, dtype=dtype_of(args.model_dtype) or torch.float32,
        meters=build_meters(args, dataset, candidate.num_classes),
        on_batch=lambda batch: log_batch(batch, num_batches, args.log_freq))
    if num_skipped := dataset.take_num_skipped() if isinstance(dataset, SkippingDataset) else 0:
        _logger.warning('Skipped %d broken images', num_skipped)
    labels = branch_labels([label_of(row) for row in rows], candidate.branches.sizes)
    print_table(args.checkpoint or args.model, branch_table(labels, metrics, mu, best=None))
    return describe(rows, metrics, dict(
        param_count=round(candidate.param_count / 1e6, 2), img_size=data_config['input_size'][-1],
        crop_pct=data_config['crop_pct'], interpolation=data_config['interpolation']))


def label_of(row: dict[str, Any]) -> str:
    """Label of a model in the table: its policy, ``merged`` for merged branches, else its architecture."""
    return 'merged' if row.get('branch') == 'merged' else row.get('policy') or row['model']


def predict(
        args: argparse.Namespace,
        candidate: Candidate,
        images: Any,
) -> torch.Tensor:
    """Logits of every branch, ``[N, B, K]``; with ``--valid-labels`` of the data's classes alone.

    Args:
        images: Images ``[B, C, H, W]``, or the dict of patches of a NaFlex loader.
    """
    with compilation_errors(args):
        sizes: Sequence[int | None] = candidate.branches.sizes or [None] * len(candidate.branches.models)
        logits = torch.cat([branch_logits(model, resize(images, size))
                            for model, size in zip(candidate.branches.models, sizes, strict=True)])
    return logits if candidate.valid is None else logits[..., candidate.valid]


def autocast(args: argparse.Namespace) -> Autocast:
    """Mixed precision of the forward pass, as the flags say."""
    if not args.amp:
        return nullcontext
    return partial(torch.autocast, torch.device(args.device).type, getattr(torch, args.amp_dtype))


def log_batch(batch: int, num_batches: int | None, log_freq: int) -> None:
    if batch % log_freq == 0 or batch + 1 == num_batches:
        _logger.info('Test: [%4d/%s]', batch, num_batches - 1 if num_batches else '?')


def command() -> None:
    """Entry point of ``a2aug-validate``: set up logging as timm's scripts do and run ``main``."""
    utils.setup_default_logging()
    main()


if __name__ == '__main__':
    command()
