"""The progress of a search: its rows, its table and page, and its summary."""

import dataclasses
import math

from keras_tuner.engine.trial import Trial, TrialStatus

from pizza_steak import atomic
from pizza_steak.errors import UserError
from trainers.runs import scores
from tuning.pages import page, table
from tuning.search import oracles
from tuning.search.plan import Plan

_STATUSES = {TrialStatus.COMPLETED: "completed", TrialStatus.RUNNING: "running"}


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a search has reached.

    Attributes:
      plan: The search.
      oracle: Chooses the trials, and knows those that have ended.
      ended: The rows of trials that have ended, by trial.
    """

    plan: Plan
    oracle: oracles.Durable
    ended: dict[str, table.Row] = dataclasses.field(default_factory=dict)

    @property
    def rows(self) -> list[table.Row]:
        """The rows of all trials, in the order in which they started."""
        return [self._row(self.oracle.trials[trial_id]) for trial_id in self.oracle.start_order]

    def _row(self, trial: Trial) -> table.Row:
        if trial.trial_id in self.ended:
            return self.ended[trial.trial_id]
        row = self._read_row(trial)
        if row.status != "running":
            self.ended[trial.trial_id] = row
        return row

    def _read_row(self, trial: Trial) -> table.Row:
        executions = self.plan.executions(trial)
        results = [e.run.result for e in executions if e.run.finished]
        failures = [e.failure for e in executions if e.failure]
        return table.Row(
            trial=trial.trial_id,
            status=_STATUSES.get(trial.status, "failed"),
            objective=trial.score if trial.status == TrialStatus.COMPLETED else None,
            epochs=max((len(e.run.logs) for e in executions), default=0),
            seconds=round(sum(r["start_seconds"] + r["fit_seconds"] for r in results), 3),
            ended_after=self.oracle.ended_after.get(trial.trial_id),
            settings=self.plan.space.settings(trial.hyperparameters.values),
            reason=failures[0] if failures else "",
        )

    def report(self, trial: Trial) -> None:
        """Prints a line about a trial that has ended, and writes the table."""
        row = self._row(trial)
        self._write_table()
        said = f"trial {row.trial}  "
        if row.objective is None:
            said += f"failed: {row.reason}"
        else:
            said += f"{self.plan.config.search.objective} {row.objective:.4f}"
        print(
            f"{said}  {row.epochs} epochs, {row.seconds:.1f} s; {self.best_so_far}{self._left}",
            flush=True,
        )

    @property
    def best_so_far(self) -> str:
        """The best trial so far, as text."""
        if not (best := self.oracle.best_trial):
            return "no trial is completed yet"
        return f"best {best.score:.4f} (trial {best.trial_id})"

    @property
    def _left(self) -> str:
        """The trials and minutes that are left, as text."""
        oracle, budget = self.oracle, self.plan.config.search.time_budget
        ended = len(oracle.ended_after)
        parts, seconds = [], []
        if oracle.max_trials:
            parts.append(f"{oracle.max_trials - ended} trials")
            seconds.append((oracle.max_trials - ended) * oracle.seconds / ended)
        if budget is not None:
            seconds.append(max(budget - oracle.seconds, 0))
        if seconds:
            parts.append(f"{math.ceil(min(seconds) / 60)} min")
        return f"; {' or '.join(parts)} left" if parts else ""

    def check_failures(self) -> None:
        """Checks that the search did not stop because trials failed one after the other.

        Raises:
          UserError: It did.
        """
        if self.oracle.hopeless:
            raise UserError(
                f"sweep_dir {self.plan.folder.path}: {self.oracle.failures_in_a_row} trials in a "
                f"row have failed, the last: {self.rows[-1].reason}; run the same command to try "
                "others"
            )

    def write(self, winner: page.Winner | None = None) -> None:
        """Writes the table and the page."""
        self._write_table()
        objective = self.plan.config.search.objective
        text = page.render(self.rows, self.plan.space.ranges, objective, winner)
        with atomic.atomic_path(self.plan.folder.path / "sweep.html") as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")

    def _write_table(self) -> None:
        objective, names = self.plan.config.search.objective, list(self.plan.space.ranges)
        with atomic.atomic_path(self.plan.folder.path / "trials.csv") as temporary:
            temporary.write_text(table.to_csv(self.rows, objective, names))

    def summary(self, winner: page.Winner | None) -> str:
        """Returns the results of the search, as text.

        Raises:
          UserError: No trial is completed.
        """
        rows, folder = self.rows, self.plan.folder.path
        if winner is None:
            reason = rows[-1].reason if rows else "the images are too small for all networks"
            raise UserError(f"sweep_dir {folder}: no trial is completed; the last: {reason}")
        result = winner.result
        assert result  # The final training has ended.
        counts = [
            f"{count} {status}"
            for status in table.STATUSES
            if (count := sum(row.status == status for row in rows))
        ]
        return "\n".join(
            [
                f"{len(rows)} trials ({', '.join(counts)}) in "
                f"{max(self.oracle.ended_after.values()):.0f} s; {self.best_so_far}",
                f"trained on all training images: test accuracy "
                f"{scores.test_accuracy_text(result)}",
                *scores.test_cautions(result, "the settings"),
                f"repeat it: python -m trainers.fit --flagfile={folder / 'best.flags'}",
                f"results saved to {folder}",
                f"page saved to {folder / 'sweep.html'}",
            ]
        )
