"""Queue of trials that several processes share: a lock claims each trial, and a stopped trial is resumed."""
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

from ..engine.files import atomic_write
from .study_folder import Study
from .trial import Trial

TRAIN = 'a2aug_timm.train'


def work(
        study: Study,
        known_trials: Callable[[], Sequence[Trial]],
        fits: Callable[[Trial], bool],
        report: Callable[[Trial, float], None],
) -> None:
    """Train the trials that are not finished and that no other process is training, until none is left.

    A failed trial is tried again only by a later call.

    Args:
        known_trials: The trials that are known by now. It is called again after each pass over them, since a result
            can decide on further trials.
        fits: Whether a trial may still start.
        report: Called with each trial that this process has ended, and its seconds.

    Raises:
        ValueError: train.py refuses the recipe.
    """
    begin = time.time()
    num_claimed = 1
    while num_claimed:
        num_claimed = 0
        for trial in known_trials():
            if _is_settled(study, trial, begin) or not fits(trial):
                continue
            with claim(study.beside(trial, 'lock')) as lock:
                if lock is None or _is_settled(study, trial, begin):
                    continue
                num_claimed += 1
                start = time.perf_counter()
                train(study, trial, lock)
                study.keep_results([trial])
                report(trial, time.perf_counter() - start)


def _is_settled(study: Study, trial: Trial, since: float) -> bool:
    failed = study.beside(trial, 'failed')
    return study.is_done(trial) or (failed.is_file() and failed.stat().st_mtime >= since)


def train(study: Study, trial: Trial, lock: TextIO) -> None:
    """Train a trial, or the rest of it if it was stopped. Its log is beside its folder, and the reason if it fails.

    Args:
        lock: The trial's lock. The training process holds it too, because it can outlive this one.

    Raises:
        ValueError: train.py refuses the trial's arguments.
    """
    path, config_path, failed = study.path(trial), study.beside(trial, 'yaml'), study.beside(trial, 'failed')
    with atomic_write(config_path) as temporary:
        temporary.write_text(yaml.safe_dump(study.config(trial), sort_keys=False, allow_unicode=True), encoding='utf-8')
    command = [*launcher(study), '-c', config_path, '--output', path.parent, '--experiment', path.name]
    if (path / 'last.pth.tar').is_file():
        command += ['--resume', path / 'last.pth.tar']
    else:
        shutil.rmtree(path, ignore_errors=True)  # left by a trial that was stopped in its first epoch
    log_path = study.beside(trial, 'log')
    with open(log_path, 'a', encoding='utf-8') as log:
        done = subprocess.run(
            list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()], check=False)
    if done.returncode == 2:
        raise ValueError(last_line(log_path.read_text(encoding='utf-8')).removeprefix('train.py: error: '))
    if done.returncode or not study.is_done(trial):
        with atomic_write(failed) as temporary:
            temporary.write_text(last_line(log_path.read_text(encoding='utf-8')) + '\n', encoding='utf-8')
    else:
        failed.unlink(missing_ok=True)


def launcher(study: Study) -> list[str | Path]:
    """Command that starts the training module: Python, or torchrun if a trial has several processes."""
    several = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={study.num_processes}']
    return [sys.executable, *(several if study.num_processes > 1 else []), '-m', TRAIN]


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), 'no output')


@contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[TextIO | None]:
    """Hold a lock, or get None if another process holds it. The system frees it when its holders end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file
