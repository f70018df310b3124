"""The progress of a sweep: its rows, its table and page, what it keeps, and its summary."""

import dataclasses
import math
import time

from keras_tuner.engine.trial import Trial, TrialStatus

from pizza_steak import atomic
from pizza_steak.errors import UserError
from trainers.runs import identity, scores
from trainers.runs.run_directory import command_line
from tuning.pages import page, table
from tuning.trials import engine
from tuning.trials.plan import Plan

_STATUSES = {TrialStatus.COMPLETED: "completed", TrialStatus.RUNNING: "running"}
# The page is written after a trial unless drawing would take more than this share of the time.
_SHARE_OF_THE_PAGE = 0.05


@dataclasses.dataclass
class Progress:
    """What a sweep has reached.

    Attributes:
      plan: The sweep.
      oracle: Chooses the trials, and knows those that have ended.
      ended: The rows of trials that have ended, by trial.
      page_due: The time, by `time.monotonic`, before which the page is not drawn again.
    """

    plan: Plan
    oracle: engine.Durable
    ended: dict[str, table.Row] = dataclasses.field(default_factory=dict)
    page_due: float = 0.0

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
        outcomes = [outcome for one in executions if (outcome := one.outcome)]
        done = [outcome for outcome in outcomes if "history" in outcome]
        failures = [outcome["failure"] for outcome in outcomes if "failure" in outcome]
        status = _STATUSES.get(trial.status, "failed")
        if status == "completed" and done[-1]["pruned"]:
            status = "pruned"
        latencies = [ms for outcome in done if (ms := outcome["predict_cpu_ms"]) is not None]
        return table.Row(
            trial=trial.trial_id,
            status=status,
            objective=trial.score if trial.status == TrialStatus.COMPLETED else None,
            epochs=max(
                [len(outcome["history"]["loss"]) for outcome in done]
                or [min(len(one.run.logs), one.epochs) for one in executions]
            ),
            seconds=round(sum(outcome["seconds"] for outcome in done), 3),
            ended_after=self.oracle.ended_after.get(trial.trial_id),
            settings=self.plan.space.settings(trial.hyperparameters.values),
            reason=failures[0] if failures else "",
            run=engine.run_of(trial),
            finalist=engine.finalist_of(trial),
            fold=engine.fold_of(trial),
            parameters=done[0]["parameters"] if done else None,
            latency=min(latencies, default=None),
        )

    def epochs(self, trial: Trial) -> int:
        """Returns the epochs that a trial was trained for, with those it took over."""
        return self._row(trial).epochs

    def finals_of(self, best: Trial) -> list[Trial]:
        """Returns the completed finals with the settings of a trial."""
        return [
            trial
            for trial in self.oracle.trials.values()
            if engine.finalist_of(trial) == engine.run_of(best)
            and trial.status == TrialStatus.COMPLETED
        ]

    def report(self, trial: Trial) -> None:
        """Prints a line about a trial that has ended, writes the table, and maybe the page."""
        row = self._row(trial)
        self._write_table()
        self._remove_what_is_not_kept()
        said = f"trial {row.trial}"
        if row.finalist:
            said = f"trial {self._names.get(row.finalist, row.finalist)} on fold {row.fold}"
        if row.objective is None:
            said += f"  failed: {row.reason}"
        else:
            said += f"  {self.plan.config.search.objective} {row.objective:.4f}"
        said += f"  {row.epochs} epochs, {row.seconds:.1f} s"
        if row.status == "pruned":
            said += ", pruned"
        print(f"{said}; {self.best_so_far}{self._left}", flush=True)
        if time.monotonic() >= self.page_due:
            start = time.monotonic()
            self._write_page(None, running=True)
            took = time.monotonic() - start
            self.page_due = time.monotonic() + took / _SHARE_OF_THE_PAGE

    @property
    def _names(self) -> dict[str, str]:
        """The longest completed trial of each run."""
        return {engine.run_of(trial): trial.trial_id for trial in self.oracle.ranking}

    @property
    def best_so_far(self) -> str:
        """The best trial so far, as text."""
        finalists = [one for one in self.oracle.finalists if one.pooled is not None]
        if finalists:
            best = finalists[0]
            return f"best {best.pooled:.4f} on all folds (trial {best.trial.trial_id})"
        if not (found := self.oracle.best_trial):
            return "no trial is completed yet"
        return f"best {found.score:.4f} (trial {found.trial_id})"

    @property
    def _left(self) -> str:
        """The trials and minutes that are left, as text."""
        oracle, budget = self.oracle, self.plan.config.search.time_budget
        ended = sum(not engine.is_final(oracle.trials[name]) for name in oracle.ended_after)
        if ended < len(oracle.ended_after):  # The finals have begun.
            return ""
        parts, seconds = [], []
        if most := oracle.most_trials:
            parts.append(f"{most - ended} trials")
            seconds.append((most - ended) * oracle.seconds / ended)
        if budget is not None:
            seconds.append(max(budget - oracle.seconds, 0))
        if seconds:
            parts.append(f"{math.ceil(min(seconds) / 60)} min")
        return f"; {' or '.join(parts)} left" if parts else ""

    def _remove_what_is_not_kept(self) -> None:
        """Removes the backups that no trial can continue, and models that are not of the best."""
        oracle, keep = self.oracle, self.plan.config.final.keep
        best = {engine.run_of(trial) for trial in oracle.ranking[:keep]}
        going_on = oracle.promotable | {
            engine.run_of(trial)
            for trial in oracle.trials.values()
            if trial.status == TrialStatus.RUNNING
        }
        folder = self.plan.folder.path
        for part, names in (("backup", going_on), ("model.keras", going_on | best)):
            for path in [*folder.glob(f"trials/*/{part}"), *folder.glob(f"finals/*/{part}")]:
                if path.parent.name.partition("-")[0] not in names:  # "-2" of a second execution.
                    atomic.remove(path)

    def check_failures(self) -> None:
        """Checks that the sweep did not stop because trials failed one after the other.

        Raises:
          UserError: It did.
        """
        if self.oracle.hopeless:
            raise UserError(
                f"sweep_dir {self.plan.folder.path}: {self.oracle.failures_in_a_row} trials in a "
                f"row have failed, the last: {self.rows[-1].reason}; to try others: "
                f"{self.plan.command}"
            )

    def write(self, winner: page.Winner | None = None) -> None:
        """Writes the table and the page, and removes what is not kept."""
        self._remove_what_is_not_kept()  # A kill may have come before it, after the last trial.
        self._write_table()
        self._write_page(winner, running=False)

    def _write_page(self, winner: page.Winner | None, *, running: bool) -> None:
        plan = self.plan
        text = page.render(
            self.rows,
            plan.space.ranges,
            plan.config.search.objective,
            winner,
            finalists=[
                page.Finalist(one.trial.trial_id, one.scores, one.pooled)
                for one in self.oracle.finalists
                if self.finals_of(one.trial)
            ],
            best=best.trial_id if (best := self.oracle.best_trial) else None,
            running=running,
        )
        with atomic.atomic_path(plan.folder.path / "sweep.html") as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")

    def _write_table(self) -> None:
        objective, names = self.plan.config.search.objective, list(self.plan.space.ranges)
        with atomic.atomic_path(self.plan.folder.path / "trials.csv") as temporary:
            temporary.write_text(table.to_csv(self.rows, objective, names), encoding="utf-8")

    def summary(self, winner: page.Winner | None) -> str:
        """Returns the results of the sweep, as text.

        Raises:
          UserError: No trial is completed.
        """
        rows, folder = self.rows, self.plan.folder.path
        if winner is None:
            reason = rows[-1].reason if rows else "the images are too small for all networks"
            raise UserError(f"sweep_dir {folder}: no trial is completed; the last: {reason}")
        result, best = winner.result, self.oracle.best_trial
        assert result and best  # The final training has ended.
        config = self.plan.space.fit_config(best.hyperparameters.values)
        # The flagfile names no folder and no code.
        typed = identity.other_flags(config, ("run_dir", "overwrite", "resume"))
        again = command_line("fit", f"--flagfile={folder / 'best.flags'}", *typed)
        counts = [
            f"{count} {status}"
            for status in table.STATUSES
            if (count := sum(row.status == status and not row.finalist for row in rows))
        ]
        finals = sum(row.finalist is not None for row in rows)
        said = f"{len(rows) - finals} trials ({', '.join(counts)})"
        if finals:
            said += f" and {finals} finals"
        return "\n".join(
            [
                f"{said} in {max(self.oracle.ended_after.values()):.0f} s; {self.best_so_far}",
                f"trained on all training images: test accuracy "
                f"{scores.test_accuracy_text(result)}",
                *scores.test_cautions(result, "the settings"),
                f"repeat {'a member' if 'members' in result else 'it'}: {again}",
                f"results saved to {folder}",
                f"page saved to {folder / 'sweep.html'}",
            ]
        )
