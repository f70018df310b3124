"""The networks, from raw images to probabilities: one function, and the sizes of each by name."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol, cast

import keras
import tensorflow as tf

from pizza_steak.errors import UserError
from trainers.configuration import ModelConfig

layers = keras.layers

# The defaults of the size flags, by model. In the chapter, these are model_1 and model_7, model_2,
# model_3, model_4, and model_5 and model_6.
SIZES = {
    # From the CNN Explainer, https://poloclub.github.io/cnn-explainer/
    "tinyvgg": {"blocks": 2, "convolutions": 2, "pool_size": 2, "dense_layers": 0},
    # From https://playground.tensorflow.org, for images.
    "playground": {"blocks": 0, "dense_layers": 2, "dense_units": 4},
    "dense": {"blocks": 0, "dense_layers": 3, "dense_units": 100},
    "conv3": {"blocks": 1, "convolutions": 3, "pool_size": 1, "dense_layers": 0},
    "conv3_pool": {"blocks": 3, "convolutions": 1, "pool_size": 2, "dense_layers": 0},
}
_COMMON_SIZES = {"filters": 10, "kernel_size": 3, "convolutions": 1, "pool_size": 1}
_COMMON_SIZES |= {"dense_units": 64}


class Sizes(Protocol):
    """A `ModelConfig` without a size that is None."""

    blocks: int
    convolutions: int
    filters: int
    filter_growth: float
    kernel_size: int
    padding: str
    pool_size: int
    global_pooling: bool
    batch_normalization: bool
    dense_layers: int
    dense_units: int
    dropout: float


def sizes_of(config: ModelConfig) -> Sizes:
    """Returns the configuration with the model's own size in place of each None.

    Raises:
      UserError: There is no such model.
    """
    if config.model not in SIZES:
        raise UserError(f"model {config.model!r}: unknown; expected one of {', '.join(SIZES)}")
    own = _COMMON_SIZES | SIZES[config.model]
    missing: dict[str, Any] = {
        name: size for name, size in own.items() if getattr(config, name) is None
    }
    return cast(Sizes, dataclasses.replace(config, **missing))


def fitting_sizes(config: ModelConfig, image_shape: tuple[int, int, int]) -> Sizes:
    """Returns what `sizes_of` does, for images of this height, width and number of channels.

    Raises:
      UserError: There is no such model, or the images are too small for its layers.
    """
    sizes = sizes_of(config)
    if not fits(sizes, image_shape):
        height, width, _ = image_shape
        raise UserError(
            f"model {config.model!r}: its layers do not fit images of {height} x {width} pixels; "
            "use a larger --image_size or fewer --blocks"
        )
    return sizes


def network(inputs: keras.KerasTensor, sizes: Sizes) -> keras.KerasTensor:
    """Applies blocks of convolutions, each with a pooling, then flattens and applies dense layers.

    Args:
      inputs: Scaled images, shape (B, H, W, C).
      sizes: The result of `sizes_of`.

    Returns:
      The inputs of the last layer, shape (B, F).
    """
    x = inputs
    for block in range(sizes.blocks):
        filters = max(1, round(sizes.filters * sizes.filter_growth**block))
        for _ in range(sizes.convolutions):
            x = _activated(
                x, layers.Conv2D, sizes, filters, sizes.kernel_size, padding=sizes.padding
            )
        if sizes.pool_size > 1:
            x = layers.MaxPooling2D(sizes.pool_size)(x)
    x = layers.GlobalAveragePooling2D()(x) if sizes.global_pooling else layers.Flatten()(x)
    for _ in range(sizes.dense_layers):
        x = _dropped(_activated(x, layers.Dense, sizes, sizes.dense_units), sizes)
    return x if sizes.dense_layers else _dropped(x, sizes)


def fits(sizes: Sizes, image_shape: tuple[int, int, int]) -> bool:
    """Returns whether an image is large enough for all convolutions and poolings.

    Args:
      sizes: The result of `sizes_of`.
      image_shape: Height, width and channels.
    """
    shrunk = sizes.convolutions * (sizes.kernel_size - 1) if sizes.padding == "valid" else 0
    side = min(image_shape[:2])
    for _ in range(sizes.blocks):
        side = (side - shrunk) // sizes.pool_size
    return side > 0


def _activated(
    x: keras.KerasTensor,
    layer: type[keras.layers.Layer],
    sizes: Sizes,
    *arguments: int,
    **options: Any,
) -> keras.KerasTensor:
    if not sizes.batch_normalization:
        return layer(*arguments, activation="relu", **options)(x)
    # No bias: the normalization adds one.
    x = layer(*arguments, use_bias=False, **options)(x)
    # Keras's default momentum of 0.99 needs more steps than a small data set has in an epoch.
    # Replicas share their statistics, so that they normalize as one device would.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9, synchronized=replicas > 1)(x))


def _dropped(x: keras.KerasTensor, sizes: Sizes) -> keras.KerasTensor:
    return layers.Dropout(sizes.dropout)(x) if sizes.dropout else x


def build(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    first_layers: Iterable[keras.layers.Layer] | None = None,
) -> keras.Model:
    """Builds a network from raw images to the probabilities of the classes.

    Args:
      config: Which network, and its sizes.
      image_shape: Height, width and channels of the images: uint8 or float, values 0 to 255.
      num_classes: The number of classes C. The model ends with one sigmoid for two classes, the
        probability of class 1, shape (B, 1); else with a softmax, shape (B, C).
      first_layers: Layers before the network; by default one that scales pixels to 0 to 1.

    Raises:
      UserError: There is no such network, or the images are too small for its layers.
    """
    sizes = fitting_sizes(config, image_shape)
    inputs = layers.Input(image_shape, name="images")
    x = inputs
    for layer in [layers.Rescaling(1 / 255)] if first_layers is None else first_layers:
        x = layer(x)
    x = network(x, sizes)
    units, activation = (1, "sigmoid") if num_classes == 2 else (num_classes, "softmax")
    # Not in half precision, which rounds small probabilities to 0.
    dtype = keras.config.dtype_policy().variable_dtype
    outputs = layers.Dense(units, activation=activation, dtype=dtype, name="probabilities")(x)
    return keras.Model(inputs, outputs, name=config.model)


def loss_for(units: int, label_smoothing: float = 0.0, *, mixed: bool = False) -> keras.losses.Loss:
    """Returns the loss for a model of `build`.

    Args:
      units: Units of the model's last layer.
      label_smoothing: Share of each label that is spread evenly over all classes, 0 to 1.
      mixed: Whether the labels are mixed, as by `mixing.Mixing`.

    Returns:
      A loss that takes class indices, or with several units, and smoothed or mixed labels, one-hot
      labels.
    """
    if units == 1:
        return keras.losses.BinaryCrossentropy(label_smoothing=label_smoothing)
    if label_smoothing or mixed:
        return keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)
    return keras.losses.SparseCategoricalCrossentropy()
