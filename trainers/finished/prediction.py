"""Predicts the classes of images with the model of a finished run."""

import collections
import csv
import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pizza_steak import cores, decoded, decoding, progress_bar
from pizza_steak.archive import ReadingOptions
from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError
from pizza_steak.text_width import padded, printable, spreadsheet_cell, text_width
from trainers import data as run_data
from trainers.configuration import PredictionConfig
from trainers.finished import annotation, loading
from trainers.finished.sources import Source, find
from trainers.runs import run_directory

_COUNTED = 10  # Classes in the line of counts.


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of a model for N images.

    Attributes:
      sources: N images.
      classes: C class names, in the labels' order.
      probabilities: float32 of shape (N, C).
      faults: Why an image is missing or unreadable, by its index; its probabilities have no
        meaning.
    """

    sources: Sequence[Source]
    classes: Sequence[str]
    probabilities: np.ndarray
    faults: Mapping[int, str]

    @functools.cached_property
    def paths(self) -> list[str]:
        """The N paths."""
        return [source.path for source in self.sources]

    def top(self, index: int, count: int) -> list[tuple[str, float]]:
        """Returns the most probable classes of an image, with their probabilities."""
        order = np.argsort(-self.probabilities[index], kind="stable")[:count]
        return [(self.classes[label], float(self.probabilities[index, label])) for label in order]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields "path" and "class", "probability", "probabilities" or "error" of each image."""
        for index, path in enumerate(self.paths):
            if index in self.faults:
                yield {"path": path, "error": self.faults[index]}
                continue
            by_class = dict(zip(self.classes, self.probabilities[index].tolist(), strict=True))
            ((best, probability),) = self.top(index, 1)
            yield {
                "path": path,
                "class": best,
                "probability": probability,
                "probabilities": by_class,
            }

    def write(self, asked: PredictionConfig) -> str:
        """Writes the files that are asked for.

        Returns:
          The text for standard output: by default a line for each image that has a prediction.

        Raises:
          UserError: A file cannot be written, or both texts are for standard output.
        """
        check_outputs(asked)
        told = None
        for path, text in ((asked.json, self._json), (asked.csv, lambda: self._csv(asked.top))):
            if path == "-":
                told = text()
            elif path:
                with output_file(path) as temporary:
                    temporary.write_text(text(), encoding="utf-8")
        if asked.annotate:
            labels = {self.sources[index]: self.top(index, asked.top) for index in self._readable}
            annotation.write(asked.annotate, labels)
        return self._lines(asked.top) if told is None else told

    def counts(self) -> str:
        """Returns the number of images of each predicted class, the most frequent first."""
        count = len(self._readable)
        if count < 2:
            return ""
        found = collections.Counter(self.top(index, 1)[0][0] for index in self._readable)
        named = [f"{printable(name)} {count:,}" for name, count in found.most_common(_COUNTED)]
        if (others := len(found) - _COUNTED) > 0:
            named.append(f"{others:,} other classes")
        return f"{count:,} images: {', '.join(named)}\n"

    def errors(self) -> str:
        """Returns a line for each path or image that has no prediction."""
        rows = (row for row in self.rows() if "error" in row)
        return "".join(printable(f"error: {row['path']}: {row['error']}") + "\n" for row in rows)

    @functools.cached_property
    def _readable(self) -> list[int]:
        return [index for index in range(len(self.sources)) if index not in self.faults]

    def _lines(self, top: int) -> str:
        paths = [printable(path) for path in self.paths]
        path_width = max(text_width(paths[index]) for index in self._readable or [0])
        class_width = max(text_width(printable(name)) for name in self.classes)
        lines = []
        for index in self._readable:
            cells = [padded(paths[index], path_width)]
            for name, probability in self.top(index, top):
                cells += [padded(printable(name), class_width), f"{probability:.4f}"]
            lines.append("  ".join(cells) + "\n")
        return "".join(lines)

    def _json(self) -> str:
        return json.dumps(list(self.rows()), indent=2) + "\n"

    def _csv(self, top: int) -> str:
        file, top = io.StringIO(), min(top, len(self.classes))
        writer = csv.writer(file, lineterminator="\n")
        numbered = [(f"class_{n}", f"probability_{n}") for n in range(2, top + 1)]
        columns = ["path", "class", "probability", *itertools.chain(*numbered), "error"]
        writer.writerow(columns)
        for index, path in enumerate(map(spreadsheet_cell, self.paths)):
            if index in self.faults:
                fault = spreadsheet_cell(self.faults[index])
                writer.writerow([path, *[""] * (2 * top), fault])
            else:
                found = ((spreadsheet_cell(name), p) for name, p in self.top(index, top))
                writer.writerow([path, *itertools.chain(*found), ""])
        return file.getvalue()


def check_outputs(asked: PredictionConfig) -> None:
    """Checks what can be checked of the outputs before anything is predicted.

    Raises:
      UserError: Both texts are for standard output, or --annotate holds other files.
    """
    if asked.json == asked.csv == "-":
        raise UserError("json and csv: both are -; expected a file for one of them")
    if asked.annotate:
        annotation.check_folder(asked.annotate)


def predict(
    run: run_directory.Run,
    paths: Sequence[str],
    batch_size: int = 32,
    reading: ReadingOptions | None = None,
) -> Predictions:
    """Predicts the classes of images, decoded as for the training of the run.

    Args:
      run: A finished run.
      paths: One or more paths, as in `sources.find`.
      batch_size: Images per batch.
      reading: How to read folders and zips.

    Raises:
      UserError: The model cannot be loaded.
    """
    sources, classes = find(paths, reading), run.result["classes"]
    probabilities = np.zeros((len(sources), len(classes)), np.float32)
    faults = {row: source.fault for row, source in enumerate(sources) if source.fault}
    there = np.array([row for row, source in enumerate(sources) if not source.fault], np.int64)
    if len(there):
        model, format = loading.load_model(run), run_data.format_of(run.config.data)
        batches = _batches(sources, there, format, batch_size)
        with progress_bar.progress_bar(total=len(there)) as bar:
            for rows, images, reasons in batches.as_numpy_iterator():
                probabilities[rows] = loading.class_probabilities(model.predict_on_batch(images))
                found = zip(rows, reasons, strict=True)
                faults |= {int(row): text.decode() for row, text in found if text}
                bar.update(len(rows))
    return Predictions(sources, classes, probabilities, faults)


def _batches(
    sources: Sequence[Source], rows: np.ndarray, format: decoding.Format, batch_size: int
) -> tf.data.Dataset:
    """Returns batches (rows, images, faults) of some sources, as `decoding.decode_images` does."""

    def decode(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, faults = decoding.decode_images(
            len(rows), lambda place: sources[rows[place]].read(), format
        )
        return images, np.array([fault.encode() for fault in faults], object)

    def load(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        images, faults = tf.numpy_function(decode, [rows], [tf.uint8, tf.string])
        return rows, tf.ensure_shape(images, (None, *format.shape)), faults

    batches = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    batches = batches.map(load, num_parallel_calls=cores.count()).prefetch(1)
    return batches.with_options(decoded.WITHOUT_AUTOTUNE)
