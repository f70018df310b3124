"""Reads files that may come from another person: regular files only, and only up to a size."""

import os
import pathlib
import stat
from typing import BinaryIO

from pizza_steak.errors import UserError

NOT_REGULAR = "not a regular file"


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file, to read bytes from it.

    Raises:
      OSError: It cannot be opened, or is a pipe, a device or a folder.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(NOT_REGULAR)
    return file


def read(path: pathlib.Path, most: int) -> bytes:
    """Returns the content of a file.

    Args:
      path: The file.
      most: The most bytes that it may have.

    Raises:
      UserError: It has more bytes.
      OSError: As of `open_file`.
    """
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: larger than {most / 2**20:,.0f} MiB")
    return content


def _without_waiting(path: str, flags: int) -> int:
    # Without the flag, opening a pipe waits for a writer. Windows has neither.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
