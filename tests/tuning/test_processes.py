"""Processes that call functions for a sweep, and survive what happens to them."""

import errno
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from pizza_steak.errors import UserError
from tuning.trials import processes


def write_pid(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


def end(number: int) -> None:
    os.kill(os.getpid(), number)


def fail() -> None:
    raise ValueError("no number\nin the second line")


def fail_and_write_stderr(path: str, error: Exception) -> None:
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    raise error


def hang() -> None:
    time.sleep(60)


@pytest.fixture
def server():
    server = processes.Server()
    yield server
    server.stop()


@pytest.fixture
def pids(server, tmp_path):
    """`pids()`: those of the processes that have been asked for them, in order."""
    path = tmp_path / "pids"

    def ask() -> list[str]:
        server.run(write_pid, str(path))
        return path.read_text().splitlines()

    return ask


@pytest.mark.slow
def test_one_process_serves_all_calls_until_one_of_them_ends_it(server, pids):
    pids()
    assert len({*pids()}) == 1
    with pytest.raises(processes.ProcessError, match=r"^killed, as systems do"):
        server.run(end, signal.SIGKILL)
    assert len({*pids()}) == 2
    with pytest.raises(processes.ProcessError, match=r"^ValueError: no number$"):
        server.run(fail)
    *_, last = pids()
    assert len({*pids()}) == 3
    assert os.getpid() != int(last)


@pytest.mark.slow
def test_no_process_serves_for_ever_and_none_outlives_its_server(server, pids, monkeypatch):
    monkeypatch.setattr(processes, "_CALLS_OF_A_SERVER", 2)
    assert len({*pids(), *pids(), *pids()}) == 2
    server.stop()
    assert not any(pathlib.Path("/proc", pid).exists() for pid in pids()[:-1])


@pytest.fixture(params=["a process for a call", "a server"])
def call(request, server, monkeypatch):
    """`call(function, *arguments, limit=None)`: calls a function in another process."""
    monkeypatch.setattr(processes, "_POLL_SECONDS", 0.05)
    return server.run if request.param == "a server" else processes.run


@pytest.mark.slow
def test_a_function_that_takes_too_long_is_ended_and_the_next_is_called(call, tmp_path):
    start = time.monotonic()
    with pytest.raises(processes.ProcessError, match=r"^took longer than 1 s$"):
        call(hang, limit=processes.Limit(1))
    assert time.monotonic() - start >= 1
    assert not multiprocessing.active_children()
    call(write_pid, str(tmp_path / "pid"), limit=processes.Limit(60))
    assert (tmp_path / "pid").exists()


@pytest.mark.slow
def test_a_function_whose_result_nobody_wants_is_ended_and_the_next_is_called(call, tmp_path):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(processes.StoppedError):
        call(hang, limit=processes.Limit(60, stop))
    assert stop.is_set()
    assert not multiprocessing.active_children()
    call(write_pid, str(tmp_path / "pid"), limit=processes.Limit(stop=threading.Event()))
    assert (tmp_path / "pid").exists()


@pytest.mark.slow
def test_a_bug_prints_its_traceback_and_is_named_and_a_mistake_of_the_user_is_one_line(
    call, tmp_path
):
    stderr = tmp_path / "stderr"
    with pytest.raises(processes.ProcessError, match=r"^ValueError: no number$"):
        call(fail_and_write_stderr, str(stderr), ValueError("no number\nhere"))
    lines = stderr.read_text().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == ["ValueError: no number", "here"]
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    mistake = UserError("images 3: expected more")
    for error, line in ((mistake, str(mistake)), (full, os.strerror(errno.ENOSPC))):
        with pytest.raises(UserError, match=f"^{line}$"):
            call(fail_and_write_stderr, str(stderr), error)
        assert stderr.read_text() == ""
