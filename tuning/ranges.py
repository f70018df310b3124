"""What a search may take for one setting, as a flag says it.

A value (`3`), several after commas (`8,16,32`), or two numbers with a colon (`0:0.5`): all between
them, those one step apart (`16:256:16`), or evenly by their logarithm (`1e-4:1e-2:log`).
"""

import dataclasses
import math
from typing import Any

_WORDS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Range:
    """A set of values, listed or between two numbers.

    Attributes:
      values: All of them where they are listed, else empty.
      low: The least number, where they are not.
      high: The greatest.
      step: Between two numbers that are next to each other; None for any number.
      log: Whether numbers are drawn evenly by their logarithm.
    """

    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False

    @property
    def least(self) -> Any:
        """The least of numbers, the first of other values."""
        if not self.values:
            return self.low
        return self.values[0] if isinstance(self.values[0], str) else min(self.values)

    @property
    def most(self) -> Any:
        """The greatest of numbers, the last of other values."""
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
    """Reads a range of values of one kind.

    Args:
      text: As the module says.
      kind: int, float, bool or str.
      minimum: Of every number.
      maximum: Of every number.
      choices: Of every str.

    Raises:
      ValueError: It is no such range.
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
            raise ValueError(f"{text}: expected no number below {minimum:g}")
        if maximum is not None and value > maximum:
            raise ValueError(f"{text}: expected no number above {maximum:g}")
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
            f"{text!r}: expected {name}, several after commas, or low:high, low:high:step or "
            "low:high:log"
        ) from error
    return value
