"""Flags from dataclasses and back: one frozen dataclass per concern, one field per flag.

Each field stands once, with its default and its help; `define_flags` makes an absl flag of it and
`from_flags` reads it back. Nothing here imports TensorFlow, so that --help answers at once.
"""

import csv
import dataclasses
import io
import typing
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from absl import flags

# Flags of a number, or of several after commas.
Numbers = float | int | tuple[float, ...]


def flag(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    check: Callable[[str], Any] | None = None,
) -> Any:
    """A field that is a flag; `check` raises a ValueError for a text that is none of its values.

    `choices` are all that a text may be, or what else than a switch a `bool | str`.
    """
    metadata = {"help": help, "choices": choices, "limits": (minimum, maximum), "check": check}
    return dataclasses.field(default=default, metadata=metadata)


def same_flag(concern: type, name: str, **changes: Any) -> Any:
    """A field that is the flag of another concern, but for what is given, such as its default."""
    field = concern.__dataclass_fields__[name]
    metadata = {**field.metadata, **changes}
    return dataclasses.field(default=metadata.pop("default", field.default), metadata=metadata)


def fields(config: type) -> Iterator[tuple[str, dataclasses.Field]]:
    """The (concern, field) pairs of a configuration made of concerns, such as `FitConfig`."""
    for concern in dataclasses.fields(config):
        for field in dataclasses.fields(concern.type):
            yield concern.name, field


class _Numbers(flags.ArgumentParser):
    """Reads `0.2` as a number and `0.8,1.2` as a tuple; a number without a point is an int."""

    syntactic_help = "a number, or several after commas"

    def __init__(self, lower_bound: float | None):
        self._lower_bound = lower_bound

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):  # A default.
            return argument
        values = tuple(self._parse_number(text) for text in argument.split(","))
        return values if len(values) > 1 else values[0]

    def _parse_number(self, text: str) -> float:
        try:
            value = int(text)
        except ValueError:
            value = float(text)  # absl tells the flag and the ValueError's own words.
        if self._lower_bound is not None and not value >= self._lower_bound:
            raise ValueError(f"{text}: expected no number below {self._lower_bound:g}")
        return value


class _Switch(flags.BooleanParser):
    """Reads a switch, such as `--resume`, that may also be set to a word, as `--resume=auto`."""

    def __init__(self, words: Sequence[str]):
        super().__init__()
        self._words = words

    def parse(self, argument: Any) -> bool | str:
        return argument if argument in self._words else super().parse(argument)


def define_flags(config: type, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for each field of a configuration made of concerns."""
    for concern in dataclasses.fields(config):
        for field in dataclasses.fields(concern.type):
            _define_flag(field, flag_values, _heading(concern))


def help_of(config: type, flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """What --help says of the flags of a configuration, concern by concern."""
    concerns = dataclasses.fields(config)
    return "\n\n".join(flag_values.module_help(_heading(concern)).strip() for concern in concerns)


def _heading(concern: dataclasses.Field) -> str:
    return concern.type.__doc__.removesuffix(".")


def _define_flag(field: dataclasses.Field, flag_values: flags.FlagValues, heading: str) -> None:
    kinds = set(typing.get_args(field.type) or (field.type,)) - {type(None)}
    common = {"help": field.metadata["help"], "flag_values": flag_values, "module_name": heading}
    limits = dict(zip(("lower_bound", "upper_bound"), field.metadata["limits"], strict=True))
    choices = field.metadata["choices"]
    if kinds == {bool, str}:
        flags.DEFINE(_Switch(choices), field.name, field.default, boolean=True, **common)
    elif choices:
        flags.DEFINE_enum(field.name, field.default, choices, **common)
    elif len(kinds) > 1:  # `Numbers`.
        flags.DEFINE(_Numbers(limits["lower_bound"]), field.name, field.default, **common)
    elif kinds == {bool}:
        flags.DEFINE_bool(field.name, field.default, **common)
    elif kinds == {int}:
        flags.DEFINE_integer(field.name, field.default, **limits, **common)
    elif kinds == {float}:
        flags.DEFINE_float(field.name, field.default, **limits, **common)
    elif typing.get_origin(*kinds) is tuple:
        flags.DEFINE_list(field.name, field.default, **common)
    else:
        flags.DEFINE_string(field.name, field.default, **common)
    if check := field.metadata["check"]:
        flags.register_validator(field.name, _validator(check), flag_values=flag_values)


def _validator(check: Callable[[str], Any]) -> Callable[[str], bool]:
    def validate(text):
        try:
            check(text)
        except ValueError as error:
            raise flags.ValidationError(str(error)) from error
        return True

    return validate


def from_flags(config: type, flag_values: flags.FlagValues = flags.FLAGS) -> Any:
    """The configuration that the parsed flags say."""
    values = {concern.name: {} for concern in dataclasses.fields(config)}
    for concern, field in fields(config):
        value = flag_values[field.name].value
        values[concern][field.name] = tuple(value) if isinstance(value, list) else value
    return config(**{c.name: c.type(**values[c.name]) for c in dataclasses.fields(config)})


def to_flags(config: Any, without: Container[str] = ()) -> str:
    """A flagfile that says the same as `config`, without flags that are None or in `without`."""
    lines = []
    for concern in dataclasses.fields(config):
        values = getattr(config, concern.name)
        lines.append(f"# {type(values).__doc__}")
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if field.name in without:
                continue
            if isinstance(value, bool):
                lines.append(f"--{'' if value else 'no'}{field.name}")
            elif isinstance(value, tuple):
                row = io.StringIO()
                csv.writer(row, lineterminator="").writerow(value)
                lines.append(f"--{field.name}={row.getvalue()}")
            elif value is not None:
                lines.append(f"--{field.name}={value}")
        lines.append("")
    return "\n".join(lines)
