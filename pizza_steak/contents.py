"""Identifies an archive by the names and bytes of its images, not by its place or time.

A zip lists the CRC-32 of every image. The files of a folder are read once, and a cache keeps their
checksums. It also keeps what an archive holds, so that it is listed once.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pizza_steak import __version__, cores, members
from pizza_steak.archive import Archive, Picture, find_parts, read_archive
from pizza_steak.atomic import atomic_path, lock, remove_temporary
from pizza_steak.errors import ArchiveError
from pizza_steak.members import SUFFIXES, ReadingOptions

# The name of the folder of caches in `preparations.home`.
CACHE = ".contents"
# Files that a thread reads one after another: to hand over each alone takes as long as to read it.
_READ_AT_ONCE = 64


def open_archive(
    path: str | os.PathLike[str], options: ReadingOptions | None, cache: pathlib.Path
) -> Archive:
    """Returns an archive as `archive.read_archive` does.

    An archive that was listed before, and has not changed since, is not listed again: its images
    are listed when they are asked for. A zip is not even read. In a folder the system is asked for
    the sizes and times of all files, because its own times do not tell whether one has changed.

    Args:
      path: A zip file or a folder, or a pattern of some; `~` is the home folder.
      options: How to read it.
      cache: Folder in which `fingerprint` keeps what it knows of the archive.

    Raises:
      ArchiveError: As `archive.read_archive`.
    """
    path, options = pathlib.Path(path).expanduser(), options or ReadingOptions()
    parts = find_parts(path)
    state = tuple(members.state_of_zip(part) or members.state_of_folder(part) for part in parts)
    if not all(state):
        return read_archive(path, options)
    file, key = _file(cache, path, ".json"), _key(parts, options, state)
    try:
        entry = json.loads(file.read_bytes())
        if all(entry[name] == value for name, value in key.items()):
            kept = Archive(
                path=path,
                parts=parts,
                options=options,
                state=state,
                classes=tuple(entry["classes"]),
                counts=dict(entry["counts"]),
                splits={},
                left_out=dict(entry["left_out"]),
                warnings=tuple(entry["warnings"]),
            )
            unlisted = _Unlisted(kept, entry["fingerprint"], cache)
            return dataclasses.replace(kept, splits=unlisted)
    except (OSError, ValueError, KeyError, TypeError):  # It is missing or damaged.
        pass
    return dataclasses.replace(read_archive(path, options), state=state)


def fingerprint(archive: Archive, cache: pathlib.Path) -> str:
    """Returns a digest of every image's split, class, filename, size and CRC-32.

    A folder, its copies, a zip of it and several zips of parts of it have the same fingerprint.

    Args:
      archive: The listing.
      cache: Folder for the checksums of a folder's files, and for what `open_archive` needs to know
        of the archive. If it is missing, damaged or read-only, they are read again.

    Returns:
      64 hexadecimal digits.

    Raises:
      ArchiveError: A file cannot be read, or changes while it is read.
    """
    if isinstance(archive.splits, _Unlisted):
        return archive.splits.fingerprint
    digest = _digest(archive, _checksums(archive, cache))
    if archive.state:
        entry = _key(archive.parts, archive.options, archive.state) | {
            "fingerprint": digest,
            "classes": archive.classes,
            "counts": archive.counts,
            "left_out": archive.left_out,
            "warnings": archive.warnings,
        }
        _keep(
            _file(cache, archive.path, ".json"),
            lambda path: path.write_text(json.dumps(entry), encoding="utf-8"),
        )
    return digest


def forget_missing(cache: pathlib.Path) -> None:
    """Removes what is kept of archives that no longer exist, and what older versions kept."""
    for file in (*cache.glob("*.json"), *cache.glob("*.npz")):
        with contextlib.suppress(Exception):  # As in `_recall_files`.
            if not all(map(os.path.exists, _places(file))):
                file.unlink()
                file.with_name(f".{file.name}.lock").unlink(missing_ok=True)


def _places(file: pathlib.Path) -> list[str]:
    """Returns the paths of the zips and folders of which something is kept in a file."""
    if file.suffix == ".npz":
        with np.load(file) as kept:
            return [os.fsdecode(kept["folder"].tobytes())]
    return json.loads(file.read_bytes()).get("parts", [""])


def _images(archive: Archive) -> Iterator[Picture]:
    return itertools.chain.from_iterable(archive.splits.values())


def _digest(archive: Archive, checksums: Iterable[int]) -> str:
    """Returns the fingerprint of an archive, given the CRC-32 of each image in their order."""
    digest = hashlib.sha256()
    checksum = iter(checksums)
    for split, images in archive.splits.items():
        for image in images:
            content = f"{image.stamp[0]} {next(checksum):08x}\n"
            digest.update("\0".join([split, image.label, image.filename, content]).encode())
    return digest.hexdigest()


def _checksums(archive: Archive, cache: pathlib.Path) -> Iterator[int]:
    """Yields the CRC-32 of each image, in the order of `_images`."""
    folders = {number for number, part in enumerate(archive.parts) if part.is_dir()}
    if not folders:
        yield from (image.stamp[1] for image in _images(archive))
        return
    of_folders = {
        number: iter(
            _checksums_of_folder(
                archive,
                archive.parts[number],
                [image for image in _images(archive) if image.part == number],
                cache,
            )
        )
        for number in folders
    }
    for image in _images(archive):
        yield next(of_folders[image.part]) if image.part in folders else image.stamp[1]


class _Files(NamedTuple):
    """What is kept of N files of a folder.

    Attributes:
      names: Their paths in the folder, joined by zeros.
      stamps: int64 array of shape (N, 3), as of the images.
      checksums: int64 array of shape (N,), the CRC-32 of each.
    """

    names: bytes
    stamps: np.ndarray
    checksums: np.ndarray


def _checksums_of_folder(
    archive: Archive, folder: pathlib.Path, images: Sequence[Picture], cache: pathlib.Path
) -> list[int]:
    """Returns the CRC-32 of each image of a folder; reads those that are new or changed."""
    if not images:
        return []
    file = _file(cache, folder, ".npz")
    kept = _recall_files(file)
    now = time.time_ns()
    names = "\0".join(image.member for image in images).encode()
    stamps = np.array([image.stamp for image in images], np.int64)
    checksums = np.zeros(len(images), np.int64)
    known = np.zeros(len(images), bool)
    if len(kept.checksums):
        rows = _rows(names, kept.names)
        known = (rows >= 0) & (kept.stamps[rows] == stamps).all(axis=1)
        checksums[known] = kept.checksums[rows[known]]
    changed = np.flatnonzero(~known)
    starts = range(0, len(changed), _READ_AT_ONCE)

    def read(start: int) -> list[int]:
        rows = changed[start : start + _READ_AT_ONCE]
        return [archive.checksum_file(images[row]) for row in rows]

    # Reading and crc32 release the GIL. As many threads as Python's default has, of these cores.
    with concurrent.futures.ThreadPoolExecutor(min(32, cores.count() + 4)) as pool:
        for start, found in zip(starts, pool.map(read, starts), strict=True):
            checksums[changed[start : start + _READ_AT_ONCE]] = found
    old = stamps[:, 1:].max(axis=1) < now - members.TICK
    if not old.all():
        names = b"\0".join(itertools.compress(names.split(b"\0"), old))
    to_keep = _Files(names, stamps[old], checksums[old])
    if to_keep.names != kept.names or not all(map(np.array_equal, to_keep[1:], kept[1:])):
        place = np.frombuffer(os.fsencode(os.path.realpath(folder)), np.uint8)
        text = np.frombuffer(names, np.uint8)
        arrays = {"folder": place, **to_keep._asdict(), "names": text}
        _keep(file, lambda path: np.savez(path, **arrays))
    return checksums.tolist()


def _recall_files(file: pathlib.Path) -> _Files:
    """Returns what is kept of a folder's files; that of none if it is missing or damaged."""
    # NumPy and zipfile, which compares checksums, raise almost anything for damaged bytes.
    with contextlib.suppress(Exception), np.load(file) as kept:
        found = _Files(kept["names"].tobytes(), kept["stamps"], kept["checksums"])
        count = found.names.count(b"\0") + 1
        if (found.stamps.shape, found.checksums.shape) == ((count, 3), (count,)):
            return found
    return _Files(b"", np.zeros((0, 3), np.int64), np.zeros(0, np.int64))


