"""The page of a sweep: one HTML file that works without scripts, network or other files."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.pages import layout
from trainers.runs import scores
from tuning.pages import importance, parallel, plots
from tuning.pages.table import STATUSES, Row
from tuning.space.ranges import Range

_NAMES = {"val_accuracy": "validation accuracy", "val_loss": "validation loss"}


@dataclasses.dataclass(frozen=True)
class Winner:
    """The best trial, and the final training with its settings.

    Attributes:
      trial: The number of the trial.
      flags: The text of best.flags.
      result: The content of result.json of the final training; None until it has ended.
    """

    trial: str
    flags: str
    result: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Finalist:
    """A trial that competes in the finals.

    Attributes:
      trial: The number of the trial.
      scores: Its score on each fold, by fold.
      pooled: The mean of the scores, weighted by the folds' images; None if one is missing.
    """

    trial: str
    scores: Mapping[int, float]
    pooled: float | None


def render(
    rows: Sequence[Row],
    ranges: Mapping[str, Range],
    objective: str,
    winner: Winner | None,
    finalists: Sequence[Finalist] = (),
    best: str | None = None,
    *,
    running: bool = False,
) -> str:
    """Returns the page as HTML.

    Args:
      rows: The trials, in the order in which they started; may be empty.
      ranges: The ranges by the settings' names, in the table's order; a setting with one value is
        not searched.
      objective: "val_accuracy" or "val_loss".
      winner: The winner; None before the final training.
      finalists: The trials that compete in the finals, the best first.
      best: The number of the best trial so far; by default that with the best score.
      running: Whether trials run, and so the page will be written anew.
    """
    finals = [row for row in rows if row.finalist]
    rows = [row for row in rows if not row.finalist]
    name = _NAMES.get(objective, objective)
    higher_is_better = not objective.endswith("loss")
    searched = {name: values for name, values in ranges.items() if len(values.values) != 1}
    found = importance.measure(rows, ranges)
    completed = importance.completed(rows)
    best_first = sorted(completed, key=lambda row: row.score, reverse=higher_is_better)
    scored = best_first[::-1]  # Figures draw the best last, on top.
    with_result = {row.trial for row in scored}
    others = [row for row in rows if row.trial not in with_result]
    chosen, lines, figures, cut = None, None, {}, False
    if scored:
        best = winner.trial if winner else best
        named = [row for row in scored if row.trial == best]
        chosen = [*scored, *named][-1]
        limits = plots.limits([row.score for row in scored], higher_is_better)
        cut = any(not min(limits) <= row.score <= max(limits) for row in scored)
        names = found.settings if found and found.r_squared > 0 else searched
        ordered = {name: searched[name] for name in names}
        lines = parallel.figure(scored, ordered, name, limits)
        failed = [row.ended_after for row in others if row.ended_after is not None]
        figures["Best so far"] = plots.best_so_far_svg(scored, failed, chosen, name, limits)
        if rates := searched.get("learning_rate"):
            figures["Learning rate"] = plots.learning_rate_svg(scored, rates, chosen, name, limits)
    result = winner.result if winner else None
    return layout.render(
        pathlib.Path(__file__).with_name("page.html.jinja"),
        rows=[*best_first, *others],
        counts={status: sum(row.status == status for row in rows) for status in STATUSES},
        seconds=max((row.ended_after for row in rows if row.ended_after is not None), default=0),
        objective=name,
        higher_is_better=higher_is_better,
        winner=winner,
        running=running,
        finals=finals,
        finalists=finalists,
        folds=sorted({fold for one in finalists for fold in one.scores}),
        test_accuracy=scores.test_accuracy_text(result) if result else None,
        cautions=scores.test_cautions(result, "the settings") if result else [],
        best=chosen,
        parallel=lines,
        inactive=parallel.INACTIVE,
        cut=cut,
        importance=found,
        least_trials=importance.LEAST_TRIALS,
        figures={title: layout.data_uri(svg, "svg+xml") for title, svg in figures.items()},
        searched=searched,
        fixed={name: values.values[0] for name, values in ranges.items() if name not in searched},
        text=parallel.text,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
