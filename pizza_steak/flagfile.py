"""Finds flagfiles, by path or by the name of one of this package, and reads their flags.

absl expands --flagfile too, but finds only paths.
"""

import pathlib
import re
from collections.abc import Iterable, Iterator

from pizza_steak.flags import fields

_FOLDER = pathlib.Path(__file__).with_name("flagfiles")


class FlagfileError(ValueError):
    """A flagfile that does not exist, or cannot be read."""


def names(config: type) -> list[str]:
    """Returns the names of the flagfiles of this package that set flags of `config` only."""
    known = {field.name for _, field in fields(config)}
    return sorted(
        path.stem
        for path in _FOLDER.glob("*.flags")
        if all(
            name in known or name.removeprefix("no") in known
            for name in re.findall(r"^--(\w+)", path.read_text(encoding="utf-8"), re.M)
        )
    )


def expand(arguments: Iterable[str], config: type) -> list[str]:
    """Returns the arguments with the flags of each flagfile in place of its --flagfile.

    A flagfile is a path, or the name of a flagfile of this package; the suffix .flags may be left
    out. A file in the current folder comes first. A flagfile may include others.

    Args:
      arguments: The arguments of a command.
      config: The configuration of the command; an error names the flagfiles that it can use.

    Raises:
      FlagfileError: A flagfile does not exist, cannot be read, or includes itself.
    """
    return list(_expand(arguments, config, within=()))


def _expand(
    arguments: Iterable[str], config: type, within: tuple[pathlib.Path, ...]
) -> Iterator[str]:
    arguments = iter(arguments)
    for argument in arguments:
        match = re.fullmatch("--?flagfile(?:=(.*))?", argument, re.S)
        if argument == "--":  # No flags follow.
            yield argument
            yield from arguments
        elif not match:
            yield argument
        else:
            name = next(arguments, "") if match[1] is None else match[1].strip()
            if not name:
                raise FlagfileError("expected a file")
            path = find(name, config)
            if path.resolve() in within:
                raise FlagfileError(f"{path}: includes itself")
            yield from _expand(_lines(path), config, (*within, path.resolve()))


def find(name: str, config: type) -> pathlib.Path:
    """Returns the path of a flagfile, as for `expand`.

    Raises:
      FlagfileError: It does not exist.
    """
    path = pathlib.Path(name).expanduser()
    folders = [path.parent, _FOLDER] if path.name == name else [path.parent]
    for folder in folders:
        for candidate in (folder / path.name, folder / f"{path.name}.flags"):
            if candidate.exists() and not candidate.is_dir():  # It may be a pipe.
                return candidate
    known = ", ".join(names(config))
    expected = f"a file, or one of {known}" if known else "a file"
    raise FlagfileError(f"{name}: no such file; expected {expected}")


def _lines(path: pathlib.Path) -> list[str]:
    """Returns the lines of a flagfile that are not empty and no comments."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FlagfileError(f"{path}: cannot be read: {error}") from error
    return [line for text in lines if (line := text.strip()) and not line.startswith(("#", "//"))]
