"""Runs that several processes take one by one: each is claimed by a lock, and taken up again where it was stopped."""
import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from . import Run, Study

TRAIN = Path(__file__).resolve().parents[2] / 'train.py'


def work(
        study: Study,
        runs: Sequence[Run],
        fits: Callable[[Run], bool],
        report: Callable[[Run, float | None], None],
) -> int:
    """Train the runs that nobody has trained and nobody is training.

    Args:
        fits: Whether a run may still begin.
        report: Told of each run that this process has ended, with its seconds, or None if it failed.

    Returns:
        Number of runs that failed.
    """
    num_failed = 0
    for run in runs:
        if study.is_done(run) or not fits(run):
            continue
        study.path(run).parent.mkdir(parents=True, exist_ok=True)
        with _claim(study.path(run).with_name(f'{run.name}.lock')) as lock:
            if lock is None or study.is_done(run):
                continue
            start = time.perf_counter()
            succeeded = train(study, run, lock)
            num_failed += not succeeded
            report(run, time.perf_counter() - start if succeeded else None)
    return num_failed


def train(study: Study, run: Run, lock: TextIO) -> bool:
    """Train a run, or the rest of it if it was stopped; whether it came to its end. Its log lies beside its folder.

    Args:
        lock: Held by the training process too, which may outlive this one.
    """
    path = study.path(run)
    study.write_config(run)
    command = [sys.executable, TRAIN, '-c', study.config_path(run), '--output', path.parent, '--experiment', path.name]
    if (path / 'last.pth.tar').is_file():
        command += ['--resume', path / 'last.pth.tar']
    else:
        shutil.rmtree(path, ignore_errors=True)  # of a run that was stopped in its first epoch
    with open(path.with_name(f'{run.name}.log'), 'a', encoding='utf-8') as log:
        done = subprocess.run(
            list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()], check=False)
    return done.returncode == 0 and study.is_done(run)


@contextmanager
def _claim(path: Path) -> Iterator[TextIO | None]:
    """The lock, or None if another holds it; the system frees it when its holders have ended, however they end."""
    with open(path, 'a', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file
