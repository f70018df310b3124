"""Runs a command with a fault of the disk at its n-th operation, as SQLite's tests do."""

import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

from small_runs import start_command

SOURCE = pathlib.Path(__file__).with_name("faults.c")
COMPILER = shutil.which("cc")
_NOTHING_COUNTED = bytes(8)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
      status: Its exit status; negative if a signal ended it.
      operations: The number of operations on files below the folder, until the end.
      text: What it wrote to stderr.
      peak: The most memory of the process, in KiB.
    """

    status: int
    operations: int
    text: str
    peak: int


@functools.cache
def _library() -> str:
    library = os.path.join(tempfile.mkdtemp(), "faults.so")
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-O2", "-o", library, os.fspath(SOURCE), "-ldl"], check=True
    )
    return library


def run(
    under: pathlib.Path,
    package: str,
    command: str,
    *arguments: str,
    at: int = 0,
    number: int = 0,
    lasting: bool = False,
) -> Ended:
    """Runs `python -m <package>.<command>` to its end.

    Args:
      under: The folder whose files the fault is about.
      package: The package of the command.
      command: The command.
      *arguments: Its flags.
      at: The operation that fails, from 1: open a file for writing, make a folder, write, sync or
        rename. 0 for none.
      number: The error, of `errno`; 0 to kill the process with SIGKILL instead.
      lasting: Whether all later operations fail too, as on a full disk.
    """
    with tempfile.NamedTemporaryFile() as counter:
        counter.write(_NOTHING_COUNTED)
        counter.flush()
        process = start_command(
            *arguments,
            package=package,
            command=command,
            environment={
                "LD_PRELOAD": _library(),
                "FAULT_UNDER": os.fspath(under),
                "FAULT_COUNTER": counter.name,
                "FAULT_AT": str(at),
                "FAULT_ERRNO": str(number),
                "FAULT_LASTING": str(int(lasting)),
            },
            cwd=under,
        )
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        text = process.stderr.read()
        reader.join()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        operations = int.from_bytes(pathlib.Path(counter.name).read_bytes(), sys.byteorder)
    return Ended(process.returncode, operations, text, used.ru_maxrss)
