"""Decodes images: once, into a memory-mapped array, or each time they are used."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import types
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.python.framework import config

from pizza_steak import cores, decoding, decoding_in_graph, progress_bar, reading_ahead
from pizza_steak.decoding import Format
from pizza_steak.errors import BadImageError, MachineError, UserError, quoted, told
from pizza_steak.kept import make_once
from pizza_steak.npy_writer import NpyWriter
from pizza_steak.records import Records, SplitRecords

CACHES = ("disk", "memory", "none")
_RECORDS_READ_AT_ONCE = 64
# TensorFlow's tensors start at multiples of so many bytes, as does the data of a .npy file.
_ALIGNMENT = 64
# The number of parallel calls is known here. tf.data's autotuner can delay the end of an iteration
# by several seconds, so it is off.
WITHOUT_AUTOTUNE = tf.data.Options()
WITHOUT_AUTOTUNE.autotune.enabled = False


class Pictures(Protocol):
    """The decoded images of `Records`."""

    @property
    def bad(self) -> Mapping[int, str]:
        """The reason why an image cannot be decoded, by row."""

    @property
    def parallel_calls(self) -> int:
        """Number of batches to gather in parallel."""

    @property
    def read_ahead(self) -> Callable[[np.ndarray], None] | None:
        """Called with rows, int64 of shape (B,), a while before they are gathered; None: never."""

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the images at rows.

        Args:
          rows: int64 of shape (B,).

        Returns:
          uint8 of shape (B, height, width, channels), values 0 to 255.
        """


@dataclasses.dataclass(frozen=True)
class DecodedPictures:
    """Images in an array of shape (N, height, width, channels), uint8; bad images are zeros.

    The array may also hold something else of N examples, of any shape and dtype.
    """

    array: np.ndarray
    bad: Mapping[int, str]
    parallel_calls: int = 2  # Memory bounds a gather: more calls would only hold more batches.
    read_ahead: Callable[[np.ndarray], None] | None = None

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        if config.is_op_determinism_enabled():
            # tf.data then makes one batch at a time, if an operation may have a state, as reading
            # a dataset's element may.
            images = tf.numpy_function(
                self.array.__getitem__, [rows], self.array.dtype, stateful=False
            )
        else:
            (array,) = self._dataset.get_single_element()
            with tf.device("CPU"):  # A GPU would first copy the whole array to its memory.
                images = tf.gather(array, rows)
        return tf.ensure_shape(images, (*rows.shape, *self.array.shape[1:]))

    @functools.cached_property
    def _dataset(self) -> tf.data.Dataset:
        return dataset_of(self.array)


def stored_array(path: pathlib.Path, bad: Mapping[int, str]) -> DecodedPictures:
    """Returns the memory-mapped array of a .npy file."""
    array = np.load(path, mmap_mode="r")
    return DecodedPictures(np.asarray(array), bad, read_ahead=reading_ahead.of_array(array))


def dataset_of(*arrays: np.ndarray) -> tf.data.Dataset:
    """Returns a dataset whose one element is a tuple of whole arrays.

    A graph that captures it holds a reference to the arrays; of a captured tensor it would hold a
    copy, and no graph may have more than 2 GB. Arrays are not copied here if they are aligned, such
    as a memory-mapped .npy file.
    """
    with tf.init_scope(), tf.device("CPU"):
        return tf.data.Dataset.from_tensors(tuple(map(_tensor_of, arrays)))


def _tensor_of(array: np.ndarray) -> tf.Tensor:
    if array.ctypes.data % _ALIGNMENT or not array.flags.c_contiguous:
        copy = _aligned_zeros((array.nbytes,)).view(array.dtype).reshape(array.shape)
        copy[...] = array
        array = copy
    # NumPy exports no read-only array to TensorFlow 2.21, which only reads what it gathers.
    interface = array.__array_interface__ | {"data": (array.ctypes.data, False)}
    owner = types.SimpleNamespace(__array_interface__=interface, array=array)
    return tf.experimental.dlpack.from_dlpack(np.asarray(owner).__dlpack__())


