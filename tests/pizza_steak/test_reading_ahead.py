"""What does not stay in memory is read before it is used."""

import ctypes
import mmap
import os
import pathlib

import numpy as np
import pytest

from pizza_steak import memory, reading_ahead
from pizza_steak.decoded import decode
from pizza_steak.input_pipeline import Shares, batches

LAYOUT = [f"train/{label}/{n}.jpg" for label in ("dark", "light") for n in range(9)]


@pytest.fixture(scope="module")
def food(make_records):
    return make_records(LAYOUT)


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(memory, "size", lambda: 1000)


def in_memory(path):
    """Whether each page of a file is in the page cache."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        array = np.frombuffer(mapped, np.uint8)
        found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        address = ctypes.c_void_p(array.ctypes.data)
        assert not ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), found.ctypes)
        del array
    return found & 1


def forget(path):
    """Drops the pages of a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_memory(path).any():
        pytest.skip("this file system keeps all in memory")


def pages(first, end):
    return set(range(first // mmap.PAGESIZE, -(-end // mmap.PAGESIZE)))


linux = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="asks Linux")


@linux
@pytest.mark.parametrize("rows", [[3], [7, 2, 19], [4, 5, 6], [19, 0, 1]])
@pytest.mark.parametrize("size", [5_000, 300_000])
def test_the_rows_of_an_array_are_read(tmp_path, rows, size, little_memory):
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((20, size), np.uint8))
    forget(path)
    read = reading_ahead.of_array(np.load(path, mmap_mode="r"))
    read(np.array(rows))
    start = path.stat().st_size - 20 * size
    wanted = set().union(*(pages(start + r * size, start + (r + 1) * size) for r in rows))
    assert wait_for_pages(path, wanted)


def wait_for_pages(path, wanted):
    """Whether the pages come into memory, or are there."""
    for _ in range(1000):
        if wanted <= set(np.flatnonzero(in_memory(path))):
            return True
        os.sched_yield()
    return False


@linux
@pytest.mark.parametrize("rows", [[0], [5, 2, 11], [4, 5, 6, 7]])
def test_encoded_images_are_read(food, rows):
    path = pathlib.Path(food._paths[0])
    of_file = np.flatnonzero(food._shards == 0)
    rows = of_file[np.array(rows) % len(of_file)]
    forget(path)
    food.read_ahead(rows)
    wanted = [pages(food._offsets[r], food._offsets[r] + food._lengths[r]) for r in rows]
    assert wait_for_pages(path, set().union(*wanted))


def test_an_array_that_stays_in_memory_is_not_read_ahead(food, monkeypatch):
    assert decode(food, 16).read_ahead is None
    nbytes = decode(food, 16).array.nbytes
    monkeypatch.setattr(memory, "size", lambda: 2 * nbytes)
    assert decode(food, 16).read_ahead is None
    monkeypatch.setattr(memory, "size", lambda: 2 * nbytes - 1)
    assert decode(food, 16).read_ahead is not None


def test_records_that_stay_in_memory_are_not_read_ahead(food, monkeypatch):
    size = sum(path.stat().st_size for path in food.folder.glob("*.tfrecord*"))
    monkeypatch.setattr(memory, "size", lambda: 2 * size)
    assert decode(food, 16, cache="none").read_ahead is None
    monkeypatch.setattr(memory, "size", lambda: size)
    assert decode(food, 16, cache="none").read_ahead is not None


@pytest.mark.parametrize("cache", ["disk", "none"])
@pytest.mark.parametrize("block", [None, 2])
def test_batches_are_the_same_with_little_memory(food, monkeypatch, block, cache):
    def made():
        rows, options = np.arange(len(food.labels)), {"shuffle": True, "shuffle_block": block}
        pictures = decode(food, 16, cache=cache)
        dataset = batches(pictures, rows, food.labels, 5, epochs=2, **options)
        return [array for batch in dataset.as_numpy_iterator() for array in batch]

    before = made()
    monkeypatch.setattr(memory, "size", lambda: 1000)
    for one, other in zip(before, made(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cache", ["disk", "none"])
@pytest.mark.parametrize("replicas", [2, 7])
def test_shares_without_images_are_read_too(food, little_memory, cache, replicas):
    rows, shares = np.arange(len(food.labels)), Shares(replicas, range(replicas))
    dataset = batches(decode(food, 16, cache=cache), rows, food.labels, 5, shares=shares)
    found = [label for _, labels in dataset.as_numpy_iterator() for label in labels]
    assert found == food.labels.tolist()


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], []),
        ([4], [(4, 5)]),
        ([4, 5, 6], [(4, 7)]),
        ([4, 6, 5], [(4, 5), (6, 7), (5, 6)]),
        ([9, 0, 1], [(9, 10), (0, 2)]),
        ([3, 3, 4], [(3, 4), (3, 5)]),
    ],
)
def test_runs(rows, found):
    assert list(reading_ahead.runs(np.array(rows, np.int64))) == found
