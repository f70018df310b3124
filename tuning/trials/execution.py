"""What a trial's process does: it trains a point of the search space, or resumes the training."""

import dataclasses
import json
import math
import pathlib
import statistics
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from pizza_steak.errors import UserError, fault_of_the_machine, quoted
from pizza_steak.tensorflow_import import import_tensorflow, stderr_dropped

import_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorboard.plugins.hparams import api as hparams  # noqa: E402

from pizza_steak import atomic  # noqa: E402
from trainers.configuration import AveragingConfig, FitConfig  # noqa: E402
from trainers.finished import averaging  # noqa: E402
from trainers.hardware import devices  # noqa: E402
from trainers.runs import run_directory, run_files  # noqa: E402
from trainers.setup import Stage  # noqa: E402
from trainers.training import loop  # noqa: E402
from trainers.training.training import Training  # noqa: E402

_LONGEST_REASON = 300  # TensorFlow's messages may be pages long.
_SCORED_EPOCHS = 3
_LATENCY_BATCHES = 4


def score(values: Sequence[float]) -> float:
    """Returns the score of a trial: the mean of its objective over its last three epochs.

    The best epoch would be chosen by its noise, and it is not the epoch whose model is kept.
    """
    last = values[-_SCORED_EPOCHS:]
    return math.fsum(last) / len(last)


@dataclasses.dataclass(frozen=True)
class Pruning:
    """When to stop a trial early.

    Attributes:
      objective: The name of the objective.
      limits: The worst score allowed after each epoch; None where there is no limit.
      minimized: Whether a lower objective is better.
    """

    objective: str
    limits: Sequence[float | None]
    minimized: bool

    def stops(self, values: Sequence[float]) -> bool:
        """Returns whether a trial with these values of the objective, by epoch, stops here."""
        limit = self.limits[len(values) - 1] if len(values) <= len(self.limits) else None
        if limit is None:
            return False
        return score(values) > limit if self.minimized else score(values) < limit


@dataclasses.dataclass(frozen=True)
class Execution:
    """One training of a trial.

    Attributes:
      config: The flags of its run. A trial that hyperband promotes continues the run of the trial
        before it.
      name: The name of the file with the outcome.
      epochs: The epoch after which it stops.
      settings: The settings that TensorBoard shows; None to log nothing.
      keep_model: Whether to save the model of the last epoch.
      pruning: When to stop early; None for never.
    """

    config: FitConfig
    name: str
    epochs: int
    settings: Mapping[str, Any] | None = None
    keep_model: bool = False
    pruning: Pruning | None = None

    @property
    def run(self) -> run_directory.Run:
        """The run, as far as it has come."""
        run_dir = self.config.run.run_dir
        assert run_dir  # Every trial has one.
        return run_directory.Run(pathlib.Path(run_dir))

    @property
    def _file(self) -> pathlib.Path:
        return self.run.path.with_name(f"{self.name}.json")

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What came of it; None until it has ended.

        "failure" and "traceback" of a training that failed. Else "history" (the metrics by epoch),
        "seconds", "cpu_seconds", "parameters", "predict_cpu_ms" (CPU milliseconds an image, or
        None) and "pruned".

        Raises:
          UserError: The file is damaged.
        """
        if not self._file.exists():
            return None
        return run_files.read_json(self._file, run_files.OUTCOME)

    @property
    def failure(self) -> str | None:
        """The reason of a failure, in one line."""
        return (self.outcome or {}).get("failure")

    def end(self, outcome: Mapping[str, Any]) -> None:
        """Writes down the outcome, so that the execution is not tried again."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        atomic.remove_temporary(self._file.parent, self._file.name)
        with atomic.atomic_path(self._file) as temporary:
            temporary.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")

    def fail(self, reason: str, details: str = "") -> None:
        """Writes down a failure."""
        self.end({"failure": reason, "traceback": details})


def train(execution: Execution) -> None:
    """Trains from the last finished epoch on; writes down the outcome.

    Raises:
      Exception: A fault of the machine, such as a full disk, or an image that cannot be decoded: it
        is no verdict on the settings.
    """
    try:
        _train(execution)
    except Exception as error:
        if fault_of_the_machine(error):
            raise
        if unreadable := quoted(error):
            raise unreadable from error
        reason = " ".join(str(error).split())
        if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
            reason = f"out of memory: {reason}"
        elif not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
        execution.fail(reason[:_LONGEST_REASON], traceback.format_exc())


def fit(config: FitConfig) -> None:
    """Trains like `trainers.fit`."""
    _see_devices()
    loop.fit(config)


