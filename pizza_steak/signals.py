"""Lets signals reach what the main thread waits for."""

import signal
import socket
import threading
import time

_SECONDS_BETWEEN_CALLS = 0.2


def wake_main_thread() -> None:
    """Has every signal that Python handles interrupt what the main thread waits for.

    The system may hand a signal to any thread, and TensorFlow starts many. Python runs handlers in
    the main thread only, and does not wake it: Ctrl-C would be seen when, say, the process that it
    waits for has ended. So another thread is told of each signal, and interrupts the main thread
    until that handles it.
    https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd
    """
    if not hasattr(signal, "pthread_kill"):  # Windows interrupts it by itself.
        return
    told, teller = socket.socketpair()
    teller.setblocking(False)
    signal.set_wakeup_fd(teller.detach(), warn_on_full_buffer=False)
    awake = True

    def note(*_) -> None:
        nonlocal awake
        awake = True

    def interrupt() -> None:
        nonlocal awake
        # It gets no signal itself: the main thread may keep some for later (`preemption`).
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        main = threading.main_thread().ident
        assert main
        while received := told.recv(1):
            if received[0] == signal.SIGURG:
                continue
            awake = False
            while not awake:
                signal.pthread_kill(main, signal.SIGURG)
                time.sleep(_SECONDS_BETWEEN_CALLS)

    signal.signal(signal.SIGURG, note)  # Ignored, should Python no longer handle it.
    threading.Thread(target=interrupt, daemon=True).start()