@dataclasses.dataclass(frozen=True)
class StreamedPictures:
    """Images that are decoded from the records each time they are gathered.

    With `in_graph`, only TensorFlow operations decode them: another process can run the graph. Then
    no row may be in `decoding_in_graph.for_pillow`.
    """

    records: Records
    format: Format
    bad: Mapping[int, str]
    parallel_calls: int = dataclasses.field(default_factory=cores.count)
    in_graph: bool = False

    @property
    def read_ahead(self) -> Callable[[np.ndarray], None] | None:
        # It takes 30 µs an image.
        size = self.records.builder.info.dataset_size
        return self.records.read_ahead if reading_ahead.is_needed(size) else None

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        if self.in_graph:
            return tf.map_fn(
                lambda encoded: decoding_in_graph.decode_image(encoded, self.format),
                self.records.read_in_graph(rows),
                parallel_iterations=1,  # Batches are made in parallel: more would need memory.
                fn_output_signature=tf.TensorSpec(self.format.shape, tf.uint8),
            )
        images = tf.numpy_function(self._decode, [rows], tf.uint8, stateful=False)
        return tf.ensure_shape(images, (*rows.shape, *self.format.shape))

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        images, faults = _decode_rows(self.records, rows, self.format)
        if failures := [(self.records.filenames[row], faults[row]) for row in faults]:
            raise BadImageError(failures)  # They could be decoded when all were checked.
        return images


