"""The networks of keras.applications: their image sizes, weights and licences."""

import inspect
import os
import pathlib
import re
import sys
from collections.abc import Callable

import keras
import tensorflow as tf

from pizza_steak.errors import UserError, first_line
from trainers.configuration import ModelConfig

# Height and width that a network of keras.applications was trained with, where they are not 224.
_SIZES = {
    "efficientnetb1": 240,
    "efficientnetb2": 260,
    "efficientnetb3": 300,
    "efficientnetb4": 380,
    "efficientnetb5": 456,
    "efficientnetb6": 528,
    "efficientnetb7": 600,
    "efficientnetv2b1": 240,
    "efficientnetv2b2": 260,
    "efficientnetv2b3": 300,
    "efficientnetv2s": 384,
    "efficientnetv2m": 480,
    "efficientnetv2l": 480,
    "inceptionresnetv2": 299,
    "inceptionv3": 299,
    "nasnetlarge": 331,
    "xception": 299,
}
# The licences of the ImageNet weights, by module, as their authors and Keras's documentation say.
_LICENCES = {
    "convnext": "MIT (Facebook Research)",
    "densenet": "BSD 3-clause (Gao Huang et al.)",
    "efficientnet": "Apache 2.0 (Google)",
    "efficientnet_v2": "Apache 2.0 (Google)",
    "inception_resnet_v2": "Apache 2.0 (Google)",
    "inception_v3": "Apache 2.0 (Google)",
    "mobilenet": "Apache 2.0 (Google)",
    "mobilenet_v2": "Apache 2.0 (Google)",
    "mobilenet_v3": "Apache 2.0 (Google)",
    "nasnet": "Apache 2.0 (Google)",
    "resnet": "MIT (Kaiming He)",
    "vgg16": "CC BY 4.0 (VGG, Oxford)",
    "vgg19": "CC BY 4.0 (VGG, Oxford)",
    "xception": "MIT (François Chollet)",
}


def functions() -> dict[str, Callable[..., keras.Model]]:
    """Returns the functions of keras.applications, by their names in lower case."""
    found = vars(keras.applications).items()
    return {name.lower(): function for name, function in found if inspect.isfunction(function)}


def image_size(config: ModelConfig) -> int:
    """Returns the height and width that a network was trained with."""
    return _SIZES.get(config.model.lower(), 224)


def build(
    config: ModelConfig, image_shape: tuple[int, int, int]
) -> tuple[keras.Model, dict[str, str]]:
    """Builds a network up to its pooled features, with its own preprocessing before it.

    Args:
      config: The flags; --model is one of `functions`.
      image_shape: Height, width and channels of the images.

    Returns:
      The network, from images, values 0 to 255, to features; and where its weights come from.

    Raises:
      UserError: The network does not take such images, or its weights cannot be had.
    """
    name = config.model.lower()
    function, weights = functions()[name], config.weights or "imagenet"
    module = sys.modules[function.__module__]
    if image_shape[2] != 3:
        raise UserError(
            f"model {config.model!r}: takes images of 3 channels, not {image_shape[2]}; expected "
            "--color_mode=rgb"
        )
    from_file = weights not in ("imagenet", "none")
    if from_file and not pathlib.Path(weights).expanduser().is_file():
        raise UserError(f"weights {weights}: no such file; expected imagenet, none or a file")
    inputs = keras.Input(image_shape, name="images")
    try:
        network = function(
            include_top=False,
            weights="imagenet" if weights == "imagenet" else None,
            input_shape=image_shape,
            pooling="avg",
        )
    except ValueError as error:  # The images are too small, or the layers do not fit them.
        raise UserError(f"model {config.model!r}: {first_line(error)}") from error
    except Exception as error:  # Keras raises a plain Exception if it cannot download a file.
        if weights != "imagenet" or isinstance(error, tf.errors.OpError):
            raise
        raise _no_download(config.model, error) from error
    if from_file:
        _load_weights(network, config)
    outputs = network(module.preprocess_input(inputs))
    origin = {"weights": weights}
    if weights == "imagenet":
        licence = _LICENCES.get(module.__name__.rpartition(".")[2], "not known here; see keras.io")
        origin |= {
            "source": f"keras.applications.{function.__name__}, trained on ImageNet",
            "licence": licence,
        }
    return keras.Model(inputs, outputs, name=f"{name}_backbone"), origin


def _no_download(name: str, error: Exception) -> UserError:
    address = re.search(r"https?://\S+?(?=:? |:?$)", str(error))
    if not address:
        return UserError(
            f"weights of {name}: cannot be downloaded ({first_line(error)}); run the command again"
        )
    folder = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras"), "models")
    return UserError(
        f"weights of {name}: cannot be downloaded; fetch {address[0]} where there is a network and "
        f"put it into {folder}, or pass --weights=none"
    )


def _load_weights(network: keras.Model, config: ModelConfig) -> None:
    try:
        network.load_weights(pathlib.Path(config.weights or "").expanduser())
    except Exception as error:  # Keras and h5py raise different ones.
        raise UserError(
            f"weights {config.weights}: are not those of {config.model} without its last layers "
            f"({first_line(error)})"
        ) from error
