"""How trials run: each training in a process of its own, here or in several workers."""

import contextlib
import json
import math
import os
import statistics
import threading
from collections.abc import Sequence

import keras_tuner
import tensorflow as tf
from absl import logging
from keras_tuner.engine.trial import Trial

from pizza_steak import atomic, cores
from pizza_steak.errors import UserError
from pizza_steak.tensorflow_import import stderr_dropped
from trainers.runs import run_directory, run_files
from tuning.configuration import SweepConfig
from tuning.trials import distribution, engine, execution, processes
from tuning.trials.execution import Execution, Pruning, score
from tuning.trials.plan import Plan

_STARTS_WITHOUT_AN_EPOCH = 5
_LEAST_TRIALS_OF_A_MEDIAN = 5


def prepare() -> None:
    """Makes this process ready to start trials, which may use the GPUs; it does not."""
    processes.prepare("tuning.trials.execution")
    with stderr_dropped():  # TensorFlow warns of missing GPUs.
        tf.config.set_visible_devices([], "GPU")


def run_trials(plan: Plan, oracle: engine.Durable, *, distributed: bool) -> None:
    """Runs all trials, in this process, in its own workers, or in workers elsewhere.

    Args:
      plan: The sweep.
      oracle: Chooses the trials.
      distributed: Whether the environment says that this process is a chief.

    Raises:
      UserError: All workers have died.
    """
    count = plan.config.search.workers
    if distributed:
        with distribution.serving(oracle, distribution.chief_address()):
            distribution.wait_for_workers(oracle)
    elif count > 1:
        with (
            distribution.private_address() as address,
            distribution.serving(oracle, address),
        ):
            own = [
                (
                    f"worker {number}",
                    processes.Process(_work, plan.config, f"worker {number}", address, number),
                )
                for number in range(1, count + 1)
            ]
            try:
                distribution.wait_for_workers(oracle, own)
            finally:
                for _, process in own:
                    process.kill()
    else:
        with Runner(plan) as runner:
            distribution.work(oracle, "worker", runner.run)


def _work(config: SweepConfig, worker: str, address: str, number: int) -> None:
    """Runs one of `--workers`, in a process of its own."""
    prepare()  # Its trials are forked from a server of its own.
    work(Plan.make(config), worker, address, number)


def work(plan: Plan, worker: str, address: str, number: int | None = None) -> str:
    """Runs trials for a chief until there are no more.

    Args:
      plan: The sweep.
      worker: The name of this worker.
      address: The address of the chief.
      number: The number of this worker, from 1, if there are several on this machine.

    Returns:
      A line that says how many trials ran.

    Raises:
      UserError: The chief's flags or images are others, or it does not answer.
    """
    with Runner(plan, number) as runner:
        if not plan.folder.ended:
            oracle = plan.make_oracle(remote=True)
            client = engine.Client(oracle, address, lambda: plan.folder.ended)
            with contextlib.suppress(engine.EndedError):
                client.get_trial("")  # Waits for the chief, which writes its flags first.
                runner.check_same_sweep()
                distribution.work(client, worker, runner.run)
    return f"{worker}: {runner.ran} trials"


