"""MixUp and CutMix: a training step mixes the images of its batch, and their labels."""

import keras
import tensorflow as tf

from pizza_steak.errors import UserError
from trainers.configuration import OptimisationConfig

# Added to the seed of the flags. `preprocessing` adds smaller numbers.
_MIXUP, _CUTMIX, _CHOICE = 4, 5, 6


class Mixing(keras.layers.Layer):
    """Mixes a batch by MixUp, by CutMix, or by one of the two that is drawn for each batch.

    Keras counts its random states among the variables of a model that has it as an attribute, so a
    backup saves them. Replicas draw the same numbers, and each mixes its own share of the batch.

    Args:
      layers: One or two of Keras's layers.
      num_classes: The number of classes C.
      seed: Seed of the choice between the layers.
    """

    def __init__(
        self, layers: list[keras.layers.MixUp | keras.layers.CutMix], num_classes: int, seed: int
    ):
        super().__init__(dtype=keras.config.floatx())
        # XLA has no kernel for TensorFlow's stateless_gamma, which Keras draws Beta(alpha, alpha)
        # with. Keras does not compile a model with XLA if a layer says so.
        self.supports_jit = False
        self._layers_to_mix = layers
        self._num_classes = num_classes
        self._seeds = keras.random.SeedGenerator(seed)

    def build(self, images_shape: tuple, labels_shape: tuple) -> None:
        for layer in self._layers_to_mix:
            layer.build(images_shape)

    def call(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes images and labels.

        Args:
          images: Of shape (B, H, W, C), values 0 to 255.
          labels: Class indices, of shape (B,).

        Returns:
          Images and labels of floats. For two classes the labels are the shares of class 1, of
          shape (B, 1); else the shares of all classes, of shape (B, C).
        """
        if self._num_classes == 2:
            labels = keras.ops.cast(labels, self.compute_dtype)[:, None]
        else:
            labels = keras.ops.one_hot(labels, self._num_classes, dtype=self.compute_dtype)
        mixed = []
        for layer in self._layers_to_mix:
            drawn = layer.get_random_transformation(images)
            mixed.append(
                (layer.transform_images(images, drawn), layer.transform_labels(labels, drawn))
            )
        if len(mixed) == 1:
            return mixed[0]
        first = keras.random.uniform((), seed=self._seeds) < 0.5
        (images, others), (labels, other_labels) = zip(*mixed, strict=True)
        return keras.ops.where(first, images, others), keras.ops.where(first, labels, other_labels)


def classes_of(labels: tf.Tensor) -> tf.Tensor:
    """Returns the class of the greater share, of shape (B,), of labels that `Mixing` returns."""
    if labels.shape[-1] == 1:
        return keras.ops.cast(labels[:, 0] > 0.5, labels.dtype)
    return keras.ops.cast(keras.ops.argmax(labels, axis=-1), labels.dtype)


def check(config: OptimisationConfig, jit_compile: bool | str) -> None:
    """Checks that the other flags allow the mixing that the flags ask for.

    Raises:
      UserError: They do not.
    """
    asked = [name for name in ("mixup", "cutmix") if getattr(config, name) is not None]
    if asked and config.class_weight:
        raise UserError(
            f"class_weight: weights an image by its class, but --{asked[0]} gives it a share of "
            "two; expected one of the two flags"
        )
    if asked and jit_compile is True:
        raise UserError(
            f"jit_compile: XLA cannot draw the random numbers of --{asked[0]}; expected no "
            "--jit_compile=on"
        )


def mixing_of(config: OptimisationConfig, num_classes: int) -> Mixing | None:
    """Returns the mixing that the flags ask for, or None."""
    dtype, seed = keras.config.floatx(), config.seed
    layers: list[keras.layers.MixUp | keras.layers.CutMix] = []
    if config.mixup is not None:
        layers.append(keras.layers.MixUp(config.mixup, seed=seed + _MIXUP, dtype=dtype))
    if (alpha := config.cutmix) is not None:
        # Given one number, Keras draws alpha between 0 and it.
        layers.append(keras.layers.CutMix((alpha, alpha), seed=seed + _CUTMIX, dtype=dtype))
    return Mixing(layers, num_classes, seed + _CHOICE) if layers else None
