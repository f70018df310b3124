"""Loads the model of a finished run, and reads its outputs."""

import keras
import numpy as np

from trainers.hardware import devices
from trainers.models import saved_networks
from trainers.runs import run_directory


def load_model(run: run_directory.Run) -> keras.Model:
    """Returns the model of a finished run, ready to predict on one device.

    Raises:
      UserError: The model cannot be loaded.
    """
    model = saved_networks.load_model(run)
    chosen = devices.choose(devices.one_device(run.config.devices))
    model.compile(jit_compile=chosen.jit_compile)
    return model


def class_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Returns a model's outputs with a column for each class: float32 of shape (N, C).

    Args:
      outputs: float32 of shape (N, C), or of shape (N, 1): the probability of class 1 of two.
    """
    return np.concatenate([1 - outputs, outputs], axis=1) if outputs.shape[1] == 1 else outputs
