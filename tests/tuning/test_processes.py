"""Processes that call functions for a search, and survive what happens to them."""

import os
import pathlib
import signal

import pytest

from tuning.search import processes


def write_pid(path: str) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


def end(number: int) -> None:
    os.kill(os.getpid(), number)


def fail() -> None:
    raise ValueError("no number\nin the second line")


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
    with pytest.raises(processes.ProcessError, match=r"^no number$"):
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
