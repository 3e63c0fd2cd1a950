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

import yaml

from ..engine.checkpoint import atomic_write
from . import Run, Study

TRAIN = 'a2aug_timm.train'


def work(
        study: Study,
        runs: Sequence[Run],
        fits: Callable[[Run], bool],
        report: Callable[[Run, float], None],
) -> None:
    """Train the runs that are not done and that nobody else is training, until there is none left to take.

    A run that fails is tried again only by a call that begins later.

    Args:
        fits: Whether a run may still begin.
        report: Told of each run that this process has ended, with its seconds.

    Raises:
        ValueError: train.py refuses what the recipe says.
    """
    begin = time.time()
    num_claimed = 1
    while num_claimed:
        num_claimed = 0
        for run in runs:
            if _is_settled(study, run, begin) or not fits(run):
                continue
            with claim(study.beside(run, 'lock')) as lock:
                if lock is None or _is_settled(study, run, begin):
                    continue
                num_claimed += 1
                start = time.perf_counter()
                train(study, run, lock)
                report(run, time.perf_counter() - start)


def _is_settled(study: Study, run: Run, since: float) -> bool:
    failed = study.beside(run, 'failed')
    return study.is_done(run) or (failed.is_file() and failed.stat().st_mtime >= since)


def train(study: Study, run: Run, lock: TextIO) -> None:
    """Train a run, or the rest of it if it was stopped. Its log lies beside its folder, and why it failed if it does.

    Args:
        lock: Held by the training process too, which may outlive this one.

    Raises:
        ValueError: train.py refuses the run's arguments.
    """
    path, config_path, failed = study.path(run), study.beside(run, 'yaml'), study.beside(run, 'failed')
    with atomic_write(config_path) as temporary:
        temporary.write_text(yaml.safe_dump(study.config(run), sort_keys=False, allow_unicode=True), encoding='utf-8')
    command = [*launcher(study), '-c', config_path, '--output', path.parent, '--experiment', path.name]
    if (path / 'last.pth.tar').is_file():
        command += ['--resume', path / 'last.pth.tar']
    else:
        shutil.rmtree(path, ignore_errors=True)  # of a run that was stopped in its first epoch
    log_path = study.beside(run, 'log')
    with open(log_path, 'a', encoding='utf-8') as log:
        done = subprocess.run(
            list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()], check=False)
    if done.returncode == 2:
        raise ValueError(last_line(log_path.read_text(encoding='utf-8')).removeprefix('train.py: error: '))
    if done.returncode or not study.is_done(run):
        with atomic_write(failed) as temporary:
            temporary.write_text(last_line(log_path.read_text(encoding='utf-8')) + '\n', encoding='utf-8')
    else:
        failed.unlink(missing_ok=True)


def launcher(study: Study) -> list[str | Path]:
    """Command that starts the training module: Python, or torchrun if a run has several processes."""
    several = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={study.num_processes}']
    return [sys.executable, *(several if study.num_processes > 1 else []), '-m', TRAIN]


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), 'no word')


@contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[TextIO | None]:
    """The lock, or None if another holds it; the system frees it when its holders have ended, however they end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file