def average(config: AveragingConfig) -> None:
    """Averages runs like `trainers.average`."""
    _see_devices()
    averaging.average(config)


def _see_devices() -> None:
    with stderr_dropped():  # TensorFlow warns of missing GPUs.
        tf.config.list_physical_devices()


def _train(execution: Execution) -> None:
    run = run_directory.plan(execution.config)
    _see_devices()
    chosen = devices.choose(execution.config.devices)
    trained = Training.prepare(execution.config, run, chosen)
    trained.start()
    latency = _Latency(len(trained.ready.data.rows["validation"]))

    def logging(stage: Stage) -> list[keras.callbacks.Callback]:
        made: list[keras.callbacks.Callback] = [
            keras.callbacks.CSVLogger(run.path / "metrics.csv", append=True),
            latency,
        ]
        if execution.pruning:
            made.append(_Prune(execution.pruning, run))
        if execution.keep_model:
            made.append(_SaveLast(trained, stage, execution.epochs))
        return made

    trained.train(logging, epochs=execution.epochs)
    last = trained.ready.stages[-1]
    kept = trained.uses_features(last)
    if execution.keep_model and kept:
        trained.save_best_head(last)
    if execution.settings is not None:
        _log_hparams(execution.settings, run)
    result = trained.result()
    run.finish(result, keep_backup=True)
    history, pruning = result["history"], execution.pruning
    pruned = (
        pruning is not None
        and len(history["loss"]) < execution.epochs
        and pruning.stops(history[pruning.objective])
    )
    execution.end(
        {
            "seconds": round(result["start_seconds"] + result["fit_seconds"], 3),
            "cpu_seconds": result["fit_cpu_seconds"],
            "parameters": result["parameters"],
            "predict_cpu_ms": _whole_network(trained) if kept else latency.milliseconds,
            "pruned": pruned,
            "history": history,
        }
    )


class _Prune(keras.callbacks.Callback):
    """Stops the training when its score falls behind."""

    def __init__(self, pruning: Pruning, run: run_directory.Run):
        super().__init__()
        self._pruning = pruning
        self._values = [row[pruning.objective] for row in run.logs]

    def on_epoch_end(self, epoch, logs=None):
        self._values.append(logs[self._pruning.objective])
        if self._pruning.stops(self._values):
            self.model.stop_training = True


class _SaveLast(keras.callbacks.Callback):
    """Saves the model of the last epoch, which is the one that is scored."""

    def __init__(self, trained: Training, stage: Stage, epochs: int):
        super().__init__()
        self._trained, self._stage, self._epochs = trained, stage, epochs

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 != self._epochs and not self.model.stop_training:
            return
        self._trained.save(self._stage, self.model)


class _Latency(keras.callbacks.Callback):
    """Takes the CPU seconds of validations.

    Attributes:
      images: The number of validation images.
    """

    def __init__(self, images: int):
        super().__init__()
        self.images = images
        self._seconds: list[float] = []

    def on_test_begin(self, logs=None):
        self._start = time.process_time()

    def on_test_end(self, logs=None):
        self._seconds.append(time.process_time() - self._start)

    @property
    def milliseconds(self) -> float | None:
        """CPU milliseconds an image, or None; the first validation also builds the graph."""
        later = self._seconds[1:]
        return round(1000 * statistics.median(later) / self.images, 4) if later else None


_milliseconds: dict[str | None, float] = {}


def _whole_network(trained: Training) -> float:
    """Returns the CPU milliseconds an image of a network whose head alone is validated.

    A process measures it once for the same layers before the head, which take nearly all of it.
    """
    model, digest = trained.ready.network.model, trained.ready.network.digest
    if digest not in _milliseconds:
        data = trained.ready.data
        rows = data.rows["validation"][: _LATENCY_BATCHES * 32]
        images = data.pictures.gather(tf.constant(rows))
        predict = tf.function(lambda images: model(images, training=False))
        predict(images[:32])
        start = time.process_time()
        for first in range(0, len(rows), 32):
            predict(images[first : first + 32])
        _milliseconds[digest] = round(1000 * (time.process_time() - start) / len(rows), 4)
    return _milliseconds[digest]


def _log_hparams(settings: Mapping[str, Any], run: run_directory.Run) -> None:
    with tf.summary.create_file_writer(str(run.path / "tensorboard")).as_default():
        hparams.hparams(dict(settings), trial_id=run.path.name)
        for epoch, metrics in enumerate(run.logs):
            for name, value in metrics.items():
                tf.summary.scalar(name, value, step=epoch)
