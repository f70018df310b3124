"""Several real processes that train together: the numbers of one, and all of them end."""

import contextlib
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import pytest
from small_runs import (
    IN_FLOAT64,
    UNEVEN,
    assert_same_numbers,
    assert_same_run,
    fit,
    layout,
    result_of,
    rows,
    snapshot,
    start_command,
)

from trainers.runs import checkpoint
from trainers.runs.checkpoint import Progress

pytestmark = pytest.mark.slow

WITH_STATISTICS = (
    *("--batch_size=13", "--batch_normalization", "--blocks=1", "--learning_rate=0.001"),
)
# Long enough to be stopped; saved after each step, most of which lie within an epoch.
LONG = (
    "--epochs=8",
    "--batch_size=8",
    "--dropout=0.3",
    "--reduce_lr_patience=3",
    "--checkpoint_every=1",
    "--resume=auto",
    "--cluster_timeout=8",
)
PREEMPTED = 75

# `trainers.fit`, in which something is changed once TensorFlow is there.
CHANGED = """
import runpy
from trainers.hardware import devices
def prepare(config, prepare=devices.prepare):
    prepare(config)
    change()
def change():
    {}
devices.prepare = prepare
runpy.run_module("trainers.fit", run_name="__main__", alter_sys=True)
"""
TWO_DEVICES = """
    # As of a machine with two GPUs: TensorFlow takes a processor as one device in a cluster.
    import tensorflow as tf
    from tensorflow.python.distribute import collective_all_reduce_strategy as collective
    (cpu,), halves = tf.config.list_physical_devices("CPU"), ["CPU:0", "CPU:1"]
    logical = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, logical)
    collective.CollectiveAllReduceExtended._initialize_local_devices = (
        lambda self, resolver, host: (tuple(f"{host}/device:{half}" for half in halves), "CPU")
    )
    from trainers.hardware import gpus
    gpus.indices_of = lambda *asked: [0, 1]
"""
PLAN_FOR_EVER = """
    import time
    from trainers.runs import run_directory
    run_directory.plan = lambda config: (print("at it", flush=True), time.sleep(600))
"""
NO_MEMORY = """
    import time
    from pizza_steak.errors import UserError
    from trainers.models import networks
    def no_memory(*arguments, **options):
        time.sleep(3)
        raise UserError("no memory; expected more")
    networks.build = no_memory
"""
SIGTERM_AT_THE_START = """
    import signal
    from trainers.training.callbacks import StopOnNaN
    StopOnNaN.on_train_begin = lambda self, logs: signal.raise_signal(signal.SIGTERM)
"""
SIGTERM_AT_THE_END = """
    import signal
    from trainers.training.callbacks import Backup
    Backup.on_train_end = lambda self, logs: signal.raise_signal(signal.SIGTERM)
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


class Processes:
    """`trainers.fit`, as so many processes that are told of each other, some of which may lack.

    Args:
      flags: Of each process.
      folder: A place of their own for each to write into what it should not.
      lacking: How many more the others are told of.
      changes: Code for some of them, by their indices.
      fresh: Whether each of them imports TensorFlow itself.
    """

    def __init__(
        self,
        flags: Sequence[Sequence[str]],
        folder: pathlib.Path,
        lacking: int = 0,
        changes: Mapping[int, str] | None = None,
        fresh: bool = False,
    ):
        self.addresses = [f"localhost:{port}" for port in free_ports(len(flags) + lacking)]
        self.folders = [folder / f"process {index}" for index in range(len(flags))]
        self._started = []
        for index, (own, cwd) in enumerate(zip(flags, self.folders, strict=True)):
            cwd.mkdir(parents=True, exist_ok=True)
            told = {
                "cluster": {"worker": self.addresses},
                "task": {"type": "worker", "index": index},
            }
            self._started.append(
                start_command(
                    *own,
                    code=CHANGED.format(change) if (change := (changes or {}).get(index)) else None,
                    environment={"TF_CONFIG": json.dumps(told), "TF_CPP_MIN_LOG_LEVEL": "3"},
                    cwd=cwd,
                    fresh=fresh,
                )
            )

    def __getitem__(self, index: int) -> subprocess.Popen:
        return self._started[index]

    def ends(self, seconds: float = 120) -> list[tuple[int, str]]:
        """The exit status and the stderr of each; fails where one is left after so long."""
        end = time.monotonic() + seconds
        ends = []
        for process in self._started:
            _, errors = process.communicate(timeout=end - time.monotonic())
            ends.append((process.returncode, errors))
        return ends

    def kill(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def uneven(make_archive) -> pathlib.Path:
    return make_archive(layout(UNEVEN))


@pytest.fixture
def start(small_flags, uneven, tmp_path):
    """`start(count, *flags, own=(), ...)`: `Processes` on an uneven archive.

    Their run directory is tmp_path/run; `own` are flags of the last process alone.
    """
    started = []

    def start(count: int, *flags: str, own: Sequence[str] = (), **options) -> Processes:
        shared = [*small_flags, f"--archive={uneven}", f"--run_dir={tmp_path}/run", *flags]
        each = [[*shared, *(own if index == count - 1 else ())] for index in range(count)]
        started.append(Processes(each, tmp_path, **options))
        return started[-1]

    start.alone = lambda *flags: fit(*small_flags, f"--archive={uneven}", *flags).run_dir
    yield start
    for processes in started:
        processes.kill()


def wait_until(reached: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until it is so, while the process lives."""
    end = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for_rows(run_dir: pathlib.Path, count: int, process: subprocess.Popen) -> None:
    """Until a run has come so far."""
    metrics = run_dir / "metrics.csv"
    wait_until(lambda: metrics.exists() and len(rows(run_dir)) >= count, process)


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
        return True
    return False


