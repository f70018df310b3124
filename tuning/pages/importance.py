"""The importance of settings: how much of the trials' results a random forest explains by each."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.metrics import r2_score

from tuning.pages.table import Row
from tuning.space.ranges import Range

LEAST_TRIALS = 10
_EPOCHS = ""  # Not the name of any setting.
_TREES = 200
_REPEATS = 10


@dataclasses.dataclass(frozen=True)
class Importance:
    """The importance of each setting.

    Attributes:
      r_squared: The share of the variance of the ranks that the forest predicts for trials it has
        not seen (out of bag); 0 or less is no better than predicting the mean.
      settings: How much of `r_squared` is lost when the values of a setting are shuffled, the
        greatest first; about 0 is unimportant.
      epochs: The same for the epochs of training, if the forest has them as an input.
      trials: The number of trials that the forest has learned from.
    """

    r_squared: float
    settings: dict[str, float]
    epochs: float | None
    trials: int


def measure(rows: Sequence[Row], ranges: Mapping[str, Range]) -> Importance | None:
    """Returns the permutation importance (Breiman, "Random Forests", 2001) of searched settings.

    A random forest learns to predict the result of a trial from its settings. Each tree learns from
    some of the trials and is judged by the others: on trials that it has learned, even noise would
    seem important. The forest predicts ranks, so that one diverged loss does not outweigh all other
    results, and losses and accuracies are treated alike.

    A number is its own input (for a tree, its logarithm would be the same); any other value is its
    index in the range. A setting that a trial does not use is a missing value, which each split
    sends to the side that fits better. Of several trials with the same settings only the longest
    counts: otherwise the forest would be judged by trials that it has seen. If there are such
    trials, as with hyperband, which decides how long a trial trains, the epochs are an input too.
    Otherwise the epochs are a result of the settings, by early stopping, and not an input.

    The importance does not say which value is best, nor what is important outside the ranges.
    Settings that belong together, such as the number of layers and their units, share it.

    Args:
      rows: The trials; those that are not completed are left out.
      ranges: The ranges by the settings' names; a setting with one value is not searched.

    Returns:
      None if there are fewer than `LEAST_TRIALS` completed trials of different settings, or if all
      results are equal.
    """
    searched = {name: values for name, values in ranges.items() if len(values.values) != 1}
    scored = sorted(completed(rows), key=lambda row: row.epochs)
    longest = {tuple(row.settings.get(name) for name in searched): row for row in scored}
    kept = list(longest.values())
    if len(kept) < LEAST_TRIALS or len({row.score for row in kept}) == 1 or not searched:
        return None
    columns: dict[str, list[float]] = {
        name: [_number(row.settings.get(name), values) for row in kept]
        for name, values in searched.items()
    }
    if len(kept) < len(scored):
        columns[_EPOCHS] = [row.epochs for row in kept]
    encoded = np.array(list(columns.values()), np.float32).T
    ranks = np.unique([row.score for row in kept], return_inverse=True)[1]
    forest = RandomForestRegressor(_TREES, random_state=0).fit(encoded, ranks)
    unseen = [np.setdiff1d(np.arange(len(kept)), drawn) for drawn in forest.estimators_samples_]

    def out_of_bag(forest, encoded, ranks):
        """Returns R2 of the predictions for each trial by the trees that have not seen it."""
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
    """Returns the trials with a finite result, without finals."""
    return [
        row
        for row in rows
        if not row.finalist and row.objective is not None and math.isfinite(row.objective)
    ]


def _number(value: Any, values: Range) -> float:
    if value is None:
        return math.nan
    return values.values.index(value) if isinstance(value, str) else float(value)
