"""What a run is computed with: decided here, before and after TensorFlow is imported.

On a CPU that means oneDNN's kernels on and XLA off: measured, that is up to four times as fast as
the other way round (BUILD_NOTES.md).
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pizza_steak.errors import UserError
from pizza_steak.flags import Numbers
from trainers.configuration import DevicesConfig
from trainers.hardware import preemption

if TYPE_CHECKING:  # Not when run: --help must not wait for TensorFlow.
    import tensorflow as tf

    from pizza_steak.input_pipeline import Shares
    from trainers.hardware.clusters import Cluster

_PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16", "float64")
_ASKED = "as asked"


@dataclasses.dataclass(frozen=True)
class Devices:
    """The outcome of the decisions.

    Attributes:
      names: The names of what computes, such as "CPU, 8 cores" or "NVIDIA A100-SXM4-40GB".
      strategy: "none"; or "mirrored", a replica of the model on each of `devices`; or
        "multi_worker", on each of every process of `cluster`.
      devices: TensorFlow's names for those of this process, such as "GPU:0".
      precision: A Keras dtype policy.
      precision_reason: Why that one, in a word.
      jit_compile: Whether XLA compiles the training step.
      jit_compile_reason: Why, or why not.
      onednn: Whether oneDNN's kernels are "on" or "off", or "by default" as TensorFlow decides for
        the processor; they concern the CPU alone.
      cluster: The processes that train together, None for this one alone.
    """

    names: tuple[str, ...]
    strategy: str
    devices: tuple[str, ...]
    precision: str
    precision_reason: str
    jit_compile: bool
    jit_compile_reason: str
    onednn: str
    cluster: "Cluster | None" = None

    @property
    def replicas(self) -> int:
        """How many copies of the model share each batch."""
        return len(self.devices) * (len(self.cluster.addresses) if self.cluster else 1)

    @property
    def is_chief(self) -> bool:
        """Whether this process is alone, or the one that writes what comes of all of them."""
        return self.cluster is None or self.cluster.is_chief

    def from_chief(self, make: Callable[[], Any]) -> Any:
        """What `make` gives, which is called in the chief alone."""
        return make() if self.cluster is None else self.cluster.from_chief(make)

    def ending_together(self) -> contextlib.AbstractContextManager:
        """Where a process fails, all others end with its reason."""
        return self.cluster.ending_together() if self.cluster else contextlib.nullcontext()

    def set_precision(self) -> None:
        """Has what is made from now on compute in it, but losses and metrics in no half of one."""
        import keras

        keras.config.set_floatx("float64" if self.precision == "float64" else "float32")
        keras.config.set_dtype_policy(self.precision)

    def scope(self) -> contextlib.AbstractContextManager:
        """Where all with variables has to be made, layers, model and optimizer.

        Keras's fit, evaluate and predict of that model then enter it by themselves.
        """
        return self._strategy.scope() if self._strategy else contextlib.nullcontext()

    def dealt(self, batches: "Callable[[Shares], tf.data.Dataset]") -> "tf.data.Dataset":
        """What Keras's fit of such a model takes.

        Args:
          batches: `input_pipeline.batches` but for its `shares`.
        """
        from pizza_steak.input_pipeline import Shares

        if self._strategy is None:
            return batches(Shares())

        def of_this_process(context: "tf.distribute.InputContext") -> "tf.data.Dataset":
            here = len(self.devices)
            first = context.input_pipeline_id * here
            return batches(Shares(context.num_replicas_in_sync, range(first, first + here)))

        return self._strategy.distribute_datasets_from_function(of_this_process)

    @property
    def _strategy(self) -> "tf.distribute.Strategy | None":
        if self.cluster:
            return self.cluster.strategy
        return None if self.strategy == "none" else _mirrored(self.devices)

    def topics(self) -> dict[str, str]:
        """All of it for people, texts by topic."""
        replicas = "1 replica" if self.replicas == 1 else f"{self.replicas} replicas"
        if self.cluster:
            replicas += f" of {len(self.cluster.addresses)} processes"
        jit_compile = "on" if self.jit_compile else "off"
        return {
            "devices": f"{', '.join(self.names)} (oneDNN {self.onednn})",
            "strategy": f"{self.strategy}, {replicas} on {', '.join(self.devices)}"
            + (" of each" if self.cluster else ""),
            "precision": f"{self.precision} ({self.precision_reason})",
            "jit_compile": f"{jit_compile} ({self.jit_compile_reason})",
        }


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> "tf.distribute.Strategy":
    """One for all of a process: what is made within one has no place in another."""
    import tensorflow as tf

    tf.get_logger().setLevel("WARNING")  # Else it tells of each tensor that is summed.
    return tf.distribute.MirroredStrategy(devices)


def prepare(config: DevicesConfig) -> None:
    """Imports TensorFlow, with what it and Keras read from the environment set before."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1" if config.onednn == "on" else "0")
    with preemption.sigterm_kept():  # From the threads that this makes, for `clusters` to keep it.
        from pizza_steak.tensorflow_import import import_tensorflow  # Imports TFDS.

        import_tensorflow()


def one_device(config: DevicesConfig) -> DevicesConfig:
    """The same on one device: for what a run left, which may be used where there are no others."""
    return dataclasses.replace(config, strategy="none", devices=None, cpu_devices=None)


