"""The benchmark: times stages in turns, compares them, and names the bottleneck of training.

The stages take turns because the speed of a machine drifts: stages that are compared run side by
side, and a ratio is the median of the ratios of all turns.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import math
import operator
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tqdm
from absl import logging

from pizza_steak import cores
from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError, told
from trainers.configuration import AugmentationConfig, BenchmarkConfig, MeasuringConfig
from trainers.pages import plots
from trainers.throughput import graphics_card, stages
from trainers.throughput.stages import (
    COLD,
    COLD_PAGES,
    END_TO_END,
    INPUT,
    ON_HOST,
    OURS,
    PEERS,
    STEP,
    WARM,
)

RATIOS = (
    (COLD, "ImageDataGenerator"),
    (COLD, "decode only"),
    (WARM, "ImageDataGenerator"),
    (COLD_PAGES, WARM),
    (ON_HOST, "ImageDataGenerator + augmentation"),
    (END_TO_END, STEP),
)


class Measurement(NamedTuple):
    """The time of one turn of a stage.

    Attributes:
      images: The number of images that it processed.
      seconds: Wall-clock time.
      cpu_seconds: CPU time of this process, on all cores.
    """

    images: int
    seconds: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one stage.

    Attributes:
      name: The name of the stage.
      images_per_second: The median over the turns, by the wall clock.
      min: The least images per second.
      max: The most images per second.
      repeats: The number of turns.
      cpu_seconds_per_1000: CPU time of this process per thousand images, the median.
      turns: Images per second of each turn.
    """

    name: str
    images_per_second: float
    min: float
    max: float
    repeats: int
    cpu_seconds_per_1000: float
    turns: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of the benchmark.

    Attributes:
      about: The data and the hardware: texts by topic.
      rows: The figures of each stage.
      ratios: Ratios of two rows' images per second, by "a / b".
      verdict: Whether the input or the training step is the bottleneck, and the time of a step;
        None if one of them was not measured.
      graphics_card: How busy the GPU was in training end to end, as text; None without one.
      compared: By row, its images per second divided by those of an earlier report.
      cores: The number of cores that this process may use.
      versions: The versions of the packages that do the work.
    """

    about: Mapping[str, str]
    rows: Sequence[Row]
    ratios: Mapping[str, float]
    verdict: str | None
    graphics_card: str | None
    compared: Mapping[str, float]
    cores: int
    versions: Mapping[str, str]

    def summary(self) -> str:
        """Returns the results as text."""
        lines = head(self.about, self.cores, self.versions)
        heading = f"{'':<38}{'images/s':>12}{'least':>10}{'most':>10}{'CPU s / 1,000':>16}"
        lines += ["", heading + (f"{'ratio':>8}" if self.compared else "")]
        for row in self.rows:
            before = self.compared.get(row.name)
            lines.append(
                f"{row.name:<38}{row.images_per_second:>12,.0f}{row.min:>10,.0f}{row.max:>10,.0f}"
                f"{row.cpu_seconds_per_1000:>16.3f}" + (f"{before:>8.2f}" if before else "")
            )
        if self.ratios:
            lines += ["", *(f"{ratio:>7.2f}  {name}" for name, ratio in self.ratios.items())]
        if self.verdict:
            lines += ["", self.verdict]
        if self.graphics_card:
            lines.append(self.graphics_card)
        return "\n".join(lines)


def head(about: Mapping[str, str], cores: int, versions: Mapping[str, str]) -> list[str]:
    """Returns the first lines of a report as text."""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    topics = {**about, "cores": cores, "versions": named}
    return [f"{topic:<14}{text}" for topic, text in topics.items()]


def measure(config: BenchmarkConfig) -> Report:
    """Times each stage `repeats` times, in turns, after a first turn that does not count.

    Files that are not asked for go to a temporary folder, in the data_dir if there is one.

    Raises:
      UserError: The user has to change something; it is raised before anything is measured.
    """
    measuring = config.measuring
    chosen = _chosen(measuring)
    before = check_files(measuring)
    with temporary_folder(config.data.data_dir) as folder:
        setting = stages.prepare(config, folder, peers=not PEERS.keys().isdisjoint(chosen))
        watched = graphics_card.Watch(config.devices if setting.ready.chosen.on_gpu else None)
        measured = _in_turns(chosen, setting, watched)
        if measuring.profile:
            with quiet(), tf.profiler.experimental.Profile(os.path.expanduser(measuring.profile)):
                OURS[END_TO_END](setting, lambda count: None)
        report = dataclasses.replace(
            report_of(measured, _about(setting), setting.ready.config.data.batch_size),
            graphics_card=watched.summary,
        )
        report = dataclasses.replace(report, compared=compared(report.rows, before))
    write_json(report, measuring.json)
    if measuring.plot:
        speeds = {row.name: row.turns for row in report.rows}
        plots.throughput(speeds, PEERS, pathlib.Path(measuring.plot))
    return report


def check_files(measuring: MeasuringConfig) -> dict[str, float]:
    """Checks the files that the flags name; returns the images per second of --compare, by row.

    Raises:
      UserError: A file cannot be written, or the earlier report is none.
    """
    for name in filter(None, (measuring.json, measuring.plot)):
        path = pathlib.Path(name).expanduser()
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{path}: cannot be written; expected a file in an existing folder")
    return _speeds_of(pathlib.Path(measuring.compare).expanduser()) if measuring.compare else {}


def compared(rows: Sequence[Any], before: Mapping[str, float]) -> dict[str, float]:
    """Returns the ratio of each row's images per second to those before, by name."""
    return {
        row.name: row.images_per_second / before[row.name] for row in rows if row.name in before
    }


