"""Lists and removes prepared datasets: records and everything derived from them."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Collection, Sequence

from pizza_steak import contents, kept
from pizza_steak.atomic import lock
from pizza_steak.errors import UserError, told

_NAME = "pizza_steak"
_INFO = "dataset_info.json"
_MARKER = ".last_use"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A prepared dataset.

    Attributes:
      name: Name of the dataset, without `pizza_steak/`.
      images: Number of images in all splits.
      bytes: Size of all files: records, index, decoded images.
      last_use: Time of the last use, in seconds since 1970.
    """

    name: str
    images: int
    bytes: int
    last_use: float


def home(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Returns the folder of this package's datasets in a data_dir, by default TFDS's own."""
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return pathlib.Path(data_dir).expanduser() / _NAME


def find(folder: pathlib.Path, stem: str, digits: str) -> str:
    """Returns the name `<stem>-<digits>`, or that of a prepared dataset with the same digits."""
    own = f"{stem}-{digits}"
    others = (path.parents[1].name for path in folder.glob(f"*-{digits}/[!.]*/{_INFO}"))
    return min(others, key=lambda name: (name != own, name), default=own)


def mark_used(folder: pathlib.Path) -> None:
    """Records that a dataset is used now; does nothing in a read-only data_dir."""
    with contextlib.suppress(OSError):
        (folder / _MARKER).touch()


def report(
    *,
    data_dir: str | None = None,
    remove: Sequence[str] = (),
    unused_for: float | None = None,
) -> str:
    """Lists the prepared datasets, or removes some of them.

    Args:
      data_dir: Folder of the datasets, by default TFDS's `~/tensorflow_datasets`.
      remove: Names to remove, with or without `pizza_steak/`.
      unused_for: Also remove datasets that were not used for this many seconds.

    Returns:
      A table of the datasets, or of the removed ones, as text.

    Raises:
      UserError: A name is unknown, or a dataset cannot be removed; earlier ones are removed then.
    """
    folder = home(data_dir)
    now = time.time()
    found = {preparation.name: preparation for preparation in prepared(folder)}
    names = {name.removeprefix(f"{_NAME}/") for name in remove}
    if unknown := sorted(names - found.keys()):
        there = f"expected one of {', '.join(sorted(found))}" if found else "nothing is prepared"
        raise UserError(f"remove {unknown[0]!r}: not in {folder}; {there}")
    if not remove and unused_for is None:
        return _table(found.values(), now, f"prepared in {folder}")
    if unused_for is not None:
        names |= {name for name, one in found.items() if now - one.last_use >= unused_for}
    removed = [preparation for name, preparation in found.items() if name in names]
    try:
        for preparation in removed:
            _remove(folder / preparation.name)
        contents.forget_missing(folder / contents.CACHE)
    except OSError as error:
        raise UserError(
            f"remove {error.filename}: {told(error)}; expected a data_dir that you may write to"
        ) from error
    return _table(removed, now, f"removed from {folder}")


def verified(data_dir: str | None = None) -> str:
    """Reads all files of the prepared datasets; returns how many there are.

    Raises:
      UserError: Some are damaged.
    """
    folder = home(data_dir)
    found = kept.verify(folder)
    if damaged := [str(path.relative_to(folder)) for path, intact in found.items() if not intact]:
        raise UserError(
            f"data_dir {folder}: damaged: {', '.join(damaged)}; the next run that needs them makes "
            "them again"
        )
    return f"all {len(found):,} parts are intact in {folder}"


def prepared(folder: pathlib.Path) -> list[Preparation]:
    """Returns the datasets prepared in a folder, the last used first."""
    found = filter(None, map(_read, folder.glob("[!.]*")))
    return sorted(found, key=lambda preparation: -preparation.last_use)


def _read(folder: pathlib.Path) -> Preparation | None:
    """Returns the dataset in a folder, or None if it is none of this package."""
    infos = [] if folder.is_symlink() else sorted(folder.glob(f"[!.]*/{_INFO}"))
    try:
        info = json.loads(infos[-1].read_bytes())
        if info["name"] != _NAME:
            return None
        lengths = [int(length) for split in info["splits"] for length in split["shardLengths"]]
        last_use = max(_modified(path) for path in (*infos, *folder.glob(f"*/{_MARKER}")))
    except (OSError, IndexError, ValueError, KeyError, TypeError):
        return None
    return Preparation(folder.name, sum(lengths), _bytes(folder), last_use)


def _modified(path: pathlib.Path) -> float:
    return path.stat().st_mtime


def _bytes(folder: pathlib.Path) -> int:
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # A temporary file of another process.
                total += os.lstat(os.path.join(directory, name)).st_size
    return total


def _remove(folder: pathlib.Path) -> None:
    hidden = folder.with_name(f".{uuid.uuid4().hex}.{folder.name}")
    with lock(folder), contextlib.suppress(FileNotFoundError):  # Another process removed it.
        folder.rename(hidden)  # Other processes never see a partly removed folder.
    for left in folder.parent.glob(f".{'[0-9a-f]' * 32}.*"):  # Also those of killed processes.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(left, ignore_errors=left != hidden)


def _table(preparations: Collection[Preparation], now: float, where: str) -> str:
    if not preparations:
        return f"no dataset {where}"
    rows = [("images", "size", "last use", "name")]
    for one in preparations:
        rows.append((f"{one.images:,}", _size(one.bytes), _ago(now - one.last_use), one.name))
    images, size = (sum(getattr(one, name) for one in preparations) for name in ("images", "bytes"))
    rows.append((f"{images:,}", _size(size), "total", where))
    return "\n".join(f"{a:>10}{b:>14}  {c:<16}{d}" for a, b, c, d in rows)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := int(seconds // length):
            return f"{count:,} {unit}{'s' * (count > 1)} ago"
    return "just now"