def _decode_rows(
    records: Records, rows: np.ndarray, format: Format
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns the images at rows, zeros for bad images, and the reasons by bad row.

    Raises:
      MachineError: The records cannot be read, or memory is short.
    """

    def read(place: int) -> bytes:  # One at a time, because the files may be large.
        try:
            (encoded,) = records.encoded(rows[place : place + 1])
        except OSError as error:
            raise MachineError(
                f"records {records.folder}: cannot be read: {told(error)}"
            ) from error
        return encoded

    images, faults = decoding.decode_images(len(rows), read, format)
    return images, {int(row): fault for row, fault in zip(rows, faults, strict=True) if fault}


def decode(
    records: Records,
    format: Format | int,
    *,
    cache: str = "disk",
    on_bad_image: str = "fail",
) -> Pictures:
    """Decodes every image of the records into a format.

    Args:
      records: The prepared dataset: N encoded images of any height and width.
      format: The format of the result; or its height and width in pixels, with default values for
        everything else.
      cache: "disk" keeps the array beside the records, for every later run and process. "memory"
        keeps it for this process. "none" keeps nothing and decodes an image each time it is used.
        If the disk has no room for the array, "disk" warns and does what "none" does.
      on_bad_image: "fail", or "skip" to report bad images in `Pictures.bad`.

    Raises:
      BadImageError: Images cannot be decoded, with "fail"; the message names each of them.
      UserError: The array cannot be written, with "disk"; the records cannot be read; or memory is
        short. Nothing is kept then.
    """
    if isinstance(format, int):
        format = Format((format, format))
    if cache == "disk" and not _fits(records, format):
        logging.warning(
            "no room on the disk for the decoded array: decoding images each time they are used"
        )
        cache = "none"
    if cache == "memory":
        array = _aligned_zeros((len(records.labels), *format.shape))
        bad = _decode_all(records, format, array.__setitem__)
        pictures: Pictures = DecodedPictures(array, bad)
    elif cache == "none" and not os.access(records.folder, os.W_OK):
        bad = _decode_all(records, format, lambda rows, images: None)
        pictures = StreamedPictures(records, format, bad)
    else:
        folder = _cached(records, format, keep_array=cache == "disk")
        bad = {
            int(row): reason
            for row, reason in json.loads((folder / "bad.json").read_text(encoding="utf-8"))
        }
        if cache == "disk":
            pictures = stored_array(folder / "images.npy", bad)
        else:
            pictures = StreamedPictures(records, format, bad)
    failures = [(records.filenames[row], bad[row]) for row in sorted(bad)]
    if failures and on_bad_image == "fail":
        raise BadImageError(failures)
    for name, reason in failures:
        logging.warning("skipped an image that cannot be decoded: %s (%s)", name, reason)
    return pictures


def readable_rows(pictures: Pictures, found: SplitRecords) -> dict[str, np.ndarray]:
    """Returns the rows of each split, by purpose, without images that cannot be decoded.

    Raises:
      UserError: A split has no image that can be decoded.
    """
    rows = {purpose: rows[~np.isin(rows, [*pictures.bad])] for purpose, rows in found.rows.items()}
    for purpose, text in found.texts.items():
        if not rows[purpose].size:
            raise UserError(
                f"split {text!r}: has no readable image of the classes {', '.join(found.classes)}"
            )
    return rows


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    buffer = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].reshape(shape)


def _fits(records: Records, format: Format) -> bool:
    if _folder(records, format, keep_array=True).exists():
        return True
    needed = len(records.labels) * math.prod(format.shape)
    return needed < shutil.disk_usage(records.folder).free


def _folder(records: Records, format: Format, *, keep_array: bool) -> pathlib.Path:
    """Returns the folder of the decoded images, named by everything that determines them."""
    kind = "decoded" if keep_array else "checked"
    return records.folder / f"{kind}-{format.name}-{records.fingerprint}"


def _cached(records: Records, format: Format, *, keep_array: bool) -> pathlib.Path:
    """Returns the folder of `bad.json` and, if it is kept, `images.npy`; makes it if missing."""
    folder = _folder(records, format, keep_array=keep_array)

    def write(temporary: pathlib.Path) -> None:
        temporary.mkdir()
        if keep_array:
            shape = (len(records.labels), *format.shape)
            with NpyWriter(temporary / "images.npy", shape, np.uint8) as writer:
                bad = _decode_all(records, format, lambda rows, images: writer.write(images))
        else:
            bad = _decode_all(records, format, lambda rows, images: None)
        (temporary / "bad.json").write_text(json.dumps(sorted(bad.items())), encoding="utf-8")

    try:
        make_once(folder, write)
    except OSError as error:
        raise UserError(
            f"decoded images {folder}: {told(error)}; make room, pass another "
            "--data_dir, or --decoded_cache=memory or none"
        ) from error
    return folder


def _decode_all(
    records: Records, format: Format, write: Callable[[np.ndarray, np.ndarray], None]
) -> dict[int, str]:
    """Decodes all rows in parallel; returns why rows cannot be decoded, by row.

    Args:
      records: The records.
      format: The format of the images.
      write: Called with some rows at a time, in order, and their images; zeros for bad images.

    Raises:
      MachineError: The records cannot be read, or memory is short.
    """
    count, bad = len(records.labels), {}

    def decode(rows: np.ndarray) -> np.ndarray:
        images, faults = _decode_rows(records, rows, format)
        bad.update(faults)
        return images

    decoded = (
        tf.data.Dataset.range(count)
        .batch(_RECORDS_READ_AT_ONCE)
        .map(
            lambda rows: (rows, tf.numpy_function(decode, [rows], tf.uint8)),
            num_parallel_calls=cores.count(),
        )
        .prefetch(1)
        .with_options(WITHOUT_AUTOTUNE)
    )
    with progress_bar.progress_bar(total=count, desc="decoding") as bar:
        try:
            for rows, images in decoded.as_numpy_iterator():
                write(rows, images)
                bar.update(len(rows))
        except tf.errors.OpError as error:
            if user_error := quoted(error):
                raise user_error from error
            raise
    return bad
