"""Writes files and folders atomically, by one process at a time."""

import contextlib
import glob
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator

import filelock

from pizza_steak.errors import UserError


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`, and renames it to `path` if the block succeeds.

    The temporary name ends with that of `path`, including suffixes. If the block fails, what it
    wrote is removed.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


def lock(path: pathlib.Path) -> filelock.BaseFileLock:
    """Returns a lock that lets only one process at a time make `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(path.with_name(f".{path.name}.lock"))


def make_once(path: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    """Calls `make` with a temporary path to write to, unless `path` exists."""
    if path.exists():
        return
    with lock(path):
        for left in path.parent.glob(f".{'?' * 32}.{glob.escape(path.name)}"):
            remove(left)  # Left by a killed process: a live one would hold the lock.
        if not path.exists():  # Another process may have made it in the meantime.
            with atomic_path(path) as temporary:
                make(temporary)


def holds_only(folder: pathlib.Path, parts: Collection[str]) -> bool:
    """Returns whether a folder holds only these parts or temporary ones; it may be missing."""
    names = os.listdir(folder) if folder.exists() else []
    return all(
        name in parts or (name.startswith(".") and name.endswith(tuple(parts))) for name in names
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

    Raises:
      UserError: The file cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        name, another = (flag, f"another --{flag}") if flag else ("file", "another")
        raise UserError(f"{name} {path}: {error.strerror or error}; pass {another}") from error
