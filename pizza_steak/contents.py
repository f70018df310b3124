"""Identifies an archive by the names and bytes of its images, not by its place or time.

A zip lists the CRC-32 of every image. The files of a folder are read once, and a cache keeps their
checksums. It also keeps what a zip holds, so that a zip is listed once.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pizza_steak import __version__, cores
from pizza_steak.archive import Archive, Picture, read_archive
from pizza_steak.atomic import atomic_path, lock, remove_temporary
from pizza_steak.errors import ArchiveError
from pizza_steak.members import SUFFIXES, TICK, ReadingOptions, state_of_zip

# The name of the folder of caches in `preparations.home`.
CACHE = ".contents"


def open_archive(
    path: str | os.PathLike[str], options: ReadingOptions | None, cache: pathlib.Path
) -> Archive:
    """Returns an archive as `archive.read_archive` does.

    A zip that was listed before, and has not changed since, is not read: its images are listed
    when they are asked for. A folder is always listed, because its own times do not tell whether a
    file in it has changed.

    Args:
      path: A zip file or a folder; `~` is the home folder.
      options: How to read it.
      cache: Folder in which `fingerprint` keeps what it knows of a zip.

    Raises:
      ArchiveError: As `archive.read_archive`.
    """
    path, options = pathlib.Path(path).expanduser(), options or ReadingOptions()
    return _recall_zip(path, options, cache) or read_archive(path, options)


def fingerprint(archive: Archive, cache: pathlib.Path) -> str:
    """Returns a digest of every image's split, class, filename, size and CRC-32.

    A folder, its copies and a zip of it have the same fingerprint.

    Args:
      archive: The listing.
      cache: Folder for the checksums of a folder's files, and for what `open_archive` needs to know
        of a zip. If it is missing, damaged or read-only, they are read again.

    Returns:
      64 hexadecimal digits.

    Raises:
      ArchiveError: A file cannot be read, or changes while it is read.
    """
    if isinstance(archive.splits, _Unlisted):
        return archive.splits.fingerprint
    if archive.path.is_dir():
        return _digest(archive, _checksums(archive, cache))
    digest = _digest(archive, _checksums_of_zip(archive))
    if archive.state:
        _keep(
            _file(cache, archive.path),
            _key(archive.path, archive.options, archive.state)
            | {
                "fingerprint": digest,
                "classes": archive.classes,
                "counts": archive.counts,
                "left_out": archive.left_out,
                "warnings": archive.warnings,
            },
        )
    return digest


def forget_missing(cache: pathlib.Path) -> None:
    """Removes what is kept of folders and zips that no longer exist."""
    for file in cache.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            entry = json.loads(file.read_bytes())
            if not os.path.exists(entry.get("zip") or entry["folder"]):
                file.unlink()
                file.with_name(f".{file.name}.lock").unlink(missing_ok=True)


def _images(archive: Archive) -> Iterator[Picture]:
    return itertools.chain.from_iterable(archive.splits.values())


def _digest(archive: Archive, checksums: Mapping[str, int]) -> str:
    """Returns the fingerprint of an archive, given the CRC-32 of each image by member."""
    digest = hashlib.sha256()
    for split, images in archive.splits.items():
        for image in images:
            content = f"{image.stamp[0]} {checksums[image.member]:08x}\n"
            digest.update("\0".join([split, image.label, image.filename, content]).encode())
    return digest.hexdigest()


def _checksums_of_zip(archive: Archive) -> dict[str, int]:
    return {image.member: image.stamp[1] for image in _images(archive)}


def _checksums(archive: Archive, cache: pathlib.Path) -> dict[str, int]:
    """Returns the CRC-32 of each file by member; reads those that are new or changed."""
    images = list(_images(archive))
    file = _file(cache, archive.path)
    remembered = _recall(file)
    now = time.time_ns()

    def read(image: Picture) -> list[int]:
        return [*image.stamp, archive.checksum_file(image)]

    changed = [p for p in images if remembered.get(p.member, [])[:-1] != [*p.stamp]]
    # Reading and crc32 release the GIL. As many threads as Python's default has, of these cores.
    with concurrent.futures.ThreadPoolExecutor(min(32, cores.count() + 4)) as pool:
        new = {p.member: entry for p, entry in zip(changed, pool.map(read, changed), strict=True)}
    entries = {p.member: new.get(p.member) or remembered[p.member] for p in images}
    checksums = {member: crc for member, (*_, crc) in entries.items()}
    entries = {m: entry for m, entry in entries.items() if max(entry[1:-1]) < now - TICK}
    if entries != remembered:
        _keep(file, {"folder": os.path.realpath(archive.path), "files": entries})
    return checksums


def _file(cache: pathlib.Path, archive: pathlib.Path) -> pathlib.Path:
    """Returns the file for what is kept of an archive."""
    place = os.fsencode(os.path.realpath(archive))
    return cache / f"{hashlib.sha256(place).hexdigest()[:32]}.json"


def _keep(file: pathlib.Path, entry: Mapping[str, Any]) -> None:
    # Filelock's Timeout is an OSError too: another process writes the same.
    with contextlib.suppress(OSError), lock(file).acquire(timeout=0):
        remove_temporary(file.parent, file.name)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(entry), encoding="utf-8")


def _key(path: pathlib.Path, options: ReadingOptions, state: Sequence[int]) -> dict[str, Any]:
    """Returns all that determines what a zip holds, as JSON has it."""
    return {
        "zip": os.path.realpath(path),
        "state": list(state),
        "options": dataclasses.asdict(options),
        "reader": [__version__, *sorted(SUFFIXES)],
    }


def _recall_zip(path: pathlib.Path, options: ReadingOptions, cache: pathlib.Path) -> Archive | None:
    """Returns a zip as it was listed before; None if it was not, or has changed since."""
    state = state_of_zip(path)
    if not state:
        return None
    try:
        entry = json.loads(_file(cache, path).read_bytes())
        if any(entry[name] != value for name, value in _key(path, options, state).items()):
            return None
        counts = dict(entry["counts"])
        return Archive(
            path=path,
            options=options,
            state=state,
            classes=tuple(entry["classes"]),
            counts=counts,
            splits=_Unlisted(path, options, counts, entry["fingerprint"]),
            left_out=dict(entry["left_out"]),
            warnings=tuple(entry["warnings"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _recall(file: pathlib.Path) -> dict[str, list[int]]:
    """Returns the cached size, times and CRC-32 of each file, by member."""
    try:
        files = json.loads(file.read_bytes())["files"]
        return {member: list(map(int, entry)) for member, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


class _Unlisted(Mapping[str, tuple[Picture, ...]]):
    """The images, by split, of a zip that was listed before; lists them when they are used."""

    def __init__(
        self, path: pathlib.Path, options: ReadingOptions, counts: Mapping[str, int], digest: str
    ):
        self.fingerprint = digest
        self._path = path
        self._options = options
        self._counts = counts

    def __getitem__(self, split: str) -> tuple[Picture, ...]:
        return self._listed[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    @functools.cached_property
    def _listed(self) -> Mapping[str, tuple[Picture, ...]]:
        archive = read_archive(self._path, self._options)
        if _digest(archive, _checksums_of_zip(archive)) != self.fingerprint:
            raise ArchiveError(
                f"archive {self._path}: changed while it was read; run the command again when it "
                "is complete"
            )
        return archive.splits
