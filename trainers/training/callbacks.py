"""Keras callbacks: stop on NaN, back up the run at any step, take the time."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from pizza_steak.errors import UserError
from trainers.hardware import clusters, preemption
from trainers.runs import checkpoint
from trainers.runs.checkpoint import Progress, Saved
from trainers.runs.run_directory import Run


class StopOnNaN(keras.callbacks.Callback):
    """Ends training at a NaN or infinite loss, before other callbacks save the weights."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._check("loss", logs["loss"], f"by step {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" in logs:
            self._check("validation loss", logs["val_loss"], "at its end")

    def _check(self, name: str, value: float, where: str) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"{name} became {value} in epoch {self._epoch + 1}, {where}; "
                "try a lower --learning_rate"
            )


class KeepBest(keras.callbacks.Callback):
    """Saves the model after each epoch with the least validation loss so far.

    Without validation it saves the model after every epoch. Keras's ModelCheckpoint writes over the
    file that is there, so a full disk would leave no model.

    Args:
      save: Saves a model.
      least: The least validation loss of past epochs, or None.
    """

    def __init__(self, save: Callable[[keras.Model], None], least: float | None):
        super().__init__()
        self._save, self._least = save, least

    def on_epoch_end(self, epoch, logs=None):
        loss = logs.get("val_loss")
        if loss is None or self._least is None or loss < self._least:
            self._least = loss
            self._save(self.model)