def test_processes_have_the_numbers_of_one(start, tmp_path):
    own = [f"--run_dir={tmp_path}/workers"]
    together = start(2, "--epochs=2", *WITH_STATISTICS, own=own)
    alone = start.alone("--epochs=2", *WITH_STATISTICS, f"--run_dir={tmp_path}/alone")
    assert together.ends() == [(0, "")] * 2
    assert_same_numbers(tmp_path / "run", alone)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["strategy"] == "multi_worker"
    assert environment["cluster"]["addresses"] == together.addresses
    # The chief alone writes.
    assert not (tmp_path / "workers").exists()
    assert not any(any(folder.iterdir()) for folder in together.folders)


def test_three_that_were_preempted_and_two_that_go_on_have_the_numbers_of_one(start, tmp_path):
    flags = ("--epochs=2", *IN_FLOAT64, "--resume=auto")
    preempted = start(3, *flags, "--data_on_device", changes={2: SIGTERM_AT_THE_START})
    assert [status for status, _ in preempted.ends()] == [PREEMPTED] * 3
    assert checkpoint.read(tmp_path / "run" / "backup").progress == Progress(step=1)
    # Two processes of two devices, one of which gets no image of the last batch.
    changes = {0: TWO_DEVICES, 1: TWO_DEVICES}
    together = start(2, *flags, "--data_on_device", changes=changes)
    alone = start.alone(*flags, f"--run_dir={tmp_path}/alone")
    assert together.ends() == [(0, "")] * 2
    assert_same_numbers(tmp_path / "run", alone, 1e-12)


@pytest.fixture(scope="module")
def unreadable(make_archive) -> str:
    """The flag of an archive with three unreadable images to train on."""
    bad = [f"train/{name}.png" for name in ("dark/01", "light/00", "light/16")]
    return f"--archive={make_archive(layout(UNEVEN) | dict.fromkeys(bad, b'no image'))}"


def test_an_unreadable_image_that_one_process_leaves_out(start, tmp_path, unreadable):
    flags = ("--epochs=2", *IN_FLOAT64, unreadable, "--decoded_cache=none", "--on_bad_image=skip")
    together = start(2, *flags)
    alone = start.alone(*flags, f"--run_dir={tmp_path}/alone")
    ends = together.ends()
    assert [status for status, _ in ends] == [0, 0]
    assert all(
        line.startswith("warning: skipped") for _, errors in ends for line in errors.splitlines()
    )
    assert result_of(tmp_path / "run")["bad_train_images"] == 3
    assert_same_numbers(tmp_path / "run", alone, 1e-12)


def test_an_unreadable_image_that_one_process_ends_at_is_named_by_all(start, tmp_path, unreadable):
    for status, errors in start(2, unreadable, "--decoded_cache=none").ends(60):
        assert status == 1
        assert re.search(r"cannot be decoded: train/(dark/01|light/00|light/16)\.png \(", errors)
        assert errors.count("error: ") == errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_processes_with_other_training_images_are_refused(start, tmp_path, unreadable):
    flags = (unreadable, "--on_bad_image=skip", "--decoded_cache=memory")
    for status, errors in start(2, *flags, own=["--decoded_cache=none"]).ends(60):
        assert status == 1
        assert "images of each split: differ from the chief's (train 26, " in errors
        assert "here train 29, " in errors
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def left_alone(small_flags, uneven, tmp_path_factory):
    """The run of two processes that nobody stops."""
    folder = tmp_path_factory.mktemp("left_alone")
    flags = [*small_flags, f"--archive={uneven}", *LONG]
    processes = Processes([[*flags, f"--run_dir={folder}/run"]] * 2, folder)
    assert processes.ends() == [(0, "")] * 2
    return folder / "run"


def test_killed_or_preempted_all_end_with_one_line_and_go_on(start, tmp_path, left_alone):
    run_dir, count = tmp_path / "run", 0
    for victim, number in [(0, signal.SIGKILL), (1, signal.SIGTERM), (1, signal.SIGKILL)]:
        processes = start(2, *LONG)
        wait_for_rows(run_dir, count + 1, processes[0])
        processes[victim].send_signal(number)
        ends = processes.ends(60)
        count = len(rows(run_dir))
        if number == signal.SIGTERM:
            line = "preempted; start all processes again, with --resume=auto\n"
            assert ends == [(PREEMPTED, line)] * 2
            continue
        assert ends[victim] == (-signal.SIGKILL, "")
        status, errors = ends[1 - victim]
        assert status == 1
        assert errors.count("\n") == 1
        assert processes.addresses[victim] in errors and "has ended" in errors
    assert start(2, *LONG).ends() == [(0, "")] * 2
    assert_same_run(run_dir, left_alone)


