"""The hardware of a run: its devices, strategy, precision, XLA and oneDNN.

Some of it is decided before TensorFlow is imported, the rest after. On a CPU, oneDNN is on and XLA
is off: that is up to four times as fast as the opposite (BUILD_NOTES.md).
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pizza_steak import cores
from pizza_steak.errors import UserError
from pizza_steak.flags import Numbers
from trainers.configuration import DevicesConfig
from trainers.hardware import preemption

if TYPE_CHECKING:  # --help must not wait for TensorFlow.
    import keras
    import tensorflow as tf

    from pizza_steak.input_pipeline import Shares
    from trainers.hardware.clusters import Cluster

_ASKED = "as asked"
# With 3 GiB, small trainings fail in many ways, some of which end the process.
_LEAST_ADDRESSES = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Devices:
    """The hardware of a run, and how it computes.

    Attributes:
      names: The names of the devices, such as "CPU, 8 cores" or "NVIDIA A100-SXM4-40GB".
      strategy: "none"; "mirrored", a replica of the model on each of `devices`; or "multi_worker",
        a replica on each device of each process of `cluster`.
      devices: TensorFlow's names for the devices of this process, such as "GPU:0".
      precision: A Keras dtype policy.
      precision_reason: Why this precision.
      jit_compile: Whether XLA compiles the training step; "auto" before Keras has decided it.
      jit_compile_reason: Why, or why not.
      onednn: Whether oneDNN's kernels are "on", "off" or "by default", which is TensorFlow's choice
        for the processor. It concerns CPUs only.
      cluster: The processes that train together; None for one process.
    """

    names: tuple[str, ...]
    strategy: str
    devices: tuple[str, ...]
    precision: str
    precision_reason: str
    jit_compile: "bool | str"
    jit_compile_reason: str
    onednn: str
    cluster: "Cluster | None" = None

    @property
    def replicas(self) -> int:
        """The number of replicas of the model, which share each batch."""
        return len(self.devices) * (len(self.cluster.addresses) if self.cluster else 1)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory: the chief, or the only process."""
        return self.cluster is None or self.cluster.is_chief

    def from_chief(self, make: Callable[[], Any]) -> Any:
        """Returns the result of `make` in every process, but calls it in the chief only."""
        return make() if self.cluster is None else self.cluster.from_chief(make)

    def ending_together(self) -> contextlib.AbstractContextManager:
        """Within this block, a process that fails ends all others with its reason."""
        return self.cluster.ending_together() if self.cluster else contextlib.nullcontext()

    def set_precision(self) -> None:
        """Sets Keras's dtype policy; losses and metrics compute in float32 or float64."""
        import keras

        keras.config.set_floatx("float64" if self.precision == "float64" else "float32")
        keras.config.set_dtype_policy(self.precision)

    def scope(self) -> contextlib.AbstractContextManager:
        """Within this block, make layers, model and optimizer: all that has variables.

        Keras's fit, evaluate and predict enter it by themselves.
        """
        return self._strategy.scope() if self._strategy else contextlib.nullcontext()

    def dealt(self, batches: "Callable[[Shares], tf.data.Dataset]") -> "tf.data.Dataset":
        """Returns batches that are dealt out to the replicas, for Keras's fit.

        Args:
          batches: Calls `input_pipeline.batches` with the given `shares`.
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

    def as_compiled(self, model: "keras.Model") -> "Devices":
        """Returns the same with the `jit_compile` that Keras has chosen for a compiled model.

        Keras may also turn it off where the flag turns it on, as with --deterministic.
        """
        if model.jit_compile == self.jit_compile:
            return self
        return dataclasses.replace(
            self, jit_compile=model.jit_compile, jit_compile_reason="Keras's choice"
        )

    def topics(self) -> dict[str, str]:
        """Returns texts for the table of a run, by topic."""
        replicas = "1 replica" if self.replicas == 1 else f"{self.replicas} replicas"
        if self.cluster:
            replicas += f" of {len(self.cluster.addresses)} processes"
        jit_compile = "on" if self.jit_compile else "off"
        return {
            "devices": ", ".join(self.names),
            "oneDNN": self.onednn,
            "strategy": f"{self.strategy}, {replicas} on {', '.join(self.devices)}"
            + (" of each" if self.cluster else ""),
            "precision": f"{self.precision} ({self.precision_reason})",
            "jit_compile": f"{jit_compile} ({self.jit_compile_reason})",
        }


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> "tf.distribute.Strategy":
    """Returns one strategy per process: variables of one cannot be used in another."""
    import tensorflow as tf

    logger = tf.get_logger()
    logger.setLevel(max(logger.level, logging.WARNING))  # It logs each tensor that it sums.
    return tf.distribute.MirroredStrategy(devices)


def prepare(config: DevicesConfig) -> None:
    """Sets the environment variable of oneDNN, then imports TensorFlow.

    Raises:
      UserError: Keras computes with another backend, or the process may not have the addresses that
        TensorFlow needs.
    """
    if os.name == "posix":
        import resource

        allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
        if allowed != resource.RLIM_INFINITY and allowed < _LEAST_ADDRESSES:
            raise UserError(
                f"address space: limited to {allowed / 2**30:.1f} GiB (ulimit -v); expected "
                f"{_LEAST_ADDRESSES / 2**30:.0f} GiB, because TensorFlow maps more than it uses"
            )
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1" if config.onednn == "on" else "0")
    with preemption.sigterm_kept():  # `clusters` handles SIGTERM, not the threads that start here.
        from pizza_steak.tensorflow_import import import_tensorflow  # Imports TFDS.

        import_tensorflow()


def one_device(config: DevicesConfig) -> DevicesConfig:
    """Returns the flags for one device: a finished run may be used on another machine."""
    return dataclasses.replace(config, strategy="none", devices=None, cpu_devices=None)


def choose(config: DevicesConfig, cluster: "Cluster | None" = None) -> Devices:
    """Chooses the hardware, once TensorFlow can see it.

    With `cpu_devices` it creates those devices, and with a cluster it waits for the other
    processes. TensorFlow can do neither once it has computed anything.

    Raises:
      UserError: A device does not exist, flags contradict each other, or a process of the cluster
        does not come.
    """
    import tensorflow as tf

    if config.strategy == "multi_worker" and cluster is None:
        raise UserError("strategy multi_worker: works in trainers.fit only; expected another")
    if cluster and (config.cpu_devices or 1) > 1:
        raise UserError(
            f"cpu_devices {config.cpu_devices}: in a cluster the CPU of each process is one "
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
                f"devices: --strategy=none takes one device, not {len(indices)}; expected one, or "
                "--strategy=mirrored"
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
    if cluster:  # Last: a process that has joined must not fail without telling the others.
        if gpus:
            tf.config.set_visible_devices(gpus, "GPU")
            indices = list(range(len(gpus)))
        _ = cluster.strategy
    return Devices(
        names=tuple(names) or (f"CPU, {cores.count()} cores",),
        strategy="multi_worker" if cluster else "mirrored" if mirrored else "none",
        devices=tuple(f"{kind}:{index}" for index in indices),
        precision=precision,
        precision_reason=precision_reason,
        jit_compile=jit_compile,
        jit_compile_reason=jit_compile_reason,
        onednn={"1": "on", "0": "off"}.get(
            os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""), "by default"
        ),
        cluster=cluster,
    )


def _split_cpu(count: int) -> None:
    """Splits the CPU into devices, and hides the GPUs, which TensorFlow would prefer."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:
        raise UserError(
            f"cpu_devices {count}: TensorFlow has already started with other devices in this "
            "process; expected a new process"
        ) from error


