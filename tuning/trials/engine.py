"""Keras Tuner, with what it lacks: a sweep that is killed at any moment resumes unchanged.

All that is private of Keras Tuner, or mends it, is here; so it is pinned to Keras Tuner 1.4. Of
version 1.4.8:

- The lock of an oracle is never released when a method raises, and then all others wait for ever:
  `synchronized` has no `finally`.
- An oracle's files are written in place, and one after the other: `Durable.save` and `reload`.
- A worker that dies keeps its trial, and the chief waits for it: `Durable.take_back_lost`.
- Of several values of the objective the best one counts: here a trial reports one, its score.
- The consecutive failures that end a sweep raise an error before the trial is saved.
- Hyperband counts a failed trial as one that has not ended, so that fewer trials are promoted; its
  constructor takes neither the least epochs nor the most trials: `HyperbandOracle`.
- A grid search cannot be resumed, a Gaussian process resumes with other random numbers, and it may
  return to a point it has tried: `GridSearchOracle`, `BayesianOptimizationOracle`.
- Known points cannot be tried first, and networks that are too large for the images are tried:
  `Durable._random_values` and `_duplicate`.
- The client reads its address from the environment, and waits for a chief for an hour; it does not
  wait for one that is started again: `Client`.
"""

import copy
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import keras_tuner
import numpy as np
import threadpoolctl
from absl import logging
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_chief, oracle_client
from keras_tuner.src.engine import oracle as keras_tuner_oracle

from pizza_steak.atomic import atomic_path, remove
from pizza_steak.errors import UserError
from tuning.configuration import SweepConfig
from tuning.space.search_space import SearchSpace

_DEFAULT_TRIALS = 30
_MOST_FAILURES_IN_A_ROW = 5
_CALL_SECONDS = 10  # After which a client looks again whether the sweep has ended.
_CHIEF_SECONDS = 600.0
_FOLD = "tuner/fold"
_FINALIST = "tuner/finalist"
_Method = TypeVar("_Method", bound=Callable)


def synchronized(method: _Method) -> _Method:
    """Does what `keras_tuner.synchronized` does, and releases the lock if the method raises."""

    @functools.wraps(method)
    def call(self, *arguments, **options):
        return _locked(self, lambda: method(self, *arguments, **options))

    return call  # type: ignore[return-value]


def _locked(oracle: Any, call: Callable) -> Any:
    locks, holders = keras_tuner_oracle.LOCKS, keras_tuner_oracle.THREADS
    thread = threading.current_thread().name
    if holders[oracle] == thread:
        return call()
    with locks[oracle]:
        holders[oracle] = thread
        try:
            return call()
        except Exception as error:
            oracle.error = error
            raise
        finally:
            holders[oracle] = None


@dataclasses.dataclass(frozen=True)
class Finals:
    """How the best trials of a sweep compete.

    Attributes:
      count: The number of finalists; 1 for no finals.
      images: The number of validation images of each fold; the first is that of all trials.
      epochs: The epochs of the finals.
      reuse: Whether a trial of as many epochs is its own final on the first fold.
    """

    count: int = 1
    images: Sequence[int] = (1,)
    epochs: int = 1
    reuse: bool = True


@dataclasses.dataclass(frozen=True)
class Finalist:
    """A trial that competes in the finals.

    Attributes:
      trial: The trial.
      scores: Its score on each fold, by fold; less than all while finals run, or if one failed.
      pooled: The mean of the scores, weighted by the folds' images; None if one is missing.
    """

    trial: Trial
    scores: Mapping[int, float]
    pooled: float | None


