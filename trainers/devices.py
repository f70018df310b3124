"""What a run is computed with: decided here, before and after TensorFlow is imported.

On a CPU that means oneDNN's kernels on and XLA off: measured, that is up to four times as fast as
the other way round (BUILD_NOTES.md).
"""

import dataclasses
import os

from trainers.config import DevicesConfig

_PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class Devices:
    """The outcome of the decisions.

    Attributes:
      names: The devices' names, such as "CPU" or "NVIDIA A100-SXM4-40GB".
      precision: A Keras dtype policy.
      jit_compile: Whether XLA compiles the training step.
      onednn: Whether oneDNN's kernels are "on" or "off", or "by default" as TensorFlow decides for
        the processor; they concern the CPU alone.
    """

    names: tuple[str, ...]
    precision: str
    jit_compile: bool
    onednn: str

    def summary(self) -> str:
        """One line for people."""
        options = [self.precision, f"jit_compile {'on' if self.jit_compile else 'off'}"]
        options.append(f"oneDNN {self.onednn}")
        return f"{', '.join(self.names)} ({', '.join(options)})"


def prepare(config: DevicesConfig) -> None:
    """Imports TensorFlow, with what it and Keras read from the environment set before."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1" if config.onednn == "on" else "0")
    from pizza_steak.tensorflow_import import import_tensorflow  # Imports TFDS.

    import_tensorflow()


def choose(config: DevicesConfig) -> Devices:
    """Decides what is left to decide once the devices can be seen.

    Raises:
      UserError: The precision is unknown.
    """
    import tensorflow as tf

    from pizza_steak.errors import UserError

    if config.precision not in _PRECISIONS:
        raise UserError(
            f"precision {config.precision!r}: unknown; expected one of {', '.join(_PRECISIONS)}"
        )
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details
    names = [details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return Devices(
        names=tuple(names) or (f"CPU, {os.cpu_count()} cores",),
        precision=config.precision,
        jit_compile=bool(gpus) if config.jit_compile == "auto" else config.jit_compile == "on",
        onednn={"1": "on", "0": "off"}.get(os.environ.get("TF_ENABLE_ONEDNN_OPTS"), "by default"),
    )
