"""Plan the runs of tables, train them, and write the tables."""
import argparse
import importlib.util
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
from timm.utils.distributed import is_distributed_env

from ..cli.checks import flag
from ..cli.config import StrictParser
from ..data.policies import SPACES
from ..train.arguments import train_parser
from ..train.checks import check_train
from ..train.data import build_datasets
from ..train.tracking import command_and_versions
from . import Run, Study
from .estimate import Estimate
from .rows import TABLES, Method
from .run_list import claim, work

# What a study sets itself, or its tables compare.
_OWN = ('seed', 'a2aug_seed', 'aa', 'output', 'experiment', 'resume', 'start_epoch',
        'initial_checkpoint', 'a2aug_op_backend')
# Schedules whose settings are epochs; the others stretch with a run.
_STEPS = ('step', 'multistep', 'plateau')


def main(argv: list[str] | None = None) -> None:
    parser = StrictParser(prog='python -m a2aug_timm.study', description=__doc__,
                          epilog="Every other flag is train.py's, and belongs to the recipe.")
    add = parser.add_argument
    add('tables', nargs='+', choices=[*TABLES, 'all'], metavar='TABLE', help=', '.join(TABLES) + ', or all')
    add('-c', '--config', metavar='RECIPE', help='name of a recipe of A²-Aug, or YAML file')
    add('-o', '--output', default='output/study', metavar='FOLDER',
        help='folder of the tables, and of the runs below it (default: output/study)')
    add('--data', metavar='DIR', help="images, as train.py's --data-dir")
    add('--model', nargs='+', metavar='MODEL', help="networks (default: the recipe's)")
    add('--seeds', type=int, default=3, metavar='N', help='runs of each setting (default: 3)')
    add('--nproc', type=int, default=1, metavar='N', help='devices of a run, as distributed_train.sh has them')
    add('--budget', type=float, default=None, metavar='HOURS', help='begin no run whose training would end later')
    add('--plan', action='store_true', help='print the runs and the hours that they will take, and train none')
    args, flags = parser.parse_known_args(argv)
    with parser.user_errors(OSError):
        study, method, runs, num_images = prepare(args, flags)
        wanted = study.with_kept()
        estimate = Estimate(study, runs, num_images, may_probe=args.plan or args.budget is not None)
        print_plan(study, runs, estimate)
        if args.plan:
            return
        wanted.keep()
    end = math.inf if args.budget is None else time.monotonic() + 3600 * args.budget
    with parser.user_errors():
        work(study, runs, lambda run: time.monotonic() + (estimate.seconds(run) or 0) < end,
             lambda run, seconds: _report(study, run, seconds))
    command = ['python', '-m', 'a2aug_timm.study', *(sys.argv[1:] if argv is None else argv)]
    write_all(wanted, method, [table for table in TABLES if table in args.tables or 'all' in args.tables], command)
    if failed := [run.name for run in runs if study.failure(run)]:
        parser.exit(1, f"{len(failed)} runs failed; their logs are in '{study.folder / 'runs'}': {', '.join(failed)}\n")


def prepare(args: argparse.Namespace, flags: Sequence[str]) -> tuple[Study, Method, list[Run], int]:
    """What the arguments ask for, and the number of training images; each run is checked as train.py would.

    Raises:
        ValueError: The arguments, the recipe or the data are not what a study can do with.
    """
    if importlib.util.find_spec('matplotlib') is None:
        raise ValueError('a study draws with matplotlib: pip install -e ".[report]"')
    if is_distributed_env():
        raise ValueError('a study starts the processes of its runs itself; start it once, with --nproc, and without '
                         'WORLD_SIZE or SLURM_NTASKS')
    if args.seeds < 1 or args.nproc < 1 or (args.budget is not None and not args.budget >= 0):
        raise ValueError('--seeds and --nproc are 1 or more, --budget 0 or more')
    if os.path.exists(args.output) and not os.path.isdir(args.output):
        raise ValueError(f"'{args.output}' is not a folder")
    base, recipe = read_recipe(args, flags)
    models = list(dict.fromkeys(args.model or [base.model]))
    study = Study(Path(args.output), recipe, base.epochs, models, args.seeds, args.nproc)
    method = method_of(base, models)
    tables = [table for table in TABLES if table in args.tables or 'all' in args.tables]
    # All of the first seed come first, so that a study that is cut short has every line; before them a joint run of
    # each network, which is refused where a plain one is not.
    joint = [run for model in models for run in method.joint().runs(model, 0)]
    runs = list(dict.fromkeys(
        run for seed in study.seeds for table in tables for row in TABLES[table](method) for model in models
        for run in row.runs(model, seed)))
    runs = [*(run for run in joint if run in runs), *(run for run in runs if run not in joint)]
    for run in runs:
        for name in run.setting.changes.keys() & recipe.keys() - {'a2aug_branches', 'a2aug_policies', 'cutout'}:
            raise ValueError(f'{flag(name)} is what the tables compare; leave it out of the recipe')
        check(study.config(run))
    plain = check(study.config(method.baseline().runs(models[0], 0)[0]))
    in_chans = plain.in_chans or (plain.input_size or [3])[0]
    images = build_datasets(plain, {'input_size': (in_chans,)}, plain.num_classes or 10 ** 9).train
    return study, method, runs, len(images)


