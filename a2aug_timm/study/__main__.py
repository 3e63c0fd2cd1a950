"""Plan the runs of tables, train them, and write the tables."""
import argparse
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli.arguments import train_parser
from ..cli.config import StrictParser
from ..cli.tracking import command_and_versions
from ..cli.train_checks import check_train
from ..policies import SPACES
from . import Run, Study
from .estimate import estimate
from .rows import TABLES, Method
from .run_list import TRAIN, work

# What a study sets itself.
_OWN = ('seed', 'a2aug_seed', 'a2aug_policies', 'aa', 'output', 'experiment', 'resume', 'initial_checkpoint')


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser(prog='python -m a2aug_timm.study', description=__doc__,
                          epilog="Every other flag is train.py's, and belongs to the recipe.")
    add = parser.add_argument
    add('tables', nargs='+', choices=[*TABLES, 'all'], metavar='TABLE', help=', '.join(TABLES) + ', or all')
    add('-c', '--config', required=True, metavar='FILE', help="the recipe, one of A²-Aug, as train.py's -c takes it")
    add('-o', '--output', required=True, metavar='FOLDER', help='folder of the tables, and of the runs below it')
    add('--data', metavar='DIR', help="images, as train.py's --data-dir")
    add('--model', nargs='+', metavar='MODEL', help="networks (default: the recipe's)")
    add('--seeds', type=int, default=3, metavar='N', help='runs of each setting (default: 3)')
    add('--budget', type=float, default=None, metavar='HOURS', help='begin no run that would end later than that')
    add('--plan', action='store_true', help='print the runs and the hours that they will take, and do nothing')
    args, flags = parser.parse_known_args(argv)
    with parser.user_errors():
        study, method, runs = prepare(args, flags)
    seconds = estimate(study, runs, may_probe=args.plan or args.budget is not None)
    print_plan(study, runs, seconds)
    if args.plan:
        return
    end = time.monotonic() + 3600 * args.budget if args.budget is not None else float('inf')
    try:
        num_failed = work(study, runs, lambda run: time.monotonic() + (seconds.get(run) or 0) < end, _report)
    except KeyboardInterrupt:
        parser.exit(130, 'stopped; the same command goes on where this one ended\n')
    from .pages import PAGE, write_tables  # matplotlib is an extra
    write_tables(study, method, [table for table in TABLES if table in args.tables or 'all' in args.tables],
                 command_and_versions())
    print(f"{study.folder / PAGE}, and its tables and figures beside it")
    if num_failed:
        parser.exit(1, f"{num_failed} runs failed; their logs are in '{study.folder / 'runs'}'\n")


def prepare(args: argparse.Namespace, flags: Sequence[str]) -> tuple[Study, Method, list[Run]]:
    """What the arguments ask for, each run of it checked as train.py would. Raises ``ValueError``."""
    if importlib.util.find_spec('matplotlib') is None:
        raise ValueError('a study draws with matplotlib: pip install -e ".[report]"')
    if not TRAIN.is_file():
        raise ValueError(f'a study runs train.py, which is not at {TRAIN}; install this package with pip install -e')
    if args.seeds < 1 or (args.budget is not None and args.budget < 0):
        raise ValueError('--seeds is 1 or more, --budget 0 or more')
    given = ['-c', args.config, *flags, *(['--data-dir', args.data] if args.data else [])]
    base, explicit = train_parser().parse(given)
    for name in _OWN:
        if name in explicit:
            raise ValueError(f'{name} is what a study sets itself; leave it out of the recipe and the command line')
    if base.a2aug_branches < 2:
        raise ValueError("a study needs a recipe of A²-Aug; add --a2aug-branches, the N that its tables are made for")
    recipe = {name: getattr(base, name) for name in vars(base) if name in explicit - {'model', 'epochs'}}
    if base.holdout is None:
        recipe['holdout'] = 0.1
    recipe.setdefault('checkpoint_hist', 1)
    num_layers, magnitudes = base.a2aug_num_layers, base.a2aug_magnitudes
    if base.a2aug_space is not None:
        num_layers, magnitudes = SPACES[base.a2aug_space]
    size = base.img_size or (base.input_size or [3, 224, 224])[-1]
    method = Method(base.a2aug_branches, num_layers, magnitudes, size)
    study = Study(Path(args.output), recipe, base.epochs, args.model or [base.model], range(args.seeds))
    tables = [table for table in TABLES if table in args.tables or 'all' in args.tables]
    # All of the first seed come first, so that a study that is cut short has every line.
    runs = list(dict.fromkeys(
        run for seed in study.seeds for table in tables for row in TABLES[table](method)
        for model in study.models for run in row.runs(model, seed)))
    for run in runs:
        check(study.config(run))
        study.check_kept(run)
    return study, method, runs


def check(config: dict[str, Any]) -> None:
    """Refuse what train.py would refuse. Raises ``ValueError``."""
    defaults = {action.dest: action.default for action in train_parser()._actions}
    check_train(argparse.Namespace(**{**defaults, **config}), set(config), defaults)


def print_plan(study: Study, runs: Sequence[Run], seconds: dict[Run, float | None]) -> None:
    """A line a run, and the sum."""
    for run in runs:
        took = seconds.get(run)
        state = 'done' if run not in seconds else 'unknown' if took is None else f'{took / 3600:.2f} h'
        print(f'{run.name:60} {run.setting.cost:3}×  {state}')
    known = [took for took in seconds.values() if took is not None]
    hours = f'about {sum(known) / 3600:.1f} hours of training' if len(known) == len(seconds) else 'hours unknown'
    print(f"{len(runs)} runs, {len(runs) - len(seconds)} of them done; the others see "
          f"{sum(run.setting.cost for run in seconds)}× the images of a plain run of {study.epochs} epochs: {hours}")


def _report(run: Run, seconds: float | None) -> None:
    print(f'{run.name}: ' + ('failed' if seconds is None else f'{seconds:.0f} s'), flush=True)


if __name__ == '__main__':
    main()
