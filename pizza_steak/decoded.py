"""Pictures decoded: once into an array that is memory-mapped, or each time they are asked for."""

import dataclasses
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf
import tqdm
from absl import logging

from pizza_steak.atomic import make_once
from pizza_steak.errors import BadImageError
from pizza_steak.records import Records

CACHES = ("disk", "memory", "none")
INTERPOLATIONS = (
    "bilinear",
    "nearest",
    "bicubic",
    "lanczos3",
    "lanczos5",
    "area",
    "gaussian",
    "mitchellcubic",
)

# Part of what names a decoded array: to be raised when `decode_image` gives other pixels.
_DECODER_VERSION = 2
_RECORDS_READ_AT_ONCE = 64


class Pictures(Protocol):
    """The decoded pictures of `Records`.

    Attributes:
      bad: The pictures that cannot be decoded: row -> reason.
      parallel_calls: How many batches should be gathered at once.
    """

    bad: Mapping[int, str]
    parallel_calls: int

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """The pictures at `rows`, int64 of shape (B,): uint8 of shape (B, height, width, 3)."""


@dataclasses.dataclass(frozen=True)
class DecodedPictures:
    """Pictures in an array of shape (N, height, width, 3), uint8; zeros where one is bad."""

    array: np.ndarray
    bad: Mapping[int, str]
    parallel_calls: int = 2  # A gather is bound by memory: more would only hold more batches.

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        # In NumPy, because TensorFlow would copy a captured array of any size into its graph.
        images = tf.numpy_function(self.array.__getitem__, [rows], tf.uint8, stateful=False)
        return tf.ensure_shape(images, (*rows.shape, *self.array.shape[1:]))


@dataclasses.dataclass(frozen=True)
class StreamedPictures:
    """Pictures decoded from the records each time they are gathered."""

    records: Records
    size: tuple[int, int]
    interpolation: str
    bad: Mapping[int, str]
    parallel_calls: int = tf.data.AUTOTUNE

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda encoded: decode_image(encoded, self.size, self.interpolation),
            self.records.read(rows),
            fn_output_signature=tf.TensorSpec((*self.size, 3), tf.uint8),
        )


