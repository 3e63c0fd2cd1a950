"""Export branches of a checkpoint as plain timm models."""
from pathlib import Path

from ..cli.config import StrictParser
from ..engine.checkpoint import read_checkpoint
from ..engine.record import require_record
from . import export_recorded_branch, load_branches, load_line


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser(prog='python -m a2aug_timm.export', description='Export branches as plain timm models.')
    parser.add_argument('checkpoint', help='checkpoint of train.py')
    parser.add_argument('--branch', default='best', metavar='I|best|all', help='all writes FOLDER/branch-I for each')
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER', help='folder to write')
    args = parser.parse_args(argv)
    with parser.user_errors():
        checkpoint = read_checkpoint(args.checkpoint)
        record = require_record(checkpoint, args.checkpoint)
        model = load_branches(checkpoint, args.checkpoint)
        branches = record.resolve(args.branch)
    with parser.user_errors():
        for branch in branches:
            folder = Path(args.output) / f'branch-{branch}' if args.branch == 'all' else Path(args.output)
            export_recorded_branch(record, model, branch, folder)
            print(f"branch {branch} -> {folder}\n  {load_line(record.config['architecture'], folder)}")


if __name__ == '__main__':
    main()
