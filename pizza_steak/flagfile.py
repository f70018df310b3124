"""Finds flagfiles, by path or by the name of one of this package, and reads their flags.

absl expands --flagfile too, but finds only paths.

The flagfiles that runs and sweeps write may come from another person. They are read as plain lines,
and flags that name a place to write to, a host or code do not count in them
(`pizza_steak.flags.flag`).
"""

import pathlib
import re
from collections.abc import Collection, Iterable, Iterator

from pizza_steak import regular_file
from pizza_steak.errors import UserError
from pizza_steak.flags import fields, only_typed

# The names of the flagfiles that runs and sweeps write.
WRITTEN = ("run.flags", "best.flags", "sweep.flags")
_FOLDER = pathlib.Path(__file__).with_name("flagfiles")
_MOST_BYTES = 2**20


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
    out. A file in the current folder comes first. A flagfile may include others, but one that a run
    or a sweep has written must not. What such a file may not set is left out if it is among the
    arguments too.

    Args:
      arguments: The arguments of a command.
      config: The configuration of the command; an error names the flagfiles that it can use.

    Raises:
      FlagfileError: A flagfile does not exist, cannot be read, or includes itself; or one that a
        run or a sweep has written has a flag that does not count there.
    """
    arguments = list(arguments)
    typed = {match[1] for text in arguments if (match := re.match(r"--?(\w+)", text))}
    return list(_expand(arguments, config, typed, within=()))


def _expand(
    arguments: Iterable[str],
    config: type,
    typed: Collection[str],
    within: tuple[pathlib.Path, ...],
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
            if path.name.lower() in WRITTEN and path.parent != _FOLDER:
                yield from _written(path, config, typed)
            else:
                yield from _expand(_lines(path), config, typed, (*within, path.resolve()))


def _written(path: pathlib.Path, config: type, typed: Collection[str]) -> Iterator[str]:
    known = {field.name: field for _, field in fields(config)}
    for name, line in plain_lines(path, known):
        if name not in known or not only_typed(known[name], line.partition("=")[2]):
            yield line
        elif name not in typed and f"no{name}" not in typed:
            raise FlagfileError(
                f"{path}: --{name} does not count in the flagfile of a run or a sweep, which may "
                "be another person's; pass the flag on the command line, or give a flagfile of "
                "your own another name"
            )


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


def plain_lines(path: pathlib.Path, known: Collection[str]) -> list[tuple[str, str]]:
    """Returns the flags of a flagfile that a run or a sweep has written, each with its name.

    Args:
      path: The file.
      known: The names of the flags that there are.

    Raises:
      FlagfileError: The file cannot be read, or a line is not --name=value, --name or --noname.
    """
    flags = []
    for line in _lines(path, regular=True):
        match = re.fullmatch(r"--(\w+)(=.*)?", line)
        if not match or match[1] in ("flagfile", "undefok"):
            raise FlagfileError(
                f"{path}: has a line that is not --name=value; expected the flagfile of a run or a "
                "sweep, or for one of your own another name"
            )
        name = match[1]
        if name not in known and name.removeprefix("no") in known:
            name = name.removeprefix("no")
        flags.append((name, line))
    return flags


def _lines(path: pathlib.Path, *, regular: bool = False) -> list[str]:
    """Returns the lines of a flagfile that are not empty and no comments."""
    try:
        if regular:
            content = regular_file.read(path, _MOST_BYTES)
        else:  # The user names it: it may be a pipe.
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise FlagfileError(f"{path}: larger than {_MOST_BYTES / 2**20:.0f} MiB")
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FlagfileError(f"{path}: cannot be read: {error}") from error
    except UserError as error:
        raise FlagfileError(str(error)) from error
    return [line for text in lines if (line := text.strip()) and not line.startswith(("#", "//"))]
