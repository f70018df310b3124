"""Keras callbacks for what Keras's own do not do."""

import json
import math
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import keras

from pizza_steak.atomic import atomic_path
from pizza_steak.errors import UserError

# Where a backup keeps the states of random generators, which Keras does not count as weights.
_STATES = "non_trainable_variables"


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


class Backup(keras.callbacks.Callback):
    """Keeps weights, optimizer, random states and the number of finished epochs, to go on from.

    All in one file that is replaced as a whole. Keras's BackupAndRestore writes the number into a
    second file, and a run that is killed between the two trains an epoch twice; it also starts the
    patience of other callbacks anew. Has to be the last callback that changes the training.

    Args:
      path: The file, its name ends with `.weights.h5`.
      history: Each finished epoch's logs, for `patient`.
      patient: Callbacks that count epochs; they are told `history` when training begins.

    Attributes:
      epochs: How many epochs have been finished before.
      stopped: Whether a callback ended the training after them.
    """

    def __init__(
        self,
        path: pathlib.Path,
        history: Iterable[Mapping[str, float]] = (),
        patient: Iterable[keras.callbacks.Callback] = (),
    ):
        super().__init__()
        self._path = path
        self._history = tuple(history)
        self._patient = tuple(patient)
        state = backup_state(path)
        self.epochs: int = state["epochs"]
        self.stopped: bool = state["stopped"]

    def on_train_begin(self, logs=None):
        if not self.epochs:
            return
        for epoch, past in enumerate(self._history):
            for callback in self._patient:
                callback.on_epoch_end(epoch, dict(past))
        # After them, because one of them sets the learning rate.
        self.model.load_weights(self._path)
        with h5py.File(self._path) as file:
            for index, variable in enumerate(self.model.non_trainable_variables):
                variable.assign(file[_STATES][str(index)][()])

    def on_epoch_end(self, epoch, logs=None):
        self._path.parent.mkdir(exist_ok=True)
        state = {"epochs": epoch + 1, "stopped": bool(self.model.stop_training)}
        with atomic_path(self._path) as temporary:
            self.model.save_weights(temporary)
            with h5py.File(temporary, "a") as file:
                file.attrs["state"] = json.dumps(state)
                for index, variable in enumerate(self.model.non_trainable_variables):
                    file[f"{_STATES}/{index}"] = variable.numpy()


def backup_state(path: pathlib.Path) -> dict[str, Any]:
    """What a `Backup` last wrote to `path`: {"epochs", "stopped"}; of no epochs without a file.

    Raises:
      UserError: The file is damaged.
    """
    if not path.exists():
        return {"epochs": 0, "stopped": False}
    try:
        with h5py.File(path) as file:
            return json.loads(file.attrs["state"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"backup {path}: damaged ({error}); pass --overwrite to start the run anew"
        ) from error


class Clock(keras.callbacks.Callback):
    """Notes when training begins, and when each epoch, its validation included, has ended."""

    def __init__(self):
        super().__init__()
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
        return {
            "start_seconds": round(self._start - self._made, 3),
            "fit_seconds": round(seconds, 3),
            "fit_cpu_seconds": round(self._cpu_seconds, 3),
            "train_images_per_second": round(len(ends) * pictures_an_epoch / (seconds or 1), 1),
            "epoch_end_seconds": [round(end, 3) for end in ends],
        }
