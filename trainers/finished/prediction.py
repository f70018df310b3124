"""What a finished run's model says of pictures that are anywhere."""

import csv
import dataclasses
import fnmatch
import functools
import glob
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from pizza_steak import decoded, decoding
from pizza_steak.archive import list_pictures
from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import PredictionConfig
from trainers.hardware import devices
from trainers.runs import run_directory


@dataclasses.dataclass(frozen=True)
class Source:
    """A picture that can be read.

    Attributes:
      path: Where it is, for people: a member of a zip stands behind the zip's own path.
      read: Gives its bytes.
    """

    path: str
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of N pictures.

    Attributes:
      paths: N of them.
      classes: C names, in the labels' order.
      probabilities: float32 of shape (N, C).
      faults: Why pictures have none, by their index; their probabilities mean nothing.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    probabilities: np.ndarray
    faults: Mapping[int, str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Of each picture "path", "class", "probability" and "probabilities"; or its "error"."""
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
          What the standard output gets: by default a line for each picture that has a prediction.

        Raises:
          UserError: A file cannot be written, or the standard output is asked for twice.
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
        """A line for each picture that has no prediction."""
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
    """Predicts the classes of pictures, decoded as they were for the run's training.

    Args:
      run: A finished run.
      images: One or more paths, as `find` takes them.
      batch_size: Pictures a step.

    Raises:
      UserError: There are no pictures at a path, or the run's model cannot be loaded.
    """
    sources = find(images)
    model, classes = load_model(run), run.result["classes"]
    format = run_data.format_of(run.config.data)
    probabilities = np.zeros((len(sources), len(classes)), np.float32)
    faults = {}
    with tqdm.tqdm(total=len(sources), unit=" pictures", disable=None) as progress:
        for rows, images, reasons in _batches(sources, format, batch_size).as_numpy_iterator():
            probabilities[rows] = class_probabilities(model.predict_on_batch(images))
            faults |= {row: text.decode() for row, text in zip(rows, reasons, strict=True) if text}
            progress.update(len(rows))
    return Predictions([source.path for source in sources], classes, probabilities, faults)


def load_model(run: run_directory.Run) -> keras.Model:
    """The model of a finished run, ready to predict on one device.

    Raises:
      UserError: It cannot be loaded.
    """
    model = run.load_model()
    chosen = devices.choose(devices.one_device(run.config.devices))
    model.compile(jit_compile=chosen.jit_compile)
    return model


def class_probabilities(outputs: np.ndarray) -> np.ndarray:
    """A model's outputs with a column for each class.

    Args:
      outputs: float32 of shape (N, 1), the probability of class 1 of two, or of shape (N, C).

    Returns:
      float32 of shape (N, C).
    """
    return np.concatenate([1 - outputs, outputs], axis=1) if outputs.shape[1] == 1 else outputs


def _batches(
    sources: Sequence[Source], format: decoding.Format, batch_size: int
) -> tf.data.Dataset:
    """(rows, images, reasons) of all sources in their order, as of `decoding.decode_images`."""

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


def find(images: Sequence[str]) -> list[Source]:
    """The pictures that paths stand for, in the paths' order.

    A path is that of a picture, of a folder (all pictures below it), or a pattern as a shell's,
    where `**` is any folders. A zip is a folder, too: what stands behind its own path is a picture,
    a folder or a pattern within it, such as `food.zip/test/pizza/1*.jpg`; there `*` is any folders
    as well.

    Raises:
      UserError: There are no pictures at one of them.
    """
    return [source for image in images for source in _find(image)]


def _find(image: str) -> list[Source]:
    path = pathlib.Path(image).expanduser()
    zips = (p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and os.path.isfile(p))
    if os.path.isdir(path):
        found = _of_folder(path)
    elif zip_path := next(zips, None):
        found = _of_zip(zip_path, path.relative_to(zip_path).as_posix())
    elif os.path.lexists(path):
        found = [Source(_shown(path), path.read_bytes)]
    else:
        found = find(sorted(glob.glob(str(path), recursive=True)))
    if not found:
        raise UserError(f"image {image}: no picture there; expected a file, folder, zip or pattern")
    return found


def _of_folder(folder: pathlib.Path) -> list[Source]:
    files = [folder / name for name in list_pictures(folder, follow_links=True)]
    return [Source(_shown(file), file.read_bytes) for file in files]


def _of_zip(path: pathlib.Path, within: str) -> list[Source]:
    pictures = list_pictures(path)  # Refuses what is no zip, and hostile ones.
    zip_file = zipfile.ZipFile(path)
    return [
        Source(_shown(path / name), functools.partial(zip_file.read, member))
        for name, member in pictures.items()
        if within == "." or _is_within(pathlib.PurePosixPath(name), within)
    ]


def _is_within(name: pathlib.PurePosixPath, pattern: str) -> bool:
    """Whether a member, or a folder around it, is what a path or a pattern says."""
    candidates = [str(path) for path in (name, *name.parents[:-1])]
    return pattern in candidates or any(fnmatch.fnmatchcase(c, pattern) for c in candidates)


def _shown(path: pathlib.Path) -> str:
    """Its text, without the bytes that are none."""
    return os.fsencode(path).decode(errors="replace")
