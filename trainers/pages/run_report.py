"""The report: one HTML page about several runs, without scripts, network or other files.

A run may be another person's. A file of it that is damaged, or is not what a run writes, leaves the
run out of the page.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from pizza_steak import patterns, regular_file
from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError
from pizza_steak.flags import fields
from trainers.configuration import FitConfig, ReportConfig
from trainers.pages import layout, plots
from trainers.runs import identity, run_directory, run_files, scores

# The figures of a run that the page shows: file, title, whether it has photographs, and the scale
# at which its words are as large as in the other figures.
_GALLERIES = (
    ("confusion_matrix.png", "Confusion matrices", False, 1.0),
    ("evaluation/mistakes.png", "Most confident mistakes", True, 1.8),
    ("evaluation/activation_maps.png", "Activation maps", True, 1.8),
    ("augmentation.png", "Augmented images", True, 1.0),
    ("curves.png", "Training and validation", False, 1.0),
)
_TRAINING_METRICS = ("loss", "accuracy")
_VALIDATION_METRICS = ("val_loss", "val_accuracy")
_MOST_BYTES = 2**25  # Of a figure.
_MOST_PIXELS = 20_000_000
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
# The numbers of result.json that the page shows.
_NUMBERS = (
    "parameters",
    "test_accuracy",
    "test_loss",
    "start_seconds",
    "fit_seconds",
    "fit_cpu_seconds",
    "train_images_per_second",
)


@dataclasses.dataclass(frozen=True)
class EmbeddedImage:
    """An image within the page.

    Attributes:
      uri: The image as a data URI.
      width: The width in pixels.
      height: The height in pixels.
    """

    uri: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the page shows of a run.

    Attributes:
      name: The path of the run, without the part that all runs share.
      config: The flags of the run.
      history: A number per epoch, by Keras's names; validation metrics are empty without
        validation.
      devices: The devices and the precision, as text.
      validated_on: Identifies the validation images; "" without validation.
      tested_on: Identifies the test images.
      numbers: Numbers by the names of `_NUMBERS`. These and the next five are None until the run is
        finished.
      test_accuracy: The test accuracy with its interval, as text.
      chosen_on_test: Whether test images also chose the best epoch.
      not_learned: Why the model is no better than one answer for all images; None if it is better.
      timed_epochs: The number of epochs in its seconds: those since it was last resumed.
      classes: The class names.
      figures: The figures of `_GALLERIES` that exist, by file name.
      same: The names of other runs with the same flags and the same results.
    """

    name: str
    config: FitConfig
    history: dict[str, list[float]]
    devices: str
    validated_on: str
    tested_on: str
    numbers: dict[str, float] | None
    test_accuracy: str | None
    chosen_on_test: bool | None
    not_learned: str | None
    timed_epochs: int | None
    classes: list[str] | None
    figures: dict[str, EmbeddedImage]
    same: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.history["loss"])

    @property
    def best_epoch(self) -> int | None:
        """The epoch, counted from 1, whose model is kept; None before the first."""
        return run_directory.kept_epoch(self.history) + 1 if self.epochs else None

    def kept(self, metric: str) -> float | None:
        """Returns a metric of the model that is kept, if there is one."""
        values = self.history[metric]
        return values[run_directory.kept_epoch(self.history)] if values else None

    @property
    def gap(self) -> float | None:
        """Training accuracy minus validation accuracy of the model that is kept."""
        trained, validated = self.kept("accuracy"), self.kept("val_accuracy")
        return None if trained is None or validated is None else trained - validated


def write(config: ReportConfig) -> str:
    """Writes the page about the runs that the flags name.

    The page shows unfinished runs as far as they have come, and names the folders that are not runs
    or cannot be read.

    Returns:
      What was written and what was left out, as text.

    Raises:
      UserError: There is no run, or the page cannot be written.
    """
    entries, left_out = find(config.page.runs)
    page = render(entries, left_out)
    output = pathlib.Path(config.page.output).expanduser()
    with output_file(output, "output") as temporary:
        # Names of folders may have bytes that are not UTF-8.
        temporary.write_text(page, encoding="utf-8", errors="replace")
    best, differing = _best(entries), _not_comparable(entries)
    runs = sum(1 + len(entry.same) for entry in entries)
    lines = [f"{output}: {runs} run{'s' * (runs != 1)}"]
    lines += [f"the same run: {', '.join((e.name, *e.same))}" for e in entries if e.same]
    if differing:
        lines.append(f"no best run: they have different {' and '.join(differing)}")
    elif best:
        lines.append(f"best: {best.name}, validation accuracy {best.kept('val_accuracy'):.4f}")
    return "\n".join([*lines, *(f"left out: {reason}" for reason in left_out)])


