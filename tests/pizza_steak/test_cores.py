"""The number of cores: what a scheduler and a container allow, and who goes by it."""

import os
import threading
import time

import pytest

from pizza_steak import contents, cores
from pizza_steak.archive import Archive, read_archive
from pizza_steak.errors import UserError

several_cores = pytest.mark.skipif(cores.count() < 2, reason="needs two cores")


@pytest.fixture
def large_machine(monkeypatch):
    """A machine of 128 cores, without limits."""
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(128)), raising=False)


V1 = b"9:cpuset:/\n2:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n"


@pytest.mark.parametrize(
    ("own", "files", "count"),
    [
        pytest.param(b"0::/jobs/7\n", {"jobs/7/cpu.max": b"400000 100000\n"}, 4, id="v2"),
        pytest.param(b"0::/\n", {"cpu.max": b"400000 100000\n"}, 4, id="container"),
        pytest.param(b"0::/jobs/7\n", {"cpu.max": b"400000 100000\n"}, 4, id="outside"),
        pytest.param(b"0::/../7\n", {"cpu.max": b"400000 100000\n"}, 4, id="elsewhere"),
        pytest.param(
            b"0::/jobs/7\n",
            {"jobs/7/cpu.max": b"max 100000\n", "jobs/cpu.max": b"300000 100000\n"},
            3,
            id="outer",
        ),
        pytest.param(
            b"0::/jobs/7\n",
            {"jobs/7/cpu.max": b"200000 100000\n", "jobs/cpu.max": b"300000 100000\n"},
            2,
            id="both",
        ),
        pytest.param(b"0::/\n", {"cpu.max": b"250000 100000\n"}, 3, id="rounded up"),
        pytest.param(b"0::/\n", {"cpu.max": b"1000 100000\n"}, 1, id="small"),
        pytest.param(b"0::/\n", {"cpu.max": b"99900000 100000\n"}, 128, id="large"),
        pytest.param(b"0::/\n", {"cpu.max": b"max 100000\n"}, 128, id="no limit"),
        pytest.param(
            V1,
            {
                "cpu/docker/1f/cpu.cfs_quota_us": b"400000\n",
                "cpu/docker/1f/cpu.cfs_period_us": b"100000\n",
            },
            4,
            id="v1",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": b"150000\n", "cpu/cpu.cfs_period_us": b"50000\n"},
            3,
            id="v1 container",
        ),
        pytest.param(
            V1,
            {"cpu/cpu.cfs_quota_us": b"-1\n", "cpu/cpu.cfs_period_us": b"100000\n"},
            128,
            id="v1 no limit",
        ),
        # What is not understood is no limit, and no error.
        pytest.param(b"\nnonsense\n0::/\xff\n", {"\udcff/cpu.max": b"\xff"}, 128, id="bytes"),
        pytest.param(b"0::/\n", {"cpu.max": b""}, 128, id="empty"),
        pytest.param(b"0::/\n", {"cpu.max": b"400000 0\n"}, 128, id="zero"),
        pytest.param(b"0::/\n", {"cpu.max/folder": b""}, 128, id="folder"),
        pytest.param(b"", {}, 128, id="none"),
    ],
)
def test_a_containers_share_of_the_time_counts(large_machine, in_control_groups, own, files, count):
    in_control_groups(own, files)
    assert cores.count() == count
    assert cores.schedulable() == 128


def test_a_system_without_control_groups_or_affinity_has_all_its_cores(
    large_machine, in_control_groups, tmp_path, monkeypatch
):
    in_control_groups(b"", {})
    (tmp_path / "own").unlink()
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores.count() == 128


@several_cores
def test_an_affinity_counts(run_python):
    code = """
import os
from pizza_steak import cores
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
print(cores.count())
"""
    assert run_python(code).split() == ["1"]


@several_cores
def test_all_threads_are_held_and_processes_that_they_start(run_python):
    code = """
import glob, os, subprocess, sys, threading
import numpy  # Starts threads.
from pizza_steak import cores
threading.Thread(target=threading.Event().wait, daemon=True).start()
cores.hold_to(1)
threading.Thread(target=threading.Event().wait, daemon=True).start()
tasks = [int(path.split("/")[-1]) for path in glob.glob("/proc/self/task/*")]
print(len(tasks) > 2, {len(os.sched_getaffinity(task)) for task in tasks}, cores.count())
print(len({*map(frozenset, map(os.sched_getaffinity, tasks))}))
print(subprocess.check_output(
    [sys.executable, "-c", "from pizza_steak import cores; print(cores.count())"], text=True))
"""
    assert run_python(code).split() == ["True", "{1}", "1", "1", "1"]


@several_cores
def test_runs_are_held_to_neighbors_and_not_all_to_the_same(monkeypatch, large_machine):
    seen = set()
    monkeypatch.setattr(os, "sched_setaffinity", lambda task, chosen: seen.add(frozenset(chosen)))
    for _ in range(100):
        cores.hold_to(50)
    # One of 2^99 runs sees one of them only.
    assert seen == {frozenset(range(50)), frozenset(range(50, 100))}


@several_cores
def test_what_is_held_for_a_block_is_given_back():
    before, stop = os.sched_getaffinity(0), threading.Event()
    started = threading.Thread(target=stop.wait)
    with pytest.raises(ZeroDivisionError), cores.held_to(1):
        assert cores.count() == 1
        started.start()
        assert len(os.sched_getaffinity(started.native_id)) == 1
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before == os.sched_getaffinity(started.native_id)
    stop.set()
    started.join()
    with cores.held_to(None):
        assert os.sched_getaffinity(0) == before


def test_more_cores_than_there_are_are_refused(large_machine, in_control_groups):
    in_control_groups(b"0::/\n", {"cpu.max": b"400000 100000\n"})
    with pytest.raises(UserError, match=r"^threads 5: expected at most the number of cores, 4$"):
        cores.hold_to(5)


@several_cores
@pytest.mark.parametrize(("given", "threads"), [({}, 1), ({"TF_NUM_INTEROP_THREADS": "2"}, 2)])
def test_tensorflow_starts_as_many_threads_unless_it_is_told_another_number(
    run_python, tmp_path, given, threads
):
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    code = """
import glob, pathlib, sys
from pizza_steak import control_groups
control_groups._OWN_CONTROL_GROUPS, control_groups._CONTROL_GROUPS = map(pathlib.Path, sys.argv[1:])
from pizza_steak.tensorflow_import import import_tensorflow
tf = import_tensorflow()
list(tf.data.Dataset.range(9).map(lambda n: n + 1, num_parallel_calls=2))
names = [open(f"{task}/comm").read().strip() for task in glob.glob("/proc/self/task/*")]
print(names.count("tf_Compute"))
"""
    printed = run_python(code, tmp_path / "own", tmp_path, environment=given)
    assert printed.split() == [str(threads)]


def test_files_are_read_by_few_threads_on_few_cores_of_a_large_machine(
    make_archive, monkeypatch, tmp_path
):
    folder = make_archive([f"train/{n % 2}/{n}.jpg" for n in range(50)], as_zip=False)
    threads = set()

    def checksum_file(self, picture, original=Archive.checksum_file):
        threads.add(threading.get_ident())
        time.sleep(0.01)  # So that the pool starts all that it may.
        return original(self, picture)

    monkeypatch.setattr(Archive, "checksum_file", checksum_file)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    allowed = cores.count()
    contents.fingerprint(read_archive(folder), tmp_path / "cache")
    assert 0 < len(threads) <= allowed + 4 < 32
