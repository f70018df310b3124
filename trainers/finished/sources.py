"""Finds the images at some paths: files, folders, zips, and patterns in any of them."""

import dataclasses
import fnmatch
import functools
import glob
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence

from pizza_steak.archive import list_pictures
from pizza_steak.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """An image, or a path without one.

    Attributes:
      path: The path, as text; a member of a zip follows the path of the zip.
      read: Returns the bytes of the file.
      fault: Why there is no image at the path; "" if there is one.
    """

    path: str
    read: Callable[[], bytes] = dataclasses.field(compare=False)
    fault: str = ""


def find(images: Sequence[str]) -> list[Source]:
    """Returns the images at some paths, in the order of the paths.

    A path without an image costs only itself: it is a source with a fault.

    A path names an image, a folder (all images below it), or a shell pattern, in which `**` stands
    for any folders. A zip counts as a folder: what follows its path is an image, a folder or a
    pattern within it, such as `food.zip/test/pizza/1*.jpg`; there, `*` also stands for any folders.
    """
    return [source for image in images for source in _found_or_fault(image)]


def _found_or_fault(image: str) -> list[Source]:
    try:
        return _find(image)
    except UserError as error:
        return [Source(_as_text(image), bytes, str(error))]


def _find(image: str) -> list[Source]:
    """Returns the images at a path.

    Raises:
      UserError: There is none.
    """
    if re.match(r"[a-z][a-z0-9+.-]*://", image, re.IGNORECASE):
        raise UserError("is a URL; fetch it first, such as with curl -O, and pass the file")
    path = pathlib.Path(image).expanduser()
    zips = (p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and os.path.isfile(p))
    if os.path.isdir(path):
        found = _in_folder(path)
    elif zip_path := next(zips, None):
        found = _in_zip(zip_path, path.relative_to(zip_path).as_posix())
    elif os.path.lexists(path):
        found = [Source(_as_text(path), path.read_bytes)]
    else:
        there = sorted(matches(path, recursive=True))
        found = [source for match in there for source in _found_or_fault(str(match))]
    if not found:
        raise UserError("no image there; expected a file, folder, zip or pattern")
    return found


def matches(pattern: pathlib.Path, *, recursive: bool = False) -> list[pathlib.Path]:
    """Returns the paths that match a pattern; folders that exist by their very name are none."""
    literal = next(path for path in (pattern, *pattern.parents) if os.path.lexists(path))
    if literal == pattern:
        return [pattern]
    rest = str(pattern.relative_to(literal))
    return [literal / name for name in glob.glob(rest, root_dir=literal, recursive=recursive)]


def _in_folder(folder: pathlib.Path) -> list[Source]:
    files = [folder / name for name in list_pictures(folder, follow_links=True)]
    return [Source(_as_text(file), file.read_bytes) for file in files]


def _in_zip(path: pathlib.Path, within: str) -> list[Source]:
    members = list_pictures(path)  # Refuses hostile zips, and files that are not zips.
    zip_file = zipfile.ZipFile(path)
    return [
        Source(_as_text(path / name), functools.partial(zip_file.read, member))
        for name, member in members.items()
        if within == "." or _matches(pathlib.PurePosixPath(name), within)
    ]


def _matches(name: pathlib.PurePosixPath, pattern: str) -> bool:
    """Returns whether a member, or a folder around it, matches a path or a pattern."""
    candidates = [str(path) for path in (name, *name.parents[:-1])]
    return pattern in candidates or any(fnmatch.fnmatchcase(c, pattern) for c in candidates)


def _as_text(path: str | pathlib.Path) -> str:
    """Returns a path as text, with a replacement for bytes that are not text."""
    return os.fsencode(path).decode(errors="replace")
