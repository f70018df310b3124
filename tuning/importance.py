"""How much of the trials' results each setting explains, by a random forest."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.metrics import r2_score

from tuning.ranges import Range
from tuning.table import Row

LEAST_TRIALS = 10
_EPOCHS = object()  # As no setting is called.
_TREES = 200
_REPEATS = 10


@dataclasses.dataclass(frozen=True)
class Importance:
    """What a forest has found.

    Attributes:
      r_squared: Share of the variance of the results' ranks that it predicts of trials that it has
        not seen (out of bag); 0 or less is no better than their mean.
      settings: For each setting how much of `r_squared` is lost where its values are shuffled, the
        greatest first; about 0 is none.
      epochs: The same for the epochs of training, where the forest has been told them.
      trials: How many it has been told of.
    """

    r_squared: float
    settings: dict[str, float]
    epochs: float | None
    trials: int


def measure(rows: Sequence[Row], ranges: Mapping[str, Range]) -> Importance | None:
    """Permutation importance (Breiman, "Random Forests", 2001) of the settings that are searched.

    A random forest learns to predict the result of a trial from its settings. Each tree is drawn
    from some of the trials; it is judged by the others, for of what it has learned by heart any
    setting, even noise, would seem important. It predicts ranks, so that one loss that diverged
    does not outweigh all others, and a loss and an accuracy are treated alike.

    Numbers stand for themselves (to a tree a logarithm makes no difference), other values for their
    place in the range. A setting that means nothing to a trial is a missing value, which each split
    sends to the side that it fits better. Of trials with the same settings only the one that was
    trained longest counts: else the forest would be judged by what it has seen. Where there are
    such, as of hyperband, which decides how long a trial is trained, the forest is told the epochs,
    too. Else they are what came of the settings, by early stopping, and it is not.

    It does not say which value is best, nor what is important outside of the ranges. Settings that
    go together, as the units of layers and their number, share their importance.

    Args:
      rows: Those that are not completed are left out.
      ranges: By the settings' names; those of one value are not searched.

    Returns:
      None for fewer than `LEAST_TRIALS` completed trials of different settings, or if there is
      nothing to explain.
    """
    searched = {name: values for name, values in ranges.items() if len(values.values) != 1}
    scored = sorted(completed(rows), key=lambda row: row.epochs)
    longest = {tuple(row.settings.get(name) for name in searched): row for row in scored}
    kept = list(longest.values())
    if len(kept) < LEAST_TRIALS or len({row.objective for row in kept}) == 1 or not searched:
        return None
    columns = {
        name: [_number(row.settings.get(name), values) for row in kept]
        for name, values in searched.items()
    }
    if len(kept) < len(scored):
        columns[_EPOCHS] = [row.epochs for row in kept]
    encoded = np.array(list(columns.values()), np.float32).T
    ranks = np.unique([row.objective for row in kept], return_inverse=True)[1]
    forest = RandomForestRegressor(_TREES, random_state=0).fit(encoded, ranks)
    unseen = [np.setdiff1d(np.arange(len(kept)), drawn) for drawn in forest.estimators_samples_]

    def out_of_bag(forest, encoded, ranks):
        """R2 of predictions of each trial by the trees that were drawn without it."""
        total, trees = np.zeros(len(ranks)), np.zeros(len(ranks))
        encoded = encoded.astype(np.float32)
        for tree, others in zip(forest.estimators_, unseen, strict=True):
            total[others] += tree.tree_.predict(encoded[others])[:, 0]
            trees[others] += 1
        return r2_score(ranks, total / trees)

    found = permutation_importance(
        forest, encoded, ranks, scoring=out_of_bag, n_repeats=_REPEATS, random_state=0
    )
    shares = dict(zip(columns, found.importances_mean.tolist(), strict=True))
    return Importance(
        r_squared=float(out_of_bag(forest, encoded, ranks)),
        epochs=shares.pop(_EPOCHS, None),
        settings=dict(sorted(shares.items(), key=lambda item: -item[1])),
        trials=len(kept),
    )


def completed(rows: Sequence[Row]) -> list[Row]:
    """The trials that have come to a result."""
    return [
        row
        for row in rows
        if row.status == "completed" and row.objective is not None and math.isfinite(row.objective)
    ]


def _number(value: Any, values: Range) -> float:
    if value is None:
        return math.nan
    return values.values.index(value) if isinstance(value, str) else float(value)
