"""Counts the processor cores that this process may use."""

import os


def count() -> int:
    """Returns the number of cores, which a scheduler or a container may have limited."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
