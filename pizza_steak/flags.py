"""Converts dataclasses to absl flags and back: one frozen dataclass a concern, one field a flag.

A configuration is a dataclass whose fields are concerns, such as `FitConfig`. Each flag is defined
once, with its default and its help. Nothing here imports TensorFlow: --help must be fast.
"""

import collections
import csv
import dataclasses
import functools
import io
import operator
import types
import typing
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from absl import flags

# The type of a flag that takes one number, or several separated by commas.
Numbers = float | int | Sequence[float]

# TensorFlow computes in float32 and counts in int32.
_LARGEST_FLOAT = 3.4028234663852886e38
_LARGEST_INT = 2**31 - 1


def flag(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    check: Callable[[Any], Any] | None = None,
    identity: bool = True,
    per_process: bool = False,
    typed: bool | Callable[[str], bool] = False,
    one_of: str | None = None,
    repeated: bool = False,
    common: bool = False,
    aliases: str = "",
) -> Any:
    """Returns a dataclass field that is a flag.

    Args:
      default: Its default value.
      help: Its help.
      choices: The allowed values; of a `bool | str` the words allowed beside true and false.
      minimum: The smallest allowed number.
      maximum: The largest allowed number; by default what float32 or int32 holds. NaN and infinity
        are never allowed.
      check: Raises a ValueError if the value is wrong.
      identity: Whether a run is resumed only with the value that it was started with. The flagfile
        of a run holds these flags and no others.
      per_process: Whether each process of a cluster may have a value of its own.
      typed: Whether only the user may set it, or which values only the user may: it names a place
        to write to, a host or code. In the flagfile of a run, which may be another person's, it
        does not count (`flagfile.WRITTEN`).
      one_of: Name of a group of flags. Exactly one flag of the group must be given.
      repeated: Whether the flag may be repeated; its value is the tuple of all values.
      common: Whether --help shows the flag; --helpfull shows all.
      aliases: Other words for the flag, separated by spaces; who types one is told the flag.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "limits": (minimum, maximum),
        "check": check,
        "identity": identity,
        "per_process": per_process,
        "typed": typed,
        "one_of": one_of,
        "repeated": repeated,
        "common": common,
        "aliases": aliases.split(),
    }
    return dataclasses.field(default=default, metadata=metadata)


def only_typed(field: dataclasses.Field, value: Any) -> bool:
    """Returns whether only the user may set a flag to a value, and not the flagfile of a run."""
    typed = field.metadata["typed"]
    return typed(value) if callable(typed) and isinstance(value, str) else typed is True


def same_flag(concern: Any, name: str, **changes: Any) -> Any:
    """Returns a field with the flag of another concern, with changes such as another default."""
    field = concern.__dataclass_fields__[name]
    metadata = {**field.metadata, **changes}
    return dataclasses.field(default=metadata.pop("default", field.default), metadata=metadata)


def fields(config: Any) -> Iterator[tuple[str, dataclasses.Field]]:
    """Yields the (concern name, field) pairs of a configuration."""
    for name, concern in _concerns(config).items():
        for field in dataclasses.fields(concern):
            yield name, field


def _concerns(config: Any) -> dict[str, Any]:
    """Returns the dataclass of each concern of a configuration, by name."""
    return {concern.name: concern.type for concern in dataclasses.fields(config)}


def kind_of(field: dataclasses.Field) -> Any:
    """Returns the type of a flag's values, without None; `bool | str` and `Numbers` as they are."""
    if not isinstance(field.type, types.UnionType):
        return field.type
    kinds = [kind for kind in typing.get_args(field.type) if kind is not types.NoneType]
    return functools.reduce(operator.or_, kinds)


def limits(field: dataclasses.Field) -> tuple[float | None, float | None]:
    """Returns the smallest and the largest allowed number of a flag."""
    minimum, maximum = field.metadata["limits"]
    if kind_of(field) is int and maximum is None:
        maximum = _LARGEST_INT
    return minimum, maximum


def check_finite(text: str, value: float) -> None:
    """Raises a `ValueError` if a number is NaN, or larger than float32 holds."""
    if not abs(value) <= _LARGEST_FLOAT:
        raise ValueError(f"{text}: expected a finite number, to either side at most 3.4e38")


class _Finite(flags.FloatParser):
    """Parses a number, but neither NaN nor infinity."""

    def convert(self, argument: Any) -> float:
        value = super().convert(argument)
        check_finite(argument, value)
        return value


class _Numbers(flags.ArgumentParser):
    """Parses `0.2` as a number and `0.8,1.2` as a tuple; a number without a point is an int."""

    syntactic_help = "a number, or several separated by commas"

    def __init__(self, lower_bound: float | None, upper_bound: float | None):
        self._lower_bound = lower_bound
        self._upper_bound = upper_bound

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):  # The default.
            return argument
        values = tuple(self._parse_number(text) for text in argument.split(","))
        return values if len(values) > 1 else values[0]

    def _parse_number(self, text: str) -> float:
        try:
            value: float = int(text)
        except ValueError:
            value = float(text)  # absl reports the flag and this error's message.
        check_finite(text, value)
        if self._lower_bound is not None and value < self._lower_bound:
            raise ValueError(f"{text}: expected at least {self._lower_bound:g}")
        if self._upper_bound is not None and value > self._upper_bound:
            raise ValueError(f"{text}: expected at most {self._upper_bound:g}")
        return value


