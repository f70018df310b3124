"""The memory that a process may use: the machine's, or what a container has."""

import os

import pytest

from pizza_steak import memory

GB = 10**9


@pytest.mark.parametrize(
    ("own", "files", "size"),
    [
        pytest.param(b"0::/jobs/7\n", {"jobs/7/memory.max": b"8000000000\n"}, 8 * GB, id="v2"),
        pytest.param(b"0::/\n", {"memory.max": b"8000000000\n"}, 8 * GB, id="container"),
        pytest.param(
            b"0::/jobs/7\n",
            {"jobs/7/memory.max": b"max\n", "jobs/memory.max": b"6000000000\n"},
            6 * GB,
            id="outer",
        ),
        pytest.param(b"0::/\n", {"memory.max": b"max\n"}, 32 * GB, id="no limit"),
        pytest.param(b"0::/\n", {"memory.max": b"99000000000\n"}, 32 * GB, id="large"),
        pytest.param(
            b"3:memory:/docker/1f\n",
            {"memory/docker/1f/memory.limit_in_bytes": b"4000000000\n"},
            4 * GB,
            id="v1",
        ),
        pytest.param(
            b"3:memory:/\n",
            {"memory/memory.limit_in_bytes": b"9223372036854771712\n"},
            32 * GB,
            id="v1 without a limit",
        ),
        pytest.param(b"", {}, 32 * GB, id="no groups"),
    ],
)
def test_the_size_is_the_smallest_limit(own, files, size, in_control_groups, monkeypatch):
    pages = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 32_000_000}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    in_control_groups(own, files)
    assert memory.size() == size
