"""Processes of their own for what must not take the search with it: trials, and its workers.

The memory of what ran in one is given back with it, and a process that is killed for want of
memory leaves the search alive. All are forked from one that has TensorFlow imported but not begun
to use (multiprocessing's forkserver), so that none waits for the import.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing import connection, forkserver
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")


class ProcessError(Exception):
    """What ran in a process of its own has failed; says why in one line."""


def prepare(*modules: str) -> None:
    """Begins to import modules, for all processes to come."""
    _CONTEXT.set_forkserver_preload(list(modules))
    forkserver.ensure_running()


class Process:
    """A function that runs in a process of its own, and ends with this one.

    Args:
      function: Of a module, to be called there.
      *arguments: What it is called with.
      environment: Variables that are set before.
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
        """Whether it has not ended."""
        return self._process.is_alive()

    def wait(self) -> str:
        """Waits for its end; tells in one line why it failed, or nothing."""
        try:
            reason = self._receiver.recv()
        except EOFError:
            self._process.join()
            reason = _death(self._process.exitcode)
        self._process.join()
        return reason

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        self._process.kill()
        self._process.join()


def run(function: Callable, *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
    """Calls a function of a module in a process of its own, and waits for it.

    Raises:
      ProcessError: It failed, or was killed.
    """
    process = Process(function, *arguments, environment=environment)
    try:
        if reason := process.wait():
            raise ProcessError(reason)
    finally:
        process.kill()  # Where this process is interrupted.


def _death(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed, as is done for want of memory"
    if exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit status {exit_code}"


def _call(
    sender: connection.Connection,
    environment: dict[str, str],
    function: Callable,
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends this one.
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
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
