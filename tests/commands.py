"""Command lines of the tests: short runs, their summaries, and the sentences that refuse them."""
import csv
from types import SimpleNamespace

import pytest

import a2aug_timm.train.__main__ as train
from a2aug_timm.engine.process import start_process
from a2aug_timm.train.arguments import train_parser
from a2aug_timm.train.checks import check_train
from a2aug_timm.train.model import set_backends
from a2aug_timm.train.resolve import resolve, resolve_lr
from a2aug_timm.train.task import mean_batch_size

SMALL = ['--dataset', 'sklearn/digits', '--model', 'test_resnet', '--num-classes', '10', '--input-size', '1', '32',
         '32', '--mean', '0.3', '--std', '0.35', '--hflip', '0', '--warmup-epochs', '0', '--lr', '0.05', '-b', '256',
         '-vb', '360', '-j', '0', '--device', 'cpu']
THREE = ['--a2aug-branches', '3']


def command_id(value):
    """Name of a test's parameter: the text of a command line; pytest's default for other values."""
    return ' '.join(value)[:50] if isinstance(value, list) else None


def run_train(tmp_path, *argv, epochs=1):
    train.main([*SMALL, '--epochs', str(epochs), '--output', str(tmp_path), '--experiment', 'run', *argv])
    return tmp_path / 'run'


def rows_of(run):
    """Rows of the summary without the seconds, which differ between equal runs."""
    with open(run / 'summary.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert all(float(row.pop('train_seconds')) > 0 for row in rows)
    return rows


def refused(capsys, main, argv):
    """Error message of a command line that is refused with one sentence and exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(list(map(str, argv)))
    error = capsys.readouterr().err
    assert exit_info.value.code == 2, error
    assert error.count('error:') == 1 and error.endswith('\n'), error
    return error.splitlines()[-1]


def checked(argv):
    """The arguments of a training command line, resolved and checked."""
    parser = train_parser()
    args, explicit = parser.parse(argv)
    args = resolve(args, explicit)
    check_train(args, explicit, parser.changed(args))
    return args


def built(argv):
    """The objects that a training command line builds: ``args``, ``model``, ``data`` and ``training``."""
    parser = train_parser()
    args, checkpoint, _ = train.read_arguments(parser, list(map(str, argv)))
    process = start_process(args.device)
    set_backends(args, process)
    model = train.build_model(args, checkpoint, process)
    data = train.build_data(args, model, process)
    args = resolve_lr(args, mean_batch_size(args, data.train), process.world_size)
    training = train.build_training(args, checkpoint, model, data, process)
    return SimpleNamespace(args=args, model=model, data=data, training=training)
