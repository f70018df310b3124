"""Networks that a function of the user's returns."""

import keras
import numpy as np

from pizza_steak.errors import UserError
from trainers import user_code
from trainers.configuration import ModelConfig
from trainers.models import saved_networks


def call(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Calls the function that --model names.

    Args:
      config: The flags; --model has the form of `user_code.is_function`.
      image_shape: Height, width and channels of the images.
      num_classes: The number of classes C.

    Returns:
      Its model, from images to probabilities: shape (B, C), or (B, 1) for two classes.

    Raises:
      UserError: There is no such function, or it fails or returns something else.
    """
    function = user_code.load("model", config.model)
    model = user_code.call("model", config.model, function, image_shape, num_classes)
    if not isinstance(model, keras.Model) or not saved_networks.is_functional(model):
        raise UserError(
            f"model {config.model}: the function returned {type(model).__name__}; expected a "
            "functional or sequential keras.Model"
        )
    saved_networks.check_images(config, model, image_shape)
    units = [num_classes] if num_classes != 2 else [1, 2]
    if tuple(model.output_shape) not in [(None, unit) for unit in units]:
        expected = " or ".join(f"(None, {unit})" for unit in units)
        raise UserError(
            f"model {config.model}: its output has the shape {model.output_shape}; expected "
            f"{expected}, the probabilities of {num_classes} classes"
        )
    noise = np.random.default_rng(0).uniform(0, 255, (2, *image_shape)).astype(np.float32)
    outputs = np.asarray(keras.ops.convert_to_numpy(model(noise, training=False)), np.float32)
    sums = outputs.sum(axis=-1) if outputs.shape[1] > 1 else np.ones(2)
    if outputs.min() < 0 or outputs.max() > 1 or not np.allclose(sums, 1, atol=1e-2):
        raise UserError(
            f"model {config.model}: its outputs are no probabilities; expected a last layer with "
            f"activation={'sigmoid' if outputs.shape[1] == 1 else 'softmax'!r}"
        )
    return model
