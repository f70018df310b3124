"""Asks the system to read what will be used soon, where it does not stay in memory.

A read at a random place takes the disk as long as many at once. Without these calls each waits for
the one before, and the system reads megabytes around it.
"""

import functools
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from pizza_steak import memory

_BYTES_A_CALL = 2**17  # What Linux reads at one call at most, unless the disk is set otherwise.


def is_needed(size: int) -> bool:
    """Returns whether so many bytes do not stay in memory; else each is read once."""
    return size > memory.size() / 2


def of_array(stored: np.memmap) -> Callable[[np.ndarray], None] | None:
    """Returns what starts to read rows of a memory-mapped array, and does not wait for them.

    Returns:
      Is called with rows, int64 of shape (B,); None if the array stays in memory.
    """
    if not is_needed(stored.nbytes) or not hasattr(mmap, "MADV_WILLNEED"):
        return None
    mapped, start, size = stored.base, stored.offset % mmap.ALLOCATIONGRANULARITY, stored.strides[0]
    assert isinstance(mapped, mmap.mmap)
    mapped.madvise(mmap.MADV_RANDOM)
    most = _bytes_a_call(os.stat(stored.filename).st_dev)

    def read(rows: np.ndarray) -> None:
        for first, end in runs(rows):
            place = start + first * size
            place -= place % mmap.PAGESIZE
            for part in range(place, start + end * size, most):
                mapped.madvise(mmap.MADV_WILLNEED, part, min(most, start + end * size - part))

    return read


def of_file(file: int, place: int, length: int) -> None:
    """Starts to read a part of an open file, and does not wait for it."""
    if hasattr(os, "posix_fadvise"):  # Not on macOS and Windows.
        most = _bytes_a_call(os.fstat(file).st_dev)
        for part in range(place, place + length, most):
            size = min(most, place + length - part)
            os.posix_fadvise(file, part, size, os.POSIX_FADV_WILLNEED)


@functools.cache
def _bytes_a_call(device: int) -> int:
    try:
        name = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        return max(_BYTES_A_CALL, 1024 * int(pathlib.Path(name).read_text()))
    except (OSError, ValueError):  # Not on macOS, and not for all file systems.
        return _BYTES_A_CALL


def runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the first row and the end of each run of consecutive rows."""
    if not rows.size:
        return
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts, ends = rows[[0, *breaks]], rows[[*breaks - 1, -1]] + 1
    yield from zip(starts.tolist(), ends.tolist(), strict=True)