class Durable(keras_tuner.Oracle):
    """A mixin for Keras Tuner's oracles.

    When the trials have ended, it hands out the finals: trials with the settings of the best ones,
    validated on other folds of the training images.

    Attributes:
      on_end: Called with each trial that has ended.
      ended_after: Seconds of the sweep until each trial ended, by its id.
      failures_in_a_row: The number of trials that have failed since the last success.
      most_trials: The most trials, without finals; None for any number.
      error: What a call from a worker raised, which the worker cannot mend.

    Args:
      fits: Returns whether hyperparameters, by name, can be tried.
      first: Hyperparameters to try first.
      most_trials: As the attribute.
      time_budget: Seconds of the sweep after which no trial starts.
      worker_timeout: Seconds of silence after which a worker's trial goes to another worker.
      remote: Whether workers may outlive this process and keep their trials.
      finals: How the best trials compete.
      **options: Arguments of Keras Tuner's oracle.
    """

    trials: dict[str, Trial]  # These three are attributes of Keras Tuner's oracle.
    ongoing_trials: dict[str, Trial]
    _retry_queue: list[str]

    def __init__(
        self,
        *,
        fits: Callable[[Mapping[str, Any]], bool],
        time_budget: float | None,
        worker_timeout: float,
        remote: bool,
        first: Sequence[Mapping[str, Any]] = (),
        most_trials: int | None = None,
        finals: Finals | None = None,
        **options: Any,
    ):
        super().__init__(
            **options,
            allow_new_entries=False,
            tune_new_entries=False,
            max_consecutive_failed_trials=None,  # It raises before it saves the trial.
        )
        self.max_trials = None  # It would count finals; `_over` does not.
        self.most_trials = most_trials
        self._fits = fits
        self._first = first
        self._first_tried = 0
        self._time_budget = time_budget
        self._worker_timeout = worker_timeout
        self._remote = remote
        self._finals = finals or Finals()
        self._next_final: dict[str, Any] | None = None
        self._max_collisions = 1000  # Counts networks that do not fit, too.
        self._started = time.monotonic()
        self._earlier_seconds = 0.0
        self._heard: dict[str, float] = {}
        self._exhausted = False
        self.on_end: Callable[[Trial], None] = lambda trial: None
        self.failures_in_a_row = 0
        self.ended_after: dict[str, float] = {}
        self.error: Exception | None = None
        self.verbose = 0

    @property
    def seconds(self) -> float:
        """The seconds of the sweep so far, without the time between a kill and the next start."""
        return self._earlier_seconds + time.monotonic() - self._started

    @property
    def finished(self) -> bool:
        """Whether nothing is left to try, and every worker that asked has been told so."""
        return _locked(self, self._finished)

    def _finished(self) -> bool:
        # A resumed sweep may have ended before; then no worker asks.
        over = self._exhausted or (self._over and not self._retry_queue and not self._missing)
        return over and not self.ongoing_trials and not self.tuner_ids

    @property
    def _limits(self) -> list[Any]:
        """What may change when a sweep goes on after its end."""
        return [self.most_trials, self._time_budget, self._finals.count, self._finals.epochs]

    @property
    def _over(self) -> bool:
        """Whether the flags' limits are reached."""
        started = sum(not is_final(trial) for trial in self.trials.values())
        enough = self.most_trials is not None and started >= self.most_trials
        return enough or (self._time_budget is not None and self.seconds >= self._time_budget)

    @property
    def hopeless(self) -> bool:
        """Whether so many trials have failed in a row that no more start."""
        return self.failures_in_a_row >= _MOST_FAILURES_IN_A_ROW

    @property
    def ranking(self) -> list[Trial]:
        """The completed trials, the best first: of those that share a run, the longest."""
        longest: dict[str, Trial] = {}
        for trial in self.trials.values():
            if trial.status == TrialStatus.COMPLETED and not is_final(trial):
                longest[run_of(trial)] = trial  # A later trial of a run is longer.
        return sorted(
            longest.values(),
            key=lambda trial: trial.score,
            reverse=self.objective.direction == "max",
        )

    @property
    def finalists(self) -> list[Finalist]:
        """The trials that compete in the finals, the best first; none if there are no finals."""
        if self._finals.count == 1 or len(self._finals.images) == 1:
            return []
        found = [self._finalist(trial) for trial in self.ranking[: self._finals.count]]
        sign = -1 if self.objective.direction == "max" else 1
        return sorted(found, key=lambda one: math.inf if one.pooled is None else sign * one.pooled)

    def _finalist(self, trial: Trial) -> Finalist:
        scores = {} if trial.score is None or not self.is_own_final(trial) else {0: trial.score}
        for final in self.trials.values():
            if self._is_final_of(final, trial) and final.status == TrialStatus.COMPLETED:
                scores[final.hyperparameters.values[_FOLD]] = final.score
        images, pooled = self._finals.images, None
        if len(scores) == len(images):
            pooled = math.fsum(n * scores[fold] for fold, n in enumerate(images)) / sum(images)
        return Finalist(trial, scores, pooled)

    def is_own_final(self, trial: Trial) -> bool:
        """Returns whether a trial was trained as finals are, on their first fold."""
        epochs = trial.hyperparameters.values.get("tuner/epochs", self._finals.epochs)
        return self._finals.reuse and epochs == self._finals.epochs

    def _is_final_of(self, final: Trial, trial: Trial) -> bool:
        values = final.hyperparameters.values
        same = values.get(_FINALIST) == run_of(trial)
        return same and values["tuner/epochs"] == self._finals.epochs

    @property
    def _missing(self) -> list[dict[str, Any]]:
        """The hyperparameters of the finals that have not begun."""
        missing = []
        for one in self.finalists:
            begun = {
                final.hyperparameters.values[_FOLD]
                for final in self.trials.values()
                if self._is_final_of(final, one.trial)
            }
            own = {0} if self.is_own_final(one.trial) else set()
            settings = {
                name: value
                for name, value in one.trial.hyperparameters.values.items()
                if not name.startswith("tuner/")
            }
            missing += [
                settings
                | {_FINALIST: run_of(one.trial), _FOLD: fold, "tuner/epochs": self._finals.epochs}
                for fold in range(len(self._finals.images))
                if fold not in begun | own
            ]
        return missing

    @property
    def best_trial(self) -> Trial | None:
        """The trial with the best settings: the best finalist, or else the best trial."""
        complete = [one.trial for one in self.finalists if one.pooled is not None]
        ranking = self.ranking
        if self._finals.count == 1:  # A trial of all epochs has been trained as the winner will be.
            ranking = [trial for trial in ranking if self.is_own_final(trial)] or ranking
        return next(iter(complete or ranking), None)

    @synchronized
    def create_trial(self, tuner_id):
        self.take_back_lost()
        self._heard[tuner_id] = time.monotonic()
        trial = self.ongoing_trials.get(tuner_id)
        if not trial and not self.hopeless and (self._retry_queue or not self._over):
            trial = super().create_trial(tuner_id)
        searching = any(not is_final(trial) for trial in self.ongoing_trials.values())
        # Hyperband says to wait while any trial runs, finals too.
        waits_for_finals = trial and trial.status == TrialStatus.IDLE and not searching
        if trial is None or trial.status == TrialStatus.STOPPED or waits_for_finals:
            trial = self._create_final(tuner_id, searching)
        return trial

    def _create_final(self, tuner_id: str, searching: bool) -> Trial:
        """Returns a final; or an empty trial, which says to wait or to stop.

        Args:
          tuner_id: The worker that asks.
          searching: Whether a trial that is no final runs.
        """
        if not searching and not self.hopeless and (missing := self._missing):
            self._next_final = missing[0]
            try:
                return super().create_trial(tuner_id)
            finally:
                self._next_final = None
        status = TrialStatus.STOPPED
        self.tuner_ids.discard(tuner_id)
        if self.ongoing_trials:  # If its worker dies, this worker gets the trial.
            status = TrialStatus.IDLE
            self.tuner_ids.add(tuner_id)
        if self._exhausted != (not self.ongoing_trials):
            self._exhausted = not self.ongoing_trials
            if self.trials:
                self.save()
        return Trial(self.get_space(), trial_id="", status=status)

    def populate_space(self, trial_id):
        if self._next_final is not None:
            return {"status": TrialStatus.RUNNING, "values": self._next_final}
        return self._populate(trial_id)

    def _populate(self, trial_id: str) -> dict[str, Any]:
        """Returns what Keras Tuner's `populate_space` does without finals."""
        trials = self.trials
        self.trials = {name: trial for name, trial in trials.items() if not is_final(trial)}
        try:
            return super().populate_space(trial_id)
        finally:
            self.trials = trials

    @synchronized
    def take_back_lost(self) -> list[str]:
        """Takes the trials of silent workers, for others; returns the names of these workers."""
        now = time.monotonic()
        known = {*self.tuner_ids, *self.ongoing_trials}
        lost = [name for name in known if now - self._heard[name] > self._worker_timeout]
        for tuner_id in lost:
            self.take_back(tuner_id)
        return lost

    @synchronized
    def take_back(self, tuner_id: str) -> None:
        """Takes the trial of a dead worker; the next worker that asks gets it."""
        self.tuner_ids.discard(tuner_id)
        if trial := self.ongoing_trials.pop(tuner_id, None):
            self._retry_queue.append(trial.trial_id)
            self.save()

    @synchronized
    def get_trial(self, trial_id):
        """Returns a trial, and notes that its worker lives.

        A trial that does not exist is one of a sweep that was replaced; its status is "STOPPED".
        """
        for tuner_id, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:
                self._heard[tuner_id] = time.monotonic()
        if trial_id not in self.trials:
            return Trial(self.get_space(), trial_id=trial_id, status=TrialStatus.STOPPED)
        return super().get_trial(trial_id)

    @synchronized
    def update_trial(self, trial_id, metrics, step=0):
        trial = self.get_trial(trial_id)
        if trial.status != TrialStatus.RUNNING or trial.metrics.exists(self.objective.name):
            return trial  # Keras Tuner would take the mean of what was told twice.
        return super().update_trial(trial_id, metrics, step)

    @synchronized
    def end_trial(self, trial):
        if trial.trial_id not in self.trials or trial.trial_id in self.end_order:
            return  # Of a sweep that was replaced; or another worker has ended the trial.
        self.ended_after[trial.trial_id] = self.seconds
        super().end_trial(trial)
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)
        ended = self.trials[trial.trial_id]
        if not is_final(ended):
            failed = ended.status != TrialStatus.COMPLETED
            self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        self.on_end(ended)

    def _random_values(self):
        while self._first_tried < len(self._first):
            values = dict(self._first[self._first_tried])
            self._first_tried += 1
            if not self._duplicate(values):
                return values
        return super()._random_values()

    def _duplicate(self, values):
        return super()._duplicate(values) or not self._fits(values)

    @property
    def promotable(self) -> set[str]:
        """The runs that a later trial may continue."""
        return set()

    def get_state(self):
        return super().get_state() | {
            "seconds": self.seconds,
            "ended_after": self.ended_after,
            "first_tried": self._first_tried,
            "limits": self._limits if self._exhausted else None,
        }

    def set_state(self, state):
        super().set_state(state)
        self._earlier_seconds, self._started = state["seconds"], time.monotonic()
        self.ended_after = state["ended_after"]
        self._first_tried = state["first_tried"]
        self._exhausted = state["limits"] == self._limits

    def reload(self):
        """Restores the state that `save` wrote.

        Raises:
          OSError, ValueError or LookupError: The files are damaged.
        """
        folder = pathlib.Path(self._project_dir)
        state = json.loads((folder / "oracle.json").read_text(encoding="utf-8"))
        trials = {path.parent.name: path for path in folder.glob("trial_*/trial.json")}
        known = [f"trial_{trial_id}" for trial_id in state["start_order"]]
        for name in trials.keys() - set(known):
            # The trial is written before the state: the sweep was killed in between.
            remove(folder / name)
        self.trials = {
            trial_id: self._load(trial_id, folder / f"trial_{trial_id}" / "trial.json")
            for trial_id in state["start_order"]
        }
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
        self.tuner_ids = set(self.ongoing_trials)  # They have to be told the end of the sweep.
        self._heard = dict.fromkeys(self.ongoing_trials, time.monotonic())
        if not self._remote:
            self._retry_queue += [trial.trial_id for trial in running.values()]

    def _load(self, trial_id: str, path: pathlib.Path) -> Trial:
        try:
            return Trial.from_state(json.loads(path.read_text()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            logging.warning("%s is damaged: the trial counts as failed", path)
            message = "trial.json was damaged"
            return Trial(self.hyperparameters, trial_id, TrialStatus.FAILED, message)

    def save(self):
        self._write(pathlib.Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial):
        path = pathlib.Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        self._write(path, trial.get_state())

    @staticmethod
    def _write(path: pathlib.Path, state: dict[str, Any]) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")


def is_final(trial: Trial) -> bool:
    """Returns whether a trial is a final."""
    return _FOLD in trial.hyperparameters.values


def fold_of(trial: Trial) -> int:
    """Returns the fold of the training images that validates a trial; 0 is the validation split."""
    return int(trial.hyperparameters.values.get(_FOLD, 0))


def finalist_of(trial: Trial) -> str | None:
    """Returns the run whose settings a final has; None for other trials."""
    return trial.hyperparameters.values.get(_FINALIST)


def run_of(trial: Trial) -> str:
    """Returns the name of a trial's run: that of the first trial with this run."""
    return trial.hyperparameters.values.get("tuner/run", trial.trial_id)


class RandomSearchOracle(Durable, keras_tuner.oracles.RandomSearchOracle):
    """Chooses trials at random."""


class BayesianOptimizationOracle(Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    """Chooses the trials that a Gaussian process expects most of."""

    def _populate(self, trial_id):
        # The seed depends on the trial only: Keras Tuner does not save the generator's state.
        self._random_state = np.random.RandomState(self.seed + len(self.trials))
        if self._first_tried < len(self._first):
            return self._random_populate_space()
        with threadpoolctl.threadpool_limits(1):  # The matrices are small; threads only wait.
            response = super()._populate(trial_id)
        if response["values"] and self._duplicate(response["values"]):
            return self._random_populate_space()
        return response


class HyperbandOracle(Durable, keras_tuner.oracles.HyperbandOracle):
    """Chooses trials at random, and trains the better for more epochs (Li et al., 2018).

    Args:
      min_epochs: The least epochs of a trial.
      **options: Arguments of `Durable` and of Keras Tuner's oracle.
    """

    def __init__(self, *, min_epochs: int = 1, **options: Any):
        super().__init__(**options)
        # The constructor sets 1, and begins the first bracket with it.
        self.min_epochs = min_epochs
        self._current_bracket = self._get_num_brackets() - 1
        self._brackets: list[dict[str, Any]] = []
        self._start_new_bracket()

    hyperband_iterations: float  # An attribute of Keras Tuner's oracle.

    def set_state(self, state):
        iterations = self.hyperband_iterations  # They may change when a sweep is resumed.
        super().set_state(state)
        self.hyperband_iterations = iterations

    def _populate(self, trial_id):
        trials = self.trials
        # Keras Tuner waits until a round has more completed trials than it drops. A failed trial
        # is one of those to drop.
        self.trials = {name: self._as_the_worst(trial) for name, trial in trials.items()}
        try:
            response = super()._populate(trial_id)
        finally:
            self.trials = trials
        if earlier := (response.get("values") or {}).get("tuner/trial_id"):
            response["values"]["tuner/run"] = run_of(trials[earlier])
        return response

    def _as_the_worst(self, trial: Trial) -> Trial:
        if trial.status != TrialStatus.FAILED:
            return trial
        worst = copy.copy(trial)
        worst.status = TrialStatus.COMPLETED
        worst.score = -math.inf if self.objective.direction == "max" else math.inf
        return worst

    @property
    def promotable(self):
        found = set()
        for bracket in self._brackets:
            for number, (before, after) in enumerate(itertools.pairwise(bracket["rounds"]), 1):
                if len(after) == self._get_size(bracket["bracket_num"], number):
                    continue
                selected = {info["past_id"] for info in after}
                found |= {info["id"] for info in before} - selected
        trials = (self.trials[trial_id] for trial_id in found if trial_id in self.trials)
        return {run_of(trial) for trial in trials if trial.status == TrialStatus.COMPLETED}


class GridSearchOracle(Durable, keras_tuner.oracles.GridSearchOracle):
    """Runs all trials in order; the last setting changes first."""

    def _populate(self, trial_id):
        # The last trial determines the next: Keras Tuner does not save its own list.
        searched = [name for name in self.start_order if not is_final(self.trials[name])]
        if searched:
            values = self._get_next_combination(self.trials[searched[-1]].hyperparameters.values)
        else:
            values = self.get_space().values  # The defaults.
        while values is not None and not self._fits(values):
            values = self._get_next_combination(values)
        status = TrialStatus.STOPPED if values is None else TrialStatus.RUNNING
        return {"status": status, "values": values}


def make(
    config: SweepConfig,
    space: SearchSpace,
    *,
    remote: bool,
    first: Sequence[Mapping[str, Any]] = (),
    finals: Finals | None = None,
) -> Durable:
    """Returns the oracle that the flags ask for, at the start of a sweep.

    Args:
      config: The flags of the sweep.
      space: The search space.
      remote: Whether workers may outlive this process and keep their trials.
      first: Hyperparameters to try first.
      finals: How the best trials compete.
    """
    asked, trial = config.search, config.trial
    most = asked.max_trials
    if most is None and asked.tuner in ("random", "bayesian") and asked.time_budget is None:
        most = _DEFAULT_TRIALS  # These two never end by themselves.
    options = {
        "objective": asked.objective,
        "hyperparameters": space.hyperparameters.copy(),
        "seed": trial.seed + 1,  # Keras Tuner takes 0 for no seed.
        "fits": space.fits,
        "time_budget": asked.time_budget,
        "worker_timeout": asked.worker_timeout,
        "remote": remote,
        "first": first,
        "most_trials": most,
        "finals": finals,
    }
    if asked.tuner == "random":
        return RandomSearchOracle(**options)
    if asked.tuner == "grid":
        return GridSearchOracle(**options)
    if asked.tuner == "bayesian":
        # Keras Tuner's default, three for each setting, is often more than all trials.
        points = 3 * len(space.searched)
        points = max(3, points if most is None else min(points, most // 3))
        return BayesianOptimizationOracle(num_initial_points=points, **options)
    # Hyperband starts again and again if another limit ends the sweep.
    endless = asked.max_trials is not None or asked.time_budget is not None
    return HyperbandOracle(
        min_epochs=trial.min_epochs,
        max_epochs=trial.max_epochs,
        hyperband_iterations=None if endless else 1,
        **options,
    )


def add_to_server(oracle: Durable, server: grpc.Server) -> None:
    """Lets a gRPC server answer the calls of clients."""
    servicer = oracle_chief.OracleServicer(oracle)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)


class EndedError(Exception):
    """The sweep has ended, so no chief will answer."""


class Client(oracle_client.OracleClient):
    """Keras Tuner's client, for a chief that may be killed and started again at any moment.

    Args:
      oracle: An oracle with the objective of the chief's.
      address: The address of the chief.
      ended: Returns whether the sweep has ended; asked while the chief does not answer.
    """

    def __init__(self, oracle: Durable, address: str, ended: Callable[[], bool]):
        # Keras Tuner's constructor takes the address from the environment.
        self._oracle = oracle
        self._address, self._ended = address, ended
        self.multi_worker, self.should_report = False, True
        oracle_client.TIMEOUT = _CALL_SECONDS
        # Keras Tuner's channel retries after up to two minutes when the chief was away for long.
        options = [("grpc.max_reconnect_backoff_ms", 1000)]
        channel = grpc.insecure_channel(address, options=options)
        self.stub = protos.get_service_grpc().OracleStub(channel)

    def create_trial(self, tuner_id):
        return self._patiently(super().create_trial, tuner_id)

    def update_trial(self, trial_id, metrics, step=0):
        return self._patiently(super().update_trial, trial_id, metrics, step)

    def get_trial(self, trial_id):
        return self._patiently(super().get_trial, trial_id)

    def get_best_trials(self, num_trials=1):
        return self._patiently(super().get_best_trials, num_trials)

    def end_trial(self, trial):
        return self._patiently(super().end_trial, trial)

    def _patiently(self, call: Callable, *arguments: Any) -> Any:
        """Repeats a call while the chief is away; all calls may be repeated.

        Raises:
          EndedError: The sweep has ended.
          UserError: The chief has not answered for ten minutes.
        """
        start = time.monotonic()
        away = (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,  # The chief stopped during the call.
        )
        # The chief ends with the error that a call raised there.
        failed = grpc.StatusCode.UNKNOWN
        while True:
            try:
                return call(*arguments)
            except grpc.RpcError as error:
                if error.code() not in (*away, failed):
                    raise
                details = error.details()
            if self._ended():
                raise EndedError
            if time.monotonic() - start > _CHIEF_SECONDS:
                raise UserError(
                    f"chief {self._address}: has not answered for {_CHIEF_SECONDS / 60:.0f} "
                    f"minutes ({details}); start it, and then this worker again"
                )
            time.sleep(1)
