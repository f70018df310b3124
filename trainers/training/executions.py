"""Runs several steps of a training in one call of TensorFlow, and calls callbacks after it."""

import math
import time
from collections.abc import Sequence
from typing import Any

import keras

from trainers.models.steps import Steps

# Seconds that a call takes, and by what factor the number of its steps may grow.
_SECONDS, _GROWTH = 0.1, 10


class Executions(keras.callbacks.CallbackList):
    """Callbacks that Keras's fit calls once for several steps, which run in one call of TensorFlow.

    Between two steps Python takes about as long as a GPU for a step of a small network. Keras's own
    `steps_per_execution` is a fixed number, which would cross the end of an epoch, and steps after
    which the run is to be saved.

    Args:
      callbacks: The callbacks.
      model: The compiled model.
      steps: The number of steps of an epoch, and of its validation.
      smaller: Whether the last batch of each is smaller than the others.
      at_once: The number of steps in a call; None for as many as take 0.1 s.
      every_steps: No call goes beyond a step whose number this divides.
      training: Runs training steps; by default new ones, which TensorFlow has to trace.
      start: The epoch whose first steps are left out, because a resumed run has trained them, and
        how many these are. It needs batches that start after them.
      epochs: The epoch to stop before.
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        *,
        steps: tuple[int, int],
        smaller: tuple[bool, bool],
        at_once: int | None,
        every_steps: float = math.inf,
        training: Steps | None = None,
        start: tuple[int, int] = (0, 0),
        epochs: int,
    ):
        self._start = start
        training = training or Steps(model, model.train_step)
        validation = Steps(model, model.test_step)
        smaller = smaller if model.jit_compile else (False, False)
        self._training = _Pass(training, steps[0], smaller[0], at_once, every_steps)
        self._validation = _Pass(validation, steps[1], smaller[1], at_once)
        super().__init__(callbacks, add_history=True, model=model, epochs=epochs, steps=steps[0])

    def on_train_begin(self, logs=None):
        self.model.train_function = self._training
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)  # It may load the metrics.
        first, left_out = self._start
        self._training.begin(
            self.model.get_metrics_result(), left_out=left_out if epoch == first else 0
        )

    def on_train_batch_begin(self, batch, logs=None):
        if self._training.starts():
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        if self._training.ends():
            super().on_train_batch_end(batch, self._training.logs)

    def on_test_begin(self, logs=None):
        self.model.test_function = self._validation
        self._validation.begin({})
        super().on_test_begin(logs)

    def on_test_batch_begin(self, batch, logs=None):
        if self._validation.starts():
            super().on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        if self._validation.ends():
            super().on_test_batch_end(batch, self._validation.logs)

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self.model.train_function = self.model.test_function = None


class _Pass:
    """The function that Keras calls for each step of a pass over batches.

    It runs the steps of an execution in the call for the last of them.

    Attributes:
      logs: The metrics after the last execution.
    """

    def __init__(
        self,
        run: Steps,
        steps: int,
        last_is_smaller: bool,
        at_once: int | None,
        every: float = math.inf,
    ):
        self._run, self._steps, self._last_is_smaller = run, steps, last_is_smaller
        self._adapts, self._at_once, self._every = at_once is None, at_once or 1, every
        self._traced: set[bool] = set()

    def begin(self, logs: dict[str, Any], *, left_out: int = 0) -> None:
        self.logs = logs
        self._done, self._first, self._end = 0, left_out, left_out

    def starts(self) -> bool:
        """Returns whether an execution starts with the next step."""
        if self._done != self._end:
            return False
        self._first = self._done
        ends = [self._first + self._at_once, self._steps]
        if self._last_is_smaller and self._first < self._steps - 1:
            ends.append(self._steps - 1)
        if self._every < math.inf:
            ends.append(int((self._first // self._every + 1) * self._every))
        self._end = min(ends)
        return True

    def __call__(self, batches: Any) -> dict[str, Any]:
        self._done += 1
        if self.ends():
            count = self._end - self._first
            smaller = self._last_is_smaller and self._end == self._steps
            start = time.perf_counter()
            logs = self._run(batches, count, smaller=smaller)
            # It waits for a GPU.
            self.logs = {name: float(value) for name, value in logs.items()}
            if self._adapts and smaller in self._traced:
                fitting = int(count * _SECONDS / (time.perf_counter() - start))
                self._at_once = max(1, min(fitting, _GROWTH * count))
            self._traced.add(smaller)
        return self.logs

    def ends(self) -> bool:
        """Returns whether the last step ended an execution."""
        return self._first < self._done == self._end
