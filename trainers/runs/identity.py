"""The identity of a run or a sweep: the flags that cannot change when it is resumed.

Each flag says at its definition whether it is one of them (`pizza_steak.flags.flag`). Flags are
compared by value: a flag that a run's flagfile does not have counts as its default. The flagfile of
a run may come from another person: flags that only the user may set do not count in it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Container, Iterator
from typing import Any

from absl import flags as absl_flags

from pizza_steak import flagfile
from pizza_steak.errors import UserError
from pizza_steak.flags import (
    as_argument,
    as_arguments,
    define_flags,
    fields,
    from_flags,
    only_typed,
    to_flags,
)

# Flags of older versions that are ignored: a model shows its --class_mode.
_REMOVED = ("class_mode",)
# May change all the same: a run that an unreadable image has ended goes on without that image.
_FREE = ("on_bad_image",)


def to_flagfile(config: Any) -> str:
    """Returns the flagfile of a run or a sweep: its identity, with absolute paths."""
    without = [f.name for _, f in fields(type(config)) if not f.metadata["identity"]]
    return to_flags(_with_absolute_paths(config), without)


def other_flags(config: Any, without: Container[str]) -> tuple[str, ...]:
    """Returns the flags that a flagfile of `to_flagfile` does not set, as they are typed.

    Args:
      config: The configuration; flags with their default are left out.
      without: More flags to leave out.
    """
    config = _with_absolute_paths(config)
    return tuple(
        argument
        for concern, field in fields(type(config))
        if field.name not in without
        if (value := getattr(getattr(config, concern), field.name)) != field.default
        if not field.metadata["identity"] or only_typed(field, value)
        for argument in as_arguments(field, value)
    )


def read(kind: type, path: pathlib.Path) -> Any:
    """Returns the configuration that the flagfile of a run or a sweep gives.

    A flag that only the user may set has its default. --model may name code: do not import it, for
    this file is no order to do so.

    Args:
      kind: The class of the configuration, such as `FitConfig`.
      path: The flagfile.

    Raises:
      UserError: The file has a flag that does not exist, or a wrong value, or cannot be read.
    """
    values = absl_flags.FlagValues()
    define_flags(kind, values)
    known = {field.name: field for _, field in fields(kind)}
    ignored = {*_REMOVED, *(name for name in known if known[name].metadata["typed"] is True)}
    try:
        lines = flagfile.plain_lines(path, known)
        values(["", *(line for name, line in lines if name not in ignored)])
    except flagfile.FlagfileError as error:
        raise UserError(str(error)) from error
    except absl_flags.UnrecognizedFlagError as error:
        raise UserError(
            f"{path}: --{error.flagname} is not a flag of this version; remove that line, or use "
            "the version that wrote it"
        ) from error
    except absl_flags.Error as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return from_flags(kind, values)


def changes(before: Any, now: Any) -> str:
    """Returns the flags that prevent a run from being resumed, with both values; or "".

    Args:
      before: What the run was started with.
      now: What it is to be resumed with.
    """
    before, now = _with_absolute_paths(before), _with_absolute_paths(now)
    different = _different(
        before, now, lambda flag: flag.metadata["identity"] and flag.name not in _FREE
    )
    return ", ".join(f"{one}, now {other}" for one, other in different)


def differences_from_chief(chiefs: Any, own: Any) -> str:
    """Returns the flags that must be the same in every process and are not, with both values."""
    different = _different(chiefs, own, lambda flag: not flag.metadata["per_process"])
    return ", ".join(f"{one}, here {other}" for one, other in different)


def _different(
    one: Any, other: Any, compared: Callable[[dataclasses.Field], bool]
) -> Iterator[tuple[str, str]]:
    for concern, field in fields(type(one)):
        values = [getattr(getattr(config, concern), field.name) for config in (one, other)]
        if compared(field) and values[0] != values[1]:
            yield as_argument(field.name, values[0]), as_argument(field.name, values[1])


def _with_absolute_paths(config: Any) -> Any:
    paths = {
        name: str(pathlib.Path(value).expanduser().absolute())
        for name in ("archive", "data_dir")
        if (value := getattr(config.data, name))
    }
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **paths))
