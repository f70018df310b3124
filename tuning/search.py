"""The search: trials until the flags say that it is enough, then the best of them once more.

Its folder holds:

sweep.flags   what it was started with
oracle/       Keras Tuner's state
trials/       a run directory for each trial, without a model
trials.csv    a row for each trial
best.flags    the best one's settings for trainers.fit, on all training pictures
best/         the run of that, tested
sweep.html    all of it for people
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Iterator

import filelock
import keras_tuner
import numpy as np
import tensorflow as tf
from keras_tuner.engine.trial import Trial, TrialStatus

from pizza_steak import atomic, splits
from pizza_steak.errors import UserError
from pizza_steak.tensorflow_import import stderr_dropped
from trainers import data as run_data
from trainers.configuration import DataConfig, FitConfig, RunConfig
from trainers.runs import descriptions, identity, scores
from trainers.runs.run_directory import Run, kept_epoch, open_run
from trainers.training import loop
from tuning import distribution, oracles, page, processes, ranges, table, trials
from tuning.configuration import SweepConfig
from tuning.search_space import SearchSpace

# The flags last: what is removed in this order is a search until all of it is gone.
_PARTS = ("oracle", "trials", "trials.csv", "best.flags", "best", "sweep.html", "sweep.flags")
_DEFAULT_TRIALS = 30
_STARTS_WITHOUT_AN_EPOCH = 5


def search(config: SweepConfig) -> str:
    """Searches, or goes on with the search that is in `sweep_dir`; then trains the best.

    Returns:
      What came of it, for people.

    Raises:
      UserError: For anything that the user can mend.
    """
    role = distribution.role()
    processes.prepare("tuning.trials")
    tf.config.set_visible_devices([], "GPU")  # They are for the trials' processes.
    sweep = Sweep.plan(config)
    if role == "worker":
        return sweep.work(os.environ["KERASTUNER_TUNER_ID"], distribution.chief_address())
    with sweep.alone():
        sweep.start()
        oracle = sweep.go_on(remote=bool(role))
        print(sweep.plan_table(oracle), flush=True)
        try:
            sweep.run_trials(oracle, distributed=bool(role))
            sweep.check_failures(oracle)
            winner = sweep.train_best(oracle)
        except (KeyboardInterrupt, UserError) as error:
            sweep.write(oracle)
            if isinstance(error, KeyboardInterrupt):
                print(f"\n{sweep.so_far(oracle)}; the same command goes on", flush=True)
            raise
        sweep.write(oracle, winner)
        return sweep.summary(oracle, winner)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A search and its folder.

    Attributes:
      config: The flags.
      folder: Where it is.
      flags: The text of its sweep.flags; the last line is the fingerprint of the images.
      space: What is searched.
      ended: Rows of the table that stay as they are, by trial.
    """

    config: SweepConfig
    folder: pathlib.Path
    flags: str
    space: SearchSpace
    ended: dict[str, table.Row] = dataclasses.field(default_factory=dict)

    @classmethod
    def plan(cls, config: SweepConfig) -> "Sweep":
        """The search that the flags ask for; nothing is written yet but decoded pictures.

        Raises:
          UserError: For anything that the user can mend.
        """
        if config.data.validation_split == "none":
            raise UserError("validation_split 'none': models are chosen by their validation")
        for name in ranges.parse(config.space.optimizer, str).values:
            loop.optimizer_class(name)
        data = run_data.load(config.data)
        _check_same_test(data, run_data.load(_all_training_images(config, data)))
        flags = identity.to_flagfile(config)
        flags += f"# The fingerprint of the images:\n# {data.records.fingerprint}\n"
        folder = pathlib.Path(config.search.sweep_dir).expanduser().absolute()
        return cls(config, folder, flags, SearchSpace(config, data))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps another search out of the folder within the block."""
        try:
            with atomic.lock(self.folder).acquire(timeout=0):
                yield
        except filelock.Timeout:
            raise UserError(
                f"sweep_dir {self.folder}: another search is at work there; wait for it, or pass "
                "another --sweep_dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"sweep_dir {self.folder}: {error.strerror or error}; pass another --sweep_dir"
            ) from error

    def start(self) -> None:
        """Makes the folder, unless the search goes on with what is there.

        Raises:
          UserError: There is something else.
        """
        there = self.folder / "sweep.flags"
        if self.config.search.overwrite and there.exists():
            for part in _PARTS:
                atomic.remove(self.folder / part)
        if there.exists():
            if changed := identity.changes(identity.read(SweepConfig, there), self.config):
                raise UserError(
                    f"sweep_dir {self.folder}: was started with other flags ({changed}); pass "
                    "--overwrite to replace that search, or another --sweep_dir"
                )
            if there.read_text().splitlines()[-1] != self.flags.splitlines()[-1]:
                raise UserError(
                    f"sweep_dir {self.folder}: the images have changed since the search was "
                    "started; pass --overwrite to replace that search, or another --sweep_dir"
                )
            return
        if not atomic.holds_only(self.folder, _PARTS):
            raise UserError(
                f"sweep_dir {self.folder}: holds files that are no search; pass another --sweep_dir"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_path(there) as temporary:
            temporary.write_text(self.flags)

    def go_on(self, *, remote: bool) -> oracles.Durable:
        """What chooses the trials, as far as it had come.

        Args:
          remote: Whether workers may have outlived the process that it was in.

        Raises:
          UserError: Its files are damaged.
        """
        oracle = self._oracle(remote=remote)
        oracle.on_end = functools.partial(self._tell, oracle)
        oracle._set_project_dir(self.folder, "oracle")
        if (self.folder / "oracle" / "oracle.json").exists():
            try:
                oracle.reload()
            except (OSError, ValueError, LookupError) as error:
                raise UserError(
                    f"sweep_dir {self.folder}: oracle/ is damaged ({error}); pass --overwrite to "
                    "start the search anew"
                ) from error
        return oracle

    def _oracle(self, *, remote: bool) -> oracles.Durable:
        asked, trial = self.config.search, self.config.trial
        space = keras_tuner.HyperParameters()
        self.space.declare_hyperparameters(space)
        max_trials = asked.max_trials
        if max_trials is None and asked.tuner in ("random", "bayesian"):
            max_trials = _DEFAULT_TRIALS
        options = {
            "objective": asked.objective,
            "hyperparameters": space,
            "seed": trial.seed + 1,  # Keras Tuner takes 0 for none.
            "fits": self.space.fits,
            "time_budget": asked.time_budget,
            "worker_timeout": asked.worker_timeout,
            "remote": remote,
        }
        if asked.tuner == "random":
            return oracles.RandomSearchOracle(max_trials=max_trials, **options)
        if asked.tuner == "grid":
            return oracles.GridSearchOracle(max_trials=max_trials, **options)
        if asked.tuner == "bayesian":
            # Keras Tuner's default, three for each setting, is often more than all trials.
            points = max(3, min(3 * len(space.space), max_trials // 3))
            return oracles.BayesianOptimizationOracle(
                max_trials=max_trials, num_initial_points=points, **options
            )
        # Again and again, where something else ends it.
        endless = max_trials is not None or asked.time_budget is not None
        iterations = None if endless else 1
        oracle = oracles.HyperbandOracle(
            max_epochs=trial.max_epochs, hyperband_iterations=iterations, **options
        )
        oracle.max_trials = max_trials  # Which Keras Tuner's does not take.
        return oracle

    def plan_table(self, oracle: oracles.Durable) -> str:
        """What will run, for people, before it does."""
        asked, trial, data = self.config.search, self.config.trial, self.space.data
        fixed = [name for name, values in self.space.ranges.items() if len(values.values) == 1]
        limits = [f"{trial.max_epochs} epochs a trial"]
        if oracle.max_trials:
            limits.append(f"{oracle.max_trials} trials")
        if asked.time_budget is not None:
            limits.append(f"{asked.time_budget / 60:.0f} min")
        images = [
            f"{purpose}: {data.splits[purpose]}, {len(data.rows[purpose]):,} images"
            for purpose in ("train", "validation")
        ]
        ended = len(oracle.ended_after)
        rows = [
            ("images", "; ".join(images)),
            ("dataset", data.records.builder.info.full_name),
            *(("caution", text) for text in descriptions.split_cautions(data)),
            ("searched", ", ".join(name for name in self.space.ranges if name not in fixed)),
            ("tuner", f"{asked.tuner}, {asked.objective}, at most {', '.join(limits)}"),
            ("workers", f"{asked.workers}" if asked.workers > 1 else ""),
            ("sweep", f"{self.folder}" + (f", after {ended} trials" if ended else "")),
        ]
        return "\n".join(f"{name:<12}{text}" for name, text in rows if text)

    def check_failures(self, oracle: oracles.Durable) -> None:
        """Checks that trials did not fail one after the other.

        Raises:
          UserError: They did.
        """
        if oracle.hopeless:
            last = self.rows(oracle)[-1]
            raise UserError(
                f"sweep_dir {self.folder}: {oracle.failures_in_a_row} trials in a row have failed, "
                f"the last: {last.reason}; the same command goes on with others"
            )

    def run_trials(self, oracle: oracles.Durable, *, distributed: bool) -> None:
        """Runs all trials, here or by workers.

        Raises:
          UserError: All workers have died.
        """
        if distributed:
            with distribution.serving(oracle, distribution.chief_address()):
                distribution.wait_for_workers(oracle)
        elif self.config.search.workers > 1:
            self._run_by_own_workers(oracle)
        else:
            distribution.Tuner(oracle, self.folder, self.run_trial, "worker").search()

    def _run_by_own_workers(self, oracle: oracles.Durable) -> None:
        count = self.config.search.workers
        with distribution.serving(oracle, "localhost:0") as port:
            own = [
                (
                    f"worker {number}",
                    processes.Process(
                        _work, self.config, f"worker {number}", f"localhost:{port}", number
                    ),
                )
                for number in range(1, count + 1)
            ]
            try:
                distribution.wait_for_workers(oracle, own)
            finally:
                for _, process in own:
                    process.kill()

    def work(self, worker: str, address: str, number: int | None = None) -> str:
        """Runs trials for a chief until it has no more.

        Returns:
          How many, for people.
        """
        ran = []

        def run_trial(trial):
            ran.append(trial.trial_id)
            return self.run_trial(trial, number)

        oracle = self._oracle(remote=True)
        distribution.Tuner(oracle, self.folder, run_trial, worker, address).search()
        return f"{worker}: {len(ran)} trials"

    def run_trial(self, trial: Trial, number: int | None = None) -> dict[str, float]:
        """Trains a trial, each execution in a process of its own.

        Args:
          trial: Of Keras Tuner.
          number: Of the worker, from 1, where there are several on this machine.

        Returns:
          The objective: of the best epoch, the mean of all executions.

        Raises:
          keras_tuner.errors.FailedTrialError: It failed; the reason is kept with its run.
        """
        scores = []
        for execution in self.executions(trial):
            with atomic.lock(execution.run.path):  # A worker that was taken for dead may live.
                self._train(execution, number)
            if execution.failure:
                raise keras_tuner.errors.FailedTrialError(execution.failure)
            history = execution.run.result["history"][self.config.search.objective]
            scores.append(min(history) if self._minimized else max(history))
        return {self.config.search.objective: math.fsum(scores) / len(scores)}

    @property
    def _minimized(self) -> bool:
        return self.config.search.objective.endswith("loss")

    def _train(self, execution: trials.Execution, number: int | None) -> None:
        if execution.failure or execution.run.finished:
            return
        if _starts_without_an_epoch(execution.run) > _STARTS_WITHOUT_AN_EPOCH:
            execution.fail(
                f"has ended the search {_STARTS_WITHOUT_AN_EPOCH} times before an epoch had ended"
            )
            return
        environment = self._share_of_the_machine(number) if number else {}
        try:
            processes.run(trials.train, execution, environment=environment)
        except processes.ProcessError as error:
            execution.fail(str(error))

    def _share_of_the_machine(self, number: int) -> dict[str, str]:
        count, cores = self.config.search.workers, os.cpu_count()
        variables = {"TF_NUM_INTRAOP_THREADS": str(max(1, cores // count))}
        if gpus := len(tf.config.list_physical_devices("GPU")):
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
            variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[(number - 1) % gpus]
        return variables

    def executions(self, trial: Trial) -> list[trials.Execution]:
        """What a trial trains."""
        values = trial.hyperparameters.values
        epochs = int(values.get("tuner/epochs", self.config.trial.max_epochs))  # Of hyperband.
        settings = self.space.settings(values)
        made = []
        for number in range(self.config.trial.executions_per_trial):
            end = f"-{number + 1}" if number else ""
            earlier = values.get("tuner/trial_id")
            run_dir = str(self.folder / "trials" / f"{trial.trial_id}{end}")
            config = self.space.fit_config(values, run_dir=run_dir, resume="auto")
            optimisation = config.optimisation
            optimisation = dataclasses.replace(optimisation, seed=optimisation.seed + number)
            made.append(
                trials.Execution(
                    config=dataclasses.replace(config, optimisation=optimisation),
                    epochs=epochs,
                    earlier=self.folder / "trials" / f"{earlier}{end}" if earlier else None,
                    settings=settings if self.config.search.tensorboard else None,
                    keep_backup=self.config.search.tuner == "hyperband",
                )
            )
        return made

    def rows(self, oracle: oracles.Durable) -> list[table.Row]:
        """The table of all trials, in the order in which they were begun."""
        return [self._row(oracle, oracle.trials[trial_id]) for trial_id in oracle.start_order]

    def _row(self, oracle: oracles.Durable, trial: Trial) -> table.Row:
        if trial.trial_id in self.ended:
            return self.ended[trial.trial_id]
        row = self._read_row(oracle, trial)
        if row.status != "running":
            self.ended[trial.trial_id] = row
        return row

    def _read_row(self, oracle: oracles.Durable, trial: Trial) -> table.Row:
        executions = self.executions(trial)
        results = [e.run.result for e in executions if e.run.finished]
        failures = [e.failure for e in executions if e.failure]
        status = {TrialStatus.COMPLETED: "completed", TrialStatus.RUNNING: "running"}
        values = trial.hyperparameters.values
        return table.Row(
            trial=trial.trial_id,
            status=status.get(trial.status, "failed"),
            objective=trial.score if trial.status == TrialStatus.COMPLETED else None,
            epochs=max((len(e.run.logs) for e in executions), default=0),
            seconds=round(sum(r["start_seconds"] + r["fit_seconds"] for r in results), 3),
            ended_after=oracle.ended_after.get(trial.trial_id),
            settings=self.space.settings(values),
            reason=failures[0] if failures else "",
        )

    def _tell(self, oracle: oracles.Durable, trial: Trial) -> None:
        """A line for people of a trial that has ended; writes the table."""
        row = self._row(oracle, trial)
        self._write_table(oracle)
        said = f"trial {row.trial}  "
        if row.objective is None:
            said += f"failed: {row.reason}"
        else:
            said += f"{self.config.search.objective} {row.objective:.4f}"
        print(
            f"{said}  {row.epochs} epochs, {row.seconds:.1f} s; {self.so_far(oracle)}"
            f"{self._left(oracle)}",
            flush=True,
        )

    def so_far(self, oracle: oracles.Durable) -> str:
        """The best trial yet, for people."""
        if not (best := _best_trial(oracle)):
            return "no trial is completed yet"
        return f"best {best.score:.4f} (trial {best.trial_id})"

    def _left(self, oracle: oracles.Durable) -> str:
        """How much is left, for people."""
        ended, budget = len(oracle.ended_after), self.config.search.time_budget
        parts, seconds = [], []
        if oracle.max_trials:
            parts.append(f"{oracle.max_trials - ended} trials")
            seconds.append((oracle.max_trials - ended) * oracle.seconds / ended)
        if budget is not None:
            seconds.append(max(budget - oracle.seconds, 0))
        if seconds:
            parts.append(f"{math.ceil(min(seconds) / 60)} min")
        return f"; {' or '.join(parts)} left" if parts else ""

    def train_best(self, oracle: oracles.Durable) -> page.Winner | None:
        """Trains the best trial's settings on all training pictures, and tests that.

        Returns:
          None where no trial is completed.

        Raises:
          UserError: The training failed.
        """
        if not (best := _best_trial(oracle)):
            return None
        config = self._best_config(best)
        flags = identity.to_flagfile(config)
        with atomic.atomic_path(self.folder / "best.flags") as temporary:
            temporary.write_text(f"# Trial {best.trial_id}: {self.so_far(oracle)}\n{flags}")
        there = Run(self.folder / "best")
        run = RunConfig(str(there.path), tensorboard=self.config.search.tensorboard)
        config = dataclasses.replace(config, run=run)
        same = (there.path / "run.flags").exists() and not identity.changes(there.config, config)
        run = dataclasses.replace(run, resume=same, overwrite=not same)
        try:
            processes.run(trials.fit, dataclasses.replace(config, run=run))
        except processes.ProcessError as error:
            raise UserError(f"best.flags: {error}") from error
        result = open_run(run.run_dir).result
        if self.space.data.shared("test", "validation"):
            result["test_pictures_chose_the_model"] = True
        return page.Winner(best.trial_id, flags, result)

    def _best_config(self, best: Trial) -> FitConfig:
        config = self.space.fit_config(best.hyperparameters.values)
        epochs = self.config.search.final_epochs or self.config.trial.max_epochs
        if not self.config.search.final_epochs and config.optimisation.early_stopping_patience:
            history = self.executions(best)[0].run.result["history"]
            epochs = kept_epoch(history) + 1
        optimisation = dataclasses.replace(
            config.optimisation, epochs=epochs, early_stopping_patience=None
        )
        return dataclasses.replace(
            config,
            data=_all_training_images(self.config, self.space.data),
            optimisation=optimisation,
        )

    def write(self, oracle: oracles.Durable, winner: page.Winner | None = None) -> None:
        """Writes the table and the page."""
        self._write_table(oracle)
        text = page.render(
            self.rows(oracle), self.space.ranges, self.config.search.objective, winner
        )
        with atomic.atomic_path(self.folder / "sweep.html") as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")

    def _write_table(self, oracle: oracles.Durable) -> None:
        objective, names = self.config.search.objective, list(self.space.ranges)
        with atomic.atomic_path(self.folder / "trials.csv") as temporary:
            temporary.write_text(table.to_csv(self.rows(oracle), objective, names))

    def summary(self, oracle: oracles.Durable, winner: page.Winner | None) -> str:
        """What came of it, for people.

        Raises:
          UserError: No trial is completed.
        """
        rows = self.rows(oracle)
        if winner is None:
            reason = rows[-1].reason if rows else "no network of the space fits the pictures"
            raise UserError(f"sweep_dir {self.folder}: no trial is completed; the last: {reason}")
        counts = [
            f"{count} {status}"
            for status in table.STATUSES
            if (count := sum(row.status == status for row in rows))
        ]
        return "\n".join(
            [
                f"{len(rows)} trials ({', '.join(counts)}) in "
                f"{max(oracle.ended_after.values()):.0f} s; {self.so_far(oracle)}",
                f"trained on all training images: test accuracy "
                f"{scores.test_accuracy_text(winner.result)}",
                *scores.test_cautions(winner.result, "the settings"),
                f"repeat that: python -m trainers.fit --flagfile={self.folder / 'best.flags'}",
                f"all of it in {self.folder}",
            ]
        )


def _best_trial(oracle: oracles.Durable) -> Trial | None:
    """Of those that are completed; Keras Tuner gives another where there is none."""
    (best,) = oracle.get_best_trials() or (None,)
    return best if best and best.status == TrialStatus.COMPLETED else None


def _all_training_images(config: SweepConfig, data: run_data.Data) -> DataConfig:
    """The data flags of the best model: trained on what the others were validated on as well.

    Args:
      config: The flags of the search.
      data: What its trials are trained and validated on.
    """
    asked = DataConfig(**vars(config.data))
    train = asked.train_split
    if train and splits.fraction(train):
        train = None
    if data.splits["validation"] in (asked.validation_split, "validation"):
        train = f"{train or 'train'}+{data.splits['validation']}"
    return dataclasses.replace(asked, train_split=train, validation_split="none")


def _check_same_test(trials: run_data.Data, best: run_data.Data) -> None:
    """Checks that the best model is tested on images that neither it nor a trial has seen.

    Raises:
      UserError: It is not, unless the flags say so.
    """
    seen = np.concatenate([trials.rows["train"], trials.rows["validation"]])
    test, train = trials.rows["test"], best.rows["train"]
    if (
        not np.array_equal(np.sort(test), np.sort(best.rows["test"]))
        or len(np.unique(train)) < len(train)
        or np.isin(test, train).sum() > np.isin(test, seen).sum()
    ):
        raise UserError(
            "--train_split, --validation_split and --test_split: the best model would not be "
            "tested on the images that the trials leave for it; pass all three as split strings, "
            "or none of them"
        )


def _starts_without_an_epoch(run: Run) -> int:
    """Counts one more start of a run; from 1 again where an epoch has ended since the last."""
    path = run.path.with_name(f".{run.path.name}.starts")
    epochs, before = run.progress.epochs, [0, 0]
    if path.exists():
        before = json.loads(path.read_text())
    starts = before[1] + 1 if before[0] == epochs else 1
    with atomic.atomic_path(path) as temporary:
        temporary.write_text(json.dumps([epochs, starts]))
    return starts


def _work(config: SweepConfig, worker: str, address: str, number: int) -> None:
    """What one of `--workers` does, in a process of its own."""
    processes.prepare("tuning.trials")  # Its processes are not forked from where it was.
    with stderr_dropped():  # It tells of each GPU that is not there.
        tf.config.set_visible_devices([], "GPU")
    Sweep.plan(config).work(worker, address, number)
