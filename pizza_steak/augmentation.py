"""ImageDataGenerator's augmentation, as Keras layers that draw for each image from its own seed.

`RandomAffine` rotates, shifts, shears, zooms and flips in one resample: `draw_uniforms` draws
uniform numbers from seeds, `compose` turns ImageDataGenerator's parameters into one matrix, and
`resample` resamples the images. `RandomIntensity` changes brightness and channels.
"""

import itertools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak.configuration import TransformConfig

FILL_MODES = ("constant", "nearest", "reflect", "wrap")
INTERPOLATIONS = ("bilinear", "nearest")

_AFFINE = ("theta", "tx", "ty", "shear", "zx", "zy", "flip_horizontal", "flip_vertical")


@tf.function(reduce_retracing=True)  # A loop: two milliseconds an example where it runs eagerly.
def draw_uniforms(seeds: tf.Tensor, count: int, stream: int = 0) -> tf.Tensor:
    """Draws uniform numbers for each example, from its own seed only.

    Args:
      seeds: Integers of shape (B, 2), such as `input_pipeline.example_seeds` returns; the second
        number of each seed is below 2**40.
      count: How many numbers to draw for each example.
      stream: Numbers of different streams are independent of each other.

    Returns:
      float32 of shape (B, count), in [0, 1).
    """
    seeds = tf.cast(seeds, tf.int64) + tf.constant([0, stream << 40], tf.int64)
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform((count,), seed, alg="philox"),
        seeds,
        fn_output_signature=tf.TensorSpec((count,), tf.float32),
    )


def compose(parameters: Mapping[str, tf.Tensor], size: tf.Tensor | tuple[int, int]) -> tf.Tensor:
    """Returns ImageDataGenerator's matrix rotation @ shift @ shear @ zoom, with its flips.

    As in ImageDataGenerator, tx moves along x although height_shift_range draws it, and an image
    that is not square rotates about x = (height - 1) / 2, y = (width - 1) / 2 (keras issue 17398).

    Args:
      parameters: What `ImageDataGenerator.get_random_transform` returns, with values of shape (B,):
        "theta" and "shear" in degrees, "tx" and "ty" in pixels, the factors "zx" and "zy", the
        booleans "flip_horizontal" and "flip_vertical".
      size: Height and width of the images, in pixels.

    Returns:
      float64 of shape (B, 6), (a, b, c, d, e, f): the pixel at (x, y) of the result comes from
      (a x + b y + c, d x + e y + f) of the image.
    """
    # In float64: TensorFlow's float32 sine of an angle depends on the size of the batch around it.
    p = {name: tf.cast(parameters[name], tf.float64) for name in _AFFINE}
    height, width = tf.unstack(tf.cast(size, tf.float64))
    theta, sheared = (angle * math.pi / 180 for angle in (p["theta"], p["theta"] + p["shear"]))
    a, b = tf.cos(theta) * p["zx"], -tf.sin(sheared) * p["zy"]
    d, e = tf.sin(theta) * p["zx"], tf.cos(sheared) * p["zy"]
    center_x, center_y = (height - 1) / 2, (width - 1) / 2
    # Position of the result's first pixel after flips, relative to the center.
    x = p["flip_horizontal"] * (width - 1) - center_x
    y = p["flip_vertical"] * (height - 1) - center_y
    c = a * x + b * y + tf.cos(theta) * p["tx"] - tf.sin(theta) * p["ty"] + center_x
    f = d * x + e * y + tf.sin(theta) * p["tx"] + tf.cos(theta) * p["ty"] + center_y
    along_x, along_y = 1 - 2 * p["flip_horizontal"], 1 - 2 * p["flip_vertical"]
    return tf.stack([a * along_x, b * along_y, c, d * along_x, e * along_y, f], axis=-1)


