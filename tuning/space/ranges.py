"""The range of a setting: the values that a sweep may try, parsed from a flag.

A range is a value (`3`), several values (`8,16,32`), all numbers between two (`0:0.5`), numbers one
step apart (`16:256:16`), or numbers spread evenly by their logarithm (`1e-4:1e-2:log`). A value may
be `none` for a flag that need not be given, and a pair such as `0.8..1.2` for a flag that takes two
numbers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from pizza_steak.flags import Numbers, check_finite

_WORDS = {"true": True, "false": False}
_NONE = "none"
_PAIR = ".."


@dataclasses.dataclass(frozen=True)
class Range:
    """A set of values, listed or between two numbers.

    Attributes:
      values: The listed values; empty for numbers between two. If one of them is none or a pair,
        all are texts, because Keras Tuner wants values of one type.
      low: The least number, an int for whole numbers; None for listed values.
      high: The greatest number; None for listed values.
      step: The distance of neighbouring numbers; None if all numbers are allowed.
      log: Whether numbers are drawn evenly by their logarithm.
      kind: The type of the values, as for `parse`.
      optional: Whether "none" is no text, but stands for a flag that is not given.
    """

    values: tuple[Any, ...] = ()
    low: Any = None
    high: Any = None
    step: Any = None
    log: bool = False
    kind: Any = dataclasses.field(default=str, compare=False)
    optional: bool = dataclasses.field(default=False, compare=False)

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

    def flag_value(self, value: Any) -> Any:
        """Returns the value of the flag for a value of this range, which may have come as JSON."""
        if self.optional and value == _NONE:
            return None
        if isinstance(value, str):
            return _parse_value(value, self.kind, ())
        # Keras Tuner may change the type of a number, or round it.
        if self.kind is bool:
            return bool(value)
        if self.values:
            return min(self.values, key=lambda known: abs(known - value))
        if not isinstance(value, float):
            return value
        if self.step:
            value = self.low + round((value - self.low) / self.step) * self.step
        # Six digits of a random number are enough.
        return min(max(float(f"{value:.6g}"), self.low), self.high)

    def value_of(self, flag_value: Any) -> Any:
        """Returns the value of this range for the value of a flag.

        Raises:
          ValueError: The range does not hold it.
        """
        for value in self.values:
            if self.flag_value(value) == flag_value:
                return value
        if isinstance(flag_value, int | float) and self._has(flag_value):
            return type(self.low)(flag_value)
        raise ValueError(f"expected some of {self}")

    def _has(self, number: float) -> bool:
        if self.values or not self.low <= number <= self.high:
            return False
        steps = (number - self.low) / self.step if self.step else 0.0
        whole = not isinstance(self.low, int) or float(number).is_integer()
        return whole and math.isclose(steps, round(steps), abs_tol=1e-9)

    def __str__(self) -> str:
        if self.values:
            return ",".join(str(v).lower() if self.kind is bool else str(v) for v in self.values)
        ends = f"{self.low}:{self.high}"
        if self.log:
            return f"{ends}:log"
        return ends if self.step is None else f"{ends}:{self.step}"


def parse(
    text: str | bool,
    kind: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    optional: bool = False,
) -> Range:
    """Parses a range.

    Args:
      text: A text as in the module's docstring; a bool for true or false.
      kind: The type of the values: int, float, bool, str, or `Numbers`: whole numbers if all are
        written without a point.
      minimum: The least number that is allowed.
      maximum: The greatest number that is allowed.
      choices: The texts that are allowed.
      optional: Whether "none" is allowed.

    Raises:
      ValueError: The text is not such a range.
    """
    if isinstance(text, bool):
        text = str(text).lower()
    low, colon, rest = text.partition(":")
    if colon and kind in (int, float, Numbers):
        high, _, spacing = rest.partition(":")
        log = spacing == "log"
        numbers = [
            _parse_number(t, kind)
            for t in (low, high, spacing)[: 3 if spacing else 2]
            if t != "log"
        ]
        if not all(isinstance(number, int) for number in numbers):
            numbers = [float(number) for number in numbers]
        values: tuple[Any, ...] = tuple(numbers[:2])
        step = numbers[2] if len(numbers) > 2 else None
        found = Range(
            low=values[0], high=values[1], step=step, log=log, kind=kind, optional=optional
        )
        if not values[0] < values[1]:
            raise ValueError(f"{text}: expected the smaller number first")
        if log and values[0] <= 0:
            raise ValueError(f"{text}: expected numbers above 0 with log")
        if step is not None and step <= 0:
            raise ValueError(f"{text}: expected a step above 0")
    else:
        words = text.split(",")
        values = tuple(
            None if optional and word == _NONE else _parse_value(word, kind, choices)
            for word in words
        )
        if any(value is None or isinstance(value, tuple) for value in values):
            found = Range(tuple(words), kind=kind, optional=optional)
        elif any(isinstance(value, float) for value in values):
            found = Range(tuple(map(float, values)), kind=kind, optional=optional)
        else:
            found = Range(values, kind=kind, optional=optional)
        if len(set(found.values)) < len(values):
            raise ValueError(f"{text}: expected each value once")
    for value in values:
        for number in value if isinstance(value, tuple) else [value]:
            if minimum is not None and number is not None and number < minimum:
                raise ValueError(f"{text}: expected at least {minimum:g}")
            if maximum is not None and number is not None and number > maximum:
                raise ValueError(f"{text}: expected at most {maximum:g}")
    return found


def _parse_value(text: str, kind: Any, choices: Sequence[str]) -> Any:
    if kind is bool:
        if text not in _WORDS:
            raise ValueError(f"{text}: expected true, false or true,false")
        return _WORDS[text]
    if kind is str:
        if choices and text not in choices:
            raise ValueError(f"{text}: expected some of {','.join(choices)}")
        return text
    if kind == Numbers and _PAIR in text:
        return tuple(_parse_number(number, kind) for number in text.split(_PAIR))
    return _parse_number(text, kind)


def _parse_number(text: str, kind: Any) -> int | float:
    try:
        if kind == Numbers:
            try:
                kind = type(int(text))
            except ValueError:
                kind = float
        value: int | float = kind(text)
        check_finite(text, value)
    except ValueError as error:
        name = "a whole number" if kind is int else "a number"
        raise ValueError(
            f"{text!r}: expected {name}, several separated by commas, or low:high, low:high:step "
            "or low:high:log"
        ) from error
    return value
