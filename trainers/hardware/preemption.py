"""SIGTERM, by which Slurm, Kubernetes and spot machines announce that they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Iterator

# EX_TEMPFAIL of sysexits.h ("temporary failure, try again"); os has it on Unix only.
EXIT_STATUS = 75


class PreemptedError(Exception):
    """SIGTERM has ended a training, which can be resumed; the message says how in one line."""


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Delays SIGTERM to the end of the block; threads that start within the block never get it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no signal masks.
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Notice:
    """Notes a SIGTERM within the block instead of ending the process.

    The block should end soon after, by `obey`; otherwise SIGTERM is raised again at its end. Python
    handles signals in the main thread only; in other threads this does nothing.

    Args:
      advice: The message of the error.

    Attributes:
      given: Whether SIGTERM has come.
    """

    def __init__(self, advice: str = ""):
        self._advice = advice
        self.given = False

    def __enter__(self) -> "Notice":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
            if kind is None and self.given:
                signal.raise_signal(signal.SIGTERM)

    def obey(self) -> None:
        """Raises a `PreemptedError`, after SIGTERM to this or another process."""
        raise PreemptedError(self._advice)

    def _note(self, *_) -> None:
        self.given = True