# Compiled: on a CPU, one fused loop is seven times as fast as separate operations.
@tf.function(jit_compile=True, reduce_retracing=True)
def resample(
    images: tf.Tensor,
    matrices: tf.Tensor,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    interpolation: str = "bilinear",
) -> tf.Tensor:
    """Resamples each image through its matrix, as `scipy.ndimage.affine_transform` does.

    Coordinates are float64, so that a pixel at the edge falls on the same side as in SciPy. Values
    are interpolated in float32.

    Args:
      images: Shape (B, H, W, C), any real dtype.
      matrices: float64 of shape (B, 6), as `compose` returns them.
      fill_mode: One of `FILL_MODES`, how to fill points beyond the edges. "constant" fills with
        `cval`, without interpolation; "wrap" has a period of n - 1 pixels.
      cval: The value for "constant".
      interpolation: One of `INTERPOLATIONS`; SciPy's order 1 or 0.

    Returns:
      Images of the same shape and dtype; integers are rounded to the nearest.
    """
    _, height, width, channels = tf.unstack(tf.shape(images))
    columns = tf.cast(tf.range(width), tf.float64)
    rows = tf.cast(tf.range(height), tf.float64)[:, tf.newaxis]
    a, b, c, d, e, f = tf.unstack(matrices[..., tf.newaxis, tf.newaxis], axis=1)
    source_x, source_y = a * columns + b * rows + c, d * columns + e * rows + f
    x, y = _fold(source_x, width, fill_mode), _fold(source_y, height, fill_mode)
    pixels = tf.reshape(images, (-1, height * width, channels))

    def at(x, y):
        index = tf.cast(y, tf.int32) * width + tf.cast(x, tf.int32)
        return tf.cast(tf.gather(pixels, index, batch_dims=1), tf.float32)

    if interpolation == "nearest":
        result = at(tf.floor(x + 0.5), tf.floor(y + 0.5))
    else:
        left, right = tf.floor(x), tf.math.ceil(x)
        top, bottom = tf.floor(y), tf.math.ceil(y)
        upper = _blend(at(left, top), at(right, top), x - left)
        lower = _blend(at(left, bottom), at(right, bottom), x - left)
        result = _blend(upper, lower, y - top)
    if fill_mode == "constant":
        inside = tf.logical_and(tf.equal(x, source_x), tf.equal(y, source_y))
        result = tf.where(inside[..., tf.newaxis], result, cval)
    if images.dtype.is_integer:
        result = tf.round(result)
    return tf.ensure_shape(tf.saturate_cast(result, images.dtype), images.shape)


