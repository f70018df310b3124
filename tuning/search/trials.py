"""What a trial's process does: it trains a point of the search space, or resumes the training."""

import dataclasses
import pathlib
import shutil
import traceback
from collections.abc import Mapping
from typing import Any

from pizza_steak.errors import UserError
from pizza_steak.tensorflow_import import import_tensorflow, stderr_dropped

import_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorboard.plugins.hparams import api as hparams  # noqa: E402

from pizza_steak import atomic  # noqa: E402
from trainers.configuration import FitConfig  # noqa: E402
from trainers.hardware import devices  # noqa: E402
from trainers.runs import run_directory  # noqa: E402
from trainers.training import loop  # noqa: E402
from trainers.training.training import Training  # noqa: E402

_FAILURE = "failure.txt"
_LONGEST_REASON = 300  # TensorFlow's messages may be pages long.


@dataclasses.dataclass(frozen=True)
class Execution:
    """One training of a trial.

    Attributes:
      config: The flags of its run.
      epochs: The epoch after which it stops.
      earlier: The run directory of a shorter execution with the same settings, which it continues.
      settings: The settings that TensorBoard shows; None to log nothing.
      keep_backup: Whether another execution may continue this one.
    """

    config: FitConfig
    epochs: int
    earlier: pathlib.Path | None = None
    settings: Mapping[str, Any] | None = None
    keep_backup: bool = False

    @property
    def run(self) -> run_directory.Run:
        """The run, as far as it has come."""
        run_dir = self.config.run.run_dir
        assert run_dir  # Every trial has one.
        return run_directory.Run(pathlib.Path(run_dir))

    @property
    def failure(self) -> str | None:
        """The reason of a failure, in one line."""
        path = self.run.path / _FAILURE
        return path.read_text().splitlines()[0] if path.exists() else None

    def fail(self, reason: str, details: str = "") -> None:
        """Writes down a failure, so that the execution is not tried again."""
        self.run.path.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_path(self.run.path / _FAILURE) as temporary:
            temporary.write_text(f"{reason}\n{details}")


def train(execution: Execution) -> None:
    """Trains from the last finished epoch on; writes down a failure."""
    try:
        _train(execution)
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, (tf.errors.ResourceExhaustedError, MemoryError)):
            reason = f"out of memory: {reason}"
        elif not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
        execution.fail(reason[:_LONGEST_REASON], traceback.format_exc())


def fit(config: FitConfig) -> None:
    """Trains like `trainers.fit`, and prints its summary."""
    _see_devices()
    print(loop.fit(config).summary(), flush=True)


def _see_devices() -> None:
    with stderr_dropped():  # TensorFlow warns of missing GPUs.
        tf.config.list_physical_devices()


def _train(execution: Execution) -> None:
    run = run_directory.plan(execution.config)
    if run.finished:
        return
    _see_devices()
    chosen = devices.choose(execution.config.devices)
    trained = Training.prepare(execution.config, run, chosen)
    trained.start()
    if execution.earlier and not run.backup.exists():
        _copy_state(execution.earlier, run)
    logger = keras.callbacks.CSVLogger(run.path / "metrics.csv", append=True)
    trained.train(lambda stage: [logger], epochs=execution.epochs)
    if execution.settings is not None:
        _log_hparams(execution.settings, run)
    run.finish(trained.result(), keep_backup=execution.keep_backup)


def _copy_state(earlier: pathlib.Path, run: run_directory.Run) -> None:
    """Copies the finished epochs of another run; the backup comes last and makes them count."""
    before = run_directory.Run(earlier)
    shutil.copy(before.path / "metrics.csv", run.path / "metrics.csv")
    run.backup.parent.mkdir(exist_ok=True)
    with atomic.atomic_path(run.backup) as temporary:
        shutil.copy(before.backup, temporary)


def _log_hparams(settings: Mapping[str, Any], run: run_directory.Run) -> None:
    with tf.summary.create_file_writer(str(run.path / "tensorboard")).as_default():
        hparams.hparams(dict(settings), trial_id=run.path.name)
        for epoch, metrics in enumerate(run.logs):
            for name, value in metrics.items():
                tf.summary.scalar(name, value, step=epoch)
