"""Files that appear in one step, whole or not at all, whenever the process is killed."""
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes ``path`` in one step if the block ends without an error."""
    path = Path(path)
    # The name is unique, so it is never a leftover of a killed process, which may share its inode with another file.
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        yield temporary
        with open(temporary, 'rb+') as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_copy(source: Path, target: Path) -> None:
    """Copy a file in one step."""
    with atomic_write(target) as path:
        shutil.copyfile(source, path)


def atomic_link(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source`` in one step, or a copy where the file system has no links."""
    with atomic_write(target) as path:
        try:
            os.link(source, path)
        except OSError:
            shutil.copyfile(source, path)


def remove_unfinished(folder: str | Path) -> None:
    """Remove the temporary files that killed processes left in a folder."""
    for path in Path(folder).glob('.*.tmp'):
        path.unlink(missing_ok=True)
