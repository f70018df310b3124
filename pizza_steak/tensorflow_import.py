"""Imports TensorFlow without its log messages, and with oneDNN."""

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from pizza_steak import cores
from pizza_steak.errors import UserError, first_line
from pizza_steak.garbage import left_out_of_collections


def import_tensorflow() -> ModuleType:
    """Imports TensorFlow, with oneDNN, and makes it log only errors that end the process.

    It starts as many threads as this process has cores, if it has not computed anything yet.

    Python's search for garbage in cycles leaves out objects that are there after the first import.

    Raises:
      UserError: Keras cannot be imported, or computes with another backend.
    """
    # TensorFlow goes by the cores that it may run on, not by a container's share of their time.
    if cores.count() < cores.schedulable():
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(cores.count()))
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", str(cores.count()))
    if "tensorflow" in sys.modules:
        _import_keras()
        import tensorflow

        return tensorflow
    # TensorFlow turns it off on some processors where it is three times as fast.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # TensorFlow logs each CUDA library that it does not find; failures still raise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Some messages come before that variable is read.
    with stderr_dropped(), left_out_of_collections():
        _import_keras()
        import tensorflow
    # It warns that functions are traced often, which every new model does.
    tensorflow.get_logger().setLevel("ERROR")
    return tensorflow


def _import_keras() -> None:
    advice = 'expected KERAS_BACKEND=tensorflow, or no KERAS_BACKEND and no "backend" in keras.json'
    try:
        import keras
    except (ImportError, ValueError) as error:
        raise UserError(f"Keras cannot be imported ({first_line(error)}); {advice}") from None
    if (backend := keras.config.backend()) != "tensorflow":
        raise UserError(
            f"Keras computes with {backend}, and this package with TensorFlow; {advice}"
        )


@contextlib.contextmanager
def stderr_dropped() -> Iterator[None]:
    """Drops everything written to stderr, by C++ code too."""
    stderr = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
