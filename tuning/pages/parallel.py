"""Parallel coordinates: an axis for each setting and the objective, a line for each trial."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, colors, ticker

from tuning.pages.table import Row
from tuning.space.ranges import Range

# The place on an axis of trials that do not use the setting.
INACTIVE = -0.1
# A range of at most this many whole numbers is listed.
_MOST_LISTED = 8
# Lines with the same value are spread over this fraction of the value's room, or of the axis.
_SPREAD, _SPREAD_INACTIVE = 0.6, 0.03
_STEPS = 40  # Colors on the axis of the objective.
# The yellow end of the map is cut off: on white, lines in yellow are hard to see.
_COLORS = colors.LinearSegmentedColormap.from_list(
    "results", colormaps["viridis_r"](np.linspace(0.08, 1, 64))
)


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis with places from 0 to 1, and `INACTIVE`.

    Attributes:
      name: The name of the setting or the objective.
      ticks: The places and texts of the ticks.
      inactive: Whether some trial does not use the setting.
    """

    name: str
    ticks: list[tuple[float, str]]
    inactive: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """The line of a trial.

    Attributes:
      row: The trial.
      color: A CSS color, darker for a better result.
      places: The place on each axis; about `INACTIVE` for a setting that the trial does not use.
    """

    row: Row
    color: str
    places: list[float]


@dataclasses.dataclass(frozen=True)
class Figure:
    """The figure.

    Attributes:
      axes: The objective, better to the right, then the settings.
      lines: The lines, the worst first, so that better ones are drawn on top.
      colors: The colors along the first axis, in even steps.
    """

    axes: list[Axis]
    lines: list[Line]
    colors: list[str]


def figure(
    rows: Sequence[Row], ranges: Mapping[str, Range], objective: str, limits: tuple[float, float]
) -> Figure:
    """Returns the figure of some trials.

    Args:
      rows: The trials with a result, the worst first.
      ranges: The ranges by the settings' names, in the order of the axes.
      objective: The name of the objective.
      limits: The objective at the ends of its axis, the worse first; worse values are drawn at
        that end.
    """
    worst, best = limits
    scores = [float(np.clip((row.score - worst) / (best - worst), 0, 1)) for row in rows]
    ticks = [
        ((tick - worst) / (best - worst), f"{tick:.4g}") for tick in _nice(min(limits), max(limits))
    ]
    axes, columns = [Axis(objective, ticks)], [scores]
    for name, values in ranges.items():
        settings = [row.settings.get(name) for row in rows]
        axes.append(Axis(name, _ticks(values), None in settings))
        columns.append(_places(settings, values))
    places = zip(*columns, strict=True)
    lines = [
        Line(row, _color(score), list(line))
        for row, score, line in zip(rows, scores, places, strict=True)
    ]
    return Figure(axes, lines, [_color(step / (_STEPS - 1)) for step in range(_STEPS)])


def _color(score: float) -> str:
    """Returns the color of a trial, by its place on the axis of the objective."""
    return colors.to_hex(_COLORS(score))


def _listed(values: Range) -> list[Any]:
    """Returns the values that each have a tick; none if there are too many."""
    if values.values:
        texts = any(isinstance(value, str) for value in values.values)
        return list(values.values) if texts else sorted(values.values)
    if isinstance(values.low, int):
        whole = list(range(values.low, values.high + 1, values.step or 1))
        return whole if len(whole) <= _MOST_LISTED else []
    return []


def _ticks(values: Range) -> list[tuple[float, str]]:
    if listed := _listed(values):
        return [((at + 0.5) / len(listed), text(value)) for at, value in enumerate(listed)]
    if not values.log:
        ticks: Sequence[float] = _nice(values.low, values.high)
    elif values.high / values.low >= 50:
        ticks = ticker.LogLocator(numticks=20).tick_values(values.low, values.high)
    elif isinstance(values.low, int):  # Sizes of layers are often powers of two.
        ticks = ticker.LogLocator(2, numticks=20).tick_values(values.low, values.high)
    else:
        ticks = ticker.LogLocator(subs=(1, 2, 5)).tick_values(values.low, values.high)
    inside = [tick for tick in ticks if values.low * 0.999 <= tick <= values.high * 1.001]
    return [(_share(tick, values), f"{tick:.4g}") for tick in inside]


def _nice(low: float, high: float) -> list[float]:
    """Returns round numbers between two numbers."""
    ticks = ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def text(value: Any) -> str:
    """Returns a value as a flag has it, with four digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(value: float, values: Range) -> float:
    """Returns the place of a number in a range, 0 to 1."""
    scale = math.log if values.log else float
    low, high = scale(values.low), scale(values.high)
    return min(max((scale(value) - low) / (high - low), 0.0), 1.0)


def _places(settings: Sequence[Any], values: Range) -> list[float]:
    """Returns the place of each trial; for the same listed value, better trials are further right.

    Side by side, the trials can be told apart and counted.
    """
    listed = _listed(values)
    places = [0.0] * len(settings)
    groups: dict[float, list[int]] = {}
    for trial, value in enumerate(settings):
        if value is not None and not listed:
            places[trial] = _share(value, values)
        else:
            center = INACTIVE if value is None else (_nearest(value, listed) + 0.5) / len(listed)
            groups.setdefault(center, []).append(trial)
    for center, trials in groups.items():
        width = _SPREAD_INACTIVE if center == INACTIVE else _SPREAD / len(listed)
        for order, trial in enumerate(trials):
            places[trial] = center + width * ((order + 0.5) / len(trials) - 0.5)
    return places


def _nearest(value: Any, listed: Sequence[Any]) -> int:
    """Returns the index of a value; Keras Tuner may have rounded a number."""
    if isinstance(value, str):
        return listed.index(value)
    return min(range(len(listed)), key=lambda at: abs(listed[at] - value))
