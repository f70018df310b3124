"""Finds the images at some paths: files, folders, zips, and patterns in any of them."""

import dataclasses
import fnmatch
import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence

from pizza_steak import members, patterns, regular_file
from pizza_steak.errors import UserError
from pizza_steak.members import ReadingOptions


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


def find(images: Sequence[str], reading: ReadingOptions | None = None) -> list[Source]:
    """Returns the images at some paths, in the order of the paths.

    A path without an image costs only itself: it is a source with a fault.

    A path names an image, a folder (all images below it), or a shell pattern, in which `**` stands
    for any folders. A zip counts as a folder: what follows its path is an image, a folder or a
    pattern within it, such as `food.zip/test/pizza/1*.jpg`; there, `*` also stands for any folders.

    Args:
      images: The paths.
      reading: How to read folders and zips.
    """
    reading = reading or ReadingOptions()
    return [source for image in images for source in _found_or_fault(image, reading)]


def _found_or_fault(image: str, reading: ReadingOptions) -> list[Source]:
    try:
        return _find(image, reading)
    except UserError as error:
        return [Source(_as_text(image), bytes, str(error))]


def _find(image: str, reading: ReadingOptions) -> list[Source]:
    """Returns the images at a path.

    Raises:
      UserError: There is none.
    """
    if re.match(r"[a-z][a-z0-9+.-]*://", image, re.IGNORECASE):
        raise UserError("is a URL; fetch it first, such as with curl -O, and pass the file")
    path = pathlib.Path(image).expanduser()
    zips = (p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and os.path.isfile(p))
    if os.path.isdir(path):
        found = _in_folder(path, reading)
    elif zip_path := next(zips, None):
        found = _in_zip(zip_path, path.relative_to(zip_path).as_posix(), reading)
    elif os.path.lexists(path):
        found = [Source(_as_text(path), functools.partial(_read_file, path))]
    else:
        there = patterns.matches(path, recursive=True, follow_links=reading.follow_links)
        # A pattern may match a folder and what is in it.
        sources = (source for match in sorted(there) for source in _of_match(str(match), reading))
        found = list(dict.fromkeys(sources))
    if not found:
        raise UserError("no image there; expected a file, folder, zip or pattern")
    return found


def _of_match(match: str, reading: ReadingOptions) -> list[Source]:
    if os.path.islink(match) and os.path.isdir(match) and not reading.follow_links:
        return [Source(_as_text(match), bytes, members.LINK_TO_FOLDER)]
    return _found_or_fault(match, reading)


def _in_folder(folder: pathlib.Path, reading: ReadingOptions) -> list[Source]:
    listing = members.list_members(folder, reading)
    irregular = (
        members.Member(name, name, (), regular_file.NOT_REGULAR) for name in listing.irregular
    )
    found = sorted((*listing.members, *irregular), key=lambda member: member.member)
    return [
        Source(
            _as_text(folder / member.member),
            functools.partial(_read_file, folder / member.member),
            member.fault,
        )
        for member in found
    ]


def _in_zip(path: pathlib.Path, within: str, reading: ReadingOptions) -> list[Source]:
    listing = members.list_members(path, reading)
    return [
        Source(
            _as_text(path / member.name),
            functools.partial(_read_in_zip, path, member),
            member.fault,
        )
        for member in sorted(listing.members, key=lambda member: member.name)
        if within == "." or _matches(pathlib.PurePosixPath(member.name), within)
    ]


def _read_in_zip(path: pathlib.Path, member: members.Member) -> bytes:
    with regular_file.open_file(path) as zip_file:  # Each thread has its own.
        return members.read_member(zip_file, member.member, member.stamp)


def _read_file(path: pathlib.Path) -> bytes:
    encoded, _ = members.read_file(path)
    return encoded


def _matches(name: pathlib.PurePosixPath, pattern: str) -> bool:
    """Returns whether a member, or a folder around it, matches a path or a pattern."""
    candidates = [str(path) for path in (name, *name.parents[:-1])]
    return pattern in candidates or any(fnmatch.fnmatchcase(c, pattern) for c in candidates)


def _as_text(path: str | pathlib.Path) -> str:
    """Returns a path as text, with a replacement for bytes that are not text."""
    return os.fsencode(path).decode(errors="replace")