class Runner:
    """Trains trials, each execution in a process of its own.

    Where the last layers are all that is trained, one process trains them all: to build the layers
    before them would take longer than the training.

    Args:
      plan: The sweep.
      number: The number of this worker, from 1, if there are several on this machine.

    Attributes:
      ran: The number of trials.
    """

    def __init__(self, plan: Plan, number: int | None = None):
        self._plan = plan
        self._environment = (
            _share_of_the_machine(plan.config.search.workers, number) if number else {}
        )
        self._server = processes.Server(self._environment) if plan.space.has_heads_only else None
        self._flags = ""
        self.ran = 0

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._server:
            self._server.stop()

    def run(self, trial: Trial, unwanted: threading.Event | None = None) -> dict[str, float]:
        """Trains a trial of Keras Tuner.

        Args:
          trial: The trial.
          unwanted: Ends the training when it is set.

        Returns:
          The objective by its name: the trial's score, averaged over all executions.

        Raises:
          keras_tuner.errors.FailedTrialError: The trial failed; its outcome has the reason.
          processes.StoppedError: Nobody wants the trial any more.
          UserError: The sweep in the folder is another one.
        """
        self.check_same_sweep()
        self.ran += 1
        plan, objective = self._plan, self._plan.config.search.objective
        prunes = plan.config.search.prune == "median" and not engine.is_final(trial)
        results = []
        for one in plan.executions(trial, self._pruning() if prunes else None):
            # A worker that counts as dead may still be training it.
            with atomic.lock(one.run.path):
                self._train(one, unwanted)
            if one.failure:
                raise keras_tuner.errors.FailedTrialError(one.failure)
            assert one.outcome
            results.append(score(one.outcome["history"][objective]))
        return {objective: math.fsum(results) / len(results)}

    def check_same_sweep(self) -> None:
        """Checks that the chief has the flags and the images of this process.

        Raises:
          UserError: It has not.
        """
        folder = self._plan.folder
        if not folder.flags.exists():
            raise UserError(
                f"sweep_dir {folder.path}: is not the chief's; expected a folder that chief and "
                "workers share"
            )
        if self._flags != (flags := folder.flags.read_text(encoding="utf-8")):
            folder.check_same()
            self._flags = flags

    def _train(self, one: Execution, unwanted: threading.Event | None) -> None:
        if one.outcome:
            return
        if one.run.is_damaged:
            logging.warning("%s: its backup is damaged; it starts anew", one.run.path)
            one.run.remove()  # What it has trained, it trains again.
        if _starts_without_an_epoch(one.run) > _STARTS_WITHOUT_AN_EPOCH:
            one.fail(f"ended the sweep {_STARTS_WITHOUT_AN_EPOCH} times in its first epoch")
            return
        search = self._plan.config.search
        seconds = search.trial_timeout or search.time_budget
        limit = processes.Limit(seconds or None, unwanted)
        for again in (True, False):
            try:
                if self._server:
                    self._server.run(execution.train, one, limit=limit)
                else:
                    processes.run(execution.train, one, environment=self._environment, limit=limit)
            except processes.ProcessError as error:
                if again and str(error) == processes.KILLED:
                    continue  # Something else may have taken the memory: it resumes.
                one.fail(str(error))
            return

    def _pruning(self) -> Pruning:
        """Returns the median scores, by epoch, of the trials that have ended."""
        plan, objective = self._plan, self._plan.config.search.objective
        histories = [
            values
            for file in sorted((plan.folder.path / "trials").glob("*.json"))
            for outcome in [run_files.read_json(file, run_files.OUTCOME)]
            if (values := outcome.get("history", {}).get(objective))
        ]
        return Pruning(objective, medians(histories, plan.config.trial.min_epochs), plan.minimized)


def medians(histories: Sequence[Sequence[float]], first: int) -> list[float | None]:
    """Returns the median score after each epoch; None before an epoch and of too few trials.

    Args:
      histories: The objective by epoch, of each trial.
      first: The first epoch with a median, counted from 1.
    """
    found: list[float | None] = []
    for epochs in range(1, max(map(len, histories), default=0) + 1):
        scores = [score(values[:epochs]) for values in histories if len(values) >= epochs]
        known = epochs >= first and len(scores) >= _LEAST_TRIALS_OF_A_MEDIAN
        found.append(statistics.median(scores) if known else None)
    return found


def _share_of_the_machine(workers: int, number: int) -> dict[str, str]:
    """Returns environment variables that give a worker its share of the cores, and one GPU."""
    variables = {"TF_NUM_INTRAOP_THREADS": str(max(1, cores.count() // workers))}
    if gpus := len(tf.config.list_physical_devices("GPU")):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
        variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[(number - 1) % gpus]
    return variables


def _starts_without_an_epoch(run: run_directory.Run) -> int:
    """Counts a start of a run, and returns the starts since its last finished epoch."""
    path = run.path.with_name(f".{run.path.name}.starts")
    epochs, before = run.progress.epochs, [0, 0]
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
    starts = before[1] + 1 if before[0] == epochs else 1
    atomic.remove_temporary(path.parent, path.name)
    with atomic.atomic_path(path) as temporary:
        temporary.write_text(json.dumps([epochs, starts]), encoding="utf-8")
    return starts
