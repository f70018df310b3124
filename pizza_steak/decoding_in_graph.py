"""Decodes images with TensorFlow operations only, for graphs that run elsewhere.

Exported models and tf.data services use it. The pixels are bit-identical to those of
`decoding.decode_image` for JPEG and PNG files, except those that `needs_pillow` names.
"""

import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from pizza_steak import cores, decoding
from pizza_steak.decoding import Format, Placement
from pizza_steak.kept import make_once
from pizza_steak.records import Records

# Bytes of a file in which to look for EXIF data: cameras write it first.
_EXIF_WITHIN = 4096
# Bits of the fraction in Pillow's fixed-point filter weights (Resample.c, PRECISION_BITS).
_PRECISION_BITS = 32 - 8 - 2
# How far each filter reaches when it does not shrink, in pixels.
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos3": 3.0}


def decode_image(encoded: tf.Tensor, format: Format) -> tf.Tensor:
    """Decodes one image into a format.

    Args:
      encoded: Scalar string, the bytes of a JPEG or PNG file.
      format: The format of the result.

    Returns:
      uint8 tensor of shape `format.shape`, values 0 to 255.

    Raises:
      tf.errors.OpError: The bytes are not a JPEG or PNG file, incomplete, or have too many pixels
        or scans.
    """
    with_alpha = format.color_mode == "rgba"
    is_jpeg = tf.io.is_jpeg(encoded)
    turn = tf.constant(1)
    if format.exif == "apply":
        turn = tf.cond(is_jpeg, lambda: _orientation(encoded), lambda: turn)
    image, full, scale = tf.cond(
        is_jpeg,
        lambda: _decode_jpeg(encoded, turn, format),
        lambda: _decode_png(encoded, format),
    )
    image = tf.ensure_shape(image, (None, None, 4 if with_alpha else 3))
    image = _turned(image, turn)
    if format.color_mode == "grayscale":
        # Pillow's weights (ITU-R 601-2) in its fixed point, for the same rounding.
        weighted = tf.cast(image, tf.int32) * tf.constant([19595, 38470, 7471])
        total = tf.reduce_sum(weighted, axis=-1, keepdims=True) + 0x8000
        image = tf.cast(tf.bitwise.right_shift(total, 16), tf.uint8)
    placed = decoding.place(full[0], full[1], format, tnp)
    image = _resized(image, placed, scale, format)
    if format.aspect_ratio == "pad":
        image = tf.image.pad_to_bounding_box(image, *placed.margin, *format.size)
    return tf.ensure_shape(image, format.shape)


@functools.cache
def _decoder(format: Format) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(
        lambda encoded: decode_image(encoded, format),
        input_signature=[tf.TensorSpec((), tf.string)],
    )


def needs_pillow(encoded: bytes, format: Format) -> bool:
    """Returns whether the graph's `decode_image` refuses an image, or gives other pixels.

    These are formats other than JPEG and PNG, most JPEGs in CMYK, alpha of PNGs with less than 8
    bits, images whose orientation is not in the EXIF data of a JPEG, and slightly damaged images.
    Images that `decoding.decode_image` refuses are none of these.
    """
    (expected,), (fault,) = decoding.decode_images(1, lambda place: encoded, format)
    if fault:  # The graph might decode it, or take much memory: nobody needs to know.
        return False
    try:
        with tf.device("CPU"):
            pixels = _decoder(format)(encoded).numpy()
    except tf.errors.InvalidArgumentError:
        return True
    return not np.array_equal(pixels, expected)


def for_pillow(records: Records, format: Format) -> np.ndarray:
    """Returns the rows of the images that need Pillow, int64; keeps them beside the records."""
    path = records.folder / f"for_pillow-{format.name}-{records.fingerprint}.npy"

    def look() -> np.ndarray:
        def look_at(row: int) -> bool:
            (encoded,) = records.encoded(np.array([row]))
            return needs_pillow(encoded, format)

        with concurrent.futures.ThreadPoolExecutor(cores.count()) as pool:
            return np.flatnonzero(list(pool.map(look_at, range(len(records.labels)))))

    def write(temporary: pathlib.Path) -> None:
        np.save(temporary, look())

    if not path.exists() and not os.access(records.folder, os.W_OK):
        return look()
    make_once(path, write)
    return np.load(path)


