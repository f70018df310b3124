"""The range of a setting: the values that a search may try, parsed from a flag.

A range is a value (`3`), several values (`8,16,32`), all numbers between two (`0:0.5`), numbers one
step apart (`16:256:16`), or numbers spread evenly by their logarithm (`1e-4:1e-2:log`).
"""

import dataclasses
import math
from typing import Any

_WORDS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Range:
    """A set of values, listed or between two numbers.

    Attributes:
      values: The listed values; empty for numbers between two.
      low: The least number, an int for whole numbers; None for listed values.
      high: The greatest number; None for listed values.
      step: The distance of neighbouring numbers; None if all numbers are allowed.
      log: Whether numbers are drawn evenly by their logarithm.
    """

    values: tuple[Any, ...] = ()
    low: Any = None
    high: Any = None
    step: Any = None
    log: bool = False

    @property
    def least(self) -> Any:
        """The least number, or the first of values that are not numbers."""
        if not self.values:
            return self.low
        return self.values[0] if isinstance(self.values[0], str) else min(self.values)

    @property
    def most(self) -> Any:
        """The greatest number, or the last of values that are not numbers."""
        if not self.values:
            return self.high
        return self.values[-1] if isinstance(self.values[-1], str) else max(self.values)


def parse(
    text: str,
    kind: type,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Range:
    """Parses a range.

    Args:
      text: A text as in the module's docstring.
      kind: The type of the values: int, float, bool or str.
      minimum: The least number that is allowed.
      maximum: The greatest number that is allowed.
      choices: The texts that are allowed.

    Raises:
      ValueError: The text is not such a range.
    """
    low, colon, rest = text.partition(":")
    if colon and kind in (int, float):
        high, _, spacing = rest.partition(":")
        values = (_parse_value(low, kind, ()), _parse_value(high, kind, ()))
        log = spacing == "log"
        step = _parse_value(spacing, kind, ()) if spacing and not log else None
        found = Range(low=values[0], high=values[1], step=step, log=log)
        if not values[0] < values[1]:
            raise ValueError(f"{text}: expected the smaller number first")
        if log and values[0] <= 0:
            raise ValueError(f"{text}: expected numbers above 0 with log")
        if step is not None and step <= 0:
            raise ValueError(f"{text}: expected a step above 0")
    else:
        values = tuple(_parse_value(value, kind, choices) for value in text.split(","))
        found = Range(values)
        if len(set(values)) < len(values):
            raise ValueError(f"{text}: expected each value once")
    for value in values:
        if minimum is not None and value < minimum:
            raise ValueError(f"{text}: expected at least {minimum:g}")
        if maximum is not None and value > maximum:
            raise ValueError(f"{text}: expected at most {maximum:g}")
    return found


def _parse_value(text: str, kind: type, choices: tuple[str, ...]) -> Any:
    if kind is bool:
        if text not in _WORDS:
            raise ValueError(f"{text}: expected true, false or true,false")
        return _WORDS[text]
    if choices and text not in choices:
        raise ValueError(f"{text}: expected some of {','.join(choices)}")
    try:
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except ValueError as error:
        name = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(
            f"{text!r}: expected {name}, several separated by commas, or low:high, low:high:step "
            "or low:high:log"
        ) from error
    return value
