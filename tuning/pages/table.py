"""The table of a sweep, trials.csv: a row for each trial."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pizza_steak.text_width import spreadsheet_cell

STATUSES = ("completed", "pruned", "failed", "running")


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
      trial: Its number, as Keras Tuner writes it.
      status: One of `STATUSES`; an interrupted trial counts as running.
      objective: Its score, the mean of its objective over its last three epochs; None until it is
        completed.
      epochs: The number of trained epochs, with those that it took over from another trial.
      seconds: The seconds of training, since it was last resumed.
      ended_after: The seconds of the sweep until it ended; None until then.
      settings: The settings of the search space that it uses.
      reason: Why it failed, in one line.
      run: The name of its run, which a promoted trial shares with the trial before it.
      finalist: The run whose settings a final has; None for other trials.
      fold: The fold of the training images that validated it; 0 is the validation split.
      parameters: The number of parameters of its model; None until it is completed.
      latency: CPU milliseconds an image that its model takes to predict, or None.
    """

    trial: str
    status: str
    objective: float | None
    epochs: int
    seconds: float
    ended_after: float | None
    settings: Mapping[str, Any]
    reason: str = ""
    run: str = ""
    finalist: str | None = None
    fold: int = 0
    parameters: int | None = None
    latency: float | None = None

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
        [
            *(
                "trial",
                "run",
                "status",
                objective,
                "epochs",
                "seconds",
                "ended_after",
                "finalist",
                "fold",
            ),
            *("parameters", "predict_cpu_ms", *settings, "reason"),
        ]
    )
    for row in rows:
        writer.writerow(
            [
                row.trial,
                row.run,
                row.status,
                row.objective,
                row.epochs,
                row.seconds,
                row.ended_after,
                row.finalist,
                row.fold,
                row.parameters,
                row.latency,
                *(row.settings.get(name) for name in settings),
                spreadsheet_cell(row.reason),
            ]
        )
    return file.getvalue()
