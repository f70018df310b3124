"""The models that are trained: what Keras lacks for honest losses and for several replicas."""

import math
from typing import Any

import keras
import tensorflow as tf


class TrainedModel(keras.Model):
    """A functional model that is validated by the loss that it is tested by.

    Label smoothing is for training alone: `plain_loss` is the loss without it. `save` writes the
    plain model, with that loss, which loads anywhere.
    """

    plain_loss: keras.losses.Loss | None = None

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if training or self.plain_loss is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        return self.plain_loss(y, y_pred, sample_weight)

    def save(self, *arguments: Any, **options: Any) -> None:
        network = keras.Model(self.input, self.output, name=self.name)
        metrics = self.get_compile_config()["metrics"]
        network.compile(self.optimizer, self.plain_loss or self.loss, metrics=metrics)
        network.save(*arguments, **options)


class ReplicatedModel(TrainedModel):
    """A functional model whose replicas take the mean loss of all their examples together.

    A batch that does not divide by the replicas gives them shares of different sizes, or none. Of
    Keras's own step the gradient is then the mean of the replicas' means, in which the examples of
    a smaller share count more. And without examples oneDNN's convolutions are wrong in their shape:
    such a replica computes with a blank picture, which counts for nothing but in the statistics of
    a BatchNormalization.

    To be made, as any model, within the strategy's scope; its optimizer and metrics are to be built
    before `fit`.
    """

    def train_step(self, data):
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        context = tf.distribute.get_replica_context()
        count = tf.cast(tf.shape(images)[0], keras.config.floatx())
        share = count / context.all_reduce(tf.distribute.ReduceOp.SUM, count)
        with tf.GradientTape() as tape:
            outputs = self._predicted(images, training=True)
            loss = self._mean_loss(images, labels, weights, outputs, training=True)
            # The replicas' gradients are summed.
            scaled = self.optimizer.scale_loss(share * loss)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, variables)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _overflowing_together(gradients)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._logs(images, labels, weights, outputs, loss)

    def test_step(self, data):
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self._predicted(images, training=False)
        loss = self._mean_loss(images, labels, weights, outputs, training=False)
        return self._logs(images, labels, weights, outputs, loss)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing: all is built.

        Private to Keras, which sums the replicas' shares of the first batch to have one of its
        kind, and fails where they differ in size, or lie on several hosts (keras issue 20585).
        """

    def _predicted(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        count = tf.shape(images)[0]
        blank = tf.zeros([1, *images.shape[1:]], images.dtype)
        shown = tf.cond(count > 0, lambda: images, lambda: blank)
        return self(tf.ensure_shape(shown, [None, *images.shape[1:]]), training=training)[:count]

    def _mean_loss(self, images, labels, weights, outputs, training: bool) -> tf.Tensor:
        """Of this replica's examples; Keras multiplies it by this inverse, in float32."""
        loss = self.compute_loss(images, labels, outputs, weights, training)
        return loss / keras.ops.cast(
            1.0 / self.distribute_strategy.num_replicas_in_sync, loss.dtype
        )

    def _logs(self, images, labels, weights, outputs, loss: tf.Tensor) -> dict[str, tf.Tensor]:
        loss_metric = next(metric for metric in self.metrics if metric.name == "loss")
        loss_metric.update_state(loss, sample_weight=tf.shape(images)[0])
        logs = self.compute_metrics(images, labels, outputs, weights)
        if isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            # Keras takes the mean along the first axis, which a number has not (issue 20585).
            return {name: value[tf.newaxis] for name, value in logs.items()}
        return logs


def _overflowing_together(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients that are NaN on all replicas where they are not finite on one.

    Keras's loss scaling leaves a step out by the gradients of the first replica alone, before they
    are summed: an overflow on another would end in the weights.
    """
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    overflow = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, tf.where(finite, 0.0, math.nan)
    )
    return [gradient + tf.cast(overflow, gradient.dtype) for gradient in gradients]