class Backup(keras.callbacks.Callback):
    """Saves weights, optimizer, random states, metrics and progress, and resumes from any step.

    All of it is in one file (`checkpoint`) that is replaced as a whole. Keras's BackupAndRestore
    writes the progress to a second file, so a run that is killed between the two writes trains one
    epoch twice. It also restarts the epoch that was interrupted, and the patience of callbacks.

    This callback has to be the last one that changes the training. To resume within an epoch, call
    `fit` as for the whole epoch; `Executions` leaves out its first steps.

    Args:
      run: The run; None in a process of a cluster that is not the chief, to write nothing.
      saved: The state that the run is resumed from.
      logs: The logs of past epochs.
      patient: Callbacks that count epochs; they get the logs of past epochs when training begins.
      every_steps: The file is written after each epoch, and after this number of steps within one,
      every_seconds: or this number of seconds after it was last written.
      notice: When it is given, the callback finishes the step, writes the file and ends the
        training. In a cluster all processes end after the same step, whichever got the notice.
      cluster: The processes that train together.

    Attributes:
      start: The progress that the run is resumed from.
    """

    def __init__(
        self,
        run: Run | None,
        saved: Saved,
        logs: Sequence[Mapping[str, float]],
        patient: Iterable[keras.callbacks.Callback] = (),
        *,
        every_steps: float = math.inf,
        every_seconds: float = math.inf,
        notice: preemption.Notice | None = None,
        cluster: clusters.Cluster | None = None,
    ):
        super().__init__()
        self._run = run
        self._saved = saved
        self._logs = logs
        self.start = saved.progress
        self._patient = tuple(patient)
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._notice = notice or preemption.Notice()
        self._cluster = cluster
        self._training = clusters.Agreement(cluster)
        self._validation = clusters.Agreement(cluster)
        self._validating = False

    def on_train_begin(self, logs=None):
        for epoch, past in enumerate(self._logs):
            for callback in self._patient:
                callback.on_epoch_end(epoch, dict(past))
        self._saved_at = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if epoch == self.start.epochs and self._saved.content:
            # Not earlier: Keras resets the metrics, and a patient callback sets the learning rate.
            self._load()

    def on_train_batch_end(self, batch, logs=None):
        step = batch + 1
        late = time.monotonic() - self._saved_at >= self._every_seconds
        late, stop = self._training.reached(late, self._notice.given)
        if step % self._every_steps == 0 or late or stop:
            self._save(Progress(self._epoch, step), self._metrics())
        if stop:
            self._notice.obey()

    def on_test_begin(self, logs=None):
        self._trained = self._metrics()  # Validation uses the same variables.
        self._validating = True

    def on_test_batch_begin(self, batch, logs=None):
        (stop,) = self._validation.reached(self._notice.given)
        if stop:
            self._save_trained()
            self._notice.obey()

    def on_test_end(self, logs=None):
        self._validating = False

    def after_failure(self) -> None:
        """Saves what was trained if it is the validation that has failed.

        In a cluster it saves nothing: to read all variables takes all processes.
        """
        if self._validating and self._cluster is None:
            self._save_trained()

    def on_epoch_end(self, epoch, logs=None):
        self._save(Progress(epoch + 1, stopped=bool(self.model.stop_training)))
        (stop,) = self._training.reached(self._notice.given, now=True)
        if stop:
            self._notice.obey()

    def _save_trained(self) -> None:
        """Saves the run as it was before the validation."""
        self._save(Progress(self._epoch, self.params["steps"]), self._trained)

    def _variables(self) -> list[keras.Variable]:
        """Returns all but those of the metrics; the model's include its random states."""
        return [*self.model.variables, *self.model.optimizer.variables]

    def _load(self) -> None:
        precision = self.model.dtype_policy.name
        before, metrics = checkpoint.restore(self._saved.content, precision, self._variables())
        self._saved = dataclasses.replace(self._saved, content=b"")  # As large as the model.
        if before != precision and self._run:
            logging.warning("the run was saved in %s and is resumed in %s", before, precision)
        if metrics is not None:
            self._load_metrics(metrics)

    def _save(self, progress: Progress, metrics: np.ndarray | None = None) -> None:
        self._saved_at = time.monotonic()
        if self._run:
            precision, variables = self.model.dtype_policy.name, self._variables()
            metrics_csv = self._run.metrics_csv.read_bytes().decode()
            # Validation may use an average of the weights.
            with self.model.averaged(False):
                checkpoint.write(
                    self._run.backup, progress, metrics_csv, precision, variables, metrics
                )

    def _metrics(self) -> np.ndarray:
        """Returns the metrics' variables of each replica, of shape (replicas, values).

        They are kept apart because floating-point sums depend on the order of the terms.
        """
        values = np.stack(self.model.distribute_strategy.experimental_local_results(self._read()))
        return values if self._cluster is None else self._cluster.rows_of_all(values)

    @functools.cached_property
    def _read(self) -> Callable[[], tf.Tensor]:
        def of_replica():
            return tf.concat([tf.reshape(v, [-1]) for v in self.model.metrics_variables], 0)

        return tf.function(lambda: self.model.distribute_strategy.run(of_replica))

    def _load_metrics(self, values: np.ndarray) -> None:
        strategy, variables = self.model.distribute_strategy, self.model.metrics_variables
        values = values.astype(variables[0].dtype)  # float64 of a run in that precision.
        if len(values) != strategy.num_replicas_in_sync:
            rest = np.zeros_like(values, shape=(strategy.num_replicas_in_sync - 1, len(values[0])))
            values = np.concatenate([values.sum(axis=0, keepdims=True), rest])

        def assign_in_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            parts = tf.split(tf.gather(values, replica), [math.prod(v.shape) for v in variables])
            for variable, part in zip(variables, parts, strict=True):
                variable.assign(tf.reshape(part, variable.shape))

        tf.function(lambda: strategy.run(assign_in_replica))()


class Clock(keras.callbacks.Callback):
    """Takes the time when training begins and when each epoch ends, with its validation.

    Attributes:
      seen_before: The number of images of the first epoch that were trained on before the run was
        resumed.
    """

    def __init__(self):
        super().__init__()
        self.seen_before = 0
        self._made = self._start = time.perf_counter()
        self._ends = [0.0]
        self._cpu_start = math.nan
        self._cpu_seconds = 0.0

    def on_train_begin(self, logs=None):
        if math.isnan(self._cpu_start):  # Else it is a later stage of the training.
            self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        self._ends.append(time.perf_counter() - self._start)
        self._cpu_seconds = time.process_time() - self._cpu_start

    def numbers(self, images_per_epoch: int) -> dict[str, Any]:
        """Returns the times for result.json; those of a resumed run since it was resumed."""
        _, *ends = self._ends
        seconds = self._ends[-1]
        images = len(ends) * images_per_epoch - self.seen_before
        return {
            "start_seconds": round(self._start - self._made, 3),
            "fit_seconds": round(seconds, 3),
            "fit_cpu_seconds": round(self._cpu_seconds, 3),
            "train_images_per_second": round(images / (seconds or 1), 1),
            "epoch_end_seconds": [round(end, 3) for end in ends],
        }