def decode_image(encoded: tf.Tensor, size: tuple[int, int], interpolation: str) -> tf.Tensor:
    """Decodes one picture and resizes it.

    The pixels of a JPEG are Pillow's, to the last bit (dct_method), and "nearest" takes Pillow's
    pixels, where `tf.image.resize` takes others. Alpha is dropped, grey repeated; of an animation
    it is the first frame.

    Args:
      encoded: Scalar string: a JPEG, PNG, BMP, GIF or WebP file, whatever its name says.
      size: Height and width of the result, in pixels.
      interpolation: One of `INTERPOLATIONS`: the methods of `tf.image.resize`, without antialias.

    Returns:
      uint8 tensor of shape (height, width, 3), values 0 to 255.

    Raises:
      tf.errors.InvalidArgumentError: These bytes are no picture, or not a whole one.
    """
    image = tf.case(
        [
            (tf.io.is_jpeg(encoded), lambda: _decode_jpeg(encoded)),
            (tf.strings.substr(encoded, 0, 2) == b"BM", lambda: _decode_bmp(encoded)),
        ],
        default=lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    image = tf.ensure_shape(image, (None, None, 3))
    if interpolation == "nearest":
        return _resize_nearest(image, size)
    image = tf.image.resize(image, size, method=interpolation)
    if interpolation in ("bilinear", "area"):  # Means of pixels stay between 0 and 255.
        return tf.cast(image + 0.5, tf.uint8)
    return tf.saturate_cast(tf.round(image), tf.uint8)


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def _decode_bmp(encoded: tf.Tensor) -> tf.Tensor:
    # TensorFlow refuses to turn the one or four channels of a BMP into three.
    image = tf.io.decode_bmp(encoded)
    channels = tf.shape(image)[-1]
    return tf.gather(image, tf.minimum([0, 1, 2], channels - 1), axis=-1)


def _resize_nearest(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    for axis, length in enumerate(size):
        step = tf.cast(tf.shape(image)[axis], tf.float64) / length
        # Added up, as Pillow does: a product would round to other pixels.
        steps = tf.concat([[step / 2], tf.fill([length - 1], step)], axis=0)
        source = tf.cast(tf.cumsum(steps), tf.int32)
        image = tf.gather(image, source, axis=axis)
    return image


def decode(
    records: Records,
    size: int | tuple[int, int],
    *,
    interpolation: str = "bilinear",
    cache: str = "disk",
    on_bad_image: str = "fail",
) -> Pictures:
    """Decodes and resizes every picture of `records`, once.

    Args:
      records: The prepared dataset, N encoded pictures of any height and width.
      size: Height and width of the result, in pixels; one number for both.
      interpolation: One of `INTERPOLATIONS`.
      cache: "disk" keeps the array beside the records, for every later run and process; "memory"
        keeps it for this process; "none" keeps nothing and decodes a picture whenever it is used.
        Where the disk has no room for the array, "disk" is taken as "none", with a warning.
      on_bad_image: "fail", or "skip" to leave bad pictures to the caller in `Pictures.bad`.

    Raises:
      BadImageError: With "fail": pictures cannot be decoded; names each of them.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    if cache == "disk" and not _fits(records, size, interpolation):
        logging.warning("no room on the disk for the decoded array: decoding as pictures are used")
        cache = "none"
    if cache == "memory":
        array = np.zeros((len(records.labels), *size, 3), np.uint8)
        bad = _decode_all(records, size, interpolation, array.__setitem__)
        pictures = DecodedPictures(array, bad)
    else:
        folder = _cached(records, size, interpolation, keep_array=cache == "disk")
        bad = {int(row): reason for row, reason in json.loads((folder / "bad.json").read_text())}
        if cache == "disk":
            array = np.asarray(np.load(folder / "images.npy", mmap_mode="r"))
            pictures = DecodedPictures(array, bad)
        else:
            pictures = StreamedPictures(records, size, interpolation, bad)
    failures = [(str(records.filenames[row]), bad[row]) for row in sorted(bad)]
    if failures and on_bad_image == "fail":
        raise BadImageError(failures)
    for name, reason in failures:
        logging.warning("left out, because it cannot be decoded: %s (%s)", name, reason)
    return pictures


def _fits(records: Records, size: tuple[int, int], interpolation: str) -> bool:
    if _folder(records, size, interpolation, keep_array=True).exists():
        return True
    needed = len(records.labels) * size[0] * size[1] * 3
    return needed < shutil.disk_usage(records.folder).free


def _folder(
    records: Records, size: tuple[int, int], interpolation: str, *, keep_array: bool
) -> pathlib.Path:
    """Where the result of decoding lies, named by all that determines it."""
    kind = "decoded" if keep_array else "checked"
    name = f"{kind}-{size[0]}x{size[1]}-{interpolation}-rgb-v{_DECODER_VERSION}"
    return records.folder / f"{name}-{records.fingerprint}"


def _cached(
    records: Records, size: tuple[int, int], interpolation: str, *, keep_array: bool
) -> pathlib.Path:
    """The folder of `bad.json` and, where it is kept, `images.npy`; made where there is none."""
    folder = _folder(records, size, interpolation, keep_array=keep_array)

    def write(temporary: pathlib.Path) -> None:
        temporary.mkdir()
        if keep_array:
            shape = (len(records.labels), *size, 3)
            with _NpyWriter(temporary / "images.npy", shape) as writer:
                bad = _decode_all(records, size, interpolation, writer.write)
        else:
            bad = _decode_all(records, size, interpolation, lambda row, image: None)
        (temporary / "bad.json").write_text(json.dumps(sorted(bad.items())))

    make_once(folder, write)
    return folder


def _decode_all(
    records: Records,
    size: tuple[int, int],
    interpolation: str,
    write: Callable[[int, np.ndarray], None],
) -> dict[int, str]:
    """Decodes every row in parallel and hands each picture to `write`; returns the bad ones."""
    missing = np.ones(len(records.labels), bool)
    pictures = (
        tf.data.Dataset.range(len(missing))
        .batch(_RECORDS_READ_AT_ONCE)
        .map(lambda rows: (rows, records.read(rows)))
        .unbatch()
        .map(
            lambda row, encoded: (row, decode_image(encoded, size, interpolation)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .ignore_errors()  # Whichever row does not arrive is bad.
        .batch(_RECORDS_READ_AT_ONCE)
        .prefetch(1)
    )
    with tqdm.tqdm(total=len(missing), desc="decoding", unit=" pictures", disable=None) as progress:
        for rows, images in pictures.as_numpy_iterator():
            for row, image in zip(rows, images, strict=True):
                write(row, image)
            missing[rows] = False
            progress.update(len(rows))
    return {int(row): _reason(records, row, size) for row in np.flatnonzero(missing)}


def _reason(records: Records, row: int, size: tuple[int, int]) -> str:
    """Why a row cannot be decoded, in TensorFlow's words."""
    try:
        decode_image(records.read(tf.constant([row]))[0], size, "nearest")
    except tf.errors.OpError as error:
        return re.sub(r"^\{\{.*?\}\} | \[Op:.*$", "", error.message, flags=re.DOTALL)
    raise RuntimeError(f"row {row} was not decoded in the pipeline, but is sound")


class _NpyWriter:
    """Writes an array to a .npy file row by row, in any order.

    Through the file, not through a map of it: pages that are written to a map count as memory of
    the process until they are on the disk.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...]):
        self._file = path.open("wb")
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()
        self._stride = math.prod(shape[1:])
        self._file.truncate(self._start + shape[0] * self._stride)

    def write(self, row: int, image: np.ndarray) -> None:
        self._file.seek(self._start + int(row) * self._stride)
        self._file.write(image.data)

    def __enter__(self) -> "_NpyWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
