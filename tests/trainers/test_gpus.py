"""Which GPUs a process takes, by a list of GPUs that are not there; what is said without any."""

import dataclasses
import os
import time

import pytest
import tensorflow as tf
from small_runs import ROOT, assert_same_run, fit, parse_flags, run_command

from pizza_steak.errors import UserError
from trainers import setup
from trainers.hardware import devices, gpus
from trainers.throughput import graphics_card

GPU = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(8)]


class Machine:
    """What TensorFlow is told of GPUs that only seem to be there.

    Attributes:
      visible: The GPUs that it uses.
      growing: Those whose memory it takes when it is needed.
      limited: The MiB of memory that it takes of the others.
      started: Whether it has computed anything.
    """

    def __init__(self, patch, count: int, capability=(9, 0)):
        self.there, self.visible = GPU[:count], GPU[:count]
        self.growing, self.limited, self.started = [], {}, False
        physical = tf.config.list_physical_devices
        patch.setattr(
            tf.config,
            "list_physical_devices",
            lambda kind=None: self.there if kind == "GPU" else [*physical("CPU"), *self.there],
        )
        patch.setattr(tf.config, "get_visible_devices", lambda kind: self.visible)
        patch.setattr(tf.config, "set_visible_devices", self.see)
        patch.setattr(tf.config.experimental, "set_memory_growth", self.grow)
        patch.setattr(tf.config, "get_logical_device_configuration", self.limited.get)
        patch.setattr(tf.config, "set_logical_device_configuration", self.limit)
        details = {"device_name": "NVIDIA A100", "compute_capability": capability}
        patch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)

    def see(self, wanted, kind):
        if self.started and wanted != self.visible:
            raise RuntimeError
        self.visible = wanted

    def grow(self, gpu, wanted):
        if self.started and gpu not in self.growing:
            raise RuntimeError
        self.growing += [gpu] * wanted

    def limit(self, gpu, configurations):
        self.limited[gpu] = [one.memory_limit for one in configurations]


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch, 8)


def taken(*flags: str) -> list[int]:
    return [gpu.number for gpu in gpus.take(parse_flags(*flags).devices)]


@pytest.mark.parametrize(
    "flags, numbers",
    [
        ([], [*range(8)]),
        (["--devices=1"], [0]),
        (["--devices=3"], [0, 1, 2]),
        (["--devices=gpu:3"], [3]),
        (["--devices=GPU:3"], [3]),
        (["--devices=gpu"], [*range(8)]),
        (["--devices=5,1"], [5, 1]),
        (["--devices=gpu:5,1"], [5, 1]),
        (["--devices=gpu:5,gpu:1"], [5, 1]),
        (["--strategy=none"], [0]),
        (["--strategy=none", "--devices=gpu:7"], [7]),
        (["--devices=cpu"], []),
        (["--cpu_devices=1"], []),
    ],
)
def test_only_the_asked_gpus_are_touched(machine, monkeypatch, flags, numbers):
    monkeypatch.setattr(gpus, "_split_cpu", lambda count: None)
    assert taken(*flags) == numbers
    assert machine.visible == machine.growing == [GPU[number] for number in numbers]
    assert machine.limited == {}


def test_a_gpu_has_its_own_number_and_its_place_among_those_taken(machine):
    (one, other) = gpus.take(parse_flags("--devices=gpu:6,2").devices)
    assert (one.number, one.index, one.name) == (6, 0, "NVIDIA A100 (gpu:6)")
    assert (other.number, other.index) == (2, 1)
    chosen = devices.choose(parse_flags("--devices=gpu:6,2").devices)
    assert (chosen.devices, chosen.strategy) == (("GPU:0", "GPU:1"), "mirrored")
    assert devices.choose(parse_flags("--devices=gpu:2").devices).strategy == "none"


def test_the_memory_of_a_gpu_can_be_limited(machine):
    assert taken("--devices=gpu:2", "--gpu_memory_limit=4.5") == [2]
    assert (machine.limited, machine.growing) == ({GPU[2]: [4608]}, [])
    assert taken("--devices=gpu:2") == [2]  # As a finished run is loaded in the same process.
    assert machine.growing == []


