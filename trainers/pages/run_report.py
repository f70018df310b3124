"""One HTML page about several runs, that needs no script, no network and no file beside it."""

import contextlib
import dataclasses
import glob
import io
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError
from trainers.configuration import FitConfig, ReportConfig
from trainers.flags import fields
from trainers.pages import layout, plots
from trainers.runs import run_directory, scores

# What the page shows of every run that has it: a file, a title, whether it is of photographs, and
# how much larger than the others it has to be shown, for the size of its words.
_GALLERIES = (
    ("confusion_matrix.png", "Confusion matrices", False, 1.0),
    ("evaluation/mistakes.png", "Most confident mistakes", True, 1.8),
    ("augmentation.png", "Augmented pictures", True, 1.0),
    ("curves.png", "Training and validation", False, 1.0),
)
_TRAINING_METRICS = ("loss", "accuracy")
_VALIDATION_METRICS = ("val_loss", "val_accuracy")
# Those of result.json that are shown.
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
class Picture:
    """A picture within the page.

    Attributes:
      uri: All of it, as a data URI.
      width: In pixels.
      height: In pixels.
    """

    uri: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the page tells of a run.

    Attributes:
      name: Where it is, as short as the others' places allow.
      config: Its flags.
      history: A number for each epoch so far, by Keras's names; of a run without validation no
        number for its metrics.
      devices: What it was computed with.
      validated_on: Tells the images that it was validated on from others.
      numbers: By the names of `_NUMBERS`; None while the run is not finished, as the next five.
      test_accuracy: With its interval, for people.
      chosen_on_test: Whether it was tested on images that chose the best epoch.
      not_learned: Why it is no better than one answer for all images; None if it is better.
      timed_epochs: How many epochs its seconds are of: those since it was last resumed.
      classes: Their names.
      figures: Those of `_GALLERIES` that there are, by file name.
    """

    name: str
    config: FitConfig
    history: dict[str, list[float]]
    devices: str
    validated_on: str
    numbers: dict[str, float] | None
    test_accuracy: str | None
    chosen_on_test: bool | None
    not_learned: str | None
    timed_epochs: int | None
    classes: list[str] | None
    figures: dict[str, Picture]

    @property
    def epochs(self) -> int:
        """How many have been finished."""
        return len(self.history["loss"])

    @property
    def best_epoch(self) -> int | None:
        """The epoch, counted from 1, whose model is kept; None before the first."""
        return run_directory.kept_epoch(self.history) + 1 if self.epochs else None

    def kept(self, metric: str) -> float | None:
        """A metric of the model that is kept, where there is one."""
        return self.history[metric][self.best_epoch - 1] if self.history[metric] else None

    @property
    def gap(self) -> float | None:
        """Training accuracy less validation accuracy of the model that is kept."""
        validated = self.kept("val_accuracy")
        return None if validated is None else self.kept("accuracy") - validated


def write(config: ReportConfig) -> str:
    """Writes the page about the runs that the flags name.

    Runs that are not finished are in it, as far as they have come. Folders that are no runs, and
    runs that cannot be read, are named.

    Returns:
      What was written and left out, for people.

    Raises:
      UserError: There is no run, or the page cannot be written.
    """
    entries, left_out = find(config.page.runs)
    page = render(entries, left_out)
    output = pathlib.Path(config.page.output).expanduser()
    with output_file(output, "output") as temporary:
        # Names of folders may hold bytes that are no UTF-8.
        temporary.write_text(page, encoding="utf-8", errors="replace")
    best = _best(entries)
    lines = [f"{output}: {len(entries)} run{'s' * (len(entries) != 1)}"]
    if best:
        lines.append(f"best: {best.name}, validation accuracy {best.kept('val_accuracy'):.4f}")
    return "\n".join([*lines, *(f"left out: {reason}" for reason in left_out)])


def find(pattern: str) -> tuple[list[Entry], list[str]]:
    """The runs in the folders that match a pattern, and why the other folders are left out.

    Raises:
      UserError: There is no run.
    """
    matches = map(pathlib.Path, glob.glob(os.path.expanduser(pattern)))
    folders = sorted(path.absolute() for path in matches if path.is_dir())
    if not folders:
        raise UserError(f"runs {pattern!r}: no such folder; expected run directories")
    root = os.path.commonpath([folder.parent for folder in folders])
    entries, left_out = [], []
    for folder in folders:
        try:
            entries.append(_read(folder, str(folder.relative_to(root))))
        except UserError as error:
            left_out.append(" ".join(str(error).split()))
    if not entries:
        raise UserError(f"runs {pattern!r}: no run that can be read; the first: {left_out[0]}")
    return entries, left_out


def render(entries: Sequence[Entry], left_out: Sequence[str]) -> str:
    """The page, as HTML.

    Args:
      entries: At least one.
      left_out: A line for each folder that is not shown.
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
        comparable=len({_validated_on(entry) for entry in entries}) == 1,
        curves={title: layout.data_uri(svg, "svg+xml") for title, svg in curves.items()},
        flags=_differing_flags(entries),
        galleries=galleries,
        left_out=left_out,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )


