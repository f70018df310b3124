"""Pictures decoded: once into an array that is memory-mapped, or each time they are asked for."""

import dataclasses
import io
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf
import tqdm
from absl import logging
from PIL import Image

from pizza_steak.atomic import make_once
from pizza_steak.errors import BadImageError, UserError
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
ASPECT_RATIOS = ("stretch", "crop", "pad")
# By ImageDataGenerator's names.
CHANNELS = {"rgb": 3, "grayscale": 1, "rgba": 4}

# Part of what names a decoded array: to be raised when `decode_image` gives other pixels.
_DECODER_VERSION = 5
_RECORDS_READ_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Format:
    """The form that every picture is brought into: all that, with its bytes, gives its pixels.

    Attributes:
      size: Height and width, in pixels.
      interpolation: One of `INTERPOLATIONS`: the methods of `tf.image.resize`, without antialias;
        "nearest" takes Pillow's pixels, as ImageDataGenerator does.
      aspect_ratio: One of `ASPECT_RATIOS`: what becomes of pictures of another one than `size`.
        "crop" keeps the largest part of the middle, as ImageDataGenerator's keep_aspect_ratio does;
        "pad" puts black bars on two sides, as pad_to_aspect_ratio of image_dataset_from_directory.
      color_mode: A key of `CHANNELS`. "grayscale" weighs the colours as Pillow does (ITU-R 601-2);
        "rgba" is opaque where the picture has no alpha, which "rgb" and "grayscale" drop.
    """

    size: tuple[int, int]
    interpolation: str = "bilinear"
    aspect_ratio: str = "stretch"
    color_mode: str = "rgb"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture: (height, width, channels)."""
        return *self.size, CHANNELS[self.color_mode]

    @property
    def name(self) -> str:
        """For the name of a file: another one for every format."""
        height, width = self.size
        parts = (f"{height}x{width}", self.interpolation, self.aspect_ratio, self.color_mode)
        return "-".join((*parts, f"v{_DECODER_VERSION}"))


class Pictures(Protocol):
    """The decoded pictures of `Records`.

    Attributes:
      bad: The pictures that cannot be decoded: row -> reason.
      parallel_calls: How many batches should be gathered at once.
    """

    bad: Mapping[int, str]
    parallel_calls: int

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """The pictures at `rows`, int64 of shape (B,): uint8 of (B, height, width, channels)."""


@dataclasses.dataclass(frozen=True)
class DecodedPictures:
    """Pictures in an array of shape (N, height, width, channels), uint8; zeros where one is bad."""

    array: np.ndarray
    bad: Mapping[int, str]
    parallel_calls: int = 2  # A gather is bound by memory: more would only hold more batches.

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        # In NumPy, because TensorFlow would copy a captured array of any size into its graph.
        images = tf.numpy_function(self.array.__getitem__, [rows], tf.uint8, stateful=False)
        return tf.ensure_shape(images, (*rows.shape, *self.array.shape[1:]))


@dataclasses.dataclass(frozen=True)
class StreamedPictures:
    """Pictures decoded from the records each time they are gathered.

    With `in_graph` that is done by TensorFlow's operations alone, so that another process can do
    it, and `for_pillow` must hold none of the rows.
    """

    records: Records
    format: Format
    bad: Mapping[int, str]
    parallel_calls: int = os.cpu_count()
    in_graph: bool = False

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        read = self.records.read_in_graph if self.in_graph else self.records.read
        return tf.map_fn(
            lambda encoded: decode_image(encoded, self.format, by_pillow=not self.in_graph),
            read(rows),
            fn_output_signature=tf.TensorSpec(self.format.shape, tf.uint8),
        )


def decode_image(encoded: tf.Tensor, format: Format, *, by_pillow: bool = True) -> tf.Tensor:
    """Decodes one picture and brings it into a format.

    Before it is resized the pixels are Pillow's, to the last bit. Of an animation it is the first
    frame.

    Args:
      encoded: Scalar string: a JPEG, PNG, BMP, GIF or WebP file, whatever its name says.
      format: Its size, colours and so on.
      by_pillow: Whether Pillow decodes, in Python, what TensorFlow does not or not exactly. Without
        it the graph of this function can be saved and used anywhere, but BMP, GIF and WebP are
        refused, CMYK is one of 255 off and grey of less than eight bits has no sound alpha.

    Returns:
      uint8 tensor of shape `format.shape`, values 0 to 255.

    Raises:
      tf.errors.OpError: These bytes are no picture, or not a whole one.
    """
    with_alpha = format.color_mode == "rgba"
    others = _decode_by_pillow if by_pillow else _refuse
    inexact = [(_is_inexact(encoded), lambda: others(encoded, with_alpha))] if by_pillow else []
    image = tf.case(
        [
            *inexact,
            (tf.io.is_jpeg(encoded), lambda: _decode_jpeg(encoded, with_alpha)),
            (_is_for_pillow(encoded), lambda: others(encoded, with_alpha)),
        ],
        default=lambda: tf.io.decode_image(
            encoded, channels=4 if with_alpha else 3, expand_animations=False
        ),
    )
    image = tf.ensure_shape(image, (None, None, 4 if with_alpha else 3))
    if format.color_mode == "grayscale":
        # Pillow's weights (ITU-R 601-2), in its fixed point, so that its rounding is the same.
        weighted = tf.cast(image, tf.int32) * tf.constant([19595, 38470, 7471])
        total = tf.reduce_sum(weighted, axis=-1, keepdims=True) + 0x8000
        image = tf.cast(tf.bitwise.right_shift(total, 16), tf.uint8)
    return tf.ensure_shape(_bring_to_size(image, format), format.shape)


def needs_pillow(encoded: tf.Tensor) -> tf.Tensor:
    """Whether `decode_image` gives one picture other pixels without Pillow, or none: a boolean."""
    return tf.logical_or(_is_for_pillow(encoded), _is_inexact(encoded))


def for_pillow(records: Records) -> np.ndarray:
    """The rows of the pictures that `needs_pillow`, int64; they are looked for once."""
    path = records.folder / f"for_pillow-{records.fingerprint}.npy"

    def write(temporary: pathlib.Path) -> None:
        np.save(temporary, _look_for_pillow(records))

    if not path.exists() and not os.access(records.folder, os.W_OK):
        return _look_for_pillow(records)
    make_once(path, write)
    return np.load(path)


def _look_for_pillow(records: Records) -> np.ndarray:
    rows = (
        tf.data.Dataset.range(len(records.labels))
        .batch(_RECORDS_READ_AT_ONCE)
        .map(lambda rows: (rows, records.read(rows)))
        .unbatch()
        .map(lambda row, encoded: (row, needs_pillow(encoded)))
        .ignore_errors()  # Broken pictures.
        .filter(lambda row, needed: needed)
    )
    return np.array([row for row, _ in rows.as_numpy_iterator()], np.int64)


def _decode_jpeg(encoded: tf.Tensor, with_alpha: bool) -> tf.Tensor:
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=255) if with_alpha else image


def _is_for_pillow(encoded: tf.Tensor) -> tf.Tensor:
    head = tf.strings.substr(encoded, 0, 12)
    return tf.strings.regex_full_match(head, r"(BM|GIF8)\C*|RIFF\C{4}WEBP")


def _is_inexact(encoded: tf.Tensor) -> tf.Tensor:
    """Whether TensorFlow decodes it to other pixels: a JPEG in CMYK, a PNG of few bits of grey."""
    head = tf.strings.substr(encoded, 0, 26)
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[2] == 4,
        lambda: tf.strings.regex_full_match(head, r"\CPNG\C{20}[\x01\x02\x04]\x00"),
    )


def _decode_by_pillow(encoded: tf.Tensor, with_alpha: bool) -> tf.Tensor:
    # TensorFlow 2.21 ignores the palette of a BMP, gives a GIF no alpha, refuses a WebP's for three
    # channels, and writes past its buffer for an animated WebP.
    kinds = ("BMP", "GIF", "JPEG", "PNG", "WEBP")

    def pixels(encoded: tf.Tensor) -> np.ndarray:
        with Image.open(io.BytesIO(encoded.numpy()), formats=kinds) as image:
            return np.asarray(image.convert("RGBA" if with_alpha else "RGB"))

    return tf.py_function(pixels, [encoded], tf.uint8)


def _refuse(encoded: tf.Tensor, with_alpha: bool) -> tf.Tensor:
    refusal = tf.debugging.Assert(False, ["expected a JPEG or PNG file, not BMP, GIF or WebP"])
    with tf.control_dependencies([refusal]):
        return tf.zeros((1, 1, 4 if with_alpha else 3), tf.uint8)


def _bring_to_size(image: tf.Tensor, format: Format) -> tf.Tensor:
    size, shape = tf.constant(format.size), tf.shape(image)[:2]
    if format.aspect_ratio == "crop":
        # The largest box in the middle with the aspect ratio of `size`.
        box = tf.minimum(shape, shape[::-1] * size // size[::-1])
        return _resize(image, (shape - box) // 2, tf.maximum(box, 1), size, format)
    if format.aspect_ratio == "pad":
        # As tf.image.resize_with_pad, in float32 as there: first resized, then padded.
        lengths = tf.cast(shape, tf.float32)
        lengths /= tf.reduce_max(lengths / tf.cast(size, tf.float32))
        inner = tf.maximum(tf.cast(lengths, tf.int32), 1)
        image = _resize(image, tf.zeros_like(shape), shape, inner, format)
        top, left = tf.unstack(tf.cast((tf.cast(size, tf.float32) - lengths) / 2, tf.int32))
        return tf.image.pad_to_bounding_box(image, top, left, *format.size)
    return _resize(image, tf.zeros_like(shape), shape, size, format)


def _resize(
    image: tf.Tensor, corner: tf.Tensor, box: tf.Tensor, size: tf.Tensor, format: Format
) -> tf.Tensor:
    """The part of a picture that a box of this shape at this corner holds, brought to a size."""
    if format.interpolation == "nearest":
        return _resize_nearest(image, corner, box, size)
    image = tf.slice(image, [*tf.unstack(corner), 0], [*tf.unstack(box), -1])
    image = tf.image.resize(image, size, method=format.interpolation)
    if format.interpolation in ("bilinear", "area"):  # Means of pixels stay between 0 and 255.
        return tf.cast(image + 0.5, tf.uint8)
    return tf.saturate_cast(tf.round(image), tf.uint8)


def _resize_nearest(
    image: tf.Tensor, corner: tf.Tensor, box: tf.Tensor, size: tf.Tensor
) -> tf.Tensor:
    steps = tf.cast(box, tf.float64) / tf.cast(size, tf.float64)
    starts = tf.cast(corner, tf.float64) + steps / 2
    for axis in (0, 1):
        # Added up from the corner on, as Pillow does: a product would round to other pixels.
        rest = tf.fill([size[axis] - 1], steps[axis])
        source = tf.cumsum(tf.concat([starts[axis, tf.newaxis], rest], axis=0))
        image = tf.gather(image, tf.cast(source, tf.int32), axis=axis)
    return image


def decode(
    records: Records,
    format: Format | int,
    *,
    cache: str = "disk",
    on_bad_image: str = "fail",
) -> Pictures:
    """Decodes every picture of `records` into a format, once.

    Args:
      records: The prepared dataset, N encoded pictures of any height and width.
      format: The form of the result, or its height and width in pixels, with a format's defaults.
      cache: "disk" keeps the array beside the records, for every later run and process; "memory"
        keeps it for this process; "none" keeps nothing and decodes a picture whenever it is used.
        Where the disk has no room for the array, "disk" is taken as "none", with a warning.
      on_bad_image: "fail", or "skip" to leave bad pictures to the caller in `Pictures.bad`.

    Raises:
      BadImageError: With "fail": pictures cannot be decoded; names each of them.
      UserError: With "disk": the array cannot be written.
    """
    if isinstance(format, int):
        format = Format((format, format))
    if cache == "disk" and not _fits(records, format):
        logging.warning("no room on the disk for the decoded array: decoding as pictures are used")
        cache = "none"
    if cache == "memory":
        array = np.zeros((len(records.labels), *format.shape), np.uint8)
        bad = _decode_all(records, format, array.__setitem__)
        pictures = DecodedPictures(array, bad)
    elif cache == "none" and not os.access(records.folder, os.W_OK):
        bad = _decode_all(records, format, lambda rows, images: None)
        pictures = StreamedPictures(records, format, bad)
    else:
        folder = _cached(records, format, keep_array=cache == "disk")
        bad = {int(row): reason for row, reason in json.loads((folder / "bad.json").read_text())}
        if cache == "disk":
            array = np.asarray(np.load(folder / "images.npy", mmap_mode="r"))
            pictures = DecodedPictures(array, bad)
        else:
            pictures = StreamedPictures(records, format, bad)
    failures = [(str(records.filenames[row]), bad[row]) for row in sorted(bad)]
    if failures and on_bad_image == "fail":
        raise BadImageError(failures)
    for name, reason in failures:
        logging.warning("left out, because it cannot be decoded: %s (%s)", name, reason)
    return pictures


def _fits(records: Records, format: Format) -> bool:
    if _folder(records, format, keep_array=True).exists():
        return True
    needed = len(records.labels) * math.prod(format.shape)
    return needed < shutil.disk_usage(records.folder).free


def _folder(records: Records, format: Format, *, keep_array: bool) -> pathlib.Path:
    """Where the result of decoding lies, named by all that determines it."""
    kind = "decoded" if keep_array else "checked"
    return records.folder / f"{kind}-{format.name}-{records.fingerprint}"


def _cached(records: Records, format: Format, *, keep_array: bool) -> pathlib.Path:
    """The folder of `bad.json` and, where it is kept, `images.npy`; made where there is none."""
    folder = _folder(records, format, keep_array=keep_array)

    def write(temporary: pathlib.Path) -> None:
        temporary.mkdir()
        if keep_array:
            shape = (len(records.labels), *format.shape)
            with _NpyWriter(temporary / "images.npy", shape) as writer:
                bad = _decode_all(records, format, writer.write)
        else:
            bad = _decode_all(records, format, lambda rows, images: None)
        (temporary / "bad.json").write_text(json.dumps(sorted(bad.items())))

    try:
        make_once(folder, write)
    except OSError as error:
        raise UserError(
            f"decoded pictures {folder}: {error.strerror or error}; make room, pass another "
            "--data_dir, or --decoded_cache=memory or none"
        ) from error
    return folder


def _decode_all(
    records: Records, format: Format, write: Callable[[np.ndarray, np.ndarray], None]
) -> dict[int, str]:
    """Decodes every row in parallel and hands rows and pictures to `write`; returns the bad ones.

    The rows that `write` gets rise, with gaps where pictures are bad.
    """
    missing = np.ones(len(records.labels), bool)
    pictures = (
        tf.data.Dataset.range(len(missing))
        .batch(_RECORDS_READ_AT_ONCE)
        .map(lambda rows: (rows, records.read(rows)))
        .unbatch()
        .map(
            lambda row, encoded: (row, decode_image(encoded, format)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .ignore_errors()  # Whichever row does not arrive is bad.
        .batch(_RECORDS_READ_AT_ONCE)
        .prefetch(1)
    )
    with tqdm.tqdm(total=len(missing), desc="decoding", unit=" pictures", disable=None) as progress:
        for rows, images in pictures.as_numpy_iterator():
            write(rows, images)
            missing[rows] = False
            progress.update(len(rows))
    return {int(row): _reason(records, row, format) for row in np.flatnonzero(missing)}


def _reason(records: Records, row: int, format: Format) -> str:
    reason = decoding_fault(records.read(tf.constant([row]))[0], format)
    if reason is None:
        raise RuntimeError(f"row {row} was not decoded in the pipeline, but is sound")
    return reason


def decoding_fault(encoded: tf.Tensor, format: Format) -> str | None:
    """Why `decode_image` refuses a picture, in the decoder's words; None where it does not."""
    try:
        decode_image(encoded, format)
    except Exception as error:  # TensorFlow's, or eagerly Pillow's own.
        message = getattr(error, "message", None) or str(error)
        return re.sub(r"^\{\{.*?\}\} | \[Op:.*$| <_io\..*?>|\n.*", "", message, flags=re.DOTALL)
    return None


class _NpyWriter:
    """Writes an array to a .npy file, some rows at a time, in any order.

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

    def write(self, rows: np.ndarray, images: np.ndarray) -> None:
        gaps = np.flatnonzero(np.diff(rows) != 1) + 1
        for part in np.split(np.arange(len(rows)), gaps):
            self._file.seek(self._start + int(rows[part[0]]) * self._stride)
            self._file.write(images[part[0] : part[-1] + 1].data)

    def __enter__(self) -> "_NpyWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
