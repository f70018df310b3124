"""The GPUs of a process: which it takes, how much of their memory, and why TensorFlow sees none."""

import dataclasses
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import logging

from pizza_steak.errors import UserError
from trainers.configuration import DevicesConfig, asked_devices

if TYPE_CHECKING:  # --help must not wait for TensorFlow.
    import tensorflow as tf

# NVIDIA's driver lists its devices there, on Linux.
_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")
_CURE = "pip install -e '.[gpu]' installs TensorFlow's CUDA libraries"
# What TensorFlow logs about GPUs that it cannot use, the most telling first.
_REASONS = ("cuInit", "Cannot dlopen", "Could not find cuda drivers", "kernel driver", "NVIDIA")


@dataclasses.dataclass(frozen=True)
class GPU:
    """A GPU that this process has taken.

    Attributes:
      number: Its index among all that TensorFlow could use here.
      index: Its index among those that it uses.
      name: What it is called, such as "NVIDIA H100 80GB HBM3".
      compute_capability: Its compute capability; None if it is unknown.
    """

    number: int
    index: int
    name: str
    compute_capability: tuple[int, int] | None


def take(config: DevicesConfig) -> list[GPU]:
    """Takes the GPUs that the flags ask for; returns none to compute on the CPU.

    TensorFlow does not touch the others, and takes memory of these when it is needed, or at once as
    much as --gpu_memory_limit. Both is possible before TensorFlow has computed anything; in a
    process where it has, it keeps the GPUs and the memory that it has.

    Raises:
      UserError: A device does not exist, or is not there in this process; or --require_gpu finds no
        GPU.
    """
    import tensorflow as tf

    if config.cpu_devices:
        _split_cpu(config.cpu_devices)
    kind, asked = asked_devices(config.devices) if config.devices else ("", None)
    visible = tf.config.get_visible_devices("GPU")
    known = visible if asked is None else tf.config.list_physical_devices("GPU")
    if kind == "CPU" or config.cpu_devices:
        known = []
    elif not known:
        _miss(config, kind)
    taken = [known[index] for index in indices_of(config, "GPU", len(known))] if known else []
    try:
        tf.config.set_visible_devices(taken, "GPU")
        for gpu in taken:
            _limit_memory(gpu, config.gpu_memory_limit)
        visible = taken
    except RuntimeError as error:  # TensorFlow has started.
        if set(taken) - set(visible) or (visible and not taken):
            raise UserError(
                f"devices {config.devices}: TensorFlow has already started with other devices in "
                "this process; expected a new process"
            ) from error
    return [_described(gpu, visible.index(gpu)) for gpu in taken]


def indices_of(config: DevicesConfig, kind: str, count: int) -> Sequence[int]:
    """Returns which of `count` devices of a kind the flags ask for.

    Raises:
      UserError: There are not so many, or --strategy=none takes one only.
    """
    asked_kind, asked = asked_devices(config.devices) if config.devices else ("", None)
    indices: Sequence[int] = range(count)
    if asked is not None:
        indices = range(asked) if isinstance(asked, int) else asked
        known = len(indices) == len(set(indices)) and set(indices) <= set(range(count))
        if not indices or not known or asked_kind not in ("", kind):
            raise UserError(
                f"devices {config.devices}: expected a number from 1 to {count}, or some of the "
                f"indices 0 to {count - 1}, each once; this machine has {count} {kind} "
                f"device{'s' * (count != 1)}"
                + ("" if kind == "GPU" else ", and --cpu_devices makes more")
            )
    if config.strategy != "none":
        return indices
    if asked is not None and len(indices) > 1:
        raise UserError(
            f"devices: --strategy=none takes one device, not {len(indices)}; expected one, or "
            "--strategy=mirrored"
        )
    return indices[:1]


def _limit_memory(gpu: "tf.config.PhysicalDevice", gibibytes: float | None) -> None:
    import tensorflow as tf

    if gibibytes is None:
        if not tf.config.get_logical_device_configuration(gpu):  # As set earlier.
            tf.config.experimental.set_memory_growth(gpu, True)
    else:
        limit = tf.config.LogicalDeviceConfiguration(memory_limit=int(gibibytes * 1024))
        tf.config.set_logical_device_configuration(gpu, [limit])


def _described(gpu: "tf.config.PhysicalDevice", index: int) -> GPU:
    import tensorflow as tf

    everywhere = tf.config.list_physical_devices("GPU")
    number = everywhere.index(gpu)
    details = tf.config.experimental.get_device_details(gpu)
    name = details.get("device_name", "GPU") + (f" (gpu:{number})" if len(everywhere) > 1 else "")
    return GPU(number, index, name, details.get("compute_capability"))


def _split_cpu(count: int) -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:
        raise UserError(
            f"cpu_devices {count}: TensorFlow has already started with other devices in this "
            "process; expected a new process"
        ) from error


def _miss(config: DevicesConfig, kind: str) -> None:
    """Warns of GPUs that TensorFlow does not see, or raises an error if the flags need one."""
    missed = unseen()
    if config.require_gpu or kind == "GPU":
        flag = "require_gpu" if config.require_gpu else f"devices {config.devices}"
        raise UserError(f"{flag}: {missed or 'there is no GPU that TensorFlow can use'}")
    if missed:
        _warn(f"{missed}; computing on the CPU")


@functools.cache  # Once in a process, which may choose its devices several times.
def _warn(text: str) -> None:
    logging.warning("%s", text)


@functools.cache
def unseen() -> str | None:
    """Returns which NVIDIA GPUs this machine has, why TensorFlow sees none, and what helps.

    None if there are none, or CUDA_VISIBLE_DEVICES hides them all.
    """
    import tensorflow as tf

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [] if hidden is not None and hidden.strip() in ("", "-1") else _of_driver()
    if not names:
        return None
    if not tf.test.is_built_with_cuda():
        reason = f"version {tf.__version__} is built without CUDA"
    else:
        reason = _reason() or "it does not say why"
    return f"TensorFlow does not see {', '.join(names)}: {reason} ({_CURE})"


def _of_driver() -> list[str]:
    """Returns the names of the GPUs that NVIDIA's driver knows."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(_DRIVER.glob("*/information"))]
    names = [found[1].strip() for text in texts if (found := re.search("Model:(.*)", text))]
    if names or not (command := shutil.which("nvidia-smi")):
        return names
    # In WSL there is no such folder.
    listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=60)
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", listed.stdout, re.MULTILINE)


def _reason() -> str:
    """Returns what TensorFlow logs when it looks for GPUs; this process has dropped it."""
    code = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
    looked = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = looked.stderr.splitlines()
    told = [line for key in _REASONS for line in lines if key in line]
    # Such as "W0000 00:00:1795877043.543411   29018 gpu_device.cc:2342] Cannot dlopen ...".
    return told[0].partition("] ")[2].partition(". ")[0].rstrip(".") if told else ""
