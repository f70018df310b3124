"""Keras Tuner's oracles, made durable: a search that is killed at any moment resumes unchanged.

Keras Tuner 1.4.8 has these faults: it writes files in place, and one after the other; a grid search
cannot be resumed; a Gaussian process resumes with other random numbers; a dead worker keeps its
trial; and networks that are too large for the images are tried.
"""

import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras_tuner
import numpy as np
import threadpoolctl
from keras_tuner.engine.trial import Trial, TrialStatus

from pizza_steak.atomic import atomic_path, remove
from tuning.configuration import SweepConfig
from tuning.space.search_space import SearchSpace

_DEFAULT_TRIALS = 30
_MOST_FAILURES_IN_A_ROW = 5


class Durable(keras_tuner.Oracle):
    """A mixin for Keras Tuner's oracles.

    Attributes:
      on_end: Called with each trial that has ended.
      ended_after: Seconds of search until each trial ended, by its id.
      failures_in_a_row: The number of trials that have failed since the last success.

    Args:
      fits: Returns whether hyperparameters, by name, can be tried.
      time_budget: Seconds of search after which no trial starts.
      worker_timeout: Seconds of silence after which a worker's trial goes to another worker.
      remote: Whether workers may outlive this process and keep their trials.
      **options: Arguments of Keras Tuner's oracle.
    """

    ongoing_trials: dict[str, Trial]  # These two are attributes of Keras Tuner's oracle.
    _retry_queue: list[str]

    def __init__(
        self,
        *,
        fits: Callable[[Mapping[str, Any]], bool],
        time_budget: float | None,
        worker_timeout: float,
        remote: bool,
        **options: Any,
    ):
        super().__init__(
            **options,
            allow_new_entries=False,
            tune_new_entries=False,
            max_consecutive_failed_trials=None,  # It raises before it saves the trial.
        )
        self._fits = fits
        self._time_budget = time_budget
        self._worker_timeout = worker_timeout
        self._remote = remote
        self._max_collisions = 1000  # Counts networks that do not fit, too.
        self._started = time.monotonic()
        self._earlier_seconds = 0.0
        self._heard: dict[str, float] = {}
        self._exhausted = False
        self.on_end: Callable[[Trial], None] = lambda trial: None
        self.failures_in_a_row = 0
        self.ended_after: dict[str, float] = {}
        self.verbose = 0

    @property
    def seconds(self) -> float:
        """The seconds of search so far, without the time between a kill and the next start."""
        return self._earlier_seconds + time.monotonic() - self._started

    @property
    def finished(self) -> bool:
        """Whether nothing is left to try, and every worker that asked has been told so."""
        enough = self.max_trials is not None and len(self.trials) >= self.max_trials
        # A resumed search may have ended before; then no worker asks.
        over = self._exhausted or ((enough or self._out_of_time) and not self._retry_queue)
        return over and not self.ongoing_trials and not self.tuner_ids

    @property
    def _out_of_time(self) -> bool:
        return self._time_budget is not None and self.seconds >= self._time_budget

    @property
    def hopeless(self) -> bool:
        """Whether so many trials have failed in a row that no more start."""
        return self.failures_in_a_row >= _MOST_FAILURES_IN_A_ROW

    @property
    def best_trial(self) -> Trial | None:
        """The best completed trial."""
        # Without a completed trial, Keras Tuner returns another one.
        (best,) = self.get_best_trials() or (None,)
        return best if best and best.status == TrialStatus.COMPLETED else None

    @keras_tuner.synchronized
    def create_trial(self, tuner_id):
        self.take_back_lost()
        self._heard[tuner_id] = time.monotonic()
        interrupted = tuner_id in self.ongoing_trials or self._retry_queue
        if self.hopeless or (self._out_of_time and not interrupted):
            self.tuner_ids.discard(tuner_id)
            trial = Trial(self.get_space(), trial_id="", status=TrialStatus.STOPPED)
        else:
            trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.STOPPED:
            if self.ongoing_trials:  # If its worker dies, this worker gets the trial.
                trial.status = TrialStatus.IDLE
                self.tuner_ids.add(tuner_id)
            self._exhausted = not self.ongoing_trials
        return trial

    @keras_tuner.synchronized
    def take_back_lost(self) -> list[str]:
        """Takes the trials of silent workers, for others; returns the names of these workers."""
        now = time.monotonic()
        known = {*self.tuner_ids, *self.ongoing_trials}
        lost = [name for name in known if now - self._heard[name] > self._worker_timeout]
        for tuner_id in lost:
            self.take_back(tuner_id)
        return lost

    @keras_tuner.synchronized
    def take_back(self, tuner_id: str) -> None:
        """Takes the trial of a dead worker; the next worker that asks gets it."""
        self.tuner_ids.discard(tuner_id)
        if trial := self.ongoing_trials.pop(tuner_id, None):
            self._retry_queue.append(trial.trial_id)
            self.save()

    @keras_tuner.synchronized
    def get_trial(self, trial_id):
        for tuner_id, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:  # This is also a worker's heartbeat.
                self._heard[tuner_id] = time.monotonic()
        return super().get_trial(trial_id)

    @keras_tuner.synchronized
    def end_trial(self, trial):
        if trial.trial_id in self.end_order:
            return  # Its worker counted as dead, and another one has ended the trial.
        self.ended_after[trial.trial_id] = self.seconds
        super().end_trial(trial)
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)
        ended = self.trials[trial.trial_id]
        failed = ended.status != TrialStatus.COMPLETED
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        self.on_end(ended)

    def _duplicate(self, values):
        return super()._duplicate(values) or not self._fits(values)

    def get_state(self):
        return super().get_state() | {"seconds": self.seconds, "ended_after": self.ended_after}

    def set_state(self, state):
        super().set_state(state)
        self._earlier_seconds, self._started = state["seconds"], time.monotonic()
        self.ended_after = state["ended_after"]

    def reload(self):
        """Restores the state that `save` wrote.

        Raises:
          OSError, ValueError or LookupError: The files are damaged.
        """
        folder = pathlib.Path(self._project_dir)
        state = json.loads((folder / "oracle.json").read_text())
        trials = {path.parent.name: path for path in folder.glob("trial_*/trial.json")}
        known = [f"trial_{trial_id}" for trial_id in state["start_order"]]
        for name in trials.keys() - set(known):
            # The trial is written before the state: the search was killed in between.
            remove(folder / name)
        loaded = [Trial.load(trials[name]) for name in known]
        self.trials = {trial.trial_id: trial for trial in loaded}
        self.set_state(state)
        ended = {name for name, t in self.trials.items() if t.status != TrialStatus.RUNNING}
        for trial_id in sorted(ended - set(self.end_order)):
            self.end_order.append(trial_id)  # The same, at the end of a trial.
            self.ended_after[trial_id] = self._earlier_seconds
        # A worker that counted as dead may have ended its trial before another worker got it.
        self._retry_queue = [trial_id for trial_id in self._retry_queue if trial_id not in ended]
        running = {
            tuner_id: trial
            for tuner_id, trial in self.ongoing_trials.items()
            if trial.trial_id not in ended
        }
        self.ongoing_trials = running if self._remote else {}
        self.tuner_ids = set(self.ongoing_trials)  # They have to be told the end of the search.
        self._heard = dict.fromkeys(self.ongoing_trials, time.monotonic())
        if not self._remote:
            self._retry_queue += [trial.trial_id for trial in running.values()]

    def save(self):
        self._write(pathlib.Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial):
        path = pathlib.Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        self._write(path, trial.get_state())

    @staticmethod
    def _write(path: pathlib.Path, state: dict[str, Any]) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(state))