def _decode_jpeg(
    encoded: tf.Tensor, turn: tf.Tensor, format: Format
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the image as stored, its upright and unscaled height and width, and its scale."""
    stored = tf.io.extract_jpeg_shape(encoded)[:2]
    # Scans, as `decoding` counts them, or two bytes that are none: one of 65,536 by chance.
    scans = tf.size(tf.strings.split(encoded, b"\xff\xda")) - 1
    most = decoding.MAX_SCANS + tf.strings.length(encoded) // 2**14
    few = tf.debugging.Assert(scans <= most, [f"expected at most {decoding.MAX_SCANS} scans"])
    with tf.control_dependencies([few, _few_pixels(stored, format)]):
        encoded = tf.identity(encoded)
    full = tf.where(turn >= 5, stored[::-1], stored)
    placed = decoding.place(full[0], full[1], format, tnp)

    def decoded(scale: int) -> tf.Tensor:
        image = tf.io.decode_jpeg(encoded, channels=3, ratio=scale, dct_method="INTEGER_ACCURATE")
        if format.color_mode == "rgba":
            image = tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=255)
        return image, tf.constant(scale)

    bilinear = format.antialias and format.interpolation == "bilinear"
    scales = decoding.JPEG_SCALES if bilinear else ()
    fitting = [
        (decoding.scale_fits(scale, placed), lambda scale=scale: decoded(scale)) for scale in scales
    ]
    image, scale = tf.case(fitting, default=lambda: decoded(1)) if fitting else decoded(1)
    return image, full, scale


def _decode_png(encoded: tf.Tensor, format: Format) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    is_png = tf.strings.regex_full_match(tf.strings.substr(encoded, 0, 8), r"\CPNG\r\n\x1a\n")
    is_png &= tf.strings.length(encoded) >= 24
    with tf.control_dependencies([tf.debugging.Assert(is_png, ["expected a JPEG or PNG file"])]):
        # Width and height, in the first chunk (W3C's PNG, 11.2.1), 32 bits each.
        header = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.uint8)
    digits = tf.reshape(tf.cast(header, tf.int64), (2, 4))
    stored = tf.reduce_sum(digits * [2**24, 2**16, 2**8, 1], -1)
    with tf.control_dependencies([_few_pixels(stored, format)]):
        channels = 4 if format.color_mode == "rgba" else 3
        image = tf.io.decode_png(tf.identity(encoded), channels)
    return image, tf.shape(image)[:2], tf.constant(1)


def _few_pixels(stored: tf.Tensor, format: Format) -> tf.Operation:
    stored = tf.cast(stored, tf.int64)
    few = tf.reduce_prod(stored) <= format.max_pixels
    short = tf.reduce_max(stored) <= decoding.MAX_SIDE
    expected = f"expected at most {format.max_pixels} pixels, and {decoding.MAX_SIDE} on a side"
    return tf.debugging.Assert(few & short, [expected, stored])


def _orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a JPEG file, int32, 1 to 8; 1 if there is no known one.

    It is tag 0x0112 of the first directory of the TIFF structure behind "Exif" (CIPA DC-008, 4.5).
    """
    head = tf.strings.substr(encoded, 0, _EXIF_WITHIN)
    before = tf.strings.regex_replace(head, r"Exif\x00\x00\C*", "", replace_global=False)
    start = tf.strings.length(before) + len("Exif\0\0")
    return tf.cond(
        start < tf.strings.length(head),
        lambda: _orientation_of_tiff(tf.strings.substr(encoded, start, 2**16)),
        lambda: tf.constant(1),
    )


def _orientation_of_tiff(structure: tf.Tensor) -> tf.Tensor:
    values = tf.concat([tf.io.decode_raw(structure, tf.uint8), [0]], 0)
    little_endian = tf.strings.substr(structure, 0, 2) == b"II"

    def number(places: tf.Tensor, size: int) -> tf.Tensor:
        """Returns the numbers of `size` bytes at `places`; 0 beyond the end."""
        places = tf.expand_dims(places, -1) + tf.range(size)
        places = tf.clip_by_value(places, 0, tf.size(values) - 1)
        digits = tf.cast(tf.gather(values, places), tf.int32)
        digits = tf.where(little_endian, digits, digits[..., ::-1])
        return tf.reduce_sum(digits * [256**power for power in range(size)], -1)

    directory = number(tf.constant(4), 4)
    entries = directory + 2 + 12 * tf.range(number(directory, 2))
    orientations = tf.boolean_mask(number(entries + 8, 2), number(entries, 2) == 0x0112)
    found = tf.concat([orientations, [1]], 0)[0]
    return tf.where((found >= 1) & (found <= 8), found, 1)


def _turned(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Turns an image upright by its orientation: transposed from 5 on, then mirrored."""
    image = tf.cond(turn >= 5, lambda: _transposed(image), lambda: image)
    down, across = (
        tf.reduce_any(turn == tf.constant(turns))
        for turns in (decoding.MIRRORED_DOWN, decoding.MIRRORED_ACROSS)
    )
    image = tf.cond(down, lambda: image[::-1], lambda: image)
    return tf.cond(across, lambda: image[:, ::-1], lambda: image)


def _transposed(image: tf.Tensor) -> tf.Tensor:
    # In float32: for integers, oneDNN warns on stderr on processors without AVX-512.
    return tf.cast(tf.transpose(tf.cast(image, tf.float32), (1, 0, 2)), image.dtype)


def _resized(image: tf.Tensor, placed: Placement, scale: tf.Tensor, format: Format) -> tf.Tensor:
    """Resizes an image, uint8 of shape (H, W, C), to its final size."""
    if format.interpolation == "nearest":
        for axis in (0, 1):
            source = _nearest(placed.corner[axis], placed.box[axis], placed.inner[axis])
            image = tf.gather(image, source, axis=axis)
        return image
    if not format.resized_by_pillow:
        part = tf.slice(image, [*placed.corner, 0], [*placed.box, -1])
        return decoding.resize_by_tensorflow(part, placed.inner, format)
    resized = tf.cond(
        tf.convert_to_tensor(decoding.halving_suffices(scale, placed, format)),
        lambda: _resized_as_by_opencv(tf.cast(image, tf.int32), placed),
        lambda: _resized_as_by_pillow(image, placed, scale, format),
    )
    return tf.cast(resized, tf.uint8)


def _resized_as_by_opencv(image: tf.Tensor, placed: Placement) -> tf.Tensor:
    """Resizes as INTER_LINEAR_EXACT does, in its fixed point of eight bits (resize.cpp)."""
    for axis in (1, 0):
        length, size = tf.shape(image)[axis], placed.inner[axis]
        scale = tf.cast(length, tf.float64) / tf.cast(size, tf.float64)
        places = (tf.cast(tf.range(size), tf.float64) + 0.5) * scale - 0.5
        places = tf.clip_by_value(places, 0.0, tf.cast(length - 1, tf.float64))
        first = tf.cast(tf.floor(places), tf.int32)
        weights = tf.cast(tf.round((places - tf.floor(places)) * 256), tf.int32)
        weights = tf.reshape(weights, (-1, 1) if axis else (-1, 1, 1))
        second = tf.gather(image, tf.minimum(first + 1, length - 1), axis=axis)
        image = tf.gather(image, first, axis=axis) * (256 - weights) + second * weights
    return tf.bitwise.right_shift(image + 2**15, 16)


def _resized_as_by_pillow(
    image: tf.Tensor, placed: Placement, scale: tf.Tensor, format: Format
) -> tf.Tensor:
    if format.color_mode == "rgba":
        image = _multiplied_by_alpha(image)
    for axis in (1, 0):
        edges = tf.stack([placed.corner[axis], placed.corner[axis] + placed.box[axis]])
        edges = tf.cast(edges, tf.float64) / tf.cast(scale, tf.float64)
        image = _transposed(image)
        image = _resample(image, edges, placed.inner[axis], format.interpolation)
    return _divided_by_alpha(image) if format.color_mode == "rgba" else image


def _nearest(corner: tf.Tensor, box: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    step = tf.cast(box, tf.float64) / tf.cast(size, tf.float64)
    start = tf.cast(corner, tf.float64) + step / 2
    # A sum, as in Pillow: a product would round to other pixels.
    rest = tf.fill([size - 1], step)
    return tf.cast(tf.cumsum(tf.concat([[start], rest], axis=0)), tf.int32)


def _resample(image: tf.Tensor, edges: tf.Tensor, size: tf.Tensor, interpolation: str) -> tf.Tensor:
    """Resizes along the first axis as Pillow does, in its fixed point (Resample.c).

    Args:
      image: Integers of shape (H, W, C), 0 to 255.
      edges: Start and end of the part to resize, in pixels, float64 of shape (2,).
      size: Number of pixels of the result.
      interpolation: A key of `_SUPPORT`.
    """
    length = tf.shape(image)[0]
    scale = (edges[1] - edges[0]) / tf.cast(size, tf.float64)
    widened = tf.maximum(scale, 1.0)
    support = _SUPPORT[interpolation] * widened
    centers = edges[0] + (tf.cast(tf.range(size), tf.float64) + 0.5) * scale
    starts = tf.maximum(tf.cast(centers - support + 0.5, tf.int32), 0)
    ends = tf.minimum(tf.cast(centers + support + 0.5, tf.int32), length)
    places = starts[:, tf.newaxis] + tf.range(tf.reduce_max(ends - starts))
    distances = (tf.cast(places, tf.float64) - centers[:, tf.newaxis] + 0.5) / widened
    weights = tf.where(places < ends[:, tf.newaxis], _filter(distances, interpolation), 0.0)
    weights /= tf.reduce_sum(weights, -1, keepdims=True)
    weights = tf.cast(weights * 2**_PRECISION_BITS + 0.5 * tf.sign(weights), tf.int32)
    places = tf.minimum(places, length - 1)
    total = tf.fill([size, tf.shape(image)[1], image.shape[2]], 2 ** (_PRECISION_BITS - 1))
    for tap in tf.range(
        tf.shape(places)[1]
    ):  # All taps at once would need a multiple of the memory.
        # Only this part in int32: a large image would need a multiple of the memory.
        part = tf.cast(tf.gather(image, places[:, tap]), tf.int32)
        total += part * weights[:, tap, tf.newaxis, tf.newaxis]
    return tf.clip_by_value(tf.bitwise.right_shift(total, _PRECISION_BITS), 0, 255)


def _filter(x: tf.Tensor, interpolation: str) -> tf.Tensor:
    """Returns the weights of Pillow's filters (Resample.c) for distances in pixels."""
    x = tf.abs(x)
    if interpolation == "bilinear":
        return tf.maximum(1.0 - x, 0.0)
    if interpolation == "bicubic":  # Keys, "Cubic convolution interpolation", 1981, with a = -0.5.
        near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return tf.where(x < 1.0, near, tf.where(x < 2.0, far, 0.0))
    return tf.where(x < 3.0, _sinc(x) * _sinc(x / 3.0), 0.0)


def _sinc(x: tf.Tensor) -> tf.Tensor:
    x *= np.pi
    return tf.math.divide_no_nan(tf.sin(x), x) + tf.cast(x == 0.0, x.dtype)


def _multiplied_by_alpha(image: tf.Tensor) -> tf.Tensor:
    """Multiplies colours by alpha as Pillow does before it resizes (Convert.c: rgbA2rgba)."""
    image = tf.cast(image, tf.int32)
    product = image[..., :3] * image[..., 3:] + 128
    product = tf.bitwise.right_shift(tf.bitwise.right_shift(product, 8) + product, 8)
    return tf.concat([product, image[..., 3:]], -1)


def _divided_by_alpha(image: tf.Tensor) -> tf.Tensor:
    colors, alpha = image[..., :3], image[..., 3:]
    divided = tf.minimum(255 * colors // tf.maximum(alpha, 1), 255)
    return tf.concat([tf.where((alpha == 0) | (alpha == 255), colors, divided), alpha], -1)