def test_a_process_that_has_started_keeps_its_gpus(machine):
    assert taken("--devices=gpu:4") == [4]
    machine.started = True
    assert taken("--devices=gpu:4") == taken() == [4]
    (again,) = gpus.take(parse_flags("--strategy=none").devices)
    assert (again.number, again.index) == (4, 0)
    for other in ("gpu:5", "cpu"):
        with pytest.raises(UserError, match=f"devices {other}: .*expected a new process"):
            taken(f"--devices={other}")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--devices=9"], "devices 9: expected a number from 1 to 8, .* has 8 GPU devices$"),
        (["--devices=gpu:8"], "devices gpu:8: expected"),
        (["--devices=gpu:1,1"], "devices gpu:1,1: .* each once"),
        (["--devices=1,2", "--strategy=none"], "takes one device, not 2"),
    ],
)
def test_what_there_is_not_is_refused(machine, flags, message):
    with pytest.raises(UserError, match=message):
        taken(*flags)
    assert machine.growing == []


@pytest.mark.parametrize(
    "text", ["gpu:", "gpu:1,cpu:1", "gpu,cpu", "cuda:1", "1.5", "-1", "1,", "gpu:99999"]
)
def test_other_devices_are_wrong_flags(text):
    status, stdout, stderr = run_command(f"--devices={text}")
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert "names such as gpu:3" in stderr


@pytest.mark.parametrize(
    "capability, precision",
    [
        ((9, 0), "mixed_bfloat16"),
        ((8, 0), "mixed_bfloat16"),
        ((7, 5), "mixed_float16"),
        ((7, 0), "mixed_float16"),
        ((6, 1), "float32"),
        (None, "float32"),
    ],
)
def test_half_precision_is_by_the_compute_capability(monkeypatch, capability, precision):
    Machine(monkeypatch, 2, capability)
    chosen = devices.choose(parse_flags().devices)
    assert chosen.precision == precision
    assert "compute capability" in chosen.precision_reason
    candidates = ["float32"] if precision == "float32" else ["float32", precision]
    assert devices.precisions(parse_flags().devices) == candidates


def test_the_least_capable_gpu_decides():
    assert devices.half_precision([(9, 0), (7, 5)])[0] == "mixed_float16"
    assert devices.half_precision([(9, 0), None])[0] is None


# XLA, as Keras decides where there seems to be a GPU; the steps are not computed.


@pytest.mark.parametrize(
    "flags, on, reason",
    [
        ([], True, "Keras's choice"),
        (["--strategy=mirrored"], False, "Keras turns it off with --strategy=mirrored"),
        (["--rand_augment=1"], False, "Keras turns it off for RandAugment"),
        (["--mixup=0.2"], False, "Keras turns it off for Mixing"),
        (["--jit_compile=off"], False, "as asked"),
        (["--jit_compile=on", "--strategy=mirrored"], True, "as asked"),
    ],
)
def test_the_table_has_the_xla_of_the_model(monkeypatch, small_flags, flags, on, reason):
    Machine(monkeypatch, 1)
    config = parse_flags(*small_flags, *flags)
    chosen = devices.choose(config.devices)
    on_cpu = dataclasses.replace(chosen, devices=("CPU:0",))  # Where its variables can be.
    found = setup.prepare(config, on_cpu)
    assert (found.chosen.jit_compile, found.model.jit_compile) == (on, on)
    assert found.chosen.jit_compile_reason == reason
    assert found.chosen.topics()["jit_compile"] == f"{'on' if on else 'off'} ({reason})"


@pytest.fixture
def as_if_on_gpu(monkeypatch):
    """The CPU is treated as a GPU is; it is not one of TensorFlow's."""
    monkeypatch.setattr(devices.Devices, "on_gpu", True)
    copied = []

    def on_device(batches, device):
        copied.append(device)
        return batches.prefetch(2)

    monkeypatch.setattr(devices, "_on_device", on_device)
    return copied


def test_a_run_on_a_gpu_augments_and_prefetches_there(as_if_on_gpu, small_flags, tmp_path, capsys):
    flags = [*small_flags, "--rotation_range=20", "--epochs=2"]
    run = fit(*flags, f"--run_dir={tmp_path}/device")
    assert as_if_on_gpu == ["CPU:0"] * 2  # Training and validation.
    table = capsys.readouterr().out
    assert "rotation_range 20.0, on the device\n" in table
    assert "\njit_compile off (slower on a CPU)\n" in table
    host = fit(*flags, f"--run_dir={tmp_path}/host", "--augment_on=host")
    assert "rotation_range 20.0, on the host\n" in capsys.readouterr().out
    assert_same_run(run.run_dir, host.run_dir)


PREFETCHED = """
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from trainers.hardware import devices
batches = tf.data.Dataset.range(6).map(lambda i: ((tf.fill([3], i), i), i))
for (one, other), label in devices._on_device(batches, "CPU:1"):
    print([tensor.device[-5:] for tensor in (one, other, label)], one.numpy().tolist())
"""


