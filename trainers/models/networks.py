"""The networks, from raw images to probabilities: those built here by their sizes, and all others.

What --model names beyond the names in `SIZES` comes from `backbones`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import keras
import tensorflow as tf

from pizza_steak.errors import UserError
from trainers import user_code
from trainers.configuration import ModelConfig, trainable_layers
from trainers.models import backbones, nested, own_networks

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
_COMMON_SIZES = {
    **{"filters": 10, "kernel_size": 3, "convolutions": 1, "pool_size": 1},
    "dense_units": 64,
}

# Sizes of the head of a backbone; the other sizes are those of the networks built here.
_HEAD_SIZES = {"dense_layers": 0, "dense_units": 64}
_MOST_FILTERS = 100_000  # A convolution of 3 x 3 between two such blocks has 90 billion weights.
_SIZES_OF_BLOCKS = (
    *("filters", "filter_growth", "blocks", "convolutions", "kernel_size", "padding", "pool_size"),
    "global_pooling",
)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that is not compiled.

    Attributes:
      model: From images, values 0 to 255, to probabilities.
      backbone: The layers before the head; None if the network has no head of its own.
      features: From images to the features that the head gets, with all layers before the head.
      head: From features to probabilities, with the layers of `model`.
      origin: Where weights come from; for environment.json.
      trainable: The number of layers before the head that are trained; infinity for all.
    """

    model: keras.Model
    backbone: keras.Model | None = None
    features: keras.Model | None = None
    head: keras.Model | None = None
    origin: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trainable: float = math.inf

    @functools.cached_property
    def digest(self) -> str | None:
        """A digest of the layers before the head; None if the network has no head of its own."""
        return backbones.digest(self.features) if self.features else None

    def set_trainable(self, count: float) -> None:
        """Freezes all layers before the head but the last `count` of them."""
        if count:
            backbones.forget()
        if self.backbone is not None and self.head is not None:
            for model, trainable in ((self.head, True), (self.backbone, count > 0)):
                # Keras ignores a value that a model already has, even if its layers have another.
                model.trainable = not trainable
                model.trainable = trainable
            layers_before = nested.all_layers(self.backbone)
            frozen = len(layers_before) - min(count, len(layers_before))
            for layer in layers_before[: int(frozen)]:
                layer.trainable = False


def _compute_as_in_inference(model: keras.Model) -> None:
    """Makes a model compute as in inference when the model around it is trained.

    The argument training=False is not enough: Keras 3.15 replaces it with that of the outer model.
    """
    if "call" in vars(model):  # A backbone that is used again.
        return
    call = model.call

    def in_inference(*arguments: Any, **options: Any) -> Any:
        return call(*arguments, **{**options, "training": False})

    model.call = in_inference


class Sizes(Protocol):
    """A `ModelConfig` whose sizes are set; for a backbone only those of its head."""

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
    """Returns the configuration with the model's own size in place of each None."""
    own = _COMMON_SIZES | SIZES[config.model] if is_built_here(config) else _HEAD_SIZES
    missing: dict[str, Any] = {
        name: size for name, size in own.items() if getattr(config, name) is None
    }
    return cast(Sizes, dataclasses.replace(config, **missing))


def is_built_here(config: ModelConfig) -> bool:
    """Returns whether the network is one of `SIZES`."""
    return config.model in SIZES


def check(config: ModelConfig, image_shape: tuple[int, int, int]) -> None:
    """Checks the flags of a network before anything is loaded.

    Raises:
      UserError: There is no such network, a flag has no meaning for it, or the images are too small
        for its layers.
    """
    if is_built_here(config):
        _refuse(config, ("weights", "features", "trainable"), "have no pretrained weights")
        sizes = sizes_of(config)
        if (last := _filters(sizes, max(sizes.blocks, 1) - 1)) > _MOST_FILTERS:
            raise UserError(
                f"filter_growth {sizes.filter_growth:g}: gives the last of {sizes.blocks} blocks "
                f"{last:.3g} filters; expected at most {_MOST_FILTERS:,}"
            )
        if not fits(sizes, image_shape):
            height, width, _ = image_shape
            raise UserError(
                f"model {config.model!r}: its layers do not fit images of {height} x {width} "
                "pixels; use a larger --image_size or fewer --blocks"
            )
    elif user_code.is_function(config.model):
        own = (*_SIZES_OF_BLOCKS, *_HEAD_SIZES, "weights", "features", "trainable")
        _refuse(config, (*own, "dropout", "batch_normalization"), "are whole")
    elif backbones.is_application(config) or backbones.is_saved(config):
        _refuse(config, _SIZES_OF_BLOCKS, "have layers of their own")
    else:
        raise UserError(
            f"model {config.model!r}: unknown; expected one of {', '.join(SIZES)}, a network of "
            "keras.applications such as efficientnetv2b0, the directory of a run, a .keras file, "
            "or FILE.py:FUNCTION"
        )


