"""The table of a search, trials.csv: a row for each trial."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

STATUSES = ("completed", "failed", "running")


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
      trial: Its number, as Keras Tuner writes it.
      status: One of `STATUSES`; an interrupted trial counts as running.
      objective: The objective of its best epoch; None until it is completed.
      epochs: The number of trained epochs, with those that it took over from another trial.
      seconds: The seconds of training, since it was last resumed.
      ended_after: The seconds of search until it ended; None until then.
      settings: The settings of the search space that it uses.
      reason: Why it failed, in one line.
    """

    trial: str
    status: str
    objective: float | None
    epochs: int
    seconds: float
    ended_after: float | None
    settings: Mapping[str, Any]
    reason: str = ""

    @property
    def score(self) -> float:
        """The objective of a completed trial."""
        assert self.objective is not None
        return self.objective

    @property
    def end(self) -> float:
        """`ended_after` of a completed trial."""
        assert self.ended_after is not None
        return self.ended_after


def to_csv(rows: Sequence[Row], objective: str, settings: Sequence[str]) -> str:
    """Returns the rows as CSV.

    Args:
      rows: The trials, in the order in which they started.
      objective: The name of the objective.
      settings: The names of all settings, in the order of the columns.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["trial", "status", objective, "epochs", "seconds", "ended_after", *settings, "reason"]
    )
    for row in rows:
        writer.writerow(
            [
                row.trial,
                row.status,
                row.objective,
                row.epochs,
                row.seconds,
                row.ended_after,
                *(row.settings.get(name) for name in settings),
                row.reason,
            ]
        )
    return file.getvalue()
