"""Runs steps of a model, one or many in a call of TensorFlow."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class Steps:
    """Runs steps of training or validation on batches; returns the metrics after the last of them.

    Keras's own function for `steps_per_execution` has a fixed number of steps, which would cross
    the end of an epoch. The steps compute the same, however many are in a call.

    With XLA, batches that are smaller than the others are computed without it: XLA compiles a step
    for each shape, which takes up to a minute for a large network.

    Args:
      model: A compiled model.
      step: Its `train_step` or `test_step`.
    """

    def __init__(self, model: keras.Model, step: Callable[[Any], Any]):
        self._whole = _loop(model, step, model.jit_compile)
        self._smaller = _loop(model, step, False) if model.jit_compile else self._whole

    def __call__(self, batches: Any, count: int, *, smaller: bool = False) -> dict[str, tf.Tensor]:
        """Takes some batches from an iterator.

        Args:
          batches: Iterator of a dataset, which may be dealt out to replicas.
          count: The number of steps.
          smaller: Whether these batches are smaller than the others.
        """
        return (self._smaller if smaller else self._whole)(batches, tf.constant(count))


def _loop(model: keras.Model, step: Callable[[Any], Any], jit_compile: bool) -> Callable:
    @tf.autograph.experimental.do_not_convert
    def on_batch(batch: Any) -> None:
        model.distribute_strategy.run(step, args=(batch,))

    on_batch = tf.function(on_batch, reduce_retracing=True, jit_compile=jit_compile)

    @tf.autograph.experimental.do_not_convert
    def run(batches: Any, count: tf.Tensor) -> dict[str, tf.Tensor]:
        def one_more(done: tf.Tensor) -> tf.Tensor:
            on_batch(batches.get_next())
            return done + 1

        tf.while_loop(lambda done: done < count, one_more, [0], parallel_iterations=1)
        return model.get_metrics_result()

    return tf.function(run, reduce_retracing=True)
