"""Measures how time and memory grow with the number of images, from the archive to an epoch.

The archive grows by copies of its images, with other names. Each size is prepared, decoded and used
in processes of their own, so that each has a memory of its own.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
import shutil
import signal
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection, forkserver
from typing import Any, NamedTuple, TypeVar

from pizza_steak.tensorflow_import import import_tensorflow, stderr_dropped

import_tensorflow()  # The server of processes imports this module first.

import tensorflow as tf  # noqa: E402
import tqdm  # noqa: E402

from pizza_steak import command, cores, flags, members  # noqa: E402
from pizza_steak.archive import Archive, ReadingOptions, read_archive  # noqa: E402
from pizza_steak.errors import FlagError, UserError, fault_of_the_machine  # noqa: E402
from trainers import data as run_data  # noqa: E402
from trainers import setup  # noqa: E402
from trainers.configuration import BenchmarkConfig, DataConfig  # noqa: E402
from trainers.throughput import measurement  # noqa: E402

tqdm.tqdm.get_lock()  # Else a process that is killed leaves the semaphore of its own.

_STATUS, _MAPS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/smaps")
_KILLED = "its process was killed, as systems do when memory runs out"
_LONGEST_NAME = 50  # In letters, of up to 4 bytes each.
_SECONDS_BETWEEN_LOOKS = 0.01

_Result = TypeVar("_Result")


class Usage(NamedTuple):
    """What a step took.

    Attributes:
      seconds: Wall-clock time.
      cpu_seconds: CPU time of the process, on all cores.
      memory_mb: The most memory that the process had of its own meanwhile, above its imports; None
        if the system does not tell.
      mapped_mb: Its pages of prepared files at the end, which it shares with other processes.
    """

    seconds: float
    cpu_seconds: float
    memory_mb: float | None
    mapped_mb: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of a step at one size.

    Attributes:
      name: The step and the size, such as "opening x 10".
      images: The number of images in the archive.
      images_per_second: The images of the step, by the wall clock.
      seconds, cpu_seconds, memory_mb, mapped_mb: As of `Usage`.
      times_as_long: Its seconds by those of the first size.
    """

    name: str
    images: int
    images_per_second: float
    seconds: float
    cpu_seconds: float
    memory_mb: float | None
    mapped_mb: float | None
    times_as_long: float


@dataclasses.dataclass(frozen=True)
class Report:
    """How time and memory grow.

    Attributes:
      about: The images and their batches: texts by topic.
      rows: The figures, step by step, each at all sizes.
      left_out: Why sizes were not measured.
      compared: By row, its images per second divided by those of an earlier report.
      cores: The number of cores that this process may use.
      versions: The versions of the packages that do the work.
    """

    about: Mapping[str, str]
    rows: Sequence[Row]
    left_out: Sequence[str]
    compared: Mapping[str, float]
    cores: int
    versions: Mapping[str, str]

    def summary(self) -> str:
        """Returns the results as text."""
        heading = f"{'':<20}{'images':>12}{'seconds':>11}{'CPU s':>11}{'memory MB':>11}"
        heading += f"{'mapped MB':>11}{'growth':>9}" + (f"{'ratio':>8}" if self.compared else "")
        lines = [*measurement.head(self.about, self.cores, self.versions), "", heading]
        for row in self.rows:
            memory, mapped = (
                f"{'n/a' if megabytes is None else f'{megabytes:,.1f}':>11}"
                for megabytes in (row.memory_mb, row.mapped_mb)
            )
            before = self.compared.get(row.name)
            lines.append(
                f"{row.name:<20}{row.images:>12,}{row.seconds:>11.3f}{row.cpu_seconds:>11.3f}"
                f"{memory}{mapped}{row.times_as_long:>9.2f}" + (f"{before:>8.2f}" if before else "")
            )
        return "\n".join([*lines, *self.left_out])