def find(pattern: str) -> tuple[list[Entry], list[str]]:
    """Returns the runs whose folders match a pattern, and why the other folders are left out.

    Equal runs are one, and the best comes first if the runs can be compared.

    Raises:
      UserError: There is no run.
    """
    found = patterns.matches(pathlib.Path(pattern).expanduser())
    folders = sorted(path.absolute() for path in found if path.is_dir())
    if not folders:
        raise UserError(f"runs {pattern!r}: no folder matches; expected run directories")
    root = os.path.commonpath([folder.parent for folder in folders])
    entries, left_out = [], []
    for folder in folders:
        try:
            entries.append(_read(folder, str(folder.relative_to(root))))
        except UserError as error:
            left_out.append(" ".join(str(error).split()))
    if not entries:
        raise UserError(f"runs {pattern!r}: no folder is a readable run; the first: {left_out[0]}")
    return _in_order(_without_copies(entries)), left_out


def render(entries: Sequence[Entry], left_out: Sequence[str]) -> str:
    """Returns the page as HTML.

    Args:
      entries: The runs, at least one.
      left_out: A line for each folder that is left out.
    """
    curves = {
        title: plots.overlay_svg([entry.history[metric] for entry in entries])
        for title, metric in (
            ("Validation loss", "val_loss"),
            ("Validation accuracy", "val_accuracy"),
        )
    }
    galleries = [
        (title, scale, [(entry, entry.figures[file]) for entry in entries if file in entry.figures])
        for file, title, _, scale in _GALLERIES
    ]
    return layout.render(
        pathlib.Path(__file__).with_name("run_report.html.jinja"),
        entries=entries,
        styles=[plots.line_style(index) for index in range(len(entries))],
        best=_best(entries),
        differing=_not_comparable(entries),
        count=sum(1 + len(entry.same) for entry in entries),
        curves={title: layout.data_uri(svg, "svg+xml") for title, svg in curves.items()},
        flags=_differing_flags(entries),
        galleries=galleries,
        left_out=left_out,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )


def _without_copies(entries: Sequence[Entry]) -> list[Entry]:
    """Returns finished runs with the same flags and results as one, which names the others."""
    kept: list[Entry] = []
    for entry in entries:
        place = next((n for n, other in enumerate(kept) if _equal(entry, other)), None)
        if place is None:
            kept.append(entry)
        else:
            first = kept[place]
            kept[place] = dataclasses.replace(
                first,
                same=(*first.same, entry.name),
                figures=entry.figures | first.figures,  # One of them may have been evaluated.
            )
    return kept


def _equal(one: Entry, other: Entry) -> bool:
    def results(entry: Entry) -> tuple[Any, ...]:
        tested = entry.numbers and (entry.numbers["test_loss"], entry.numbers["test_accuracy"])
        return entry.history, tested, entry.classes, entry.validated_on, entry.tested_on

    finished = one.numbers is not None and other.numbers is not None
    same = finished and results(one) == results(other)
    return same and not identity.changes(one.config, other.config)


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the runs, the best first; by name if they cannot be compared."""
    if _not_comparable(entries):
        return list(entries)
    return sorted(entries, key=_result, reverse=True)


def _best(entries: Sequence[Entry]) -> Entry | None:
    """Returns the best finished run by validation accuracy; test images must not choose it.

    There is none if the runs cannot be compared.
    """
    finished = [entry for entry in entries if entry.numbers and entry.history["val_accuracy"]]
    return None if _not_comparable(entries) else max(finished, key=_result, default=None)


def _result(entry: Entry) -> tuple[float, ...]:
    """Returns what runs are ordered by, the greatest first; unfinished runs come last."""
    accuracy, loss = entry.kept("val_accuracy"), entry.kept("val_loss")
    if accuracy is None or loss is None:
        return entry.numbers is not None, -math.inf, -math.inf
    return entry.numbers is not None, accuracy, -loss


def _not_comparable(entries: Sequence[Entry]) -> list[str]:
    """Returns what is different, so that the results of the runs cannot be compared."""
    of_runs: dict[str, set[Any]] = {
        "classes": {tuple(entry.classes) for entry in entries if entry.classes},
        "validation images": {entry.validated_on for entry in entries if entry.validated_on},
        "test images": {entry.tested_on for entry in entries},
    }
    return [name for name, values in of_runs.items() if len(values) > 1]


def _differing_flags(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Returns the values of each flag that differs between runs, in the order of the runs."""
    differing = {}
    for concern, field in fields(FitConfig):
        values = [
            # The dataset has no meaning with an --archive.
            None
            if field.name == "dataset" and entry.config.data.archive
            else getattr(getattr(entry.config, concern), field.name)
            for entry in entries
        ]
        if any(value != values[0] for value in values):
            differing[field.name] = [_flag_text(value) for value in values]
    return differing