def test_a_process_that_falls_silent_is_named(start, tmp_path):
    processes = start(2, *LONG, "--epochs=500")
    wait_for_rows(tmp_path / "run", 2, processes[0])
    processes[1].send_signal(signal.SIGSTOP)
    _, errors = processes[0].communicate(timeout=30)
    assert processes[0].returncode == 1
    assert errors.startswith(f"error: worker 1 ({processes.addresses[1]}) has ended or does not")
    assert errors.count("\n") == 1


def test_sigterm_after_the_last_step_preempts_all(start, tmp_path):
    processes = start(2, "--epochs=1", changes={1: SIGTERM_AT_THE_END})
    assert [status for status, _ in processes.ends(60)] == [PREEMPTED] * 2
    assert len(rows(tmp_path / "run")) == 1
    assert not (tmp_path / "run" / "result.json").exists()


def test_sigterm_before_training_ends_a_process_that_waits(start):
    # The import makes threads, none of which may get the signal.
    processes = start(2, changes={0: PLAN_FOR_EVER}, fresh=True)
    assert processes[0].stdout.readline() == "at it\n"
    for process in (processes[1], processes[0]):
        process.send_signal(signal.SIGTERM)
    assert [status for status, _ in processes.ends(20)] == [-signal.SIGTERM] * 2


def test_sigterm_is_not_lost_while_a_process_waits_for_others(start):
    waiting = start(1, "--cluster_timeout=6", lacking=1, fresh=True)
    wait_until(lambda: listens(waiting.addresses[0]), waiting[0])
    waiting[0].send_signal(signal.SIGTERM)
    assert [status for status, _ in waiting.ends(60)] == [-signal.SIGTERM]


def test_unequal_devices_are_refused(start, tmp_path):
    processes = start(2, changes={0: TWO_DEVICES})
    message = (
        "devices 1 CPU: the chief has 2 CPU; expected as many of the same kind in every process "
        "(--devices)\n"
    )
    assert processes.ends(60) == [
        (1, f"error: worker 1 ({processes.addresses[1]}) has ended: {message}"),
        (1, f"error: {message}"),
    ]
    assert not (tmp_path / "run").exists()


def test_a_run_of_several_goes_on_alone(start, tmp_path):
    flags = ("--batch_size=8", "--epochs=5", "--checkpoint_every=1", "--resume=auto")
    processes = start(2, *flags)
    wait_for_rows(tmp_path / "run", 1, processes[0])
    processes[0].send_signal(signal.SIGTERM)
    assert [status for status, _ in processes.ends(60)] == [PREEMPTED] * 2
    assert start.alone(*flags, f"--run_dir={tmp_path}/run") == tmp_path / "run"
    assert_same_numbers(tmp_path / "run", start.alone(*flags, f"--run_dir={tmp_path}/alone"))


def test_a_finished_run_is_told_to_all(start, left_alone, tmp_path):
    before = (left_alone / "result.json").read_bytes()
    assert start(2, *LONG, f"--run_dir={left_alone}").ends() == [(0, "")] * 2
    assert (left_alone / "result.json").read_bytes() == before
    assert len(result_of(left_alone)["history"]["loss"]) == 8


def test_nothing_is_overwritten_before_all_are_ready(start, left_alone, tmp_path):
    run_dir = shutil.copytree(left_alone, tmp_path / "run")
    before = snapshot(run_dir)
    processes = start(2, "--overwrite", changes={1: NO_MEMORY})
    reason = "no memory; expected more\n"
    assert processes.ends(60) == [
        (1, f"error: worker 1 ({processes.addresses[1]}) has ended: {reason}"),
        (1, f"error: {reason}"),
    ]
    assert snapshot(run_dir) == before


def test_a_cluster_that_does_not_form_ends_in_time(start, tmp_path):
    processes = start(2, "--cluster_timeout=5", lacking=1)
    missing = f"error: worker 2 ({processes.addresses[2]}) has not come within 5 s; expected "
    for status, errors in processes.ends(60):
        assert status == 1
        assert errors.startswith(missing)
        assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "own, reason",
    [
        (["--archive=missing.zip"], "archive missing.zip: .*"),
        (
            ["--batch_size=4"],
            r"flags: differ from the chief's \(--batch_size=8, here --batch_size=4\).*",
        ),
    ],
)
def test_what_one_fails_at_is_told_by_all(start, tmp_path, own, reason):
    processes = start(2, own=own)
    (status, chiefs), (other_status, workers) = processes.ends(60)
    assert status == other_status == 1
    assert chiefs == f"error: worker 1 ({processes.addresses[1]}) has ended: " + workers[7:]
    assert re.fullmatch(f"error: {reason}\n", workers)
    assert not (tmp_path / "run").exists()
