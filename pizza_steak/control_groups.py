"""The limits of this process's control groups, which a container or a scheduler has set."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

_CONTROL_GROUPS = pathlib.Path("/sys/fs/cgroup")
_OWN_CONTROL_GROUPS = pathlib.Path("/proc/self/cgroup")


def limits(
    controller: str, version_2: Sequence[str], version_1: Sequence[str]
) -> Iterator[list[int]]:
    """Yields the numbers in some files of the process's own control group and of all outer ones.

    https://docs.kernel.org/admin-guide/cgroup-v2.html
    https://docs.kernel.org/admin-guide/cgroup-v1

    Args:
      controller: Such as "cpu" or "memory".
      version_2: Names of the files in version 2 of control groups.
      version_1: Names of the files in version 1.
    """
    try:
        lines = os.fsdecode(_OWN_CONTROL_GROUPS.read_bytes()).splitlines()
    except OSError:  # Not on macOS and Windows.
        return
    for line in lines:
        _, controllers, own = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            folder, names = _CONTROL_GROUPS, version_2
        elif controller in controllers.split(","):
            folder, names = _CONTROL_GROUPS / controller, version_1
        else:
            continue
        # A container may see its own group as the outermost, and none of the others.
        for group in (pathlib.PurePosixPath(own), *pathlib.PurePosixPath(own).parents):
            # A file that is not there, and "max", are no limit.
            with contextlib.suppress(OSError, ValueError):
                texts = [(folder / str(group).lstrip("/") / name).read_text() for name in names]
                yield [int(number) for text in texts for number in text.split()]
