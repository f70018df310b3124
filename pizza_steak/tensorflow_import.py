"""TensorFlow, imported without what it tells while that is done."""

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType


def import_tensorflow() -> ModuleType:
    """Imports TensorFlow, and has it tell only what is worse than a warning from then on."""
    # It tells of each CUDA library that it does not find; what fails still raises.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with stderr_dropped():  # Some of it is told before that variable is read.
        import tensorflow
    return tensorflow


@contextlib.contextmanager
def stderr_dropped() -> Iterator[None]:
    """Drops what is written to stderr, by C++ code too."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
