"""What a training changes in the whole process, and how the process gets it back."""

import contextlib
import random
import threading
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context
from tensorflow.python.framework import config as framework

_ONE_AT_A_TIME = threading.RLock()
# Of Keras's functions `keras.config.<name>` and `set_<name>`, with the values of commands.
_SETTINGS = {
    "image_data_format": "channels_last",
    "floatx": "float32",
    "epsilon": 1e-7,
    "max_epochs": None,
    "max_steps_per_epoch": None,
}
# Keras's dtype policy, the numbers in the names of its layers, its own seed.
_TRACKERS = ("GLOBAL_STATE_TRACKER", "GLOBAL_SETTINGS_TRACKER")


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Gives a training Keras's own settings, and the process its random states and settings back.

    Threads take turns. What stays: TensorFlow's devices, and the number of its threads, which it
    cannot change once it has started (--cpu_devices, --devices, --threads).
    """
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        # Older versions of Keras lack some of both.
        for name in _TRACKERS:
            if hasattr(global_state, name):
                stack.callback(setattr, global_state, name, getattr(global_state, name))
        for name, value in _SETTINGS.items():
            if set_value := getattr(keras.config, f"set_{name}", None):
                stack.callback(set_value, getattr(keras.config, name)())
                set_value(value)
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(_set_tensorflow_seed, *_tensorflow_seed())
        stack.callback(tf.get_logger().setLevel, tf.get_logger().level)
        if not framework.is_op_determinism_enabled():
            stack.callback(framework.disable_op_determinism)
        yield


def _tensorflow_seed() -> tuple[int | None, random.Random | None]:
    """Returns the seed of `tf.random.set_seed`, and what draws the seeds of operations from it."""
    return context.global_seed(), getattr(context.context(), "_rng", None)


def _set_tensorflow_seed(seed: int | None, operations: random.Random | None) -> None:
    context.set_global_seed(seed)
    if operations:
        context.context()._rng = operations
