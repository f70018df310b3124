"""Runs trials and workers in processes of their own, so that the search survives their death.

A process that ends gives its memory back, and a process that is killed when memory runs out leaves
the search alive. multiprocessing's forkserver forks all of them from a process that has imported
TensorFlow but not used it, so none waits for the import.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing import connection, forkserver
from typing import Any

# TensorFlow and Keras keep some memory of every model.
_CALLS_OF_A_SERVER = 100
_CONTEXT = multiprocessing.get_context("forkserver")


class ProcessError(Exception):
    """A function failed in its process; the message says why in one line."""


def prepare(*modules: str) -> None:
    """Starts to import modules, for all later processes."""
    _CONTEXT.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


class Process:
    """A process that calls a function, and ends with this process.

    Args:
      function: A function of a module.
      *arguments: Its arguments.
      environment: Environment variables that are set before the call.
    """

    def __init__(
        self, function: Callable, *arguments: Any, environment: Mapping[str, str] | None = None
    ):
        self._receiver, sender = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(
            target=_call, args=(sender, dict(environment or {}), function, arguments)
        )
        self._process.start()
        sender.close()

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def wait(self) -> str:
        """Waits for the end, and returns why it failed in one line, or an empty text."""
        try:
            reason = self._receiver.recv()
        except EOFError:
            self._process.join()
            reason = _death(self._process.exitcode or 0)
        self._process.join()
        return reason

    def kill(self) -> None:
        """Kills the process if it has not ended."""
        self._process.kill()
        self._process.join()


def run(function: Callable, *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
    """Calls a function of a module in a process of its own, and waits for its end.

    Raises:
      ProcessError: The function failed, or the process was killed.
    """
    process = Process(function, *arguments, environment=environment)
    try:
        if reason := process.wait():
            raise ProcessError(reason)
    finally:
        process.kill()  # This process may have been interrupted.


class Server:
    """Calls functions one after the other in one process, which may keep what it has loaded.

    After some calls, or if a function fails, another process takes its place.

    Args:
      environment: As of `Process`.
    """

    def __init__(self, environment: Mapping[str, str] | None = None):
        self._environment = environment
        self._process: Process | None = None
        self._calls = 0

    def run(self, function: Callable, *arguments: Any) -> None:
        """Calls a function of a module, and waits for its end.

        Raises:
          ProcessError: The function failed, or the process was killed.
        """
        if self._process is None or self._calls == _CALLS_OF_A_SERVER:
            self.stop()
            self._connection, other = _CONTEXT.Pipe()
            self._process = Process(_serve, other, environment=self._environment)
            other.close()
        self._calls += 1
        try:
            self._connection.send((function, arguments))
            self._connection.recv()
        except (EOFError, OSError):  # It has ended.
            process, self._process = self._process, None
            raise ProcessError(process.wait()) from None

    def stop(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.kill()
        self._process, self._calls = None, 0


def _serve(requests: connection.Connection) -> None:
    while True:
        function, arguments = requests.recv()
        function(*arguments)
        requests.send(None)


def _death(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed, as systems do when memory runs out"
    if exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit status {exit_code}"


def _call(
    sender: connection.Connection,
    environment: dict[str, str],
    function: Callable,
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process; the parent ends this one.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    try:
        function(*arguments)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        sender.send(text.splitlines()[0])
        raise SystemExit(1) from error
    sender.send("")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent  # Only processes that `Process` has started get here.
    connection.wait([parent.sentinel])
    os._exit(1)
