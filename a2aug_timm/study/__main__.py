"""Plan the trials of tables, train them, and write the tables."""
import argparse
import importlib.util
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from timm.utils.distributed import is_distributed_env

from ..cli.checks import flag
from ..cli.config import StrictParser
from ..train.tracking import command_and_versions
from .estimate import Estimate
from .price import PRICES, Price, price_choices, price_of
from .recipe import check_config, method_of, num_train_images, read_recipe
from .rows import TABLES, Method
from .study_folder import Study
from .trial import Trial
from .trial_queue import claim, work

# Arguments of a recipe that a row may change.
_MAY_CHANGE = {'a2aug_branches', 'a2aug_policies', 'cutout', 'lr', 'batch_size'}


def main(argv: list[str] | None = None) -> None:
    parser = study_parser()
    args, flags = parser.parse_known_args(argv)
    with parser.user_errors():
        check_command(args)
        study, kept, method = resolve_study(args, flags)
        tables = [table for table in TABLES if table in args.tables or 'all' in args.tables]
        prices = prices_of(study, method, args.tables, args.rows)
        planned = trials_of(study, method, tables, prices, is_planned=True)
        check_trials(study, planned)
        num_images = num_train_images(study.config(method.baseline().trials(study.models[0], 0)[0]))
        estimate = Estimate(study, planned, num_images, may_probe=args.plan or args.budget is not None)
        print_plan(study, planned, estimate)
        if args.plan:
            return
        kept.keep()
    end = math.inf if args.budget is None else time.monotonic() + 3600 * args.budget
    with parser.user_errors():
        work(study, partial(trials_of, study, method, tables, prices),
             lambda trial: time.monotonic() + (estimate.seconds(trial) or 0) < end,
             lambda trial, seconds: _report(study, trial, seconds))
    command = ['python', '-m', 'a2aug_timm.study', *(sys.argv[1:] if argv is None else argv)]
    write_all(kept, method, tables, prices, command)
    failed = [trial.name for trial in trials_of(study, method, tables, prices) if study.failure(trial)]
    if failed:
        parser.exit(1, f"{len(failed)} runs failed; their logs are in '{study.folder / 'runs'}': {', '.join(failed)}\n")


def study_parser() -> StrictParser:
    """Parser of the study's own flags."""
    parser = StrictParser(prog='python -m a2aug_timm.study', description=__doc__,
                          epilog='All other flags are those of train.py and belong to the recipe.')
    add = parser.add_argument
    add('tables', nargs='+', choices=[*TABLES, 'all', *PRICES], metavar='TABLE',
        help=f"{', '.join(TABLES)}, all for all of these; {', '.join(PRICES)} for the comparison at equal cost")
    add('-c', '--config', metavar='FILE', help="recipe of A²-Aug, as for train.py's -c")
    add('-o', '--output', default='output/study', metavar='FOLDER',
        help='folder of the tables; its runs/ holds the runs (default: output/study)')
    add('--data', metavar='DIR', help="folder of the images, as for train.py's --data-dir")
    add('--model', nargs='+', metavar='MODEL', help="networks (default: the recipe's)")
    add('--seeds', type=int, default=3, metavar='N', help='runs of each setting (default: 3)')
    add('--nproc', type=int, default=1, metavar='N', help='devices of a run, as for distributed_train.sh')
    add('--budget', type=float, default=None, metavar='HOURS', help='start no run whose training would end later')
    add('--learning-rates', nargs='+', type=float, default=[], metavar='LR',
        help="comparison at equal cost: learning rates to choose from (default: half, once and twice the recipe's)")
    add('--batch-sizes', nargs='+', type=int, default=[], metavar='B',
        help="comparison at equal cost: batch sizes to choose from (default: half and once the recipe's)")
    add('--rows', nargs='+', default=[], metavar='ROW',
        help='comparison at equal cost: rows besides the reference (default: all)')
    add('--plan', action='store_true', help='print the runs and their estimated hours, and train nothing')
    return parser


def check_command(args: argparse.Namespace) -> None:
    """Check the study's own flags and its environment.

    Raises:
        ValueError: A flag is out of range, or something that a study needs is missing.
    """
    for package in ('matplotlib', 'scipy'):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f'a study needs {package}: pip install -e ".[report]"')
    if is_distributed_env():
        raise ValueError('a study starts the processes of its runs itself; start it once, with --nproc, and without '
                         'WORLD_SIZE or SLURM_NTASKS')
    if args.seeds < 1 or args.nproc < 1 or (args.budget is not None and not args.budget >= 0):
        raise ValueError('--seeds and --nproc must be at least 1, and --budget at least 0')
    for name in ('learning_rates', 'batch_sizes', 'rows'):
        if getattr(args, name) and not PRICES.keys() & set(args.tables):
            raise ValueError(f"{flag(name)} is for the tables {', '.join(PRICES)}")
    if os.path.exists(args.output) and not os.path.isdir(args.output):
        raise ValueError(f"'{args.output}' is not a folder")