class _Switch(flags.BooleanParser):
    """Parses a switch, such as `--resume`, that also takes a word, such as `--resume=auto`."""

    def __init__(self, words: Sequence[str]):
        super().__init__()
        self._words = words

    def parse(self, argument: Any) -> Any:
        return argument if argument in self._words else super().parse(argument)


def define_flags(config: type, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines an absl flag for each field of the concerns of a configuration."""
    groups = collections.defaultdict(list)
    for concern in _concerns(config).values():
        for field in dataclasses.fields(concern):
            _define_flag(field, flag_values)
            groups[field.metadata["one_of"]].append(field.name)
    groups.pop(None, None)
    for names in groups.values():
        flags.mark_flags_as_mutual_exclusive(names, required=True, flag_values=flag_values)


def flags_by_concern(config: type) -> list[tuple[str, Sequence[dataclasses.Field]]]:
    """Returns the (docstring, fields) pairs of the concerns of a configuration."""
    concerns = _concerns(config).values()
    return [(concern.__doc__, dataclasses.fields(concern)) for concern in concerns]


def _define_flag(field: dataclasses.Field, flag_values: flags.FlagValues) -> None:
    kind = kind_of(field)
    common = {"help": field.metadata["help"], "flag_values": flag_values}
    bounds: Any = dict(zip(("lower_bound", "upper_bound"), limits(field), strict=True))
    choices = field.metadata["choices"]
    default: Any = field.default
    if field.metadata["repeated"]:
        flags.DEFINE_multi_string(field.name, default, **common)
    elif kind == bool | str:
        flags.DEFINE(_Switch(choices), field.name, default, boolean=True, **common)
    elif choices:
        flags.DEFINE_enum(field.name, default, choices, **common)
    elif kind == Numbers:
        flags.DEFINE(_Numbers(**bounds), field.name, default, **common)
    elif kind is bool:
        flags.DEFINE_bool(field.name, default, **common)
    elif kind is int:
        flags.DEFINE_integer(field.name, default, **bounds, **common)
    elif kind is float:
        flags.DEFINE(_Finite(**bounds), field.name, default, **common)
    elif typing.get_origin(kind) is tuple:
        flags.DEFINE_list(field.name, default, **common)
    else:
        flags.DEFINE_string(field.name, default, **common)
    for check in (_check_lines, field.metadata["check"]):
        if check:
            flags.register_validator(field.name, _validator(check), flag_values=flag_values)


def _check_lines(value: Any) -> None:
    """Raises a `ValueError` if a flagfile, which has one flag a line, cannot hold a value."""
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str) and (text != text.strip() or len(text.splitlines()) != 1):
            raise ValueError("expected one line, without blanks at its beginning or end")
        if isinstance(text, str) and not _is_unicode(text):
            raise ValueError("expected UTF-8, in a terminal whose locale is UTF-8 too")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python keeps bytes that it cannot decode as surrogates.
        return False
    return True


def _validator(check: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def validate(text):
        try:
            check(text)
        except ValueError as error:
            raise flags.ValidationError(str(error)) from error
        return True

    return validate


def from_flags(config: type, flag_values: flags.FlagValues = flags.FLAGS) -> Any:
    """Returns the configuration with the values of the parsed flags."""
    values: dict[str, dict[str, Any]] = {name: {} for name in _concerns(config)}
    for concern, field in fields(config):
        value = flag_values[field.name].value
        values[concern][field.name] = tuple(value) if isinstance(value, list) else value
    return config(**{name: kind(**values[name]) for name, kind in _concerns(config).items()})


def to_flags(config: Any, without: Container[str] = ()) -> str:
    """Returns a flagfile that sets the values of `config`, except None and flags in `without`."""
    lines = []
    for concern in dataclasses.fields(config):
        values = getattr(config, concern.name)
        lines.append(f"# {type(values).__doc__}")
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if field.name in without or value is None:
                continue
            lines += as_arguments(field, value)
        lines.append("")
    return "\n".join(lines)


def as_arguments(field: dataclasses.Field, value: Any) -> list[str]:
    """Returns a flag as it is typed, several times if it may be repeated."""
    repeated = value if field.metadata["repeated"] else [value]
    return [as_argument(field.name, one) for one in repeated]


def as_argument(name: str, value: Any) -> str:
    """Returns a flag as it is typed, such as "--seed=1"; "no --seed" for None."""
    if value is None:
        return f"no --{name}"
    if isinstance(value, bool):
        return f"--{'' if value else 'no'}{name}"
    if isinstance(value, tuple):
        row = io.StringIO()
        csv.writer(row, lineterminator="").writerow(value)
        value = row.getvalue()
    return f"--{name}={value}"
