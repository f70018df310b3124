"""Reads files that may come from another person: regular files only, and only up to a size."""

import os
import pathlib
import stat

from pizza_steak.errors import UserError


def read(path: pathlib.Path, most: int) -> bytes:
    """Returns the content of a file.

    Args:
      path: The file.
      most: The most bytes that it may have.

    Raises:
      UserError: It is a pipe, a device or a folder, or has more bytes.
      OSError: It cannot be opened or read.
    """
    # Without the flag, opening a pipe waits for a writer. Windows has neither.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path}: not a regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: larger than {most / 2**20:,.0f} MiB")
    return content
