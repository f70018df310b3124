"""A headless Chromium, driven by the DevTools protocol over pipes."""

import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

EXECUTABLE = shutil.which("chromium")
_TIMEOUT = 60
_FLAGS = (
    "--headless",
    "--no-sandbox",  # Which root cannot have.
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Page:
    """A page of a browser.

    Attributes:
      events: What the browser told since the last `open`, as (method, parameters).
    """

    def __init__(self, commands: int, messages: int):
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._commands = commands
        self._messages = _split(messages)
        self._ids = itertools.count(1)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict[str, Any]:
        """The result of a command."""
        message = {"id": next(self._ids), "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        for answer in self._messages:
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)
        raise AssertionError(f"Chromium ended, or was silent for {_TIMEOUT} s")

    def open(self, file: pathlib.Path, width: int, height: int, scripts: bool = True) -> None:
        """Loads a file into a viewport of that size; a narrow one is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        del self.events[:]
        self.call("Page.navigate", url=file.as_uri())
        while "Page.loadEventFired" not in (method for method, _ in self.events):
            self._note(next(self._messages))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _note(self, message: dict[str, Any]) -> None:
        self.events.append((message["method"], message["params"]))


def _split(file: int) -> Iterator[dict[str, Any]]:
    rest = b""
    while select.select([file], [], [], _TIMEOUT)[0] and (read := os.read(file, 1 << 16)):
        *whole, rest = (rest + read).split(b"\0")
        yield from map(json.loads, whole)


@contextlib.contextmanager
def page(profile: pathlib.Path) -> Iterator[Page]:
    """Starts a Chromium with a new profile in that folder, and ends it."""
    (theirs, commands), (messages, theirs_too) = os.pipe(), os.pipe()
    # It reads descriptor 3 and writes descriptor 4.
    redirected = f'exec "$@" 3<&{theirs} 4>&{theirs_too}'
    process = subprocess.Popen(
        ["bash", "-c", redirected, "bash", EXECUTABLE, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(theirs, theirs_too),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(theirs_too)
    try:
        yield Page(commands, messages)
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(messages)