def _indices(asked: Numbers | None, kind: str, count: int) -> list[int]:
    """Returns which of `count` devices of a kind the flag asks for."""
    if asked is None:
        return list(range(count))
    indices: Sequence[float]
    if isinstance(asked, int | float):
        indices, text = range(int(asked)), str(asked)
    else:
        indices, text = asked, ",".join(map(str, asked))
    known = len(indices) == len(set(indices)) and set(indices) <= set(range(count))
    if not indices or not known:
        raise UserError(
            f"devices {text}: expected a number from 1 to {count}, or some of the indices 0 to "
            f"{count - 1}, each once; this machine has {count} {kind} device{'s' * (count != 1)}"
            + ("" if kind == "GPU" else ", and --cpu_devices makes more")
        )
    return [int(index) for index in indices]


def _precision(
    config: DevicesConfig, capabilities: list[tuple[int, int] | None]
) -> tuple[str, str]:
    """Returns a dtype policy, and why.

    Args:
      config: The flags.
      capabilities: The compute capability of each GPU; None if it is unknown.
    """
    if config.precision != "auto":
        return config.precision, _ASKED
    if not capabilities:
        # With bfloat16 instructions, two processors were 1.6 to 1.8 times as fast and a third was
        # slower (BUILD_NOTES.md). And the result of a run should not depend on the machine.
        hint = "; mixed_bfloat16 may be faster on this one" if _cpu_has_bfloat16() else ""
        return "float32", f"the same on every processor{hint}"
    if all(capability and tuple(capability) >= (7, 0) for capability in capabilities):
        return "mixed_float16", "compute capability 7.0 or above"
    return "float32", "no compute capability of 7.0 or above"


def _cpu_has_bfloat16() -> bool:
    """Returns whether the processor has bfloat16 instructions; False if that is unknown."""
    try:
        told = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return bool({"amx_bf16", "avx512_bf16"} & set(told.split()))


def _jit_compile(config: DevicesConfig, kind: str, replicas: int) -> tuple[bool | str, str]:
    """Returns Keras's argument `jit_compile`, and why."""
    if config.jit_compile == "auto":
        # Keras's auto takes XLA for a CPU too if the machine has a GPU, as with --cpu_devices.
        return (False, "slower on a CPU") if kind == "CPU" else ("auto", "Keras's choice")
    # With several replicas, XLA fails on a CPU, and has been seen to hang on GPUs (keras issue
    # 20763); Keras's auto leaves it off there.
    if config.jit_compile == "on" and replicas > 1:
        raise UserError(
            "jit_compile on: XLA cannot compile a step of several replicas; expected auto or off "
            f"with {replicas} devices"
        )
    return config.jit_compile == "on", _ASKED