def _flag_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _read(folder: pathlib.Path, name: str) -> Entry:
    """Reads a run, as far as it has come.

    Raises:
      UserError: The folder is not a run directory, or a file in it is damaged.
    """
    if not (folder / "run.flags").is_file():
        raise UserError(f"{folder}: not a run directory; run.flags is missing")
    run = run_directory.Run(folder)
    config = run.config
    with _reading(folder / "metrics.csv"):
        history = {metric: [row[metric] for row in run.logs] for metric in _TRAINING_METRICS}
        validated = run.logs if config.data.validation_split != "none" else []
        history |= {metric: [row[metric] for row in validated] for metric in _VALIDATION_METRICS}
    with _reading(folder / "environment.json"):
        environment = run.environment
        devices = ", ".join([*environment["names"], environment["precision"]])
        if "splits" in environment:
            splits = environment["splits"]
            validated_on = splits["validation"]["fingerprint"] if "validation" in splits else ""
            tested_on = splits["test"]["fingerprint"]
        else:  # The run of an older version.
            validated_on = f"{environment['fingerprint']} {config.data.validation_split}"
            tested_on = f"{environment['fingerprint']} {config.data.test_split}"
    numbers = test_accuracy = chosen_on_test = not_learned = timed_epochs = classes = None
    with _reading(folder / "result.json"):
        if run.finished:
            result = run.result
            numbers = {number: float(result[number]) for number in _NUMBERS}
            test_accuracy = scores.test_accuracy_text(result)
            chosen_on_test = bool(result.get("test_images_chose_the_model"))
            if bounds := result.get("test_accuracy_interval"):  # Older versions wrote none.
                not_learned = "".join(scores.not_learned(result, bounds)) or None
            timed_epochs = len(result["epoch_end_seconds"])
            classes = result["classes"]
    figures = {}
    for part, _, photographs, _ in _GALLERIES:
        if (folder / part).exists():
            with _reading(folder / part) as file:
                # A link could show a private image to whoever gets the page.
                if not file.resolve().is_relative_to(folder.resolve()):
                    raise UserError(f"{file}: is a link to a file outside the run")
                figures[part] = _embed(file, photographs)
    return Entry(
        name,
        config,
        history,
        devices,
        validated_on,
        tested_on,
        numbers,
        test_accuracy,
        chosen_on_test,
        not_learned,
        timed_epochs,
        classes,
        figures,
    )


@contextlib.contextmanager
def _reading(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Turns errors from reading a file into a `UserError` that names the file."""
    try:
        yield file
    except (OSError, ValueError, TypeError, LookupError, SyntaxError) as error:
        # Pillow raises a SyntaxError for a PNG with a wrong chunk.
        raise run_files.damaged(file, error) from error


def _embed(file: pathlib.Path, photographs: bool) -> EmbeddedImage:
    content, kind = regular_file.read(file, _MOST_BYTES), "png"
    if not content.startswith(_PNG_START):
        raise UserError(f"{file}: not a PNG")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    if width * height > _MOST_PIXELS:
        raise UserError(f"{file}: has more than {_MOST_PIXELS:,} pixels")
    # Without its formats, Pillow would open PostScript too, and start Ghostscript.
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if photographs:  # A PNG would be ten times as large.
            compressed, kind = io.BytesIO(), "webp"
            image.convert("RGB").save(compressed, kind, quality=85)
            content = compressed.getvalue()
        return EmbeddedImage(layout.data_uri(content, kind), *image.size)