def choose(config: DevicesConfig, cluster: "Cluster | None" = None) -> Devices:
    """Decides what is left to decide once the devices can be seen.

    With `cpu_devices` it also makes those, and with a cluster it waits for the other processes,
    both of which TensorFlow does before it computes anything.

    Raises:
      UserError: The precision is unknown, there are no such devices, what is asked for does not go
        together, or the cluster does not come together.
    """
    import tensorflow as tf

    if config.precision not in _PRECISIONS:
        raise UserError(
            f"precision {config.precision!r}: unknown; expected one of {', '.join(_PRECISIONS)}"
        )
    if config.strategy == "multi_worker" and cluster is None:
        raise UserError("strategy multi_worker: is for trainers.fit; expected another")
    if cluster and (config.cpu_devices or 1) > 1:
        raise UserError(
            f"cpu_devices {config.cpu_devices}: of several processes each takes its CPU as one "
            "device; expected 1, or --strategy=mirrored in one process"
        )
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    if config.cpu_devices:
        _split_cpu(config.cpu_devices)
    gpus = tf.config.get_visible_devices("GPU")
    kind, count = ("GPU", len(gpus)) if gpus else ("CPU", config.cpu_devices or 1)
    indices = _indices(config.devices, kind, count)
    if config.strategy == "none":
        if config.devices is not None and len(indices) > 1:
            raise UserError(
                f"devices: {len(indices)} are for --strategy=mirrored; expected one with "
                "--strategy=none"
            )
        indices = indices[:1]
    mirrored = config.strategy == "mirrored" or len(indices) > 1
    gpus = [gpus[index] for index in indices] if gpus else []
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    names = [detail.get("device_name", gpu.name) for detail, gpu in zip(details, gpus, strict=True)]
    precision, precision_reason = _precision(
        config, [detail.get("compute_capability") for detail in details]
    )
    replicas = len(indices) * (len(cluster.addresses) if cluster else 1)
    jit_compile, jit_compile_reason = _jit_compile(config, kind, replicas)
    if cluster:  # Last: who has joined has to tell the others why it ends.
        if gpus:
            tf.config.set_visible_devices(gpus, "GPU")
            indices = list(range(len(gpus)))
        _ = cluster.strategy
    return Devices(
        names=tuple(names) or (f"CPU, {os.cpu_count()} cores",),
        strategy="multi_worker" if cluster else "mirrored" if mirrored else "none",
        devices=tuple(f"{kind}:{index}" for index in indices),
        precision=precision,
        precision_reason=precision_reason,
        jit_compile=jit_compile,
        jit_compile_reason=jit_compile_reason,
        onednn={"1": "on", "0": "off"}.get(os.environ.get("TF_ENABLE_ONEDNN_OPTS"), "by default"),
        cluster=cluster,
    )


def _split_cpu(count: int) -> None:
    """Makes so many devices of the CPU, and takes GPUs out of sight, which would be preferred."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:  # Once it computes.
        raise UserError(
            f"cpu_devices {count}: TensorFlow is already at work with other devices in this "
            "process; take a new one"
        ) from error


def _indices(asked: Numbers | None, kind: str, count: int) -> list[int]:
    """Which of `count` devices of a kind are asked for."""
    if asked is None:
        return list(range(count))
    indices = asked if isinstance(asked, tuple) else range(asked) if asked == int(asked) else ()
    known = len(indices) == len(set(indices)) and set(indices) <= set(range(count))
    if not indices or not known:
        text = ",".join(map(str, asked)) if isinstance(asked, tuple) else asked
        raise UserError(
            f"devices {text}: expected a number from 1 to {count}, or some of the indices 0 to "
            f"{count - 1}, each once; of the {kind}s there are so many"
            + ("" if kind == "GPU" else ", and --cpu_devices makes more")
        )
    return list(indices)


def _precision(
    config: DevicesConfig, capabilities: list[tuple[int, int] | None]
) -> tuple[str, str]:
    """A dtype policy, and why.

    Args:
      config: The flags.
      capabilities: The compute capabilities of the GPUs, as far as they are known.
    """
    if config.precision != "auto":
        return config.precision, _ASKED
    if not capabilities:
        # bfloat16 was 1.6 to 1.8 times as fast on two processors with instructions for it, slower
        # on another (BUILD_NOTES.md); and what a run gives should not depend on where it was.
        hint = "; mixed_bfloat16 may be faster on this one" if _cpu_has_bfloat16() else ""
        return "float32", f"the same on every processor{hint}"
    if all(capability and tuple(capability) >= (7, 0) for capability in capabilities):
        return "mixed_float16", "compute capability 7.0 or above"
    return "float32", "no compute capability of 7.0 or above"


def _cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for it; False where the system does not tell."""
    try:
        told = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool({"amx_bf16", "avx512_bf16"} & set(told.split()))


def _jit_compile(config: DevicesConfig, kind: str, replicas: int) -> tuple[bool, str]:
    """Whether XLA compiles the training step, and why."""
    # On CPU devices it ends in an error, on GPUs it has been seen to hang (keras issue 20763).
    several = "XLA cannot compile a step of several replicas"
    if config.jit_compile == "auto":
        if replicas > 1:
            return False, several
        return (True, "a GPU") if kind == "GPU" else (False, "slower on a CPU")
    if config.jit_compile == "on" and replicas > 1:
        raise UserError(f"jit_compile on: {several}; expected auto or off with {replicas} devices")
    return config.jit_compile == "on", _ASKED
