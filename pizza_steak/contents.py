"""Identifies an archive by the names and bytes of its images, not by its place or time.

A zip lists the CRC-32 of every image. The files of a folder are read once, and a cache keeps their
checksums.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Sequence

from pizza_steak import cores
from pizza_steak.archive import Archive, Picture
from pizza_steak.atomic import atomic_path, lock, remove_temporary

# The name of the folder of caches in `preparations.home`.
CACHE = ".contents"
# Two changes within one tick of a file system's clock, 2 s on FAT, look like one. So files that
# were young when they were read are read again, as in Git (Documentation/technical/racy-git).
_TICK = 2 * 10**9


def fingerprint(archive: Archive, cache: pathlib.Path) -> str:
    """Returns a digest of every image's split, class, filename, size and CRC-32.

    A folder, its copies and a zip of it have the same fingerprint.

    Args:
      archive: The listing.
      cache: Folder for the checksums of files. If it is missing, damaged or read-only, files are
        read again.

    Returns:
      64 hexadecimal digits.

    Raises:
      ArchiveError: A file cannot be read, or changes while it is read.
    """
    images = [(split, p) for split, images in archive.splits.items() for p in images]
    if archive.path.is_dir():
        checksums = _checksums(archive, [image for _, image in images], cache)
    else:
        checksums = {image.member: image.stamp[1] for _, image in images}
    digest = hashlib.sha256()
    for split, image in images:
        content = f"{image.stamp[0]} {checksums[image.member]:08x}\n"
        digest.update("\0".join([split, image.label, image.filename, content]).encode())
    return digest.hexdigest()


def forget_missing(cache: pathlib.Path) -> None:
    """Removes the caches of folders that no longer exist."""
    for file in cache.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if not os.path.isdir(json.loads(file.read_bytes())["folder"]):
                file.unlink()
                file.with_name(f".{file.name}.lock").unlink(missing_ok=True)


def _checksums(archive: Archive, images: Sequence[Picture], cache: pathlib.Path) -> dict[str, int]:
    """Returns the CRC-32 of each file by member; reads those that are new or changed."""
    folder = os.path.realpath(archive.path)
    file = cache / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"
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
    entries = {m: entry for m, entry in entries.items() if max(entry[1:-1]) < now - _TICK}
    if entries != remembered:
        # Filelock's Timeout is an OSError too: another process writes the same.
        with contextlib.suppress(OSError), lock(file).acquire(timeout=0):
            remove_temporary(cache, file.name)
            with atomic_path(file) as temporary:
                temporary.write_text(
                    json.dumps({"folder": folder, "files": entries}), encoding="utf-8"
                )
    return checksums


def _recall(file: pathlib.Path) -> dict[str, list[int]]:
    """Returns the cached size, times and CRC-32 of each file, by member."""
    try:
        files = json.loads(file.read_bytes())["files"]
        return {member: list(map(int, entry)) for member, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