class RandomSearchOracle(Durable, keras_tuner.oracles.RandomSearchOracle):
    """Chooses trials at random."""


class BayesianOptimizationOracle(Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    """Chooses the trials that a Gaussian process expects most of."""

    def populate_space(self, trial_id):
        # The seed depends on the trial only: Keras Tuner does not save the generator's state.
        self._random_state = np.random.RandomState(self.seed + len(self.trials))
        with threadpoolctl.threadpool_limits(1):  # The matrices are small; threads only wait.
            response = super().populate_space(trial_id)
        if response["values"] and self._duplicate(response["values"]):
            return self._random_populate_space()
        return response


class HyperbandOracle(Durable, keras_tuner.oracles.HyperbandOracle):
    """Chooses trials at random, and trains the better for more epochs (Li et al., 2018)."""


class GridSearchOracle(Durable, keras_tuner.oracles.GridSearchOracle):
    """Runs all trials in order; the last setting changes first."""

    def populate_space(self, trial_id):
        # The last trial determines the next: Keras Tuner does not save its own list.
        if self.start_order:
            values = self._get_next_combination(
                self.trials[self.start_order[-1]].hyperparameters.values
            )
        else:
            values = self.get_space().values  # The defaults.
        while values is not None and not self._fits(values):
            values = self._get_next_combination(values)
        status = TrialStatus.STOPPED if values is None else TrialStatus.RUNNING
        return {"status": status, "values": values}


def make(config: SweepConfig, space: SearchSpace, *, remote: bool) -> Durable:
    """Returns the oracle that the flags ask for, at the start of a search.

    Args:
      config: The flags of the search.
      space: The search space.
      remote: Whether workers may outlive this process and keep their trials.
    """
    asked, trial = config.search, config.trial
    hyperparameters = keras_tuner.HyperParameters()
    space.declare_hyperparameters(hyperparameters)
    # These two never end by themselves.
    drawn = _DEFAULT_TRIALS if asked.max_trials is None else asked.max_trials
    options = {
        "objective": asked.objective,
        "hyperparameters": hyperparameters,
        "seed": trial.seed + 1,  # Keras Tuner takes 0 for no seed.
        "fits": space.fits,
        "time_budget": asked.time_budget,
        "worker_timeout": asked.worker_timeout,
        "remote": remote,
    }
    if asked.tuner == "random":
        return RandomSearchOracle(max_trials=drawn, **options)
    if asked.tuner == "grid":
        return GridSearchOracle(max_trials=asked.max_trials, **options)
    if asked.tuner == "bayesian":
        # Keras Tuner's default, three for each setting, is often more than all trials.
        points = max(3, min(3 * len(hyperparameters.space), drawn // 3))
        return BayesianOptimizationOracle(max_trials=drawn, num_initial_points=points, **options)
    # Hyperband starts again and again if another limit ends the search.
    endless = asked.max_trials is not None or asked.time_budget is not None
    iterations = None if endless else 1
    oracle = HyperbandOracle(
        max_epochs=trial.max_epochs, hyperband_iterations=iterations, **options
    )
    oracle.max_trials = asked.max_trials  # Keras Tuner's constructor does not take it.
    return oracle
