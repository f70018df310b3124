"""Decodes images: once, into a memory-mapped array, or each time they are used."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.python.framework import config

from pizza_steak import cores, decoding, decoding_in_graph, progress_bar, reading_ahead
from pizza_steak.decoding import Format
from pizza_steak.errors import BadImageError, MachineError, UserError, raising_quoted, told
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

    Attributes:
      skips: Whether `gather_readable` leaves out images that cannot be decoded; else they are an
        error.
      left_out: The reasons why it has left out images, by row.
    """

    records: Records
    format: Format
    bad: Mapping[int, str]
    parallel_calls: int = dataclasses.field(default_factory=cores.count)
    in_graph: bool = False
    skips: bool = False
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)

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
            raise BadImageError(failures)
        return images

    def _decode_readable(
        self, rows: np.ndarray, instead: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        images, faults = _decode_rows(self.records, rows, self.format)
        if not faults:
            return images, rows
        for row, reason in faults.items():
            if row not in self.left_out:
                self.left_out[row] = reason
                _warn_of_bad(self.records.filenames[row], reason)
        readable = np.array([row not in faults for row in rows])
        if not readable.any() and instead is not None:
            return self._one_readable(instead, first=int(rows[0]))
        return images[readable], rows[readable]

    def _one_readable(self, rows: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        for place in range(first, first + len(rows)):
            row = rows[[place % len(rows)]]
            images, faults = _decode_rows(self.records, row, self.format)
            if not faults:
                return images, row
        raise UserError(
            f"records {self.records.folder}: none of the {len(rows):,} images to train on can be "
            "decoded"
        )


def gather_readable(
    pictures: Pictures, rows: tf.Tensor, instead: np.ndarray | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gathers images, and leaves out those that `StreamedPictures` with `skips` cannot decode.

    Args:
      pictures: The images.
      rows: int64 of shape (B,).
      instead: int64 of shape (N,), rows of which one is gathered if no image at `rows` can be
        decoded; None to return no image then.

    Returns:
      The images, as `Pictures.gather` does, and their rows.
    """
    if not (isinstance(pictures, StreamedPictures) and pictures.skips):
        return pictures.gather(rows), rows
    images, readable = tf.numpy_function(
        lambda rows: pictures._decode_readable(rows, instead),
        [rows],
        (tf.uint8, tf.int64),
        stateful=False,
    )
    images = tf.ensure_shape(images, (None, *pictures.format.shape))
    return images, tf.ensure_shape(readable, (None,))


def _warn_of_bad(name: str, reason: str) -> None:
    logging.warning("skipped an image that cannot be decoded: %s (%s)", name, reason)


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
    checked: Sequence[np.ndarray] | None = None,
) -> Pictures:
    """Decodes the images of the records into a format.

    Args:
      records: The prepared dataset: N encoded images of any height and width.
      format: The format of the result; or its height and width in pixels, with default values for
        everything else.
      cache: "disk" keeps the array beside the records, for every later run and process. "memory"
        keeps it for this process. "none" keeps nothing and decodes an image each time it is used.
        If the disk has no room for the array, "disk" warns and does what "none" does.
      on_bad_image: "fail", or "skip" to report bad images in `Pictures.bad`.
      checked: With "none", the sets of rows whose images are decoded before; by default all. Bad
        images at other rows are found when they are gathered: an error with "fail", left out by
        `gather_readable` with "skip".

    Raises:
      BadImageError: Images cannot be decoded, with "fail"; the message names each of them.
      UserError: The array cannot be written, with "disk"; the records cannot be read; or memory is
        short. Nothing is kept then.
    """
    if isinstance(format, int):
        format = Format((format, format))
    skips = on_bad_image == "skip"
    if cache == "disk" and not _fits(records, format):
        logging.warning(
            "no room on the disk for the decoded array: decoding images each time they are used"
        )
        cache = "none"
        if skips:  # Else the order of the images would depend on the room.
            checked = None
    if cache == "memory":
        array = _aligned_zeros((len(records.labels), *format.shape))
        bad = _decode_all(records, format, array.__setitem__)
        pictures: Pictures = DecodedPictures(array, bad)
    elif cache == "disk":
        folder = _cached(records, format, keep_array=True)
        bad = _read_bad(folder)
        pictures = stored_array(folder / "images.npy", bad)
    else:
        bad = {}
        for rows in [None] if checked is None else checked:
            bad |= _check(records, format, rows)
        pictures = StreamedPictures(records, format, bad, skips=skips and checked is not None)
    failures = [(records.filenames[row], bad[row]) for row in sorted(bad)]
    if failures and not skips:
        raise BadImageError(failures)
    for name, reason in failures:
        _warn_of_bad(name, reason)
    return pictures


def decode_splits(
    found: SplitRecords,
    format: Format,
    *,
    cache: str,
    on_bad_image: str,
    scored: Collection[str] | None = ("validation", "test"),
) -> tuple[Pictures, dict[str, np.ndarray]]:
    """Decodes the images of splits as `decode` does.

    Args:
      found: The records in splits.
      format: The format of the images.
      cache: As for `decode`. With "none" the first batches come at once.
      on_bad_image: As for `decode`. With "none" and "skip", only the images of the `scored` splits
        are decoded before: which images a score is of must be known. Bad images of other splits
        are left out of their batches, so these splits have other batches than with "disk" and
        "memory", which leave them out before the order is drawn.
      scored: The splits whose images are compared with predictions, one by one or in a score; None
        to decode all images before, as "disk" and "memory" do.

    Returns:
      The images; and the rows of each split, by purpose, without those that are known to be bad.

    Raises:
      BadImageError: As for `decode`.
      UserError: As for `decode`, or a split has no image that can be decoded.
    """
    checked = None
    if scored is not None:
        skips = on_bad_image == "skip"
        checked = [found.rows[name] for name in scored if name in found.rows] if skips else []
    pictures = decode(
        found.records, format, cache=cache, on_bad_image=on_bad_image, checked=checked
    )
    rows, bad = dict(found.rows), [*pictures.bad]
    streamed = isinstance(pictures, StreamedPictures) and pictures.skips
    for purpose, text in found.texts.items():
        # The order of the others must not depend on what was checked.
        if bad and (not streamed or purpose in (scored or ())):
            rows[purpose] = rows[purpose][~np.isin(rows[purpose], bad)]
        if not rows[purpose].size:
            raise UserError(
                f"split {text!r}: has no readable image of the classes {', '.join(found.classes)}"
            )
    return pictures, rows


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


def _folder(
    records: Records, format: Format, *, keep_array: bool, rows: np.ndarray | None = None
) -> pathlib.Path:
    """Returns the folder of the decoded images, named by everything that determines them."""
    kind = "decoded" if keep_array else "checked"
    part = "" if rows is None else f"-{hashlib.sha256(rows.tobytes()).hexdigest()[:16]}"
    return records.folder / f"{kind}-{format.name}-{records.fingerprint}{part}"


def _check(records: Records, format: Format, rows: np.ndarray | None) -> dict[int, str]:
    """Decodes images, by default all, unless it was done before; returns why some are bad."""
    rows = None if rows is None else np.unique(rows)
    if os.access(records.folder, os.W_OK):
        return _read_bad(_cached(records, format, keep_array=False, rows=rows))
    return _decode_all(records, format, lambda rows, images: None, rows)


def _read_bad(folder: pathlib.Path) -> dict[int, str]:
    entries = json.loads((folder / "bad.json").read_text(encoding="utf-8"))
    return {int(row): reason for row, reason in entries}


def _cached(
    records: Records, format: Format, *, keep_array: bool, rows: np.ndarray | None = None
) -> pathlib.Path:
    """Returns the folder of `bad.json` and, if it is kept, `images.npy`; makes it if missing."""
    folder = _folder(records, format, keep_array=keep_array, rows=rows)

    def write(temporary: pathlib.Path) -> None:
        temporary.mkdir()
        if keep_array:
            shape = (len(records.labels), *format.shape)
            with NpyWriter(temporary / "images.npy", shape, np.uint8) as writer:
                bad = _decode_all(records, format, lambda rows, images: writer.write(images))
        else:
            bad = _decode_all(records, format, lambda rows, images: None, rows)
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
    records: Records,
    format: Format,
    write: Callable[[np.ndarray, np.ndarray], None],
    rows: np.ndarray | None = None,
) -> dict[int, str]:
    """Decodes rows in parallel; returns why rows cannot be decoded, by row.

    Args:
      records: The records.
      format: The format of the images.
      write: Called with some rows at a time, in order, and their images; zeros for bad images.
      rows: The rows; by default all.

    Raises:
      MachineError: The records cannot be read, or memory is short.
    """
    bad: dict[int, str] = {}
    if rows is None:
        asked = tf.data.Dataset.range(len(records.labels))
    else:
        asked = tf.data.Dataset.from_tensor_slices(rows)

    def decode(rows: np.ndarray) -> np.ndarray:
        images, faults = _decode_rows(records, rows, format)
        bad.update(faults)
        return images

    decoded = (
        asked.batch(_RECORDS_READ_AT_ONCE)
        .map(
            lambda rows: (rows, tf.numpy_function(decode, [rows], tf.uint8)),
            num_parallel_calls=cores.count(),
        )
        .prefetch(1)
        .with_options(WITHOUT_AUTOTUNE)
    )
    with progress_bar.progress_bar(total=len(asked), desc="decoding") as bar, raising_quoted():
        for rows, images in decoded.as_numpy_iterator():
            write(rows, images)
            bar.update(len(rows))
    return bad