def measure(config: BenchmarkConfig) -> Report:
    """Measures every step once at each of `sizes`, in temporary files.

    These are in the data_dir if there is one. A size is left out if the disk has no room for it.

    Raises:
      UserError: The user has to change something.
    """
    measuring = config.measuring
    for name in ("only", "plot", "profile"):
        if (value := getattr(measuring, name)) is not None:
            given = flags.as_argument(name, value)
            raise FlagError(f"{given}: is not for --growth; expected one of the two")
    before = measurement.check_files(measuring)
    if config.data.archive is None:
        raise UserError("growth: copies the images of an archive; expected an --archive")
    data = run_data.with_batch_size(setup.resolved(config).data)
    format = run_data.format_of(data)
    archive = read_archive(config.data.archive, ReadingOptions.of(data))
    count = sum(archive.counts.values())
    sizes = measuring.sizes if isinstance(measuring.sizes, tuple) else (measuring.sizes,)
    taken: dict[str, list[tuple[int, int, Usage]]] = {}
    left_out = []
    with (
        measurement.temporary_folder(data.data_dir) as folder,
        tqdm.tqdm(total=len(sizes), desc="measuring", unit=" sizes", disable=None) as bar,
    ):
        for times in map(int, sizes):
            bar.set_postfix_str(f"{count * times:,} images")
            if missing := _missing_room(archive, data, times, folder):
                left_out.append(f"x {times:,} was left out: {missing}")
                continue
            with tempfile.TemporaryDirectory(dir=folder) as own:
                path = grow(archive, times, pathlib.Path(own))
                # What is known of a younger archive is not kept.
                time.sleep(1.1 * members.TICK / 1e9)
                grown = dataclasses.replace(
                    data,
                    archive=os.fspath(path),
                    data_dir=os.path.join(own, "data_dir"),
                    data_service=None,
                    follow_links=False,
                    zip_encoding=None,
                    max_unpacked_gb=None,
                )
                for step in (_prepare, _decode, _use):
                    if (found := _in_process(step, grown)) is None:
                        left_out.append(f"x {times:,} was left out: {_KILLED}")
                        break
                    for name, images, usage in found:
                        taken.setdefault(name, []).append((times, images, usage))
            bar.update()
    rows = [
        Row(
            name=f"{name} x {times:,}",
            images=count * times,
            images_per_second=images / usage.seconds,
            times_as_long=usage.seconds / usages[0][2].seconds,
            **usage._asdict(),
        )
        for name, usages in taken.items()
        for times, images, usage in usages
    ]
    height, width, channels = format.shape
    report = Report(
        about={
            "images": f"{count:,} of {archive.path}, and copies with other names",
            "batches": f"{data.batch_size} images of {height} x {width} x {channels}",
        },
        rows=rows,
        left_out=left_out,
        compared=measurement.compared(rows, before),
        cores=cores.count(),
        versions=measurement.versions(),
    )
    measurement.write_json(report, measuring.json)
    return report


def grow(archive: Archive, times: int, folder: pathlib.Path) -> pathlib.Path:
    """Writes an archive with each image several times; returns its path.

    It is a zip or a folder, as the archive is. In a folder, the copies of an image are links to one
    file. A zip is not compressed.

    Args:
      archive: The archive.
      times: How often each image is in the new archive.
      folder: Where to write it.
    """
    if archive.path.is_dir():
        path = folder / "images"
        for (first, *others), encoded in _copies(archive, times):
            (path / first).parent.mkdir(parents=True, exist_ok=True)
            (path / first).write_bytes(encoded)
            for name in others:
                os.link(path / first, path / name)
        return path
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        for names, encoded in _copies(archive, times):
            for name in names:
                zip_file.writestr(name, encoded)
    return path


def _copies(archive: Archive, times: int) -> Iterator[tuple[list[str], bytes]]:
    """Yields the names of each image's copies, in its own folder, and its bytes."""
    images = itertools.chain.from_iterable(map(archive.read, archive.splits))
    for number, (image, encoded) in enumerate(images):
        path = pathlib.PurePosixPath(image.filename)
        end = f"{number}-{path.name[-_LONGEST_NAME:]}"
        yield [f"{path.parent}/{copy}-{end}" for copy in range(times)], encoded


def _missing_room(
    archive: Archive, data: DataConfig, times: int, folder: pathlib.Path
) -> str | None:
    """Returns how much room the disk lacks for a size, as text; None if it has enough."""
    images = list(itertools.chain.from_iterable(archive.splits.values()))
    encoded, decoded = sum(image.stamp[0] for image in images), 0
    if data.decoded_cache in (None, "disk"):
        decoded = len(images) * math.prod(run_data.format_of(data).shape)
    # A zip holds all copies, and the records too. They are sorted on the disk, then decoded there.
    given = encoded * (1 if archive.path.is_dir() else times)
    needed = given + times * (encoded + max(encoded, decoded))
    free = shutil.disk_usage(folder).free
    if needed < free:
        return None
    return f"it takes {needed / 1e9:,.1f} GB on the disk, and {free / 1e9:,.1f} GB are free"


