"""Calls that may never come back."""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call gives or raises; TimeoutError where that takes longer, while it goes on."""
    outcome = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon, for which nothing waits: the calls of a service that is not there take an hour.
    threading.Thread(target=run, daemon=True).start()
    return outcome.result(seconds)
