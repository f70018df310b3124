"""Runs trials and workers in processes of their own, so that the sweep survives their death.

A process that ends gives its memory back, and a process that is killed when memory runs out leaves
the sweep alive. multiprocessing's forkserver forks all of them from a process that has imported
TensorFlow but not used it, so none waits for the import.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection, forkserver
from typing import Any

from pizza_steak import command
from pizza_steak.errors import UserError, fault_of_the_machine

# TensorFlow and Keras keep some memory of every model.
_CALLS_OF_A_SERVER = 100
_POLL_SECONDS = 0.5
KILLED = "killed, as systems do when memory runs out"
_CONTEXT = multiprocessing.get_context("forkserver")


class ProcessError(Exception):
    """A function failed in its process, or took too long; the message says why in one line."""


class StoppedError(Exception):
    """A function was ended because its result is not wanted any more."""


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

    def wait(self, limit: "Limit | None" = None) -> str:
        """Waits for the end, and returns why it failed in one line, or an empty text.

        Raises:
          UserError: The function raised it, or the machine has a fault.
          ProcessError, StoppedError: The limit was reached before.
        """
        try:
            if limit:
                limit.wait_for(self._receiver)
            reason = self._receiver.recv()
        except EOFError:
            self._process.join()
            reason = _death(self._process.exitcode or 0)
        self._process.join()
        if isinstance(reason, UserError):
            raise reason
        return reason

    def end(self) -> None:
        """Gives the process a moment to end by itself, then kills it."""
        self._process.join(_POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kills the process if it has not ended."""
        self._process.kill()
        self._process.join()


class Limit:
    """How long a function may take.

    Args:
      seconds: The longest time from now on; None for any.
      stop: The function is ended when this event is set.
    """

    def __init__(self, seconds: float | None = None, stop: threading.Event | None = None):
        self._seconds = seconds
        self._start = time.monotonic()
        self._stop = stop or threading.Event()

    def wait_for(self, receiver: connection.Connection) -> None:
        """Waits until there is something to receive.

        Raises:
          ProcessError: It took too long.
          StoppedError: The event was set.
        """
        while not receiver.poll(_POLL_SECONDS):
            if self._stop.is_set():
                raise StoppedError
            if self._seconds is not None and time.monotonic() - self._start > self._seconds:
                raise ProcessError(f"took longer than {self._seconds:g} s")


def run(
    function: Callable,
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    limit: Limit | None = None,
) -> None:
    """Calls a function of a module in a process of its own, and waits for its end.

    Raises:
      UserError: The function raised it, or the machine has a fault.
      ProcessError: The function failed, took too long, or the process was killed.
      StoppedError: The limit says so.
    """
    process = Process(function, *arguments, environment=environment)
    try:
        if reason := process.wait(limit):
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

    def run(self, function: Callable, *arguments: Any, limit: Limit | None = None) -> None:
        """Calls a function of a module, and waits for its end.

        Raises:
          UserError, ProcessError, StoppedError: As `run` does.
        """
        if self._process is None or self._calls == _CALLS_OF_A_SERVER:
            self.stop()
            self._connection, other = _CONTEXT.Pipe()
            self._process = Process(_serve, other, environment=self._environment)
            other.close()
        self._calls += 1
        try:
            self._connection.send((function, arguments))
            if limit:
                limit.wait_for(self._connection)
            self._connection.recv()
        except (EOFError, OSError):  # It has ended.
            process, self._process = self._process, None
            raise ProcessError(process.wait()) from None
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the process, even within a call."""
        if self._process:
            with contextlib.suppress(OSError):
                self._connection.send(None)
            self._process.end()
        self._process, self._calls = None, 0


def _serve(requests: connection.Connection) -> None:
    while request := requests.recv():
        function, arguments = request
        function(*arguments)
        requests.send(None)


def _death(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return KILLED
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
    command.own_process()
    try:
        function(*arguments)
    except Exception as error:
        if line := str(error) if isinstance(error, UserError) else fault_of_the_machine(error):
            sender.send(UserError(line))
        else:  # A bug, of which one line says too little.
            traceback.print_exc()
            text = (str(error).strip() or "no text").splitlines()[0]
            sender.send(f"{type(error).__name__}: {text}")
        raise SystemExit(1) from error
    sender.send("")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent  # Only processes that `Process` has started get here.
    connection.wait([parent.sentinel])
    os._exit(1)
