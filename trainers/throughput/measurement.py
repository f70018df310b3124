"""The benchmark: stages timed in turns, their ratios, and what holds training back.

In turns, because a machine's speed drifts: what is to be compared is measured side by side, and a
ratio is the median of the ratios of each turn.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import operator
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf
import tqdm
from absl import logging

from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError
from trainers.configuration import AugmentationConfig, BenchmarkConfig, MeasuringConfig
from trainers.hardware import devices
from trainers.pages import plots
from trainers.throughput import stages
from trainers.throughput.stages import COLD, END_TO_END, ON_HOST, OURS, PEERS, STEP, WARM

RATIOS = (
    (COLD, "ImageDataGenerator"),
    (COLD, "decode only"),
    (WARM, "ImageDataGenerator"),
    (ON_HOST, "ImageDataGenerator + augmentation"),
    (END_TO_END, STEP),
)


class Measurement(NamedTuple):
    """What one turn of a stage took.

    Attributes:
      pictures: How many it worked on.
      seconds: By the wall clock.
      cpu_seconds: Of this process, on all cores.
    """

    pictures: int
    seconds: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one stage, over its turns.

    Attributes:
      name: Of the stage.
      images_per_second: The median, by the wall clock.
      min: The least.
      max: The most.
      repeats: The number of turns.
      cpu_seconds_per_1000: The median, of this process on all cores, for a thousand pictures.
      turns: Pictures a second, turn by turn.
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
    """What was measured, and what it says.

    Attributes:
      about: What was measured on, and with what: texts by topic.
      rows: The figures.
      ratios: Of two rows' pictures a second, by "a / b".
      verdict: Whether the input or the training step is the bottleneck; None if one of them was not
        measured.
      cores: How many the process may use.
      versions: Of the packages that do the work.
    """

    about: Mapping[str, str]
    rows: Sequence[Row]
    ratios: Mapping[str, float]
    verdict: str | None
    cores: int
    versions: Mapping[str, str]

    def summary(self) -> str:
        """All of it for people."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        topics = {**self.about, "cores": self.cores, "versions": versions}
        lines = [f"{topic:<14}{text}" for topic, text in topics.items()]
        lines += ["", f"{'':<38}{'pictures/s':>12}{'least':>10}{'most':>10}{'CPU s / 1,000':>16}"]
        for row in self.rows:
            lines.append(
                f"{row.name:<38}{row.images_per_second:>12,.0f}{row.min:>10,.0f}{row.max:>10,.0f}"
                f"{row.cpu_seconds_per_1000:>16.3f}"
            )
        if self.ratios:
            lines += ["", *(f"{ratio:>7.2f}  {name}" for name, ratio in self.ratios.items())]
        if self.verdict:
            lines += ["", self.verdict]
        return "\n".join(lines)


def measure(config: BenchmarkConfig) -> Report:
    """Times each stage `repeats` times in turns, after a turn that is not counted.

    All files it makes, but those that are asked for, are in a temporary folder, which is in the
    data_dir where one is given.

    Raises:
      UserError: For anything that the user can mend; nothing was measured then.
    """
    measuring = config.measuring
    chosen = _chosen(measuring)
    for path in map(pathlib.Path, filter(None, (measuring.json, measuring.plot))):
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{path}: cannot be written; expected a file in a folder that is there")
    if measuring.threads:
        _hold_to(measuring.threads)
    with _temporary_folder(config.data.data_dir) as folder:
        setting = stages.prepare(config, folder, peers=not PEERS.keys().isdisjoint(chosen))
        measured = _in_turns(chosen, setting)
        if measuring.profile:
            with _quiet(), tf.profiler.experimental.Profile(measuring.profile):
                OURS[END_TO_END](setting, lambda count: None)
        augmented = setting.asked and setting.asked.on_batches
        report = report_of(measured, _about(setting), source=ON_HOST if augmented else WARM)
    if measuring.json:
        with output_file(measuring.json) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    if measuring.plot:
        speeds = {row.name: row.turns for row in report.rows}
        plots.throughput(speeds, PEERS, pathlib.Path(measuring.plot))
    return report


def timed(stage: stages.Stage, setting: stages.Setting) -> Measurement | None:
    """One turn of a stage, from its first `done` on; None if it has nothing to do."""
    pictures, start = 0, None

    def done(count: int) -> None:
        nonlocal pictures, start
        if start is None:
            start = _clocks()
        else:
            pictures += count

    stage(setting, done)
    if not pictures:
        return None
    seconds, cpu_seconds = map(operator.sub, _clocks(), start)
    return Measurement(pictures, seconds, cpu_seconds)


def _clocks() -> tuple[float, float]:
    tf.test.experimental.sync_devices()  # What a GPU was asked to do, it may still be at.
    return time.perf_counter(), time.process_time()