def _best(entries: Sequence[Entry]) -> Entry | None:
    """By validation accuracy: to choose by test accuracy would be to train on the test pictures."""
    return max(
        (entry for entry in entries if entry.numbers and entry.history["val_accuracy"]),
        key=lambda entry: (entry.kept("val_accuracy"), -entry.kept("val_loss")),
        default=None,
    )


def _validated_on(entry: Entry) -> tuple[Any, ...]:
    """What has to be the same where validation metrics are compared."""
    return entry.validated_on, entry.config.data.classes


def _differing_flags(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """For each flag that not all runs have in common, its values in the order of the runs."""
    differing = {}
    for concern, field in fields(FitConfig):
        values = [getattr(getattr(entry.config, concern), field.name) for entry in entries]
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
    """What there is of a run.

    Raises:
      UserError: The folder is no run, or a file of the run is damaged.
    """
    if not (folder / "run.flags").is_file():
        raise UserError(f"{folder}: no run; it has no run.flags")
    with _reading(folder / "run.flags") as file:
        run = run_directory.Run(folder)
        config = run.config
    with _reading(folder / "metrics.csv"):
        history = {metric: [row[metric] for row in run.logs] for metric in _TRAINING_METRICS}
        validated = run.logs if config.data.validation_split != "none" else []
        history |= {metric: [row[metric] for row in validated] for metric in _VALIDATION_METRICS}
    with _reading(folder / "environment.json") as file:
        environment = json.loads(file.read_text())
        devices = ", ".join([*map(str, environment["names"]), str(environment["precision"])])
        if "splits" in environment:
            splits = environment["splits"]
            validated_on = splits["validation"]["fingerprint"] if "validation" in splits else ""
        else:  # A run of an older version.
            validated_on = f"{environment['fingerprint']} {config.data.validation_split}"
    numbers = test_accuracy = chosen_on_test = not_learned = timed_epochs = classes = None
    with _reading(folder / "result.json"):
        if run.finished:
            result = run.result
            numbers = {number: float(result[number]) for number in _NUMBERS}
            test_accuracy = scores.test_accuracy_text(result)
            chosen_on_test = bool(result.get("test_pictures_chose_the_model"))
            if bounds := result.get("test_accuracy_interval"):  # Older versions wrote none.
                not_learned = "".join(scores.not_learned(result, bounds)) or None
            timed_epochs = len(result["epoch_end_seconds"])
            classes = [str(label) for label in result["classes"]]
    figures = {}
    for part, _, photographs, _ in _GALLERIES:
        with _reading(folder / part) as file:
            if file.exists():
                figures[part] = _embed(file, photographs)
    return Entry(
        name,
        config,
        history,
        devices,
        validated_on,
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
    """Names the file in the errors that what it holds may raise."""
    try:
        yield file
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error})") from error


def _embed(file: pathlib.Path, photographs: bool) -> Picture:
    with Image.open(file) as image:
        content, kind = file.read_bytes(), "png"
        if photographs:  # As a PNG they are ten times as large.
            compressed, kind = io.BytesIO(), "webp"
            image.convert("RGB").save(compressed, kind, quality=85)
            content = compressed.getvalue()
        return Picture(layout.data_uri(content, kind), *image.size)