def _blend(first: tf.Tensor, second: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    return first + tf.cast(weight, tf.float32)[..., tf.newaxis] * (second - first)


def _fold(x: tf.Tensor, size: tf.Tensor, fill_mode: str) -> tf.Tensor:
    """Maps coordinates into [0, size - 1], to the pixel that SciPy takes beyond the edges."""
    size = tf.cast(size, x.dtype)
    last = size - 1
    if fill_mode == "reflect":
        x = size - 0.5 - tf.abs(tf.math.floormod(x + 0.5, 2 * size) - size)
    elif fill_mode == "wrap":
        period = tf.maximum(last, 1)
        beyond = tf.math.floormod(tf.abs(x), period)
        x = tf.where(x < 0, period - beyond, tf.where(x > last, beyond, x))
    return tf.clip_by_value(x, 0, last)


def _plain(name: str, value: Any, expected: str, shapes: Sequence[tuple[int | None, ...]]) -> Any:
    """Returns an argument as Python's own numbers, because JSON has no others: one, or a list.

    Args:
      name: The name of the argument.
      value: A number, or several in a sequence or an array.
      expected: What the argument may be, for the error.
      shapes: The allowed shapes; None in them is any length.

    Raises:
      ValueError: It is none of that, or not finite.
    """
    try:
        array = np.asarray(value)
        right = array.dtype.kind in "biuf" and bool(np.isfinite(array).all())
    except (TypeError, ValueError):  # Sequences of different lengths.
        right = False
    if not right or (array.shape not in shapes and (None,) * array.ndim not in shapes):
        raise ValueError(f"{name}={' '.join(str(value).split())}: expected {expected}")
    return array.tolist()


def _number(name: str, value: Any) -> float:
    # ImageDataGenerator takes None for 0.
    return _plain(name, 0.0 if value is None else value, "a finite number", [()])


def _shift_range(name: str, value: Any) -> float | list[float]:
    value = 0.0 if value is None else value
    return _plain(name, value, "a finite number, or a list of them", [(), (None,)])


def _switch(name: str, value: Any) -> bool:
    return bool(_plain(name, value, "True or False", [()]))


class _SeededLayer(keras.layers.Layer):
    """A layer that changes each image by its own random numbers.

    As a layer it draws them from its own generator, and augments only in training. In an input
    pipeline, `augment` draws them from seeds, so that the pixels of an example do not depend on its
    batch.
    """

    _DRAWS: int
    _STREAM: int

    def __init__(self, seed: int | None = None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if seed is not None and not (isinstance(seed, numbers.Integral) and abs(seed) < 2**63):
            raise ValueError(f"seed={seed!r}: expected None, or a whole number of 64 bits")
        self.seed = None if seed is None else int(seed)
        self._seed_generator = keras.random.SeedGenerator(self.seed)

    def apply(self, images: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        """Augments images of shape (B, H, W, C) by uniform numbers, one row for each image."""
        raise NotImplementedError

    def augment(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Augments each image by its own seed, in training or not.

        Args:
          images: Shape (B, H, W, C).
          seeds: Integers of shape (B, 2), such as `input_pipeline.example_seeds` returns.

        Returns:
          Images of the same shape and dtype.
        """
        return self.apply(tf.convert_to_tensor(images), self.draw(seeds))

    def draw(self, seeds: tf.Tensor) -> tf.Tensor:
        """Returns the uniform numbers of examples for `apply`, float32 of shape (B, D)."""
        return draw_uniforms(seeds, self._DRAWS, self._STREAM)

    def call(self, images, training=None):
        if not training:
            return images
        if images.shape.rank == 3:
            return self.call(images[tf.newaxis], training)[0]
        return self.apply(images, self._draw_by_state(tf.shape(images)[0]))

    def _draw_by_state(self, count: tf.Tensor) -> tf.Tensor:
        """Draws numbers for `count` examples; each replica draws those of its own share."""
        context, first = tf.distribute.get_replica_context(), 0
        drawn = count
        if context is not None and context.num_replicas_in_sync > 1:
            # tf.distribute splits a batch into shares of equal size, except the last ones.
            replicas = context.num_replicas_in_sync
            whole = context.all_reduce(tf.distribute.ReduceOp.SUM, count)
            first = context.replica_id_in_sync_group * -(-whole // replicas)
            drawn = first + count
        shape = (drawn, self._DRAWS)
        return keras.random.uniform(shape, dtype="float32", seed=self._seed_generator)[first:]

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, images, training=None):
        return keras.KerasTensor(images.shape, dtype=images.dtype)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="pizza_steak")
class RandomAffine(_SeededLayer):
    """ImageDataGenerator's random rotation, shift, shear, zoom and flips, in one resample.

    Each image has its own random numbers. As a layer it draws them from the layer's generator, and
    augments only in training. In an input pipeline, `augment` draws them from seeds, so that the
    pixels of an example do not depend on its batch.

    >>> layer = RandomAffine(rotation_range=20, zoom_range=0.2, horizontal_flip=True)
    >>> layer(images, training=True)
    >>> layer.augment(images, example_seeds(seed, epoch, rows))

    Args:
      rotation_range: Degrees, to either side.
      width_shift_range: To either side. A float below 1 is a fraction of the width, from 1 on it is
        in pixels. An int n above 0 means whole pixels, fewer than n. From a list, one value is
        drawn, with a random sign; the values are fractions if all are below 1. It shifts along y,
        as in ImageDataGenerator; see `compose`.
      height_shift_range: The same for the height, along x.
      shear_range: Degrees, to either side.
      zoom_range: z for factors from 1 - z to 1 + z, or a pair of the smallest and the largest
        factor; below 1 enlarges, below 0 also mirrors. Each axis has its own factor.
      horizontal_flip: Whether to mirror half of the images left to right.
      vertical_flip: Whether to mirror half of the images top to bottom.
      fill_mode: One of `FILL_MODES`; see `resample`.
      cval: The value beyond the edges with fill_mode "constant".
      interpolation: One of `INTERPOLATIONS`.
      seed: Integer, seeds the layer's generator; None for a random seed.
      **kwargs: `name`, `dtype` and `trainable` of a Keras layer.

    The numbers may be NumPy's, and as in ImageDataGenerator negative: a range has two sides. None
    is 0 for all ranges but zoom_range.

    Input and output: shape (B, H, W, C) or (H, W, C), values in any range; the output has the
    input's dtype, whatever the dtype policy.

    Raises:
      ValueError: A range is no finite number and no list of them, a fill_mode or interpolation is
        unknown, cval is given to another fill_mode than "constant"; in training,
        `keras.config.image_data_format()` is not "channels_last".
    """

    _DRAWS = len(_AFFINE)
    _STREAM = 0

    def __init__(
        self,
        rotation_range: float = 0.0,
        width_shift_range: float | Sequence[float] = 0.0,
        height_shift_range: float | Sequence[float] = 0.0,
        shear_range: float = 0.0,
        zoom_range: float | Sequence[float] = 0.0,
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        fill_mode: str = "nearest",
        cval: float = 0.0,
        interpolation: str = "bilinear",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(seed, **kwargs)
        self.rotation_range = _number("rotation_range", rotation_range)
        self.width_shift_range = _shift_range("width_shift_range", width_shift_range)
        self.height_shift_range = _shift_range("height_shift_range", height_shift_range)
        self.shear_range = _number("shear_range", shear_range)
        self.zoom_range = _plain("zoom_range", zoom_range, "a finite number or a pair", [(), (2,)])
        self.horizontal_flip = _switch("horizontal_flip", horizontal_flip)
        self.vertical_flip = _switch("vertical_flip", vertical_flip)
        self.fill_mode = fill_mode
        self.cval = _number("cval", cval)
        self.interpolation = interpolation
        if fill_mode not in FILL_MODES:
            raise ValueError(f"fill_mode={fill_mode!r}: expected one of {FILL_MODES}")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={interpolation!r}: expected one of {INTERPOLATIONS}")
        if self.cval and fill_mode != "constant":
            raise ValueError(
                f"cval={cval} has no use with fill_mode={fill_mode!r}; "
                "expected fill_mode='constant'"
            )

    def _zoom_factors(self) -> Sequence[float]:
        zoom = self.zoom_range
        return zoom if isinstance(zoom, list) else (1 - zoom, 1 + zoom)

    def parameters(
        self, uniforms: tf.Tensor, size: tf.Tensor | tuple[int, int]
    ) -> dict[str, tf.Tensor]:
        """Converts uniform numbers to parameters within the layer's ranges.

        Args:
          uniforms: float32 of shape (B, 8), in [0, 1), as `draw_uniforms` returns them.
          size: Height and width of the images, in pixels.

        Returns:
          The parameters for `compose`, each of shape (B,): float64, and booleans for the flips.
        """
        u = dict(zip(_AFFINE, tf.unstack(tf.cast(uniforms, tf.float64), axis=1), strict=True))
        smallest, largest = self._zoom_factors()
        height, width = tf.unstack(tf.cast(size, tf.float64))
        return {
            "theta": (2 * u["theta"] - 1) * self.rotation_range,
            "tx": _shift(u["tx"], self.height_shift_range, height),
            "ty": _shift(u["ty"], self.width_shift_range, width),
            "shear": (2 * u["shear"] - 1) * self.shear_range,
            "zx": smallest + (largest - smallest) * u["zx"],
            "zy": smallest + (largest - smallest) * u["zy"],
            "flip_horizontal": tf.logical_and(u["flip_horizontal"] < 0.5, self.horizontal_flip),
            "flip_vertical": tf.logical_and(u["flip_vertical"] < 0.5, self.vertical_flip),
        }

    def call(self, images, training=None):
        if training and keras.config.image_data_format() != "channels_last":
            raise ValueError(
                f"{type(self).__name__}: takes images with channels last, and keras.json says "
                f"{keras.config.image_data_format()}; call "
                "keras.config.set_image_data_format('channels_last')"
            )
        return super().call(images, training)

    def apply(self, images, uniforms):
        size = tf.shape(images)[1:3]
        matrices = compose(self.parameters(uniforms, size), size)
        return resample(images, matrices, self.fill_mode, self.cval, self.interpolation)

    def get_config(self):
        return {
            **super().get_config(),
            "rotation_range": self.rotation_range,
            "width_shift_range": self.width_shift_range,
            "height_shift_range": self.height_shift_range,
            "shear_range": self.shear_range,
            "zoom_range": self.zoom_range,
            "horizontal_flip": self.horizontal_flip,
            "vertical_flip": self.vertical_flip,
            "fill_mode": self.fill_mode,
            "cval": self.cval,
            "interpolation": self.interpolation,
        }


def _shift(uniform: tf.Tensor, shift_range: float | Sequence[float], size: tf.Tensor) -> tf.Tensor:
    """Returns shifts in pixels along an axis, from a range as ImageDataGenerator reads it."""
    if not np.any(shift_range):
        return tf.zeros_like(uniform)
    unit = 1 if np.max(shift_range) >= 1 else size
    if isinstance(shift_range, int) and shift_range > 0:
        index = tf.floor(uniform * (2 * shift_range))
        return tf.where(index < shift_range, index, shift_range - index)
    if isinstance(shift_range, int | float):
        return (2 * uniform - 1) * shift_range * unit
    values = np.append(shift_range, np.negative(shift_range)).astype(np.float64)
    return tf.gather(values, tf.cast(uniform * len(values), tf.int32)) * unit


@keras.saving.register_keras_serializable(package="pizza_steak")
class RandomIntensity(_SeededLayer):
    """ImageDataGenerator's random channel shift and brightness, in this order, by image.

    Keras's RandomBrightness adds to the pixels; brightness_range multiplies them. The pixels equal
    ImageDataGenerator's up to rounding: it truncates before and after it multiplies.

    Args:
      brightness_range: A pair, the smallest and the largest factor of the pixels; None for 1.
      channel_shift_range: The largest value to add to all channels, to either side. Results are
        clipped to the image's own range.
      seed: Integer, seeds the layer's generator; None for a random seed.
      **kwargs: `name`, `dtype` and `trainable` of a Keras layer.

    Input and output: shape (B, H, W, C) or (H, W, C), values 0 to 255; the output has the input's
    dtype, whatever the dtype policy.

    Raises:
      ValueError: channel_shift_range is no finite number, or brightness_range is no pair of them.
    """

    _DRAWS = 2
    _STREAM = 1

    def __init__(
        self,
        brightness_range: float | Sequence[float] | None = None,
        channel_shift_range: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(seed, **kwargs)
        self.brightness_range: list[float] | None = None
        if brightness_range is not None:
            self.brightness_range = _plain("brightness_range", brightness_range, "a pair", [(2,)])
        self.channel_shift_range = _number("channel_shift_range", channel_shift_range)

    def apply(self, images, uniforms):
        brightness, shift = tf.unstack(uniforms[..., tf.newaxis, tf.newaxis, tf.newaxis], axis=1)
        result = tf.cast(images, tf.float32)
        axes = (1, 2, 3)
        least = tf.reduce_min(result, axes, keepdims=True)
        most = tf.reduce_max(result, axes, keepdims=True)
        result = tf.clip_by_value(result + (2 * shift - 1) * self.channel_shift_range, least, most)
        if self.brightness_range is not None:
            smallest, largest = self.brightness_range
            factor = smallest + (largest - smallest) * brightness
            result = tf.clip_by_value(result * factor, 0, 255)
        if images.dtype.is_integer:
            result = tf.round(result)
        return tf.cast(result, images.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "brightness_range": self.brightness_range,
            "channel_shift_range": self.channel_shift_range,
        }


def augmentation_layers(
    config: TransformConfig, seed: int | None = None
) -> list[RandomAffine | RandomIntensity]:
    """Returns the layers that do what ImageDataGenerator does with these arguments, in its order.

    Args:
      config: The arguments.
      seed: Integer, seeds the generators of the layers; None for random ones.

    Returns:
      Only the layers that change images.

    Raises:
      ValueError: The layers refuse an argument, or interpolation_order is neither 0 nor 1.
    """
    affine: dict[str, Any] = {
        "rotation_range": config.rotation_range,
        "width_shift_range": config.width_shift_range,
        "height_shift_range": config.height_shift_range,
        "shear_range": config.shear_range,
        "zoom_range": config.zoom_range,
        "horizontal_flip": config.horizontal_flip,
        "vertical_flip": config.vertical_flip,
    }
    if config.interpolation_order not in (0, 1):
        raise ValueError(
            f"interpolation_order={config.interpolation_order}: expected 0 (nearest) or 1 "
            "(bilinear)"
        )
    layers = [
        RandomAffine(
            **affine,
            fill_mode=config.fill_mode,
            cval=config.cval,
            interpolation="bilinear" if config.interpolation_order else "nearest",
            seed=seed,
        ),
        RandomIntensity(
            config.brightness_range,
            config.channel_shift_range,
            seed=None if seed is None else seed + 1,
        ),
    ]
    changes_intensity = config.brightness_range is not None or config.channel_shift_range
    wanted = any(map(np.any, affine.values())), changes_intensity
    return list(itertools.compress(layers, wanted))