def report_of(
    measured: Mapping[str, Sequence[Measurement]], about: Mapping[str, str], source: str
) -> Report:
    """The figures, their ratios and the verdict.

    Args:
      measured: What each turn took, by stage.
      about: As in `Report`.
      source: The stage that is the input of training.
    """
    rows = [_row(name, turns) for name, turns in measured.items()]
    speeds = {row.name: row.turns for row in rows}
    packages = ("tensorflow", "keras", "tensorflow-datasets", "numpy", "pillow")
    return Report(
        about=about,
        rows=rows,
        ratios={
            f"{a} / {b}": _ratio(speeds[a], speeds[b]) for a, b in RATIOS if {a, b} <= speeds.keys()
        },
        verdict=verdict(speeds, source),
        cores=_cores(),
        versions={name: importlib.metadata.version(name) for name in packages},
    )


def _row(name: str, turns: Sequence[Measurement]) -> Row:
    speeds = [turn.pictures / turn.seconds for turn in turns]
    cpu_seconds = [1000 * turn.cpu_seconds / turn.pictures for turn in turns]
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


def verdict(speeds: Mapping[str, Sequence[float]], source: str) -> str | None:
    """Says whether the input or the training step is the slower, by what factor, and what to do.

    Args:
      speeds: Pictures a second, turn by turn, by stage.
      source: The stage that is the input of training.

    Returns:
      Lines of text, or None if there are no figures of one of the two.
    """
    if not {source, STEP} <= speeds.keys():
        return None
    factor = _ratio(speeds[STEP], speeds[source])
    if factor < 1:
        side, remedy = "training step", "a GPU, a smaller network or a smaller --image_size"
    elif source == ON_HOST and WARM in speeds and _ratio(speeds[WARM], speeds[STEP]) > 1:
        side, remedy = "input", "less augmentation, or --augment_on=device"
    else:
        side, remedy = "input", "a faster disk, --decoded_cache=memory or a smaller --image_size"
    lines = [
        f"The {side} is the bottleneck, by a factor of {max(factor, 1 / factor):,.1f}: the input "
        f"({source}) gives {statistics.median(speeds[source]):,.0f} pictures/s, "
        f"the training step takes {statistics.median(speeds[STEP]):,.0f}."
    ]
    if END_TO_END in speeds:
        share = _ratio(speeds[END_TO_END], speeds[STEP])
        lines.append(f"Training end to end has {share:.0%} of the speed of its step alone.")
    lines.append(f"What would help: {remedy}.")
    return "\n".join(lines)


def _chosen(measuring: MeasuringConfig) -> dict[str, stages.Stage]:
    known = OURS | (PEERS if measuring.peers else {})
    parts = measuring.only or ("",)
    chosen = {name: stage for name, stage in known.items() if any(part in name for part in parts)}
    if not chosen:
        raise UserError(f"only {','.join(parts)}: in no name; the names are {', '.join(known)}")
    return chosen


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _hold_to(threads: int) -> None:
    """Holds this process to so many cores. TensorFlow, not yet used, will start as many threads."""
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("threads: this system does not let a process choose its cores")
    if threads > _cores():
        raise UserError(f"threads {threads}: expected no more than there are cores, {_cores()}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


@contextlib.contextmanager
def _temporary_folder(data_dir: str | None) -> Iterator[pathlib.Path]:
    parent = data_dir and os.path.expanduser(data_dir)
    try:
        if parent:
            os.makedirs(parent, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="benchmark-", dir=parent)
    except OSError as error:
        raise UserError(f"data_dir: {data_dir}: {error.strerror}; pass another") from error
    with folder as path:
        yield pathlib.Path(path)


def _in_turns(
    chosen: Mapping[str, stages.Stage], setting: stages.Setting
) -> dict[str, list[Measurement]]:
    """What each turn but the first took, by stage; without stages that have nothing to do."""
    turns = setting.config.measuring.repeats + 1
    measured = {name: [] for name in chosen}
    total = turns * len(chosen)
    with tqdm.tqdm(total=total, desc="measuring", unit=" stages", disable=None) as bar, _quiet():
        for turn in range(turns):
            for name, stage in chosen.items():
                bar.set_postfix_str(name)
                measurement = timed(stage, setting)
                if turn > 0 and measurement:
                    measured[name].append(measurement)
                bar.update()
    return {name: measurements for name, measurements in measured.items() if measurements}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the stages tell in every turn: files found, pictures left out, progress."""
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
        "pictures": f"{data.records.builder.info.full_name}: {len(data.records.labels):,}, "
        f"{len(data.rows['train']):,} to train on",
        "batches": f"{config.data.batch_size} pictures of {height} x {width} x {channels}",
        "augmentation": ranges,
        "training": "augmented" if setting.asked else "not augmented: the flags do not ask for it",
        **devices.choose(config.devices).topics(),
    }