_Step = Callable[[DataConfig, Callable], Iterator[tuple[str, int, Usage]]]


def _prepare(data: DataConfig, used: Callable) -> Iterator[tuple[str, int, Usage]]:
    found, usage = used(lambda: run_data.open_splits(data))
    yield "preparing", len(found.records.labels), usage


def _decode(data: DataConfig, used: Callable) -> Iterator[tuple[str, int, Usage]]:
    loaded, usage = used(lambda: run_data.load(data))
    yield "decoding", len(loaded.records.labels), usage


def _use(data: DataConfig, used: Callable) -> Iterator[tuple[str, int, Usage]]:
    loaded, usage = used(lambda: run_data.load(data))
    yield "opening", len(loaded.records.labels), usage

    def batches() -> tf.data.Dataset:
        return loaded.batches("train", run_data.batch_size_of(data), shuffle=True)

    (images, _), usage = used(lambda: next(iter(batches())))
    yield "first batch", len(images), usage
    _, usage = used(lambda: collections.deque(batches(), maxlen=0))
    yield "epoch", len(loaded.rows["train"]), usage


def _in_process(step: _Step, data: DataConfig) -> list[tuple[str, int, Usage]] | None:
    """Returns what a step yields in a process of its own, or None if the process was killed.

    The process is forked from a server that has imported TensorFlow.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # Ctrl-C reaches the server and its processes too. They ignore it: this process ends them.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, on_interrupt)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, step, data))
    process.start()
    sender.close()
    found = None
    try:
        with contextlib.suppress(EOFError):  # It has ended.
            found = receiver.recv()
        process.join()
    finally:
        process.kill()  # This process may have been interrupted.
        process.join()
    if found is None and process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"{step.__name__}: exit status {process.exitcode}")
    if isinstance(found, UserError):
        raise found
    return found


def _send(sender: connection.Connection, step: _Step, data: DataConfig) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    command.own_process()
    with stderr_dropped():  # TensorFlow warns of missing GPUs.
        tf.config.set_visible_devices([], "GPU")
    before = _own_mb()
    used = functools.partial(_used, before=before, folder=pathlib.Path(data.data_dir or ""))
    try:
        with measurement.quiet():
            found: Any = list(step(data, used))
    except Exception as error:
        line = str(error) if isinstance(error, UserError) else fault_of_the_machine(error)
        if line is None:
            raise
        found = UserError(line)
    sender.send(found)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent  # Only `_in_process` starts this process.
    connection.wait([parent.sentinel])
    os._exit(1)


def _used(
    function: Callable[[], _Result], before: float | None, folder: pathlib.Path
) -> tuple[_Result, Usage]:
    """Returns the result of a function, and what it took.

    Args:
      function: The function.
      before: The memory of the process after its imports, of `_own_mb`.
      folder: The folder of the prepared files.
    """
    most = before or 0
    ended = threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            most = max(most, _own_mb() or 0)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    start = time.perf_counter(), time.process_time()
    try:
        result = function()
        seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    finally:
        ended.set()
        looking.join()
    memory = None if before is None else max(most, _own_mb() or 0) - before
    return result, Usage(seconds, cpu_seconds, memory, _mapped_mb(folder))


def _own_mb() -> float | None:
    """Returns the memory of this process that no other shares, in MB; None if it is not known."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:  # Not on macOS.
        return None
    pages = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(pages)) * 1024 / 1e6


def _mapped_mb(folder: pathlib.Path) -> float | None:
    """Returns how much of the mapped files in a folder is in memory, in MB, or None."""
    total, within = 0, False
    try:
        with _MAPS.open("rb") as lines:
            for line in lines:
                if not line[:1].isupper():  # The head of the lines about a file.
                    within = os.fsencode(folder.resolve()) in line
                elif within and line.startswith(b"Rss:"):
                    total += int(line.split()[1])
    except OSError:
        return None
    return total * 1024 / 1e6
