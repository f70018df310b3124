"""Counts the processor cores that this process may use, and limits it to some of them."""

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator

from pizza_steak import control_groups
from pizza_steak.errors import UserError


def count() -> int:
    """Returns the number of cores, which a scheduler or a container may have limited.

    A container's share of the processor's time, such as 2.5 cores, is rounded up.
    """
    return max(1, min(schedulable(), os.cpu_count() or 1, *_quotas()))


def schedulable() -> int:
    """Returns the number of cores that threads of this process may run on, its CPU affinity."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas() -> Iterator[int]:
    """Yields the CPU quotas of this process's control groups, in cores."""
    files = (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"])
    for limit in control_groups.limits("cpu", *files):
        match limit:
            case [quota, period] if quota > 0 and period > 0:  # -1 is no limit.
                yield -(-quota // period)


def hold_to(threads: int) -> None:
    """Limits all threads of this process, and processes that it starts, to some of its cores.

    TensorFlow, if it has not computed anything yet, starts as many threads. The cores are
    neighbors, drawn by chance: several runs on one machine would else share the first ones.

    Raises:
      UserError: It may not use as many cores, or the system cannot limit it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError(
            "threads: this system cannot limit a process to some cores; pass no --threads"
        )
    if threads > count():
        raise UserError(f"threads {threads}: expected at most the number of cores, {count()}")
    allowed = sorted(os.sched_getaffinity(0))
    first = threads * secrets.randbelow(len(allowed) // threads)
    _run_on(set(allowed[first : first + threads]))


@contextlib.contextmanager
def held_to(threads: int | None) -> Iterator[None]:
    """Does within this block what `hold_to` does; None is no limit.

    Raises:
      UserError: As of `hold_to`.
    """
    if threads is None:
        yield
        return
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    hold_to(threads)
    try:
        yield
    finally:
        _run_on(before)


def _run_on(chosen: set[int]) -> None:
    # A thread has an affinity of its own: NumPy has started some already.
    for task in glob.glob("/proc/self/task/*") or ["0"]:  # 0 is this thread.
        with contextlib.suppress(ProcessLookupError):  # It has ended.
            os.sched_setaffinity(int(os.path.basename(task)), chosen)
