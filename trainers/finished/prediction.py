"""Predicts the classes of images with the model of a finished run."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pizza_steak import decoded, decoding, progress_bar
from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import PredictionConfig
from trainers.finished import loading
from trainers.finished.sources import Source, find
from trainers.runs import run_directory


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of a model for N images.

    Attributes:
      paths: N paths.
      classes: C class names, in the labels' order.
      probabilities: float32 of shape (N, C).
      faults: Why an image is unreadable, by its index; its probabilities have no meaning.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    probabilities: np.ndarray
    faults: Mapping[int, str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields "path" and "class", "probability", "probabilities" or "error" of each image."""
        for index, path in enumerate(self.paths):
            if index in self.faults:
                yield {"path": path, "error": self.faults[index]}
                continue
            by_class = dict(zip(self.classes, self.probabilities[index].tolist(), strict=True))
            best = self.classes[self.probabilities[index].argmax()]
            yield {
                "path": path,
                "class": best,
                "probability": by_class[best],
                "probabilities": by_class,
            }

    def write(self, asked: PredictionConfig) -> str:
        """Writes the files that are asked for.

        Returns:
          The text for standard output: by default a line for each image that has a prediction.

        Raises:
          UserError: A file cannot be written, or both texts are for standard output.
        """
        if asked.json == asked.csv == "-":
            raise UserError("json and csv: both are -; expected a file for one of them")
        told = self._lines()
        for path, text in ((asked.json, self._json()), (asked.csv, self._csv())):
            if path == "-":
                told = text
            elif path:
                with output_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        return told

    def errors(self) -> str:
        """Returns a line for each image that has no prediction."""
        rows = (row for row in self.rows() if "error" in row)
        return "".join(f"error: {row['path']}: {row['error']}\n" for row in rows)

    def _lines(self) -> str:
        path_width, class_width = (max(map(len, names)) for names in (self.paths, self.classes))
        lines = []
        for row in self.rows():
            if "error" not in row:
                path, name = row["path"].ljust(path_width), row["class"].ljust(class_width)
                lines.append(f"{path}  {name}  {row['probability']:.4f}\n")
        return "".join(lines)

    def _json(self) -> str:
        return json.dumps(list(self.rows()), indent=2) + "\n"

    def _csv(self) -> str:
        file, columns = io.StringIO(), ("path", "class", "probability", "error")
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return file.getvalue()


def predict(run: run_directory.Run, images: Sequence[str], batch_size: int = 32) -> Predictions:
    """Predicts the classes of images, decoded as for the training of the run.

    Args:
      run: A finished run.
      images: One or more paths, as in `sources.find`.
      batch_size: Images per batch.

    Raises:
      UserError: There is no image at a path, or the model cannot be loaded.
    """
    sources = find(images)
    model, classes = loading.load_model(run), run.result["classes"]
    format = run_data.format_of(run.config.data)
    probabilities = np.zeros((len(sources), len(classes)), np.float32)
    faults: dict[int, str] = {}
    with progress_bar.progress_bar(total=len(sources)) as bar:
        for rows, images, reasons in _batches(sources, format, batch_size).as_numpy_iterator():
            probabilities[rows] = loading.class_probabilities(model.predict_on_batch(images))
            faults |= {row: text.decode() for row, text in zip(rows, reasons, strict=True) if text}
            bar.update(len(rows))
    return Predictions([source.path for source in sources], classes, probabilities, faults)


def _batches(
    sources: Sequence[Source], format: decoding.Format, batch_size: int
) -> tf.data.Dataset:
    """Returns batches (rows, images, faults), with the results of `decoding.decode_images`."""

    def decode(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, faults = decoding.decode_images(
            len(rows), lambda place: sources[rows[place]].read(), format
        )
        return images, np.array([fault.encode() for fault in faults], object)

    def load(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        images, faults = tf.numpy_function(decode, [rows], [tf.uint8, tf.string])
        return rows, tf.ensure_shape(images, (None, *format.shape)), faults

    rows = tf.data.Dataset.range(len(sources)).batch(batch_size)
    batches = rows.map(load, num_parallel_calls=os.cpu_count()).prefetch(1)
    return batches.with_options(decoded.WITHOUT_AUTOTUNE)
