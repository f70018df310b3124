"""Finds the images at a path: files, folders, zips, and patterns in any of them."""

import dataclasses
import fnmatch
import functools
import glob
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence

from pizza_steak.archive import list_pictures
from pizza_steak.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """An image that can be read.

    Attributes:
      path: The path, as text; a member of a zip follows the path of the zip.
      read: Returns the bytes of the file.
    """

    path: str
    read: Callable[[], bytes]


def find(images: Sequence[str]) -> list[Source]:
    """Returns the images at some paths, in the order of the paths.

    A path names an image, a folder (all images below it), or a shell pattern, in which `**` stands
    for any folders. A zip counts as a folder: what follows its path is an image, a folder or a
    pattern within it, such as `food.zip/test/pizza/1*.jpg`; there, `*` also stands for any folders.

    Raises:
      UserError: There is no image at one of the paths.
    """
    return [source for image in images for source in _find(image)]


def _find(image: str) -> list[Source]:
    path = pathlib.Path(image).expanduser()
    zips = (p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and os.path.isfile(p))
    if os.path.isdir(path):
        found = _in_folder(path)
    elif zip_path := next(zips, None):
        found = _in_zip(zip_path, path.relative_to(zip_path).as_posix())
    elif os.path.lexists(path):
        found = [Source(_as_text(path), path.read_bytes)]
    else:
        found = find(sorted(glob.glob(str(path), recursive=True)))
    if not found:
        raise UserError(f"image {image}: no image there; expected a file, folder, zip or pattern")
    return found


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


def _as_text(path: pathlib.Path) -> str:
    """Returns a path as text, with a replacement for bytes that are not text."""
    return os.fsencode(path).decode(errors="replace")
