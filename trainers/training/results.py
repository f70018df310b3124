"""What a finished training returns and prints."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pizza_steak.text_width import padded, text_width
from trainers.runs import scores
from trainers.runs.run_directory import command_line, kept_epoch
from trainers.training import descriptions

_MOST_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
      run_dir: The run directory.
      values: The content of its result.json.
      chief: The process that has the run directory; None if it is this one.
      data_dir: The folder of its records, which other commands have to be given.
      code: Code of the user's that registers its layers, which they have to be given.
    """

    run_dir: pathlib.Path
    values: dict[str, Any]
    chief: str | None = None
    data_dir: str | None = None
    code: tuple[str, ...] = ()

    def summary(self) -> str:
        """Returns the main numbers, the run directory and what to do next, as text."""
        values = self.values
        if self.chief:
            return f"trained with {self.chief}, which saved the results to {self.run_dir}"
        run_dir = descriptions.short_path(self.run_dir)
        where = f"--run_dir={run_dir}"
        data_dir = descriptions.short_path(pathlib.Path(self.data_dir)) if self.data_dir else None
        images = [f"--data_dir={data_dir}"] if data_dir else []
        code = [f"--code={text}" for text in self.code]
        return "\n".join(
            [
                _average_line(values) if "members" in values else _epoch_line(values["history"]),
                f"test accuracy {scores.test_accuracy_text(values)}, "
                f"loss {values['test_loss']:.4f}",
                *_class_lines(values.get("test_by_class", {})),
                *scores.test_cautions(values),
                *_left_out_lines(values.get("bad_train_images", 0)),
                f"{values['fit_seconds']:.1f} s, "
                f"{values['train_images_per_second']:.0f} training images per second",
                f"results saved to {run_dir}",
                "",
                "next:",
                command_line("evaluate", where, *images, *code),
                command_line("predict", where, *code, "photo.jpg"),
                command_line("export", where, *images, *code),
            ]
        )


def _epoch_line(history: Mapping[str, Sequence[float]]) -> str:
    kept = kept_epoch(history)
    metrics = [name for name in ("val_accuracy", "val_loss") if name in history]
    said = ", ".join(f"{name} {history[name][kept]:.4f}" for name in metrics or ["accuracy"])
    return f"{'best' if metrics else 'last'} epoch {kept + 1} of {len(history['loss'])}: {said}"


def _average_line(values: Mapping[str, Any]) -> str:
    count = len(values["members"])
    said = f"average of {count} runs" if count > 1 else "average of a run"
    return f"{said} for each image and its mirror image" if values["flips"] else said


def _left_out_lines(count: int) -> list[str]:
    if not count:
        return []
    plural = "s" * (count > 1)
    return [f"left out of the training: {count:,} image{plural} that cannot be decoded"]


def _class_lines(by_class: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a line for each class with its test accuracy; of many classes for the worst."""
    tested = [(name, row) for name, row in by_class.items() if row["images"]]
    shown = tested
    if len(tested) > _MOST_CLASSES:
        shown = sorted(tested, key=lambda item: item[1]["accuracy"])[:_MOST_CLASSES]
    width = max((text_width(name) for name, _ in shown), default=0)
    lines = [
        f"  {padded(name, width)}  {row['accuracy']:.3f} ({row['images']:,} images)"
        for name, row in shown
    ]
    if more := len(tested) - len(shown):
        lines.append(f"  and {more} more classes, each at least as accurate")
    return lines
