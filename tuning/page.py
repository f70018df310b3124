"""The page of a search: one HTML file that needs no script, no network and no file beside it."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from trainers import pages
from tuning import importance as importances
from tuning import parallel, plots
from tuning.ranges import Range
from tuning.table import STATUSES, Row

_NAMES = {"val_accuracy": "validation accuracy", "val_loss": "validation loss"}


@dataclasses.dataclass(frozen=True)
class Winner:
    """The best trial, and what came of its settings on all training pictures.

    Attributes:
      trial: Its number.
      flags: The text of best.flags.
      result: What result.json of that run says; None until it has ended.
    """

    trial: str
    flags: str
    result: Mapping[str, Any] | None


def importance(
    rows: Sequence[Row], ranges: Mapping[str, Range], objective: str
) -> dict[str, float]:
    """How much each setting that is searched explains of the results, the most important first.

    Args:
      rows: The trials.
      ranges: By the settings' names.
      objective: Its name. More or less of it, the importance is the same.

    Returns:
      As `importance.measure`, which see, says; nothing where that cannot be told.
    """
    found = importances.measure(rows, ranges)
    return found.settings if found else {}


def render(
    rows: Sequence[Row], ranges: Mapping[str, Range], objective: str, best: Winner | None
) -> str:
    """The page, as HTML.

    Args:
      rows: The trials, in the order in which they were begun; there may be none.
      ranges: By the settings' names, in the table's order; those of one value are not searched.
      objective: "val_accuracy" or "val_loss".
      best: None until the best trial is trained again.
    """
    higher_is_better = not objective.endswith("loss")
    searched = {name: values for name, values in ranges.items() if len(values.values) != 1}
    # The worst first: what figures draw later is on top.
    scored = sorted(
        importances.completed(rows),
        key=lambda row: row.objective if higher_is_better else -row.objective,
    )
    chosen = next((row for row in scored if best and row.trial == best.trial), None)
    if chosen is None and scored:
        chosen = scored[-1]
    found = importances.measure(rows, ranges)
    name = _NAMES.get(objective, objective)
    return pages.render(
        pathlib.Path(__file__).with_name("page.html.jinja"),
        rows=[*reversed(scored), *(row for row in rows if row not in scored)],
        counts={status: sum(row.status == status for row in rows) for status in STATUSES},
        seconds=max((row.ended_after for row in rows if row.ended_after is not None), default=0),
        objective=name,
        higher_is_better=higher_is_better,
        winner=best,
        best=chosen,
        importance=found,
        least_trials=importances.LEAST_TRIALS,
        searched=searched,
        fixed={name: values.values[0] for name, values in ranges.items() if name not in searched},
        text=parallel.text,
        inactive=parallel.INACTIVE,
        made=time.strftime("%Y-%m-%d %H:%M"),
        **_figures(rows, scored, chosen, found, searched, name, higher_is_better),
    )


def _figures(
    rows: Sequence[Row],
    scored: Sequence[Row],
    best: Row | None,
    found: importances.Importance | None,
    searched: Mapping[str, Range],
    objective: str,
    higher_is_better: bool,
) -> dict[str, Any]:
    """What the page draws, None for what there is not."""
    if best is None:
        return {"parallel": None, "figures": {}}
    limits = plots.limits([row.objective for row in scored], higher_is_better)
    ordered = {name: searched[name] for name in (found.settings if found else searched)}
    failed = [row.ended_after for row in rows if row.status == "failed" and row.ended_after]
    figures = {"Best so far": plots.best_so_far_svg(scored, failed, best, objective, limits)}
    if "learning_rate" in searched:
        figures["Learning rate"] = plots.learning_rate_svg(scored, best, objective, limits)
    return {
        "parallel": parallel.figure(scored, ordered, objective, limits),
        "figures": {title: pages.data_uri(svg, "svg+xml") for title, svg in figures.items()},
    }
