"""Parallel coordinates: an axis for each setting and the objective, a line for each trial."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, colors, ticker

from tuning.ranges import Range
from tuning.table import Row

# Where on an axis a trial is to which it means nothing.
INACTIVE = -0.1
# So many whole numbers between two are listed each.
_MOST_LISTED = 8
# Of the room of a listed value, and of all values of an axis, what its lines are spread over.
_SPREAD, _SPREAD_INACTIVE = 0.6, 0.03
_STEPS = 40  # Of colours on the axis of the objective.
# Lines of the worst trials would not be seen in the map's yellow end.
_COLORS = colors.LinearSegmentedColormap.from_list(
    "results", colormaps["viridis_r"](np.linspace(0.08, 1, 64))
)


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis, on which places go from 0 to 1, and to `INACTIVE`.

    Attributes:
      name: Of the setting or the objective.
      ticks: Places and texts.
      inactive: Whether the setting means nothing to some trial.
    """

    name: str
    ticks: list[tuple[float, str]]
    inactive: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A trial's line.

    Attributes:
      row: The trial.
      color: As CSS has it: the darker the better.
      places: On each axis; about `INACTIVE` where the setting means nothing to the trial.
    """

    row: Row
    color: str
    places: list[float]


@dataclasses.dataclass(frozen=True)
class Figure:
    """All of it.

    Attributes:
      axes: The objective, better to the right, then the settings.
      lines: The worst first, so that better ones are drawn over it.
      colors: Of lines, by their place on the first axis, in even steps.
    """

    axes: list[Axis]
    lines: list[Line]
    colors: list[str]


def figure(
    rows: Sequence[Row], ranges: Mapping[str, Range], objective: str, limits: tuple[float, float]
) -> Figure:
    """Places trials on the axes.

    Args:
      rows: Trials with a result, the worst first.
      ranges: By the settings' names, in the order of the axes.
      objective: Its name.
      limits: The objective's values at the ends of its axis, the worse first; one that is worse
        is drawn at that end.
    """
    worst, best = limits
    scores = [float(np.clip((row.objective - worst) / (best - worst), 0, 1)) for row in rows]
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
    """The colour of a trial, by its place on the axis of the objective."""
    return colors.to_hex(_COLORS(score))


def _listed(values: Range) -> list[Any]:
    """The values that have room for themselves on the axis; none where they are too many."""
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
        ticks = _nice(values.low, values.high)
    elif values.high / values.low >= 50:
        ticks = ticker.LogLocator(numticks=20).tick_values(values.low, values.high)
    elif isinstance(values.low, int):  # Of layers' sizes, mostly powers of two.
        ticks = ticker.LogLocator(2, numticks=20).tick_values(values.low, values.high)
    else:
        ticks = ticker.LogLocator(subs=(1, 2, 5)).tick_values(values.low, values.high)
    inside = [tick for tick in ticks if values.low * 0.999 <= tick <= values.high * 1.001]
    return [(_share(tick, values), f"{tick:.4g}") for tick in inside]


def _nice(low: float, high: float) -> list[float]:
    """Round numbers between two."""
    ticks = ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def text(value: Any) -> str:
    """A value of a setting, as a flag has it, to four digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(value: float, values: Range) -> float:
    """The place between two numbers."""
    scale = math.log if values.log else float
    low, high = scale(values.low), scale(values.high)
    return min(max((scale(value) - low) / (high - low), 0.0), 1.0)


def _places(settings: Sequence[Any], values: Range) -> list[float]:
    """A place for each trial; of those with the same listed value the better is further right.

    Side by side, they can be told from one another and counted.
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
    """The place in the list; Keras Tuner may have rounded a number."""
    if isinstance(value, str):
        return listed.index(value)
    return min(range(len(listed)), key=lambda at: abs(listed[at] - value))
