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
from trainers.configuration import DevicesConfig
from trainers.hardware import gpus, preemption

if TYPE_CHECKING:  # --help must not wait for TensorFlow.
    import keras
    import tensorflow as tf

    from pizza_steak.input_pipeline import Shares
    from trainers.hardware.clusters import Cluster

_ASKED = "as asked"
# With 3 GiB, small trainings fail in many ways, some of which end the process.
_LEAST_ADDRESSES = 4 * 2**30
# Batches that are copied to a GPU in advance.
_ON_DEVICE = 2


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
      deterministic: Whether all operations are deterministic.
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
    deterministic: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on GPUs."""
        return self.devices[0].startswith("GPU")

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

        They are in the memory of a GPU before they are needed. Keras cannot count them, and has to
        be told the number of steps.

        Args:
          batches: Calls `input_pipeline.batches` with the given `shares`.
        """
        import tensorflow as tf

        from pizza_steak.input_pipeline import Shares

        if self._strategy is None:
            made = batches(Shares())
            return _on_device(made, self.devices[0]) if self.on_gpu else made

        def of_this_process(context: "tf.distribute.InputContext") -> "tf.data.Dataset":
            here = len(self.devices)
            first = context.input_pipeline_id * here
            made = batches(Shares(context.num_replicas_in_sync, range(first, first + here)))
            # Else the processes would ask each other at each step whether any batch is left.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            return made.apply(endless)

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
        reason = "Keras's choice"
        if not model.jit_compile:
            reason = f"Keras turns it off {self._why_not_compiled(model)}".rstrip()
        return dataclasses.replace(self, jit_compile=model.jit_compile, jit_compile_reason=reason)

    def _why_not_compiled(self, model: "keras.Model") -> str:
        """Returns the reason why Keras's auto, or `jit_compile=True`, leaves a model without XLA.

        https://github.com/keras-team/keras/blob/v3.15.1/keras/src/trainers/trainer.py#L256
        """
        layers = {
            type(layer).__name__
            for layer in model._flatten_layers(include_self=False, recursive=False)
            if not all(inner.supports_jit for inner in layer._flatten_layers())
        }
        if layers:
            return f"for {', '.join(sorted(layers))}"
        if self.deterministic:
            return "with --deterministic"
        return "" if self.strategy == "none" else f"with --strategy={self.strategy}"

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


def _on_device(batches: "tf.data.Dataset", device: str) -> "tf.data.Dataset":
    import tensorflow as tf

    return batches.apply(tf.data.experimental.prefetch_to_device(device, _ON_DEVICE))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> "tf.distribute.Strategy":
    """Returns one strategy per process: variables of one cannot be used in another."""
    import tensorflow as tf

    logger = tf.get_logger()
    logger.setLevel(max(logger.level, logging.WARNING))  # It logs each tensor that it sums.
    return tf.distribute.MirroredStrategy(devices)


def prepare(config: DevicesConfig) -> None:
    """Sets the environment variable of oneDNN, imports TensorFlow, and takes the asked GPUs.

    Raises:
      UserError: Keras computes with another backend, the process may not have the addresses that
        TensorFlow needs, or a device does not exist.
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
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # gpu:3 is number 3 of nvidia-smi.
    with preemption.sigterm_kept():  # `clusters` handles SIGTERM, not the threads that start here.
        from pizza_steak.tensorflow_import import import_tensorflow  # Imports TFDS.

        import_tensorflow()
    gpus.take(config)


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
    taken = gpus.take(config)
    kind = "GPU" if taken else "CPU"
    indices: Sequence[int] = [gpu.index for gpu in taken]
    if not taken:
        indices = gpus.indices_of(config, kind, config.cpu_devices or 1)
    mirrored = config.strategy == "mirrored" or len(indices) > 1
    precision, reason = _precision(config, [gpu.compute_capability for gpu in taken])
    replicas = len(indices) * (len(cluster.addresses) if cluster else 1)
    jit_compile, jit_compile_reason = _jit_compile(config, kind, replicas)
    plural = "core" if cores.count() == 1 else "cores"
    if cluster:  # Last: a process that has joined must not fail without telling the others.
        _ = cluster.strategy
    return Devices(
        names=tuple(gpu.name for gpu in taken) or (f"CPU, {cores.count()} {plural}",),
        strategy="multi_worker" if cluster else "mirrored" if mirrored else "none",
        devices=tuple(f"{kind}:{index}" for index in indices),
        precision=precision,
        precision_reason=reason,
        jit_compile=jit_compile,
        jit_compile_reason=jit_compile_reason,
        onednn={"1": "on", "0": "off"}.get(
            os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""), "by default"
        ),
        cluster=cluster,
        deterministic=config.deterministic,
    )


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
        hint = "; --precision=fastest tries bfloat16" if _cpu_has_bfloat16() else ""
        return "float32", f"the same on every processor{hint}"
    half, reason = half_precision(capabilities)
    return half or "float32", reason


def precisions(config: DevicesConfig) -> list[str]:
    """Returns float32, and the half precision that may be faster on the devices of the flags."""
    taken = gpus.take(config)
    half: str | None = "mixed_bfloat16"
    if taken:
        half, _ = half_precision([gpu.compute_capability for gpu in taken])
    return ["float32", half] if half else ["float32"]


def half_precision(capabilities: Sequence[tuple[int, int] | None]) -> tuple[str | None, str]:
    """Returns the dtype policy of half precision that some GPUs compute fast in, and why.

    bfloat16 has float32's range, so that no loss has to be scaled. Tensor cores multiply float16
    from compute capability 7.0 on, and bfloat16 from 8.0 on.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities

    Args:
      capabilities: The compute capability of each GPU; None if it is unknown.
    """
    least = min((tuple(capability or (0, 0)) for capability in capabilities), default=(0, 0))
    if least >= (8, 0):
        return "mixed_bfloat16", "compute capability 8.0 or above"
    if least >= (7, 0):
        return "mixed_float16", "compute capability 7.0 or above, below 8.0"
    return None, "no compute capability of 7.0 or above"


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
