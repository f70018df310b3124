"""Writes files and folders atomically, by one process at a time.

What was written is on the disk before it gets its name: a power cut leaves it whole or not at all.
"""

import contextlib
import errno
import glob
import os
import pathlib
import shutil
import stat
import uuid
from collections.abc import Collection, Iterator

import filelock
from absl import logging

from pizza_steak.errors import UserError, told

# Seconds to wait for a lock before the user is told.
_SILENT_SECONDS = 2.0


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`, and renames it to `path` if the block succeeds.

    The temporary name ends with that of `path`, including suffixes. If the block fails, what it
    wrote is removed.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        _sync_one(path.parent)
    except OSError as error:
        if error.errno and error.filename is None:  # As of a write to a full disk.
            error.filename = os.fspath(path)
        raise
    finally:
        remove(temporary)


def remove_temporary(folder: pathlib.Path, name: str | None = None) -> None:
    """Removes what killed processes left in a folder of an `atomic_path`, by default of any."""
    for left in folder.glob(f".{'?' * 32}.{glob.escape(name) if name else '*'}"):
        remove(left)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or a folder with its content, is on the disk."""
    if not path.is_dir():
        return _sync_one(path)
    for directory, _, names in os.walk(path):
        for name in names:
            _sync_one(pathlib.Path(directory, name))
        _sync_one(pathlib.Path(directory))


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder with those around it, if they are missing, and waits for the disk."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        _sync_one(folder.parent)


def _sync_one(path: pathlib.Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        # Some network file systems cannot do it for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not stat.S_ISDIR(
            os.fstat(file).st_mode
        ):
            raise
    finally:
        os.close(file)


def lock(path: pathlib.Path) -> filelock.BaseFileLock:
    """Returns a lock that lets only one process at a time make `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(path.with_name(f".{path.name}.lock"))


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Holds the `lock` of a path; warns if another process makes this one wait."""
    held = lock(path)
    try:
        held.acquire(timeout=_SILENT_SECONDS)
    except filelock.Timeout:
        logging.warning("waiting for %s, which works on %s", holder(held), path)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def holder(held: filelock.BaseFileLock) -> str:
    """Returns which process holds a lock, such as "process 123", as far as the system says it."""
    with contextlib.suppress(OSError):
        inode = os.stat(held.lock_file).st_ino
        for line in pathlib.Path("/proc/locks").read_text().splitlines():  # See proc_locks(5).
            match line.split():
                case [_, "FLOCK", _, _, process, place, *_] if place.endswith(f":{inode}"):
                    return f"process {process}"
    return "another process"


def holds_only(folder: pathlib.Path, parts: Collection[str]) -> bool:
    """Returns whether a folder holds only these parts, temporary ones and locks of them.

    It may be missing.
    """
    names = os.listdir(folder) if folder.exists() else []
    return all(
        name in parts
        or (name.startswith(".") and name.removesuffix(".lock").endswith(tuple(parts)))
        for name in names
    )


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder with its content, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def output_file(path: str | os.PathLike[str], flag: str | None = None) -> Iterator[pathlib.Path]:
    """Yields the `atomic_path` of a file that the user named by a flag; `~` is the home folder.

    What a killed process left of the file is removed.

    Raises:
      UserError: The file cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    try:
        remove_temporary(path.parent, path.name)
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        name, another = (flag, f"another --{flag}") if flag else ("file", "another")
        raise UserError(f"{name} {path}: {told(error)}; pass {another}") from error
