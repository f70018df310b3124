"""The figures of a sweep's page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainers.pages import plots
from tuning.pages.table import Row
from tuning.space.ranges import Range

_POINT, _LINE, _FAILED = "#56B4E9", "#0072B2", "#D55E00"  # From Okabe and Ito's palette.
# A ring around the best trial's point, in the colour of its line on parallel axes.
_BEST: dict[str, Any] = {
    "marker": "o",
    "s": 90,
    "facecolors": "none",
    "edgecolors": _FAILED,
    "linewidths": 2,
    "zorder": 3,
}


def limits(objectives: Sequence[float], higher_is_better: bool) -> tuple[float, float]:
    """Returns the worst and the best value on the axis of the objective; they differ.

    Values beyond Tukey's outer fence ("Exploratory Data Analysis", 1977) on the worse side are cut
    off: beside one diverged loss, all others would look alike.

    Args:
      objectives: At least one, all finite.
      higher_is_better: Whether the higher of two values is better.
    """
    sign = 1 if higher_is_better else -1
    values = sign * np.asarray(objectives)
    lower, upper = np.percentile(values, (25, 75))
    worst, best = values.min(), values.max()
    if lower < upper:
        worst = max(worst, lower - 3 * (upper - lower))
    if worst == best:
        worst -= abs(best) * 0.01 or 0.01
    return float(sign * worst), float(sign * best)


def best_so_far_svg(
    rows: Sequence[Row],
    failed: Sequence[float],
    best: Row,
    objective: str,
    limits: tuple[float, float],
) -> bytes:
    """Draws the results of the trials, and the best so far, by the time when they ended.

    Args:
      rows: The trials with an objective.
      failed: The seconds of the sweep until each failed trial ended.
      best: The best trial.
      objective: The name of the objective.
      limits: The objective at the ends of the axis, the worse first.

    Returns:
      An SVG document.
    """
    rows = sorted(rows, key=lambda row: row.end)
    end = max([rows[-1].end, *failed])
    unit, length = _unit_of_time(end)
    times = [row.end / length for row in rows]
    better = np.maximum if limits[0] < limits[1] else np.minimum
    bests = better.accumulate([row.score for row in rows])
    figure, axes = _results(rows, times, objective, limits)
    axes.step(
        [*times, end / length],
        np.clip([*bests, bests[-1]], min(limits), max(limits)),
        where="post",
        color=_LINE,
        linewidth=2,
        label="best so far",
    )
    axes.scatter(best.end / length, best.score, label="best", **_BEST)
    if failed:
        axes.scatter(
            np.divide(failed, length),
            np.full(len(failed), 0.03 if limits[0] < limits[1] else 0.97),
            marker="x",
            color=_FAILED,
            label="failed",
            transform=axes.get_xaxis_transform(),  # y is a fraction of the axis.
        )
    axes.set(xlabel=f"{unit} of the sweep")
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize="small")
    return plots.svg(figure)


def learning_rate_svg(
    rows: Sequence[Row], searched: Range, best: Row, objective: str, limits: tuple[float, float]
) -> bytes:
    """Draws the results of the trials by their learning rate.

    Args:
      rows: The trials with an objective.
      searched: The range of learning rates.
      best: The best trial.
      objective: The name of the objective.
      limits: The objective at the ends of the axis, the worse first.

    Returns:
      An SVG document.
    """
    rates = [row.settings["learning_rate"] for row in rows]
    figure, axes = _results(rows, rates, objective, limits)
    axes.scatter(best.settings["learning_rate"], best.score, label="best", **_BEST)
    axes.set(xscale="log", xlabel="learning rate (log scale)")
    if searched.least > 0:
        axes.set_xlim(searched.least / 1.2, searched.most * 1.2)
    few_decades = searched.least > 0 and searched.most / searched.least < 200
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize="small")
    return plots.svg(figure)


def _results(
    rows: Sequence[Row], places: Sequence[float], objective: str, limits: tuple[float, float]
) -> tuple[Figure, Axes]:
    """Draws a point for each trial, larger if it trained for more epochs."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    least, most = sorted(limits)
    margin = 0.06 * (most - least)
    longest = max(row.epochs for row in rows) or 1
    axes.scatter(
        places,
        np.clip([row.score for row in rows], least, most),
        s=[8 + 40 * row.epochs / longest for row in rows],
        color=_POINT,
        edgecolors="white",
        linewidths=0.5,
        label="trial",
    )
    axes.set(ylabel=objective, ylim=(least - margin, most + margin))
    axes.set_axisbelow(True)
    axes.grid(color="0.9")
    return figure, axes


def _unit_of_time(seconds: float) -> tuple[str, int]:
    """Returns a unit for a duration, and the seconds of that unit."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds > 2 * length:
            return unit, length
    return "seconds", 1
