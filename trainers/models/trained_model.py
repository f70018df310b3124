"""The models that are trained: Keras's, with a plain validation loss, and for several replicas."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainers.models.mixing import Mixing, classes_of


class TrainedModel(keras.Model):
    """A functional model that trains with label smoothing and mixing, and validates without.

    `save` writes a plain Keras model, with `plain_loss`, which loads without this package.

    If the optimizer keeps an average of the weights (`use_ema`), `evaluate` and the methods that
    save use the average, and training continues with the weights. Keras's SwapEMAWeights is not
    exact: it swaps by adding and subtracting, which rounds both. It would also leave the average in
    place of the weights while a backup is written.

    Attributes:
      plain_loss: The loss for validation; None for the loss of training.
      gather: Turns the inputs of a training or validation step into images; None where the inputs
        are images. `predict` always takes images.
      mixing: Mixes the images and labels of a training step; None for no mixing.
    """

    plain_loss: keras.losses.Loss | None = None
    gather: Callable[[Any], tf.Tensor] | None = None
    mixing: Mixing | None = None
    _trained_weights: list[np.ndarray] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Keras 3.12 does not count a layer that a functional model gets later among its layers.
        if name == "mixing" and value is not None and value not in self._flatten_layers():
            self._layers.append(value)

    def train_step(self, data):
        return super().train_step(self._mixed(self._gathered(data)))

    def test_step(self, data):
        return super().test_step(self._gathered(data))

    def _gathered(self, data):
        if self.gather is None:
            return data
        inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        return self.gather(inputs), labels, weights

    def _mixed(self, data):
        if self.mixing is None:
            return data
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        return *self.mixing(images, labels), weights

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not training and self.plain_loss is not None:
            return self.plain_loss(y, y_pred, sample_weight)
        # Keras smooths one-hot labels only. Mixed labels have that shape already.
        if isinstance(self.loss, keras.losses.CategoricalCrossentropy) and self.mixing is None:
            y = keras.ops.one_hot(y, y_pred.shape[-1])
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if len(y.shape) == 2 and self.mixing is not None:
            y = classes_of(y)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        with self.averaged(True):
            return super().evaluate(*arguments, **options)

    def save(self, *arguments: Any, **options: Any) -> None:
        network = keras.Model(self.input, self.output, name=self.name)
        metrics = self.get_compile_config()["metrics"]
        network.compile(self.optimizer, self.plain_loss or self.loss, metrics=metrics)
        with self.averaged(True):
            network.save(*arguments, **options)

    @contextlib.contextmanager
    def averaged(self, wanted: bool) -> Iterator[None]:
        """Within this block, the weights are their average if it is wanted, else those of training.

        They are those of training if the optimizer keeps no average.
        """
        before = self._trained_weights is not None
        self._set_averaged(wanted)
        try:
            yield
        finally:
            self._set_averaged(before)

    def _set_averaged(self, wanted: bool) -> None:
        if self._trained_weights is not None and not wanted:
            for variable, value in zip(
                self.trainable_variables, self._trained_weights, strict=True
            ):
                variable.assign(value)
            self._trained_weights = None
        # There is no average before the first step, nor where float16 has overflowed in all steps.
        optimizer = _unscaled(self.optimizer)
        has_average = optimizer.use_ema and optimizer.iterations.numpy() > 0
        if self._trained_weights is None and wanted and has_average:
            self._trained_weights = [v.numpy() for v in self.trainable_variables]
            optimizer.finalize_variable_values(self.trainable_variables)


class ReplicatedModel(TrainedModel):
    """A functional model whose loss is the mean over the examples of all replicas.

    If the replicas do not divide a batch, their shares differ in size, and some may be empty. The
    gradient of Keras's own step is the mean of the replicas' means, which gives the examples of a
    smaller share more weight. On an empty share, oneDNN's convolutions return a wrong shape. A
    replica without examples therefore computes with a blank image, which counts in nothing but the
    statistics of a BatchNormalization.

    Make it within the strategy's scope, and build its optimizer and metrics before `fit`.
    """

    def train_step(self, data):
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(
            self._mixed(self._gathered(data))
        )
        context = tf.distribute.get_replica_context()
        count = tf.cast(tf.shape(images)[0], keras.config.floatx())
        # Where all shares are empty, the gradient is 0.
        share = tf.math.divide_no_nan(count, context.all_reduce(tf.distribute.ReduceOp.SUM, count))
        with tf.GradientTape() as tape:
            outputs = self._predicted(images, training=True)
            loss = self._mean_loss(images, labels, weights, outputs, training=True)
            # The replicas' gradients are summed.
            scaled = self.optimizer.scale_loss(share * loss)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _overflowing_together(gradients)
        gradients = self._clipped_together(gradients)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._logs(images, labels, weights, outputs, loss)

    def test_step(self, data):
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(self._gathered(data))
        outputs = self._predicted(images, training=False)
        loss = self._mean_loss(images, labels, weights, outputs, training=False)
        return self._logs(images, labels, weights, outputs, loss)

    def _clipped_together(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Returns gradients of each replica whose sum has at most the norm that is allowed.

        Keras's optimizers clip the gradients of each replica before they sum them. What this
        returns is too small for them to clip.
        """
        norm = _unscaled(self.optimizer).global_clipnorm
        if norm is None:
            return gradients
        replicas = self.distribute_strategy.num_replicas_in_sync
        context = tf.distribute.get_replica_context()
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        # The loss, and so the gradients, are scaled.
        limit = self.optimizer.scale_loss(norm)
        clipped, _ = tf.clip_by_global_norm(summed, tf.cast(limit, summed[0].dtype))
        return [gradient / replicas for gradient in clipped]

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing: all is built.

        Keras's own, a private method, sums the replicas' shares of the first batch, and fails if
        they differ in size or are on several hosts (keras issue 20585).
        """

    def _predicted(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        count = tf.shape(images)[0]
        blank = tf.zeros([1, *images.shape[1:]], images.dtype)
        shown = tf.cond(count > 0, lambda: images, lambda: blank)
        return self(tf.ensure_shape(shown, [None, *images.shape[1:]]), training=training)[:count]

    def _mean_loss(self, images, labels, weights, outputs, training: bool) -> tf.Tensor:
        """Returns the mean loss of this replica's examples.

        `compute_loss` divides it by the number of replicas; this undoes that with the same float32
        factor.
        """
        loss = self.compute_loss(images, labels, outputs, weights, training)
        return loss / keras.ops.cast(
            1.0 / self.distribute_strategy.num_replicas_in_sync, loss.dtype
        )

    def _logs(self, images, labels, weights, outputs, loss: tf.Tensor) -> dict[str, tf.Tensor]:
        loss_metric = next(metric for metric in self.metrics if metric.name == "loss")
        loss_metric.update_state(loss, sample_weight=tf.shape(images)[0])
        return self.compute_metrics(images, labels, outputs, weights)


def _unscaled(optimizer: Any) -> Any:
    """Returns the optimizer, without the LossScaleOptimizer around it in mixed_float16."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _overflowing_together(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns gradients that are NaN on all replicas if those of one replica are not finite.

    Keras's loss scaling looks at the first replica's gradients only, before they are summed, to
    decide whether to skip a step: an overflow on another replica would reach the weights.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    overflow = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, tf.where(finite, 0.0, math.nan)
    )
    return [gradient + tf.cast(overflow, gradient.dtype) for gradient in gradients]