def write_json(report: Any, path: str | None) -> None:
    """Writes the fields of a report, if there is a path."""
    if path:
        text = json.dumps(dataclasses.asdict(report), indent=2) + "\n"
        with output_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _speeds_of(path: pathlib.Path) -> dict[str, float]:
    """Returns the images per second of each row of a --json.

    Raises:
      UserError: It is no such file.
    """
    try:
        rows = json.loads(path.read_bytes())["rows"]
        speeds = {str(row["name"]): float(row["images_per_second"]) for row in rows}
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = told(error) if isinstance(error, OSError) else "it is none"
        raise UserError(f"compare {path}: {reason}; expected a file that --json wrote") from error
    return {name: speed for name, speed in speeds.items() if 0 < speed < math.inf}


def timed(stage: stages.Stage, setting: stages.Setting) -> Measurement | None:
    """Times one turn of a stage, from its first `done` on; returns None if it has nothing to do."""
    images = 0
    start: tuple[float, float] | None = None

    def done(count: int) -> None:
        nonlocal images, start
        if start is None:
            start = _clocks()
        else:
            images += count

    stage(setting, done)
    if start is None or not images:
        return None
    seconds, cpu_seconds = map(operator.sub, _clocks(), start)
    return Measurement(images, seconds, cpu_seconds)


def _clocks() -> tuple[float, float]:
    tf.test.experimental.sync_devices()  # A GPU may still be busy.
    return time.perf_counter(), time.process_time()


