"""The table of a search: a row for each trial."""

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
      status: One of `STATUSES`; one that was interrupted is running.
      objective: Of its best epoch; None until it is completed.
      epochs: How many have been trained, those that it took over from another trial with them.
      seconds: Of training; of a trial that was interrupted since it went on.
      ended_after: Seconds of searching until it ended; None until then.
      settings: Of the search space, those that mean something to it.
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


def to_csv(rows: Sequence[Row], objective: str, settings: Sequence[str]) -> str:
    """The rows as CSV.

    Args:
      rows: In the order in which the trials were begun.
      objective: Its name.
      settings: Names of all that are searched, in the order of the columns.
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
