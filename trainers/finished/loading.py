"""Loads the model of a finished run, and reads its outputs."""

import keras
import numpy as np

from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.hardware import devices
from trainers.models import saved_networks
from trainers.runs import run_directory


def load_model(run: run_directory.Run) -> keras.Model:
    """Returns the model of a finished run, ready to predict on one device.

    Raises:
      UserError: The model cannot be loaded, or is not for the run's images and classes.
    """
    model = saved_networks.load_model(run)
    if run.finished:  # A run is loaded for its own test before it has a result.
        check_fits(model, run)
    chosen = devices.choose(devices.one_device(run.config.devices))
    model.compile(jit_compile=chosen.jit_compile)
    return model


def check_fits(model: keras.Model, run: run_directory.Run) -> None:
    """Checks that a model is for the images and classes of a finished run.

    Raises:
      UserError: It is not.
    """
    path, classes = run.path / "model.keras", run.result["classes"]
    if not saved_networks.is_functional(model) or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(f"model {path}: expected one input and one output; train the run again")
    format = run_data.format_of(run.config.data)
    shape, columns = model.input_shape[1:], model.output_shape[-1]
    takes = len(shape) == 3 and all(map(_may_be, shape, format.shape))
    if not takes or len(model.output_shape) != 2 or max(columns, 2) != len(classes):
        raise UserError(
            f"model {path}: takes images of {shape} and returns {columns} probabilities, but the "
            f"run has images of {format.shape} and {len(classes)} classes; train the run again"
        )


def _may_be(length: int | None, given: int) -> bool:
    return length in (None, given)


def class_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Returns a model's outputs with a column for each class: float32 of shape (N, C).

    Args:
      outputs: float32 of shape (N, C), or of shape (N, 1): the probability of class 1 of two.
    """
    return np.concatenate([1 - outputs, outputs], axis=1) if outputs.shape[1] == 1 else outputs
