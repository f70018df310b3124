"""How trials run: each training in a process of its own, here or in several workers."""

import json
import math
import os

import keras_tuner
import tensorflow as tf
from keras_tuner.engine.trial import Trial

from pizza_steak import atomic
from pizza_steak.tensorflow_import import stderr_dropped
from trainers.runs import run_directory
from tuning.configuration import SweepConfig
from tuning.search import distribution, oracles, processes, trials
from tuning.search.plan import Plan

_STARTS_WITHOUT_AN_EPOCH = 5


def prepare() -> None:
    """Makes this process ready to start trials, which may use the GPUs; it does not."""
    processes.prepare("tuning.search.trials")
    with stderr_dropped():  # TensorFlow warns of missing GPUs.
        tf.config.set_visible_devices([], "GPU")


def run_trials(plan: Plan, oracle: oracles.Durable, *, distributed: bool) -> None:
    """Runs all trials, in this process, in its own workers, or in workers elsewhere.

    Args:
      plan: The search.
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
        with distribution.serving(oracle, "localhost:0") as port:
            own = [
                (
                    f"worker {number}",
                    processes.Process(
                        _work, plan.config, f"worker {number}", f"localhost:{port}", number
                    ),
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
            distribution.Tuner(oracle, plan.folder.path, runner.run, "worker").search()


def _work(config: SweepConfig, worker: str, address: str, number: int) -> None:
    """Runs one of `--workers`, in a process of its own."""
    prepare()  # Its trials are forked from a server of its own.
    work(Plan.make(config), worker, address, number)


def work(plan: Plan, worker: str, address: str, number: int | None = None) -> str:
    """Runs trials for a chief until there are no more.

    Args:
      plan: The search.
      worker: The name of this worker.
      address: The address of the chief.
      number: The number of this worker, from 1, if there are several on this machine.

    Returns:
      A line that says how many trials ran.
    """
    oracle = oracles.make(plan.config, plan.space, remote=True)
    with Runner(plan, number) as runner:
        distribution.Tuner(oracle, plan.folder.path, runner.run, worker, address).search()
    return f"{worker}: {runner.ran} trials"


class Runner:
    """Trains trials, each execution in a process of its own.

    Where the last layers are all that is trained, one process trains them all: to build the layers
    before them would take longer than the training.

    Args:
      plan: The search.
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
        self.ran = 0

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._server:
            self._server.stop()

    def run(self, trial: Trial) -> dict[str, float]:
        """Trains a trial of Keras Tuner.

        Returns:
          The objective by its name: the value of the best epoch, averaged over all executions.

        Raises:
          keras_tuner.errors.FailedTrialError: The trial failed; its run directory has the reason.
        """
        self.ran += 1
        plan, objective = self._plan, self._plan.config.search.objective
        results = []
        for execution in plan.executions(trial):
            # A worker that counts as dead may still be training it.
            with atomic.lock(execution.run.path):
                self._train(execution)
            if execution.failure:
                raise keras_tuner.errors.FailedTrialError(execution.failure)
            history = execution.run.result["history"][objective]
            results.append(min(history) if plan.minimized else max(history))
        return {objective: math.fsum(results) / len(results)}

    def _train(self, execution: trials.Execution) -> None:
        if execution.failure or execution.run.finished:
            return
        if _starts_without_an_epoch(execution.run) > _STARTS_WITHOUT_AN_EPOCH:
            execution.fail(f"ended the search {_STARTS_WITHOUT_AN_EPOCH} times in its first epoch")
            return
        try:
            if self._server:
                self._server.run(trials.train, execution)
            else:
                processes.run(trials.train, execution, environment=self._environment)
        except processes.ProcessError as error:
            execution.fail(str(error))


def _share_of_the_machine(workers: int, number: int) -> dict[str, str]:
    """Returns environment variables that give a worker its share of the cores, and one GPU."""
    variables = {"TF_NUM_INTRAOP_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    if gpus := len(tf.config.list_physical_devices("GPU")):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
        variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[(number - 1) % gpus]
    return variables


def _starts_without_an_epoch(run: run_directory.Run) -> int:
    """Counts a start of a run, and returns the starts since its last finished epoch."""
    path = run.path.with_name(f".{run.path.name}.starts")
    epochs, before = run.progress.epochs, [0, 0]
    if path.exists():
        before = json.loads(path.read_text())
    starts = before[1] + 1 if before[0] == epochs else 1
    with atomic.atomic_path(path) as temporary:
        temporary.write_text(json.dumps([epochs, starts]))
    return starts