def _rows(names: bytes, kept: bytes) -> np.ndarray:
    """Returns the place of each name among those that are kept, or -1."""
    if names == kept:
        return np.arange(names.count(b"\0") + 1)
    places = {name: place for place, name in enumerate(kept.split(b"\0"))}
    return np.array([places.get(name, -1) for name in names.split(b"\0")])


def _file(cache: pathlib.Path, archive: pathlib.Path, suffix: str) -> pathlib.Path:
    """Returns the file for what is kept of an archive."""
    place = os.fsencode(os.path.realpath(archive))
    return cache / f"{hashlib.sha256(place).hexdigest()[:32]}{suffix}"


def _keep(file: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    # Filelock's Timeout is an OSError too: another process writes the same.
    with contextlib.suppress(OSError), lock(file).acquire(timeout=0):
        remove_temporary(file.parent, file.name)
        with atomic_path(file) as temporary:
            write(temporary)


def _key(
    parts: Sequence[pathlib.Path],
    options: ReadingOptions,
    state: Sequence[Sequence[int | str]],
) -> dict[str, Any]:
    """Returns all that determines what an archive holds, as JSON has it."""
    return {
        "parts": [os.path.realpath(part) for part in parts],
        "state": [list(of_part) for of_part in state],
        "options": dataclasses.asdict(options),
        "reader": [__version__, *sorted(SUFFIXES)],
    }


class _Unlisted(Mapping[str, tuple[Picture, ...]]):
    """The images of an archive that was listed before, by split; lists them when they are used."""

    def __init__(self, archive: Archive, digest: str, cache: pathlib.Path):
        self.fingerprint = digest
        self._archive = archive
        self._cache = cache

    def __getitem__(self, split: str) -> tuple[Picture, ...]:
        return self._listed[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.counts)

    def __len__(self) -> int:
        return len(self._archive.counts)

    @functools.cached_property
    def _listed(self) -> Mapping[str, tuple[Picture, ...]]:
        archive = read_archive(self._archive.path, self._archive.options)
        digest = _digest(archive, _checksums(archive, self._cache))
        if (archive.parts, digest) != (self._archive.parts, self.fingerprint):
            raise ArchiveError(
                f"archive {archive.path}: changed while it was read; run the command again when it "
                "is complete"
            )
        return archive.splits
