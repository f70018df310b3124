"""Keras Tuner's oracles, so that a search can be killed at any moment and goes on the same.

What those of version 1.4.8 lack: their files are written in place, and two of them one after the
other; a grid does not go on at all, a Gaussian process goes on with other numbers; a worker that
died keeps its trial; a network that does not fit the pictures is tried.
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

_MOST_FAILURES_IN_A_ROW = 5


class Durable(keras_tuner.Oracle):
    """What is mixed into each of Keras Tuner's oracles.

    Attributes:
      on_end: Called with each trial that has ended.
      ended_after: Seconds of searching until a trial ended, by its id.
      failures_in_a_row: How many trials have failed since one did not, or the start.

    Args:
      fits: Tells of hyperparameters, by name, whether they can be tried.
      time_budget: Seconds of searching after which no trial is begun.
      worker_timeout: Seconds without a word from a worker after which another gets its trial.
      remote: Whether workers may outlive this process and still have their trials.
      **options: Of Keras Tuner's oracle.
    """

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
            max_consecutive_failed_trials=None,  # It would raise before it has saved the trial.
        )
        self._fits = fits
        self._time_budget = time_budget
        self._worker_timeout = worker_timeout
        self._remote = remote
        self._max_collisions = 1000  # What does not fit is counted, too.
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
        """Of searching so far, without the time between a kill and the next start."""
        return self._earlier_seconds + time.monotonic() - self._started

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to try, and every worker that asked has been told so."""
        enough = self.max_trials is not None and len(self.trials) >= self.max_trials
        # Also where no worker asks any more, because it had all come to its end before.
        over = self._exhausted or ((enough or self._out_of_time) and not self._retry_queue)
        return over and not self.ongoing_trials and not self.tuner_ids

    @property
    def _out_of_time(self) -> bool:
        return self._time_budget is not None and self.seconds >= self._time_budget

    @property
    def hopeless(self) -> bool:
        """Whether so many trials have failed in a row that no more are begun."""
        return self.failures_in_a_row >= _MOST_FAILURES_IN_A_ROW

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
            if self.ongoing_trials:  # Whose worker may die, and leave it to this one.
                trial.status = TrialStatus.IDLE
                self.tuner_ids.add(tuner_id)
            self._exhausted = not self.ongoing_trials
        return trial

    @keras_tuner.synchronized
    def take_back_lost(self) -> list[str]:
        """Gives the trials of workers that are silent to others; tells whose."""
        now = time.monotonic()
        known = {*self.tuner_ids, *self.ongoing_trials}
        lost = [name for name in known if now - self._heard[name] > self._worker_timeout]
        for tuner_id in lost:
            self.take_back(tuner_id)
        return lost

    @keras_tuner.synchronized
    def take_back(self, tuner_id: str) -> None:
        """Gives the trial of a worker that died to the next that asks."""
        self.tuner_ids.discard(tuner_id)
        if trial := self.ongoing_trials.pop(tuner_id, None):
            self._retry_queue.append(trial.trial_id)
            self.save()

    @keras_tuner.synchronized
    def get_trial(self, trial_id):
        for tuner_id, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:  # Workers ask as long as they live.
                self._heard[tuner_id] = time.monotonic()
        return super().get_trial(trial_id)

    @keras_tuner.synchronized
    def end_trial(self, trial):
        if trial.trial_id in self.end_order:
            return  # Its worker was taken for dead, and another one has ended it.
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
        """Goes on with what `save` left.

        Raises:
          OSError, ValueError or LookupError: That is damaged.
        """
        folder = pathlib.Path(self._project_dir)
        state = json.loads((folder / "oracle.json").read_text())
        trials = {path.parent.name: path for path in folder.glob("trial_*/trial.json")}
        known = [f"trial_{trial_id}" for trial_id in state["start_order"]]
        for name in trials.keys() - set(known):
            # Its own file is written before the state: it was being begun when all was killed.
            remove(folder / name)
        loaded = [Trial.load(trials[name]) for name in known]
        self.trials = {trial.trial_id: trial for trial in loaded}
        self.set_state(state)
        ended = {name for name, t in self.trials.items() if t.status != TrialStatus.RUNNING}
        for trial_id in sorted(ended - set(self.end_order)):
            self.end_order.append(trial_id)  # The other way round when a trial ends.
            self.ended_after[trial_id] = self._earlier_seconds
        # Its worker was taken for dead, and has ended it before another began.
        self._retry_queue = [trial_id for trial_id in self._retry_queue if trial_id not in ended]
        running = {
            tuner_id: trial
            for tuner_id, trial in self.ongoing_trials.items()
            if trial.trial_id not in ended
        }
        self.ongoing_trials = running if self._remote else {}
        self.tuner_ids = set(self.ongoing_trials)  # Who are to be told when it has ended.
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
    """Trials by chance."""


class BayesianOptimizationOracle(Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    """Trials that a Gaussian process expects most of."""

    def populate_space(self, trial_id):
        # Of this trial alone: Keras Tuner does not save the state of its generator.
        self._random_state = np.random.RandomState(self.seed + len(self.trials))
        with threadpoolctl.threadpool_limits(1):  # Of small matrices; others wait for each other.
            response = super().populate_space(trial_id)
        if response["values"] and self._duplicate(response["values"]):
            return self._random_populate_space()
        return response


class HyperbandOracle(Durable, keras_tuner.oracles.HyperbandOracle):
    """Trials by chance, the better of which are trained for more epochs (Li et al., 2018)."""


class GridSearchOracle(Durable, keras_tuner.oracles.GridSearchOracle):
    """All trials, in order: the last setting changes first."""

    def populate_space(self, trial_id):
        # From the last trial alone: Keras Tuner does not save its own list.
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
