"""Export branches of a checkpoint, or the mean of all, as plain timm models."""
import argparse
from pathlib import Path
from typing import Any

import torch

from ..cli.checks import check_device, flag, warn
from ..cli.config import StrictParser
from ..cli.flag_types import COUNT, COUNT_OR_ZERO
from ..cli.training_images import NUM_IMAGES, training_batches
from ..engine.checkpoint import read_checkpoint
from ..engine.record import CheckpointRecord, require_record
from . import export_merged, export_recorded_branch, load_branches, load_line, load_merged


def export_parser() -> StrictParser:
    """Parser of the export command."""
    parser = StrictParser(prog='python -m a2aug_timm.export', description='Export branches as plain timm models.')
    parser.add_argument('checkpoint', help='checkpoint of train.py')
    parser.add_argument('--branch', default='best', metavar='I|best|all|merged',
                        help='all writes FOLDER/branch-I for each; merged is the mean of all branches')
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER', help='folder to write')
    add = parser.add_argument_group('Statistics of --branch merged').add_argument
    add('--images', type=COUNT, default=NUM_IMAGES, metavar='N',
        help=f'training images that they are estimated on, at most (default: {NUM_IMAGES})')
    add('--data-dir', default=None, metavar='DIR', help="folder of these images (default: the run's)")
    add('--device', default=None, help='device that computes them (default: cuda, or cpu without a GPU)')
    add('-j', '--workers', type=COUNT_OR_ZERO, default=4, metavar='N', help='data loading processes')
    return parser


def main(argv: list[str] | None = None) -> None:
    """Export as the command line says."""
    parser = export_parser()
    args = parser.parse_args(argv)
    with parser.user_errors():
        check_export(args, parser.changed(args))
        checkpoint = read_checkpoint(args.checkpoint)
        record = require_record(checkpoint, args.checkpoint)
        if args.branch == 'merged':
            merge(args, checkpoint, record)
        else:
            export(args, checkpoint, record)


def check_export(args: argparse.Namespace, changed: set[str]) -> None:
    """Check the device, and warn of flags without effect. Raises ``ValueError``."""
    if args.branch != 'merged':
        for name in sorted(changed & {'images', 'data_dir', 'device', 'workers'}):
            warn(f'{flag(name)} has no effect without --branch merged')
    if args.device is not None:
        check_device(args.device)


def export(args: argparse.Namespace, checkpoint: dict[str, Any], record: CheckpointRecord) -> None:
    """Export one branch or all."""
    branches = record.resolve(args.branch)
    model = load_branches(checkpoint, args.checkpoint)
    for branch in branches:
        folder = Path(args.output) / f'branch-{branch}' if args.branch == 'all' else Path(args.output)
        export_recorded_branch(record, model, branch, folder)
        print(f"branch {branch} -> {folder}\n  {load_line(record.config['architecture'], folder)}")


def merge(args: argparse.Namespace, checkpoint: dict[str, Any], record: CheckpointRecord) -> None:
    """Export the mean of all branches."""
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    batches = training_batches(
        checkpoint.get('args') or {}, record.data_config_of(0), args.images, data_dir=args.data_dir, device=device,
        num_workers=args.workers)
    model, num_images = load_merged(checkpoint, args.checkpoint, batches, device)
    folder = Path(args.output)
    export_merged(record, model, num_images, folder)
    print(f"{record.num_branches} branches, statistics of {num_images} images -> {folder}\n"
          f"  {load_line(record.config['architecture'], folder)}")


if __name__ == '__main__':
    main()
