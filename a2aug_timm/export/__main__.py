"""Export branches of a checkpoint as plain timm models."""
from pathlib import Path

from ..cli.config import StrictParser
from ..engine.checkpoint import read_checkpoint
from . import export_branch_of, load_branches, load_line, resolve_branches


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser(prog='python -m a2aug_timm.export', description='Export branches as plain timm models.')
    parser.add_argument('checkpoint', help='checkpoint of train.py')
    parser.add_argument('--branch', default='best', metavar='I|best|all', help='all writes FOLDER/branch-I for each')
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER', help='folder to write')
    args = parser.parse_args(argv)
    with parser.user_errors():
        checkpoint = read_checkpoint(args.checkpoint)
        model = load_branches(checkpoint, args.checkpoint)
        run = checkpoint['a2aug']
        branches = resolve_branches(args.branch, run, model)
    with parser.user_errors():
        for branch in branches:
            folder = Path(args.output) / f'branch-{branch}' if args.branch == 'all' else Path(args.output)
            export_branch_of(run, model, branch, folder)
            print(f"branch {branch} -> {folder}\n  {load_line(run['config']['architecture'], folder)}")


if __name__ == '__main__':
    main()
