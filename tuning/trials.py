"""What a trial's process does: train one point of the search space, or go on with it."""

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

_FAILURE = "failure.txt"
_LONGEST_REASON = 300  # TensorFlow's are pages long.


@dataclasses.dataclass(frozen=True)
class Execution:
    """One training of a trial.

    Attributes:
      config: The flags of its run.
      epochs: Where it stops.
      earlier: The run directory of one with the same settings that it goes on from.
      settings: What TensorBoard shows of it; None for nothing.
      keep_backup: Whether another may go on from it.
    """

    config: FitConfig
    epochs: int
    earlier: pathlib.Path | None = None
    settings: Mapping[str, Any] | None = None
    keep_backup: bool = False

    @property
    def run(self) -> run_directory.Run:
        """Its run, as far as it has come."""
        return run_directory.Run(pathlib.Path(self.config.run.run_dir))

    @property
    def failure(self) -> str | None:
        """Why it failed, in one line, if it did."""
        path = self.run.path / _FAILURE
        return path.read_text().splitlines()[0] if path.exists() else None

    def fail(self, reason: str, details: str = "") -> None:
        """Notes that it failed, so that it is not tried again."""
        self.run.path.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_path(self.run.path / _FAILURE) as temporary:
            temporary.write_text(f"{reason}\n{details}")


def train(execution: Execution) -> None:
    """Trains, from the last finished epoch on where there is one; notes a failure."""
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
    """`trainers.fit`, with what it tells on the way."""
    _see_devices()
    print(loop.fit(config).summary(), flush=True)


def _see_devices() -> None:
    with stderr_dropped():  # It tells of each GPU that is not there.
        tf.config.list_physical_devices()


def _train(execution: Execution) -> None:
    run = run_directory.plan(execution.config)
    if run.finished:
        return
    _see_devices()
    chosen = devices.choose(execution.config.devices)
    trained = loop.Training.prepare(execution.config, run, chosen)
    trained.start()
    if execution.earlier and not run.backup.exists():
        _go_on_from(execution.earlier, run)
    trained.train(
        [keras.callbacks.CSVLogger(run.path / "metrics.csv", append=True)], epochs=execution.epochs
    )
    if execution.settings is not None:
        _log_hparams(execution.settings, run)
    run.finish(trained.result(), keep_backup=execution.keep_backup)


def _go_on_from(earlier: pathlib.Path, run: run_directory.Run) -> None:
    """Takes over the epochs of another run; the backup last, which makes them count."""
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
