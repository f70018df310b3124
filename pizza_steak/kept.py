"""Keeps on the disk what was computed once, with checksums: damaged files are made again.

Beside a file or folder `<name>` lies `.<name>.checksums`: the size, time of modification, inode and
CRC-32 of each file. A file whose first three have changed is read and compared, in the way of Git's
index. Others are trusted: `verify` reads them too.
"""

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator

from absl import logging

from pizza_steak import atomic
from pizza_steak.atomic import atomic_path, locked, remove

_SUFFIX = ".checksums"
_READ_AT_ONCE = 2**20


def make_once(
    path: pathlib.Path,
    make: Callable[[pathlib.Path], None],
    sound: Callable[[pathlib.Path], bool] = lambda path: False,
) -> None:
    """Makes a file or folder, unless it exists and is intact.

    Args:
      path: The file or folder.
      make: Called with a temporary path to write to.
      sound: Called with `path` if it exists without checksums, because another program made it;
        returns whether to keep it.
    """
    if _intact(path):
        return
    with locked(path):
        for name in (path.name, _file(path).name):  # A live process would hold the lock.
            atomic.remove_temporary(path.parent, name)
        intact = _intact(path)  # Another process may have made it in the meantime.
        if intact:
            return
        if path.exists():
            if intact is None and sound(path):
                _write(path, path)
                return
            if intact is not None:
                logging.warning("%s is damaged: making it again", path)
            remove(path)
        with atomic_path(path) as temporary:
            make(temporary)
            _write(path, temporary)


def is_damaged(path: pathlib.Path) -> bool:
    """Returns whether a file or folder of `make_once` is not as it was made."""
    return _intact(path) is False


def verify(folder: pathlib.Path) -> dict[pathlib.Path, bool]:
    """Reads everything that `make_once` keeps below a folder; the next use makes damaged ones anew.

    Returns:
      Whether each file or folder is intact.
    """
    files = sorted(folder.rglob(f".*{_SUFFIX}"))
    paths = [file.with_name(file.name[1 : -len(_SUFFIX)]) for file in files]
    return {path: bool(_intact(path, read_all=True)) for path in paths if path.exists()}


def _intact(path: pathlib.Path, *, read_all: bool = False) -> bool | None:
    """Returns whether a file or folder is as it was made; None if it has no checksums."""
    before = _read(path)
    if before is None or not path.exists():
        return None
    now = {}
    for name, entry in before.items():
        try:
            stamp = _stamp(path / name)
            now[name] = entry
            if read_all or stamp != entry[:-1]:
                now[name] = [*stamp, _crc32(path / name)]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        if (now[name][0], now[name][-1]) != (entry[0], entry[-1]):
            _note(path, before | {name: [0, 0, 0, entry[-1]]})  # It is read next time too.
            return False
    if now != before:  # It was copied, or only its time was changed.
        _note(path, now)
    return True


def _note(path: pathlib.Path, entries: dict[str, list[int]]) -> None:
    with contextlib.suppress(OSError):  # In a read-only folder it is read each time.
        _store(path, entries)


def _write(path: pathlib.Path, made: pathlib.Path) -> None:
    """Writes the checksums of `path`, whose content is at `made`."""
    _store(path, {name: [*_stamp(made / name), _crc32(made / name)] for name in _names(made)})


def _names(path: pathlib.Path) -> Iterator[str]:
    if not path.is_dir():
        yield "."
    for directory, _, names in os.walk(path):
        for name in names:
            yield os.path.relpath(os.path.join(directory, name), path)


def _store(path: pathlib.Path, entries: dict[str, list[int]]) -> None:
    with atomic_path(_file(path)) as temporary:
        temporary.write_text(json.dumps(entries), encoding="utf-8")


def _read(path: pathlib.Path) -> dict[str, list[int]] | None:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        entries = json.loads(_file(path).read_bytes()).items()
        return {name: [size, time, inode, crc] for name, (size, time, inode, crc) in entries}
    return None


def _file(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}{_SUFFIX}")


def _stamp(path: pathlib.Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _crc32(path: pathlib.Path) -> int:
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(_READ_AT_ONCE):
            checksum = zlib.crc32(part, checksum)
    return checksum
