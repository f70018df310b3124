"""Batches of a decoded array that is larger than the memory, against the disk itself.

python tests/measurements/beyond_memory.py --images=160000 --memory_gb=4 --folder=FOLDER

It needs root, for a control group of so much memory, and fio. Each way takes turns with fio's
random reads of the same size, in a process of its own, from an empty page cache. --disk=254:0
--reads=300 also limits the disk's reads a second, as a slow one has (control groups of version 1).
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

_IMAGES = flags.DEFINE_integer("images", 160_000, "Images in the array.")
_SIZE = flags.DEFINE_integer("size", 224, "Their height and width.")
_MEMORY = flags.DEFINE_float("memory_gb", 4, "Gigabytes of memory of the control group.")
_FOLDER = flags.DEFINE_string("folder", ".", "Folder of the array, which is made there and kept.")
_TURNS = flags.DEFINE_integer("turns", 3, "How often each is measured.")
_SECONDS = flags.DEFINE_float("seconds", 8, "How long each is measured.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images in a batch.")
_DISK = flags.DEFINE_string("disk", None, "Numbers of the disk, such as 254:0.")
_READS = flags.DEFINE_integer("reads", None, "Reads a second that the disk is limited to.")
_WAY = flags.DEFINE_string("way", None, "Set by this program in its processes.")

_GROUPS = pathlib.Path("/sys/fs/cgroup")
_NAME = "beyond_memory"
# By name: whether images are read ahead, --shuffle_block, and whether they stay in memory.
_WAYS = {
    "no reading ahead": (False, None, False),
    "random": (True, None, False),
    "--shuffle_block=64": (True, 64, False),
    "--shuffle_block=256": (True, 256, False),
    "in memory": (False, None, True),
}
# Images that stay in the control group's memory.
_WARM = 10_000


def main(argv):
    path = pathlib.Path(_FOLDER.value).resolve() / f"{_IMAGES.value}x{_SIZE.value}.npy"
    if _WAY.value:
        print(json.dumps(_measured(path, _WAY.value)))
        return
    if not path.exists():
        _make(path)
    found: dict[str, list[dict]] = {}
    for _ in range(_TURNS.value):
        for name in ("fio, random", "fio, in runs", "NumPy, in memory", *_WAYS):
            command = [sys.executable, *sys.argv, f"--way={name}"]
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            found.setdefault(name, []).append(json.loads(ended.stdout))
    middle = statistics.median
    for name, turns in found.items():
        texts = [f"{middle(turn['speed'] for turn in turns):,.0f} images/s"]
        for key, text in (
            ("cpu", "{:.3f} CPU s a thousand"),
            ("read", "{:.2f} bytes read for each used"),
            ("first", "first batch after {:.1f} s"),
        ):
            if key in turns[0]:
                texts.append(text.format(middle(turn[key] for turn in turns)))
        least, most = (edge(turn["speed"] for turn in turns) for edge in (min, max))
        print(f"{name}: {', '.join(texts)}; {least:,.0f} to {most:,.0f}")


def _make(path: pathlib.Path) -> None:
    from pizza_steak.npy_writer import NpyWriter

    shape = (_SIZE.value, _SIZE.value, 3)
    noise = np.random.default_rng(0).integers(0, 256, (512, *shape), np.uint8)
    with NpyWriter(path, (_IMAGES.value, *shape), np.uint8) as writer:
        for first in range(0, _IMAGES.value, 256):
            start = first // 256 % 256
            writer.write(noise[start : start + min(256, _IMAGES.value - first)])


def _measured(path: pathlib.Path, way: str) -> dict[str, float]:
    size = _SIZE.value**2 * 3
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    _limit()
    if way == "fio, random":
        return {"speed": _fio(path, "randread", size // 4096 * 4096) / size}
    if way == "fio, in runs":
        return {"speed": _fio(path, "read", 2**20) / size}
    array = np.load(path, mmap_mode="r")
    if way == "NumPy, in memory":
        return _gathered_by_numpy(np.asarray(array[:_WARM]))

    from pizza_steak import decoded, input_pipeline, reading_ahead

    ahead, block, in_memory = _WAYS[way]
    rows = np.arange(_WARM if in_memory else len(array))
    read = reading_ahead.of_array(array) if ahead else None
    assert not ahead or read, "the array stays in memory"
    pictures = decoded.DecodedPictures(np.asarray(array), {}, read_ahead=read)
    options = {"shuffle": True, "shuffle_block": block, "epochs": 10**6}
    start = time.perf_counter()
    batches = iter(
        input_pipeline.batches(
            pictures, rows, np.zeros(len(array), np.int64), _BATCH.value, **options
        )
    )
    next(batches)
    first = time.perf_counter() - start
    if in_memory:
        for _ in range(2 * _WARM // _BATCH.value):
            next(batches)
    before = _bytes_read()
    found = _counted(lambda: len(next(batches)[1]))
    read_bytes = _bytes_read() - before
    return found | {"read": read_bytes / found["count"] / size, "first": first}


def _counted(step: Callable[[], int]) -> dict[str, float]:
    start, processor, count = time.perf_counter(), time.process_time(), 0
    while (seconds := time.perf_counter() - start) < _SECONDS.value:
        count += step()
    processor = time.process_time() - processor
    return {"speed": count / seconds, "cpu": processor / count * 1000, "count": count}


def _gathered_by_numpy(array: np.ndarray) -> dict[str, float]:
    """Gathers random rows in as many threads as there are cores, which NumPy lets run together."""
    from concurrent import futures

    from pizza_steak import cores

    rows = np.random.default_rng(0).permutation(len(array))
    array.max()  # Reads all of it.
    parts = [rows[first : first + _BATCH.value] for first in range(0, len(rows), _BATCH.value)]

    def gather(part: np.ndarray) -> int:
        return len(array.take(part, axis=0))

    with futures.ThreadPoolExecutor(cores.count()) as pool:
        return _counted(lambda: sum(pool.map(gather, parts)))


def _limit() -> None:
    """Puts this process into control groups with little memory, and a slow disk."""
    limit = str(int(_MEMORY.value * 1e9))
    if (_GROUPS / "cgroup.controllers").exists():
        files = {_GROUPS / _NAME: ("memory.max", limit)}
    else:
        files = {_GROUPS / "memory" / _NAME: ("memory.limit_in_bytes", limit)}
        if _READS.value:
            slow = f"{_DISK.value} {_READS.value}"
            files[_GROUPS / "blkio" / _NAME] = ("blkio.throttle.read_iops_device", slow)
    for folder, (name, text) in files.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        (folder / "cgroup.procs").write_text(str(os.getpid()))


def _fio(path: pathlib.Path, kind: str, size: int) -> float:
    """Returns bytes a second, with 64 reads at a time, past the page cache."""
    ended = subprocess.run(
        ["fio", "--name=fio", f"--filename={path}", "--readonly", f"--rw={kind}", f"--bs={size}",
         "--direct=1", "--ioengine=libaio", "--iodepth=64", "--time_based", "--norandommap",
         f"--runtime={_SECONDS.value}", "--output-format=json"],
        check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    return json.loads(ended.stdout)["jobs"][0]["read"]["bw_bytes"]


def _bytes_read() -> int:
    return int(pathlib.Path("/proc/self/io").read_text().split("read_bytes:")[1].split()[0])


if __name__ == "__main__":
    app.run(main)