def _refuse(config: ModelConfig, names: Iterable[str], reason: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value not in (None, 0, getattr(ModelConfig(), name)):
            raise UserError(
                f"{name} {value}: has no meaning for --model={config.model}; such networks {reason}"
            )


def _check_own_head(config: ModelConfig, kept: Sequence[keras.layers.Layer]) -> None:
    """Checks that flags of the head, if given, say what the head is that a network keeps."""
    dense = [layer.units for layer in kept if isinstance(layer, layers.Dense)][:-1]
    rates = {layer.rate for layer in kept if isinstance(layer, layers.Dropout)}
    own: dict[str, Any] = {
        "dense_layers": len(dense),
        "dense_units": dense[0] if dense else None,
        "dropout": max(rates, default=0),
        "batch_normalization": any(isinstance(layer, layers.BatchNormalization) for layer in kept),
    }
    for name, value in own.items():
        asked = getattr(config, name)
        if asked not in (None, 0, value):
            has = value or "none"
            raise UserError(
                f"{name} {asked}: {config.model} keeps its last layers, which have {has}; leave it "
                "out, or pass --features=LAYER for new ones after that layer"
            )


def blocks(inputs: keras.KerasTensor, sizes: Sizes) -> keras.KerasTensor:
    """Applies blocks of convolutions, each with a pooling, and flattens.

    Args:
      inputs: Scaled images, shape (B, H, W, C).
      sizes: The result of `sizes_of`.

    Returns:
      The inputs of the head, shape (B, F).
    """
    x = inputs
    for block in range(sizes.blocks):
        filters = _filters(sizes, block)
        for _ in range(sizes.convolutions):
            x = _activated(
                x, layers.Conv2D, sizes, filters, sizes.kernel_size, padding=sizes.padding
            )
        if sizes.pool_size > 1:
            x = layers.MaxPooling2D(sizes.pool_size)(x)
    return layers.GlobalAveragePooling2D()(x) if sizes.global_pooling else layers.Flatten()(x)


def _filters(sizes: Sizes, block: int) -> int:
    """Returns the filters of each convolution in a block, counted from 0."""
    return max(1, round(sizes.filters * sizes.filter_growth**block))


def head(features: keras.KerasTensor, sizes: Sizes, num_classes: int) -> keras.KerasTensor:
    """Applies dense layers, the last one with the probabilities of the classes.

    Args:
      features: Shape (B, F).
      sizes: The result of `sizes_of`.
      num_classes: The number of classes C.

    Returns:
      For two classes the probability of class 1, shape (B, 1); else shape (B, C).
    """
    x = features
    for _ in range(sizes.dense_layers):
        x = _dropped(_activated(x, layers.Dense, sizes, sizes.dense_units), sizes)
    if not sizes.dense_layers:
        x = _dropped(x, sizes)
    units, activation = (1, "sigmoid") if num_classes == 2 else (num_classes, "softmax")
    # Not in half precision, which rounds small probabilities to 0.
    dtype = keras.config.dtype_policy().variable_dtype
    return layers.Dense(units, activation=activation, dtype=dtype, name="probabilities")(x)


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
    classes: Sequence[str],
    first_layers: Iterable[keras.layers.Layer] | None = None,
    *,
    head_first: bool = False,
) -> Network:
    """Builds a network from raw images to the probabilities of the classes.

    Args:
      config: Which network, and its sizes.
      image_shape: Height, width and channels of the images: uint8 or float, values 0 to 255.
      classes: The names of C classes. The model ends with one sigmoid for two classes, the
        probability of class 1, shape (B, 1); else with a softmax, shape (B, C). A function of the
        user's may also end with a softmax for two classes.
      first_layers: Layers before the network; by default one that scales pixels to 0 to 1 for a
        network that is built here, and none for others.
      head_first: Whether the head is trained alone before the rest.

    A backbone that has trained weights, or of which some is not trained, always runs as in
    inference, even while it is fine-tuned: batch normalization keeps its statistics
    (https://keras.io/guides/transfer_learning/).

    Raises:
      UserError: There is no such network, or it does not take such images.
    """
    check(config, image_shape)
    built_here, sizes = is_built_here(config), sizes_of(config)
    inputs = layers.Input(image_shape, name="images")
    x = inputs
    if first_layers is None:
        first_layers = [layers.Rescaling(1 / 255)] if built_here else []
    for layer in first_layers:
        x = layer(x)
    if built_here:
        outputs = head(blocks(x, sizes), sizes, len(classes))
        return Network(keras.Model(inputs, outputs, name=config.model))
    if user_code.is_function(config.model):
        made = own_networks.call(config, image_shape, len(classes))
        return Network(keras.Model(inputs, made(x), name=made.name))
    found = backbones.build(config, image_shape, tuple(classes))
    if found.head:
        _check_own_head(config, found.head)
    trainable = trainable_layers(config.trainable)
    if config.trainable is None and found.pretrained and not found.head and not head_first:
        trainable = 0
    trains_fewer = trainable < len(nested.all_layers(found.model))
    if found.pretrained or head_first or trains_fewer:
        _compute_as_in_inference(found.model)
    features = found.model(x)
    if found.head:
        outputs = features
        for layer in found.head:
            outputs = layer(outputs)
    else:
        outputs = head(features, sizes, len(classes))
    return Network(
        # No layer may have the name of the backbone, which is a layer too.
        keras.Model(inputs, outputs, name=found.model.name.removesuffix("_backbone")),
        backbone=found.model,
        features=keras.Model(inputs, features),
        head=keras.Model(features, outputs),
        origin=found.origin,
        trainable=trainable,
    )


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