def test_batches_are_on_the_device_before_they_are_needed():
    status, stdout, stderr = run_command(code=PREFETCHED)
    assert status == 0, stderr
    places = ["CPU:1"] * 3
    assert stdout.splitlines() == [f"{places} {[i] * 3}" for i in range(6)]


# Without a GPU that TensorFlow sees.


@pytest.fixture
def unseen(monkeypatch, tmp_path):
    """`unseen(count)`: NVIDIA's driver seems to know GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "driver")

    def know(count: int) -> None:
        for number in range(count):
            folder = tmp_path / "driver" / f"0000:0{number}:00.0"
            folder.mkdir(parents=True)
            (folder / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 16\n")

    for function in (gpus.unseen, gpus._warn):
        function.cache_clear()
    yield know
    gpus.unseen.cache_clear()


def test_a_gpu_that_tensorflow_does_not_see_is_told_with_the_reason_and_the_cure(unseen):
    unseen(2)
    told = gpus.unseen()
    assert told.startswith("TensorFlow does not see NVIDIA H100, NVIDIA H100: ")
    # TensorFlow's own words, of a process that looked.
    assert "cuInit" in told or "Could not find cuda drivers" in told
    assert "pip install -e '.[gpu]'" in told
    assert len(told.splitlines()) == 1


def test_the_warning_comes_once_in_a_process(unseen, monkeypatch, caplog):
    unseen(1)
    monkeypatch.setattr(gpus, "_reason", lambda: "Cannot dlopen some GPU libraries")
    warned = []
    monkeypatch.setattr(gpus.logging, "warning", lambda text, *rest: warned.append(text % rest))
    assert taken() == taken() == []
    (line,) = warned
    assert line.startswith("TensorFlow does not see NVIDIA H100: Cannot dlopen")
    with pytest.raises(UserError, match=r"^require_gpu: TensorFlow does not see NVIDIA H100"):
        taken("--require_gpu")
    with pytest.raises(UserError, match=r"^devices gpu:1: TensorFlow does not see NVIDIA H100"):
        taken("--devices=gpu:1")
    assert taken("--devices=cpu") == []


def test_who_hides_the_gpus_is_not_told_of_them(unseen, monkeypatch):
    unseen(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.unseen() is None
    with pytest.raises(UserError, match=r"^require_gpu: there is no GPU that TensorFlow can use"):
        taken("--require_gpu")


def test_a_machine_without_gpus_is_not_told_of_any(unseen, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.unseen() is None
    assert taken() == []


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """`nvidia_smi(text)`: a program of this name prints a text, then its arguments to a file."""

    def write(text: str, seconds: int = 9) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\nprintf '{text}'\necho \"$@\" > {tmp_path}/asked\nexec sleep {seconds}\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return write


def test_nvidia_smi_is_asked_where_the_driver_has_no_folder(unseen, nvidia_smi, monkeypatch):
    nvidia_smi("GPU 0: NVIDIA RTX A2000 (UUID: GPU-1)\\n", seconds=0)
    monkeypatch.setattr(gpus, "_reason", lambda: "")
    assert gpus.unseen().startswith("TensorFlow does not see NVIDIA RTX A2000: it does not say why")


def test_the_benchmark_watches_the_gpus_of_the_process(machine, nvidia_smi, monkeypatch, tmp_path):
    nvidia_smi("40, 1000\\n80, 3000\\n[N/A], 1\\n6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1,0,2,4,6")
    watch = graphics_card.Watch(parse_flags("--devices=gpu:1,2").devices)
    with watch:
        while not (tmp_path / "asked").exists():
            time.sleep(0.01)
    assert "--id=5,3 " in (tmp_path / "asked").read_text()
    assert watch.summary == (
        "In training end to end a GPU was busy 60 % of the time, with at most 3,000 MiB of its "
        "memory taken."
    )


def test_without_a_gpu_nothing_is_watched():
    watch = graphics_card.Watch(None)
    with watch:
        pass
    assert watch.summary is None


@pytest.mark.parametrize(
    "module, config, hidden",
    [
        ("pizza_steak.command", "pizza_steak.configuration.PreparedConfig", True),
        ("trainers.command", "trainers.configuration.FitConfig", False),
    ],
)
def test_commands_that_need_no_gpu_leave_them_alone(module, config, hidden):
    package, _, name = config.rpartition(".")
    code = (
        f"import os, {module} as command; from {package} import {name}; "
        f"command.run(lambda config: print(os.environ.get('CUDA_VISIBLE_DEVICES')), {name})"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    status, stdout, stderr = run_command(code=code, environment=environment)
    assert (status, stdout) == (0, "-1\n" if hidden else "None\n"), stderr