def read_recipe(args: argparse.Namespace, flags: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """All arguments of train.py, and of them those that make the recipe. Raises ``ValueError``."""
    base, explicit = train_parser().parse([*(['-c', args.config] if args.config else []), *flags])
    explicit = {name for name in explicit if getattr(base, name) is not None}
    if 'data' in explicit:
        raise ValueError(f"what is '{base.data}'? the names of the tables come first, --data names the images")
    for name in _OWN:
        if name in explicit:
            raise ValueError(f'{flag(name)} is what a study sets itself; leave it out of the recipe')
    if base.a2aug_branches < 2:
        raise ValueError('a study needs a recipe of A²-Aug; add --a2aug-branches, the N that its tables are made for')
    if (named := base.a2aug_policies) and not len(named) == len(set(named)) == base.a2aug_branches:
        raise ValueError(f'--a2aug-branches {base.a2aug_branches} needs as many policies, each another, got '
                         f"{' '.join(named)}")
    if not base.val_split:
        raise ValueError('a study reports the validation split; leave --val-split as it is')
    recipe = {name: getattr(base, name) for name in vars(base) if name in explicit - {'model', 'epochs'}}
    recipe.update({'data_dir': args.data} if args.data else {})
    recipe.setdefault('holdout', 0.1)
    recipe.setdefault('checkpoint_hist', 1)
    if base.sched in _STEPS:
        recipe.update({name: getattr(base, name) for name in ('decay_epochs', 'decay_milestones', 'patience_epochs')})
    return base, recipe


def method_of(base: argparse.Namespace, models: Sequence[str]) -> Method:
    """The recipe's N, search space, image size and Cutout. Raises ``ValueError``."""
    num_layers, magnitudes = SPACES.get(base.a2aug_space, (base.a2aug_num_layers, base.a2aug_magnitudes))
    sizes = {base.img_size or base.input_size[-1]} if base.img_size or base.input_size else {
        config.input_size[-1] for model in models if (config := timm.get_pretrained_cfg(model)) is not None}
    if len(sizes) > 1:
        raise ValueError(f"the networks' images are of {sorted(sizes)} pixels; give all one --img-size")
    size = next(iter(sizes), 224)
    nearest = 'imagenet' if size > 64 else 'svhn' if base.a2aug_space == 'svhn' else 'cifar10'
    return Method(base.a2aug_branches, num_layers, magnitudes, size, base.cutout, f'autoaugment_{nearest}',
                  base.a2aug_policies or ())


def check(config: dict[str, Any]) -> argparse.Namespace:
    """All of a run's arguments; refuses what train.py would refuse. Raises ``ValueError``."""
    defaults = {action.dest: action.default for action in train_parser()._actions}
    args = argparse.Namespace(**{**defaults, **config})
    check_train(args, set(config), defaults)
    return args


def print_plan(study: Study, runs: Sequence[Run], estimate: Estimate) -> None:
    """A line a run, and the sum."""
    remaining = {run: estimate.seconds(run) for run in runs if not study.is_done(run)}
    for run in runs:
        seconds = remaining.get(run)
        state = 'done' if run not in remaining else '' if seconds is None else f'{seconds / 3600:.2f} h'
        print(f'{run.name:60} {run.setting.cost:3}×  {state}'.rstrip())
    known = [seconds for seconds in remaining.values() if seconds is not None]
    hours = f': about {sum(known) / 3600:.1f} hours of training' if len(known) == len(remaining) else ''
    print(f"{len(runs)} runs, {len(runs) - len(remaining)} of them done; the others see "
          f"{sum(run.setting.cost for run in remaining)}× the images of a plain run of {study.epochs} epochs{hours}",
          flush=True)


def _report(study: Study, run: Run, seconds: float) -> None:
    """Print what a run has come to, and keep it in the study's log."""
    record = study.record(run)
    came_to = f"failed: {study.failure(run)}" if record is None else f"top-1 {record.result['test']['top1']:.2f}"
    line = f'{datetime.now():%Y-%m-%d %H:%M} {run.name}: {came_to}, {seconds:.0f} s'
    print(line, flush=True)
    with open(study.folder / 'study.log', 'a', encoding='utf-8') as log:
        log.write(f'{line}\n')


def write_all(study: Study, method: Method, tables: Sequence[str], command: Sequence[str]) -> None:
    """Write the tables and those that the folder has already, one process after the other."""
    from .pages import PAGE, write_tables  # matplotlib is an extra
    with claim(study.folder / 'runs' / 'study.lock', wait=True):
        tables = [table for table in TABLES if table in tables or (study.folder / f'{table}.md').is_file()]
        num_done, num_runs = write_tables(study, method, tables, command_and_versions(command))
    rest = '' if num_done == num_runs else f', of {num_done} of {num_runs} runs'
    print(f'{study.folder / PAGE}, and its tables and figures beside it{rest}')


def command() -> None:
    """Entry point of ``a2aug-study``: run ``main``; Ctrl-C ends it with one sentence and exit code 130."""
    try:
        main()
    except KeyboardInterrupt:
        print('stopped; the same command resumes the study', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    command()
