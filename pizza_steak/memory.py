"""The memory that this process may use."""

import itertools
import os

from pizza_steak import control_groups


def size() -> float:
    """Returns the bytes of memory, which a scheduler or a container may have limited."""
    files = (["memory.max"], ["memory.limit_in_bytes"])
    limits = list(itertools.chain.from_iterable(control_groups.limits("memory", *files)))
    if hasattr(os, "sysconf"):  # Not on Windows.
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=float("inf"))
