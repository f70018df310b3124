"""Files and folders that are there whole or not at all, and are made by one process at a time."""

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
    """Gives a temporary path beside `path`, renamed to it when the block ends well.

    Its name ends with that of `path`, suffixes and all. What the block wrote there is removed when
    it fails.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


def lock(path: pathlib.Path) -> filelock.BaseFileLock:
    """What holds the other processes that would make `path` until this one has made it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(path.with_name(f".{path.name}.lock"))


def make_once(path: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
    """Calls `make` with a temporary path to write, unless `path` is there already."""
    if path.exists():
        return
    with lock(path):
        for left in path.parent.glob(f".{'?' * 32}.{glob.escape(path.name)}"):
            remove(left)  # By a process that was killed: who makes it holds the lock.
        if not path.exists():  # Another process may have made it meanwhile.
            with atomic_path(path) as temporary:
                make(temporary)


def holds_only(folder: pathlib.Path, parts: Collection[str]) -> bool:
    """Whether a folder, which may not be there, holds nothing but some of these, or half of one."""
    names = os.listdir(folder) if folder.exists() else []
    return all(
        name in parts or (name.startswith(".") and name.endswith(tuple(parts))) for name in names
    )


def remove(path: pathlib.Path) -> None:
    """Removes a file or a folder with all that is in it; there may be none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def output_file(path: str | os.PathLike[str], flag: str | None = None) -> Iterator[pathlib.Path]:
    """`atomic_path` of a file that the user asked for, by a flag; `~` is the home folder.

    Raises:
      UserError: It cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        name, another = (flag, f"another --{flag}") if flag else ("file", "another")
        raise UserError(f"{name} {path}: {error.strerror or error}; pass {another}") from error
