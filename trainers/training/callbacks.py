"""Keras callbacks for what Keras's own do not do."""

import dataclasses
import functools
import io
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from pizza_steak.atomic import atomic_path
from pizza_steak.errors import UserError
from trainers.hardware import clusters, preemption


class StopOnNaN(keras.callbacks.Callback):
    """Ends training where the loss is no number any more, before anything saves such weights."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._check("loss", logs["loss"], f"step {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" in logs:
            self._check("validation loss", logs["val_loss"], "at its end")

    def _check(self, name: str, value: float, where: str) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"{name} became {value} in epoch {self._epoch + 1}, {where}; "
                "try a lower --learning_rate"
            )


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
      epochs: Those that are finished.
      step: Steps of the epoch after them; all of them while it is validated.
      stopped: Whether a callback ended the training.
    """

    epochs: int = 0
    step: int = 0
    stopped: bool = False


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a run had come to when it was last saved.

    Attributes:
      progress: How far.
      logs: Those of each finished epoch.
      content: Of the file of a `Backup`.
    """

    progress: Progress = Progress()
    logs: tuple[Mapping[str, float], ...] = ()
    content: bytes = b""


class Backup(keras.callbacks.Callback):
    """Keeps weights, optimizer, random states, metrics and progress, to go on from at any step.

    All in one file that is replaced as a whole. Keras's BackupAndRestore writes the progress into a
    second file, and a run that is killed between the two trains an epoch twice; it begins the epoch
    anew where it was killed within one, as it does the patience of other callbacks. Has to be the
    last callback that changes the training.

    Where what was saved is of the middle of an epoch, `fit` is to be called as for the whole epoch,
    but with batches that begin at its next step: the steps before are counted and not made.

    Args:
      path: The file; None writes none, in a process that is not the cluster's chief.
      saved: What the run goes on from.
      patient: Callbacks that count epochs; they are told the logs when training begins.
      every_steps: It is written after each epoch, and after so many steps within one,
      every_seconds: or so many seconds after it was last written.
      notice: When it is given, the step is finished, the file written, and the training ended; with
        a cluster one in any of its processes, which all end after one step.
      cluster: The processes that train together.

    Attributes:
      start: Where the run goes on.
    """

    def __init__(
        self,
        path: pathlib.Path | None,
        saved: Saved = Saved(),
        patient: Iterable[keras.callbacks.Callback] = (),
        *,
        every_steps: float = math.inf,
        every_seconds: float = math.inf,
        notice: preemption.Notice | None = None,
        cluster: clusters.Cluster | None = None,
    ):
        super().__init__()
        self._path = path
        self._saved = saved
        self.start = saved.progress
        self._patient = tuple(patient)
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._notice = notice or preemption.Notice()
        self._cluster = cluster
        self._training = clusters.Agreement(cluster)
        self._validation = clusters.Agreement(cluster)

    def on_train_begin(self, logs=None):
        for epoch, past in enumerate(self._saved.logs):
            for callback in self._patient:
                callback.on_epoch_end(epoch, dict(past))
        self._saved_at = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if epoch == self.start.epochs and self.start != Progress():
            # Now: Keras has reset the metrics, and a patient callback has set the learning rate.
            self._load()
            if self.start.step:
                self._pass_over(self.start.step)

    def on_train_batch_end(self, batch, logs=None):
        step = batch + 1
        if self._epoch == self.start.epochs and step <= self.start.step:
            return
        late = time.monotonic() - self._saved_at >= self._every_seconds
        late, stop = self._training.reached(late, self._notice.given)
        if step % self._every_steps == 0 or late or stop:
            self._save(Progress(self._epoch, step), self._metrics())
        if stop:
            self._notice.obey()

    def on_test_begin(self, logs=None):
        self._trained = self._metrics()  # Validation takes the variables.

    def on_test_batch_begin(self, batch, logs=None):
        (stop,) = self._validation.reached(self._notice.given)
        if stop:
            self._save(Progress(self._epoch, self.params["steps"]), self._trained)
            self._notice.obey()

    def on_epoch_end(self, epoch, logs=None):
        self._save(Progress(epoch + 1, stopped=bool(self.model.stop_training)))
        (stop,) = self._training.reached(self._notice.given, now=True)
        if stop:
            self._notice.obey()

    def _pass_over(self, steps: int) -> None:
        """Makes of the next steps' training nothing but the metrics that there are."""
        train, logs = self.model.train_function, self.model.get_metrics_result()
        left = iter(range(steps))

        def train_or_not(iterator):
            if next(left, None) is not None:
                return logs
            self.model.train_function = train
            return train(iterator)

        self.model.train_function = train_or_not

    def _variables(self) -> list[keras.Variable]:
        """All but those of the metrics; Keras counts random states among those of the model."""
        return [*self.model.variables, *self.model.optimizer.variables]

    def _load(self) -> None:
        variables = self._variables()
        with h5py.File(io.BytesIO(self._saved.content)) as file:
            for index, variable in enumerate(variables):
                variable.assign(file[str(index)][()])
            if self.start.step:
                self._load_metrics(file[str(len(variables))][()])
        self._saved = dataclasses.replace(self._saved, content=b"")  # As large as the model.

    def _save(self, progress: Progress, metrics: np.ndarray | None = None) -> None:
        self._saved_at = time.monotonic()
        if self._path is None:
            return
        self._path.parent.mkdir(exist_ok=True)
        with atomic_path(self._path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["progress"] = json.dumps(dataclasses.asdict(progress))
            values = [variable.numpy() for variable in self._variables()]
            for index, value in enumerate([*values, *([] if metrics is None else [metrics])]):
                file[str(index)] = value

    def _metrics(self) -> np.ndarray:
        """The values of the metrics' variables in each replica, of shape (replicas, values).

        Metrics are sums over all replicas, which in other parts would come to other bits.
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
        if len(values) != strategy.num_replicas_in_sync:
            rest = np.zeros_like(values, shape=(strategy.num_replicas_in_sync - 1, len(values[0])))
            values = np.concatenate([values.sum(axis=0, keepdims=True), rest])

        def assign_in_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            parts = tf.split(tf.gather(values, replica), [math.prod(v.shape) for v in variables])
            for variable, part in zip(variables, parts, strict=True):
                variable.assign(tf.reshape(part, variable.shape))

        tf.function(lambda: strategy.run(assign_in_replica))()


def saved_progress(path: pathlib.Path) -> Progress:
    """Of what a `Backup` last wrote to `path`; none without a file.

    Raises:
      UserError: The file is damaged.
    """
    if not path.exists():
        return Progress()
    try:
        with h5py.File(path) as file:
            return Progress(**json.loads(file.attrs["progress"]))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"backup {path}: damaged ({error}); pass --overwrite to start the run anew"
        ) from error


class Clock(keras.callbacks.Callback):
    """Notes when training begins, and when each epoch, its validation included, has ended.

    Attributes:
      seen_before: Pictures of the first of these epochs that were trained on before the run was
        resumed.
    """

    def __init__(self):
        super().__init__()
        self.seen_before = 0
        self._made = self._start = time.perf_counter()
        self._ends = [0.0]
        self._cpu_seconds = 0.0

    def on_train_begin(self, logs=None):
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        self._ends.append(time.perf_counter() - self._start)
        self._cpu_seconds = time.process_time() - self._cpu_start

    def numbers(self, pictures_an_epoch: int) -> dict[str, Any]:
        """The clock's part of result.json; of a resumed run, since it was resumed."""
        _, *ends = self._ends
        seconds = self._ends[-1]
        pictures = len(ends) * pictures_an_epoch - self.seen_before
        return {
            "start_seconds": round(self._start - self._made, 3),
            "fit_seconds": round(seconds, 3),
            "fit_cpu_seconds": round(self._cpu_seconds, 3),
            "train_images_per_second": round(pictures / (seconds or 1), 1),
            "epoch_end_seconds": [round(end, 3) for end in ends],
        }