def resolve_study(args: argparse.Namespace, flags: Sequence[str]) -> tuple[Study, Study, Method]:
    """Study of the networks and seeds that the flags name, the same with all that its folder knows, and its method.

    Raises:
        ValueError: The recipe is not one for a study, or the folder belongs to another study.
    """
    settings, recipe = read_recipe(args.config, args.data, flags)
    models = list(dict.fromkeys(args.model or [settings['model']]))
    study = Study(Path(args.output), recipe, settings['epochs'], models, args.seeds, args.nproc, args.learning_rates,
                  args.batch_sizes)
    kept = study.with_kept()
    if PRICES.keys() & set(args.tables):
        rates, sizes = price_choices(settings, kept.learning_rates, kept.batch_sizes)
        kept = replace(kept, learning_rates=rates, batch_sizes=sizes)
    study = replace(study, learning_rates=kept.learning_rates, batch_sizes=kept.batch_sizes)
    return study, kept, method_of(settings, models)


def prices_of(study: Study, method: Method, tables: Sequence[str], names: Sequence[str]) -> dict[str, Price]:
    """Comparisons at equal cost among the tables, with the rows of these names or with all rows.

    Raises:
        ValueError: There is no row of a name.
    """
    prices = {table: price_of(study, method, factor) for table, factor in PRICES.items() if table in tables}
    known = [row.name for price in prices.values() for row in price.rows]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no row '{name}'; the rows are {', '.join(dict.fromkeys(known))}")
    return {table: price.with_rows(names) if names else price for table, price in prices.items()}


def trials_of(
        study: Study,
        method: Method,
        tables: Sequence[str],
        prices: Mapping[str, Price],
        is_planned: bool = False,
) -> list[Trial]:
    """Trials of the tables that are known, in the order of training.

    All trials of the first seed come before those of the second, so that a study that is cut short has every row.

    Args:
        is_planned: Include the trials whose learning rate and batch size are not chosen yet.
    """
    trials = list(dict.fromkeys(
        trial for seed in study.seeds for table in tables for row in TABLES[table](method) for model in study.models
        for trial in row.trials(model, seed)))
    # One joint trial per network comes first: a network that cannot have branches is refused at once.
    joint = [trial for model in study.models for trial in method.joint().trials(model, 0) if trial in trials]
    compared = [trial for price in prices.values() for trial in price.trials(study, is_planned)]
    return [*joint, *(trial for trial in trials if trial not in joint), *compared]


def check_trials(study: Study, trials: Sequence[Trial]) -> None:
    """Check each trial as train.py does.

    Raises:
        ValueError: The recipe sets what the tables compare, or train.py would refuse a trial.
    """
    for trial in trials:
        for name in trial.setting.changes.keys() & study.recipe.keys() - _MAY_CHANGE:
            raise ValueError(f'{flag(name)} is compared by the tables; leave it out of the recipe')
        check_config(study.config(trial))


def print_plan(study: Study, trials: Sequence[Trial], estimate: Estimate) -> None:
    """Print one line per trial, and the total."""
    remaining = {trial: estimate.seconds(trial) for trial in trials if not study.is_done(trial)}
    for trial in trials:
        seconds = remaining.get(trial)
        state = 'done' if trial not in remaining else '' if seconds is None else f'{seconds / 3600:.2f} h'
        print(f'{trial.name:70} {float(trial.setting.cost):3g}×  {state}'.rstrip())
    known = [seconds for seconds in remaining.values() if seconds is not None]
    hours = f': about {sum(known) / 3600:.1f} hours of training' if len(known) == len(remaining) else ''
    print(f'{len(trials)} runs, {len(trials) - len(remaining)} of them done; the others need '
          f'{float(sum(trial.setting.cost for trial in remaining)):g}× the views of a plain run of {study.epochs} '
          f'epochs{hours}', flush=True)


def _report(study: Study, trial: Trial, seconds: float) -> None:
    """Print the result of a trial, and add it to the study's log."""
    record = study.record(trial)
    result = f'failed: {study.failure(trial)}' if record is None else f"top-1 {record.result['test']['top1']:.2f}"
    line = f'{datetime.now():%Y-%m-%d %H:%M} {trial.name}: {result}, {seconds:.0f} s'
    print(line, flush=True)
    with open(study.folder / 'study.log', 'a', encoding='utf-8') as log:
        log.write(f'{line}\n')


def write_all(
        study: Study,
        method: Method,
        tables: Sequence[str],
        prices: Mapping[str, Price],
        command: Sequence[str],
) -> None:
    """Write the tables, and update those that the folder has already; one process at a time."""
    from .pages import PAGE, write_tables  # matplotlib is an extra
    with claim(study.folder / 'runs' / 'study.lock', wait=True):
        tables = [table for table in TABLES if table in tables or (study.folder / f'{table}.md').is_file()]
        all_prices = {}
        for name, factor in PRICES.items():
            if name in prices or (study.folder / f'{name}.md').is_file():
                price = price_of(study, method, factor)
                asked = [row.name for row in prices[name].rows] if name in prices else []
                all_prices[name] = price.with_rows([*asked, *price.started(study)])
        num_done, num_trials = write_tables(study, method, tables, command_and_versions(command), all_prices)
    rest = '' if num_done == num_trials else f'; {num_done} of {num_trials} runs are done'
    print(f'The page is {study.folder / PAGE}; tables and figures are in the same folder{rest}.')


def command() -> None:
    """Entry point of ``a2aug-study``: run ``main``; Ctrl-C ends it with one sentence and exit code 130."""
    try:
        main()
    except KeyboardInterrupt:
        print('stopped; the same command resumes the study', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    command()
