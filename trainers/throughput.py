"""The throughput of the input, stage by stage."""

import dataclasses
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata

import tensorflow as tf

from pizza_steak import decoded, input_pipeline, records
from trainers.config import BenchmarkConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """What was measured of one stage, in the order of its repeats.

    Attributes:
      name: What it does.
      images_per_second: By the wall clock.
      cpu_ms: Milliseconds of this process on all cores, a picture.
    """

    name: str
    images_per_second: tuple[float, ...]
    cpu_ms: tuple[float, ...]


def measure(config: BenchmarkConfig) -> str:
    """Times each stage `repeats` times in turns, after a turn that is not counted.

    In turns, because a machine's speed drifts: what is to be compared is measured side by side.

    Returns:
      A table for people; `--json` gets the same for machines.
    """
    names, times = [], []
    with tempfile.TemporaryDirectory(dir=config.data.data_dir) as folder:
        for turn in range(config.measuring.repeats + 1):
            for name, pictures, seconds, cpu_seconds in _turn(config, f"{folder}/{turn}"):
                if turn == 0:
                    names.append(name)
                else:
                    times.append((name, pictures / seconds, 1000 * cpu_seconds / pictures))
    stages = [
        Stage(
            name,
            tuple(speed for other, speed, _ in times if other == name),
            tuple(cpu for other, _, cpu in times if other == name),
        )
        for name in names
    ]
    if config.measuring.json:
        pathlib.Path(config.measuring.json).write_text(json.dumps(_report(stages), indent=2) + "\n")
    return _table(stages)


def _turn(config: BenchmarkConfig, data_dir: str) -> Iterator[tuple[str, int, float, float]]:
    """Yields (name, pictures, seconds, CPU seconds) of each stage, the first of them first."""
    data, size = config.data, config.data.image_size
    settings = {"archive": data.archive, "data_dir": data_dir}
    prepared, *spent = _timed(lambda: records.prepare(data.dataset, **settings))
    count = len(prepared.labels)
    yield "archive to records", count, *spent

    rows = tf.data.Dataset.range(count).batch(64)
    read = rows.map(prepared.read).unbatch()
    yield "records read", count, *_timed(lambda: _consume(read))[1:]

    decode = {"num_parallel_calls": tf.data.AUTOTUNE}
    floor = read.map(
        lambda encoded: tf.io.decode_image(encoded, 3, expand_animations=False), **decode
    )
    yield "decoded, not resized", count, *_timed(lambda: _consume(floor))[1:]

    form = decoded.Format((size, size), data.interpolation)
    pictures, *spent = _timed(
        lambda: decoded.decode(prepared, form, on_bad_image=data.on_bad_image)
    )
    yield "decoded array made", count, *spent

    epochs = config.measuring.passes
    warm = input_pipeline.batches(
        pictures,
        prepared.rows(data.train_split),
        None,
        data.batch_size,
        shuffle=True,
        epochs=epochs,
    )
    seen = epochs * len(prepared.rows(data.train_split))
    yield "batches from the array", seen, *_timed(lambda: _consume(warm))[1:]


def _timed(work: Callable[[], object]) -> tuple[object, float, float]:
    seconds, cpu_seconds = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - seconds, time.process_time() - cpu_seconds


def _consume(dataset: tf.data.Dataset) -> None:
    for _ in dataset:
        pass


def _report(stages: list[Stage]) -> dict:
    packages = ("tensorflow", "tensorflow-datasets", "numpy")
    return {
        "rows": [
            {
                "name": stage.name,
                "images_per_second": statistics.median(stage.images_per_second),
                "min": min(stage.images_per_second),
                "max": max(stage.images_per_second),
                "cpu_ms": statistics.median(stage.cpu_ms),
                "repeats": len(stage.cpu_ms),
            }
            for stage in stages
        ],
        "cores": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def _table(stages: list[Stage]) -> str:
    lines = [f"{'':<24}{'pictures/s':>12}{'least':>10}{'most':>10}{'CPU ms each':>14}"]
    for row in _report(stages)["rows"]:
        lines.append(
            f"{row['name']:<24}{row['images_per_second']:>12,.0f}{row['min']:>10,.0f}"
            f"{row['max']:>10,.0f}{row['cpu_ms']:>14.3f}"
        )
    return "\n".join(lines)
