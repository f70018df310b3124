"""The networks, each a function of its input and output: raw pictures in, probabilities out."""

from collections.abc import Callable, Iterable

import keras

from pizza_steak.errors import UserError
from trainers.config import ModelConfig

layers = keras.layers


def tinyvgg(inputs: keras.KerasTensor, config: ModelConfig) -> keras.KerasTensor:
    """Blocks of convolutions with a pooling after each, then flat: the chapter's model_1.

    The network of the CNN Explainer (https://poloclub.github.io/cnn-explainer/), by default two
    blocks of two convolutions of ten 3 x 3 filters.
    """
    x = inputs
    for _ in range(config.blocks):
        for _ in range(config.convolutions):
            x = layers.Conv2D(config.filters, config.kernel_size, activation="relu")(x)
        x = layers.MaxPooling2D(config.pool_size)(x)
    return layers.Flatten()(x)


# Name -> function from scaled pictures to the features that the last layer sees.
BUILDERS: dict[str, Callable[[keras.KerasTensor, ModelConfig], keras.KerasTensor]] = {
    "tinyvgg": tinyvgg,
}


def build(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    class_mode: str,
    first_layers: Iterable[keras.layers.Layer] | None = None,
) -> keras.Model:
    """Builds a network from raw pictures to the probabilities of the classes.

    Args:
      config: Which network, and its sizes.
      image_shape: Height, width and channels of the pictures: uint8 or float, values 0 to 255.
      num_classes: The number of classes C.
      class_mode: "binary" gives one sigmoid, the probability of class 1, shape (B, 1); any other
        a softmax, shape (B, C).
      first_layers: What raw pictures go through before the network; by default they are brought
        into 0 to 1.

    Raises:
      UserError: There is no such network, or the pictures are too small for its layers.
    """
    if config.model not in BUILDERS:
        raise UserError(f"model {config.model!r}: unknown; expected one of {', '.join(BUILDERS)}")
    inputs = layers.Input(image_shape, name="images")
    x = inputs
    for layer in [layers.Rescaling(1 / 255)] if first_layers is None else first_layers:
        x = layer(x)
    try:
        x = BUILDERS[config.model](x, config)
    except ValueError as error:
        height, width, _ = image_shape
        raise UserError(
            f"model {config.model!r}: its layers do not fit pictures of {height} x {width} pixels; "
            "use a larger --image_size or fewer --blocks"
        ) from error
    units, activation = (1, "sigmoid") if class_mode == "binary" else (num_classes, "softmax")
    # In float32 whatever the policy: a loss of probabilities in half precision loses its tail.
    outputs = layers.Dense(units, activation=activation, dtype="float32", name="probabilities")(x)
    return keras.Model(inputs, outputs, name=config.model)


def loss_for(class_mode: str) -> str:
    """The Keras loss that goes with labels of `class_mode` and the outputs of `build`."""
    return {
        "binary": "binary_crossentropy",
        "categorical": "categorical_crossentropy",
        "sparse": "sparse_categorical_crossentropy",
    }[class_mode]
