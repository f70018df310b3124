"""SIGTERM: how Slurm, Kubernetes and spot machines say that they will take the machine away."""

import contextlib
import signal
import threading
from collections.abc import Iterator

# "Temporary failure, try again": EX_TEMPFAIL of sysexits.h, which Python has not on every system.
EXIT_STATUS = 75


class PreemptedError(Exception):
    """Training has ended because of SIGTERM, and can go on; tells how in one line."""


@contextlib.contextmanager
def sigterm_kept() -> Iterator[None]:
    """Has SIGTERM wait for the end of the block, and threads that are made in it never get it."""
    if not hasattr(signal, "pthread_sigmask"):  # On Windows.
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Notice:
    """Whether SIGTERM has come within the block, which then no longer ends the process by itself.

    The block is to end soon, by `obey`; SIGTERM that it did not heed is sent again at its end.
    Out of the main thread, where Python has no signals, none is ever given.

    Args:
      advice: The line of the error.

    Attributes:
      given: Whether it has come.
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
        """Raises a `PreemptedError`: SIGTERM has come, here or to another process."""
        raise PreemptedError(self._advice)

    def _note(self, *_) -> None:
        self.given = True