def report_of(
    measured: Mapping[str, Sequence[Measurement]], about: Mapping[str, str], batch_size: int
) -> Report:
    """Returns the report on some measurements.

    Args:
      measured: The measurements of each turn, by stage.
      about: As in `Report`.
      batch_size: Images per batch.
    """
    rows = [_row(name, turns) for name, turns in measured.items()]
    speeds = {row.name: row.turns for row in rows}
    return Report(
        about=about,
        rows=rows,
        ratios={
            f"{a} / {b}": _ratio(speeds[a], speeds[b]) for a, b in RATIOS if {a, b} <= speeds.keys()
        },
        verdict=verdict(speeds, batch_size),
        graphics_card=None,
        compared={},
        cores=cores.count(),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Returns the versions of the packages that do the work."""
    packages = ("tensorflow", "keras", "tensorflow-datasets", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in packages}


def _row(name: str, turns: Sequence[Measurement]) -> Row:
    speeds = [turn.images / turn.seconds for turn in turns]
    cpu_seconds = [1000 * turn.cpu_seconds / turn.images for turn in turns]
    return Row(
        name=name,
        images_per_second=statistics.median(speeds),
        min=min(speeds),
        max=max(speeds),
        repeats=len(turns),
        cpu_seconds_per_1000=statistics.median(cpu_seconds),
        turns=speeds,
    )


def _ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return statistics.median(map(operator.truediv, a, b))


def verdict(speeds: Mapping[str, Sequence[float]], batch_size: int) -> str | None:
    """Says whether the input or the training step is slower, by what factor, and what would help.

    Args:
      speeds: Images per second of each turn, by stage.
      batch_size: Images per batch.

    Returns:
      Lines of text, or None if one of the two was not measured.
    """
    if not {INPUT, STEP} <= speeds.keys():
        return None
    factor = _ratio(speeds[STEP], speeds[INPUT])
    if factor < 1:
        side, remedy = "training step", "a GPU, a smaller network or a smaller --image_size"
    elif WARM in speeds and _ratio(speeds[WARM], speeds[STEP]) > 1:
        side, remedy = "input", "less augmentation, or --augment_on=device"
    else:
        side, remedy = "input", "a faster disk, --decoded_cache=memory or a smaller --image_size"
    lines = [
        f"The {side} is the bottleneck, by a factor of {max(factor, 1 / factor):,.1f}: the input "
        f"gives {statistics.median(speeds[INPUT]):,.0f} images/s, "
        f"the training step takes {statistics.median(speeds[STEP]):,.0f}."
    ]
    if END_TO_END in speeds:
        share = _ratio(speeds[END_TO_END], speeds[STEP])
        taken, of_input, whole = (
            1000 * batch_size / statistics.median(speeds[name])
            for name in (STEP, INPUT, END_TO_END)
        )
        lines.append(
            f"Training end to end has {share:.0%} of the speed of its step alone: a step of "
            f"{batch_size} images takes {whole:,.2f} ms; on images in memory {taken:,.2f} ms, and "
            f"its input {of_input:,.2f} ms."
        )
    lines.append(f"What would help: {remedy}.")
    return "\n".join(lines)


def _chosen(measuring: MeasuringConfig) -> dict[str, stages.Stage]:
    known = OURS | (PEERS if measuring.peers else {})
    parts = measuring.only or ("",)
    chosen = {name: stage for name, stage in known.items() if any(part in name for part in parts)}
    if not chosen:
        raise UserError(
            f"only {','.join(parts)}: in no name of a row; the names are {', '.join(known)}"
        )
    return chosen


@contextlib.contextmanager
def temporary_folder(data_dir: str | None) -> Iterator[pathlib.Path]:
    """Yields an empty folder, in the data_dir if there is one, and removes it with its content.

    Raises:
      UserError: It cannot be made.
    """
    parent = data_dir and os.path.expanduser(data_dir)
    try:
        if parent:
            os.makedirs(parent, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="benchmark-", dir=parent)
    except OSError as error:
        raise UserError(f"data_dir: {data_dir}: {told(error)}; pass another --data_dir") from error
    with folder as path:
        yield pathlib.Path(path)


def _in_turns(
    chosen: Mapping[str, stages.Stage], setting: stages.Setting, watched: graphics_card.Watch
) -> dict[str, list[Measurement]]:
    """Times all stages in turns; returns the measurements but the first of each that has any."""
    turns = setting.config.measuring.repeats + 1
    measured: dict[str, list[Measurement]] = {name: [] for name in chosen}
    total = turns * len(chosen)
    with tqdm.tqdm(total=total, desc="measuring", unit=" stages", disable=None) as bar, quiet():
        for turn in range(turns):
            for name, stage in chosen.items():
                bar.set_postfix_str(name)
                watch = name == END_TO_END and turn > 0
                with watched if watch else contextlib.nullcontext():
                    measurement = timed(stage, setting)
                if turn > 0 and measurement:
                    measured[name].append(measurement)
                bar.update()
    return {name: measurements for name, measurements in measured.items() if measurements}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what the stages print in every turn: files found, images left out, progress."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _about(setting: stages.Setting) -> dict[str, str]:
    config, data = setting.config, setting.data
    height, width, channels = data.image_shape
    ranges = ", ".join(
        f"{name} {value}"
        for name, value in vars(setting.ranges).items()
        if value != getattr(AugmentationConfig, name)
    )
    return {
        "images": f"{data.records.builder.info.full_name}: {len(data.records.labels):,}, "
        f"{len(data.rows['train']):,} to train on",
        "batches": f"{config.data.batch_size} images of {height} x {width} x {channels}",
        "augmentation": ranges,
        "training": "augmented"
        if setting.ready.augmentation
        else "not augmented: no flag asks for it",
        **setting.ready.chosen.topics(),
    }
