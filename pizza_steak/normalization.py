"""ImageDataGenerator's standardisation, as the first layers of a model.

The layers are saved with the model, with the statistics of its training images.
"""

import keras
import numpy as np
import tensorflow as tf
import threadpoolctl

from pizza_steak import cores
from pizza_steak.errors import UserError

# A ZCA matrix has the square of this number of elements: 600 MB for 64 x 64 x 3 pixels.
_MOST_ZCA_VALUES = 64 * 64 * 3


@keras.saving.register_keras_serializable(package="pizza_steak")
class SamplewiseNormalization(keras.layers.Layer):
    """Subtracts each image's mean and divides by its standard deviation, over all its values.

    Args:
      center: Whether to subtract the mean.
      scale: Whether to divide by the standard deviation, plus 1e-6 as ImageDataGenerator does.
      **kwargs: `name`, `dtype` and `trainable` of a Keras layer.

    Input and output: float of shape (B, H, W, C).
    """

    def __init__(self, center: bool = True, scale: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.center = bool(center)  # NumPy's booleans cannot be saved.
        self.scale = bool(scale)

    def call(self, images):
        axes = (1, 2, 3)
        if self.center:
            images = images - keras.ops.mean(images, axes, keepdims=True)
        if self.scale:
            images = images / (keras.ops.std(images, axes, keepdims=True) + 1e-6)
        return images

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "center": self.center, "scale": self.scale}


def normalization_layers(
    images: tf.data.Dataset,
    *,
    rescale: float | None = 1 / 255,
    samplewise_center: bool = False,
    samplewise_std_normalization: bool = False,
    featurewise_center: bool = False,
    featurewise_std_normalization: bool = False,
    zca_whitening: bool = False,
    zca_epsilon: float = 1e-6,
) -> list[keras.layers.Layer]:
    """Returns the layers that do what ImageDataGenerator does with these arguments, in its order.

    As in ImageDataGenerator, dividing by a standard deviation also centers, and ZCA whitening
    centers featurewise and replaces featurewise_std_normalization. ImageDataGenerator measures the
    images given to its `fit`, usually not rescaled. Here each layer is measured on its own input,
    rescaled and normalised samplewise.

    Args:
      images: One pass over the training images, to measure statistics: batches of shape
        (B, H, W, C), values 0 to 255. It is read only if statistics are needed.
      rescale: Factor of the pixels; with None the layers take only floats.
      samplewise_center: Subtract each image's mean.
      samplewise_std_normalization: Divide each image by its standard deviation.
      featurewise_center: Subtract the mean of all images, by channel.
      featurewise_std_normalization: Divide by the standard deviation of all images, by channel.
      zca_whitening: Multiply by the ZCA matrix of the images (Krizhevsky, "Learning Multiple
        Layers of Features from Tiny Images", 2009, appendix A).
      zca_epsilon: Value added to the singular values.

    Returns:
      Layers that compute in float32 with any dtype policy.

    Raises:
      UserError: The images are too large for ZCA whitening.
    """
    shape = images.element_spec.shape
    # Built now: a layer that is built while a dataset is traced can only be used in that trace.
    made: list[keras.layers.Layer] = []

    def add(layer: keras.layers.Layer) -> None:
        layer.build(shape)
        made.append(layer)

    if rescale is not None:
        add(keras.layers.Rescaling(rescale, dtype="float32"))
    if samplewise_center or samplewise_std_normalization:
        add(SamplewiseNormalization(scale=samplewise_std_normalization, dtype="float32"))
    if featurewise_center or featurewise_std_normalization or zca_whitening:
        measured = keras.layers.Normalization(dtype="float32")
        measured.adapt(_through(made, images))
        mean, variance = (np.ravel(value) for value in (measured.mean, measured.variance))
        if zca_whitening or not featurewise_std_normalization:
            variance = np.ones_like(variance)
        add(keras.layers.Normalization(mean=mean, variance=variance, dtype="float32"))
    if zca_whitening:
        made += _zca_layers(_through(made, images), shape[1:], zca_epsilon)
    return made


def _through(layers: list[keras.layers.Layer], images: tf.data.Dataset) -> tf.data.Dataset:
    def call(images):
        images = tf.cast(images, tf.float32)
        for layer in layers:
            images = layer(images)
        return images

    return images.map(call)


def _zca_layers(
    images: tf.data.Dataset, shape: tuple[int, int, int], epsilon: float
) -> list[keras.layers.Layer]:
    values = int(np.prod(shape))
    if values > _MOST_ZCA_VALUES:
        height, width, channels = shape
        raise UserError(
            f"zca_whitening: its matrix for {height} x {width} images of {channels} channels has "
            f"{values:,} rows; expected at most {_MOST_ZCA_VALUES:,}; pass a smaller --image_size"
        )
    matrix = _zca_matrix(images, values, epsilon)
    whiten = keras.layers.Dense(
        values, use_bias=False, trainable=False, dtype="float32", name="zca_whitening"
    )
    whiten.build((None, values))
    whiten.set_weights([matrix])
    return [
        keras.layers.Flatten("channels_last", dtype="float32"),
        whiten,
        keras.layers.Reshape(shape, dtype="float32"),
    ]


def _zca_matrix(images: tf.data.Dataset, values: int, epsilon: float) -> np.ndarray:
    """Returns the ZCA matrix of images, of shape (values, values).

    With the images as the columns of X = U S V^T, it is U (S + epsilon)^-1 U^T, times the square
    root of their number. The memory does not grow with that number.

    Args:
      images: One pass over the images: batches of float32 of shape (B, H, W, C).
      values: H * W * C.
      epsilon: Value added to the singular values.
    """
    from scipy import linalg  # Whose functions work in place; NumPy's take twice the memory.

    products, count = np.zeros((values, values), order="F"), 0
    with threadpoolctl.threadpool_limits(cores.count()):
        # As many images at once as a sum has rows: each sum goes through all of its memory.
        for batch in images.rebatch(values).as_numpy_iterator():
            flat = np.reshape(batch, (-1, values))
            count += len(flat)
            if count < values:  # All images.
                vectors, singular, _ = np.linalg.svd(flat.T, full_matrices=False)
                break
            # In float64: rounding counts for more in the squares of small singular values.
            products = linalg.blas.dsyrk(
                1.0, flat.T.astype(np.float64), beta=1.0, c=products, overwrite_c=True, lower=True
            )
        else:
            # X X^T = U S^2 U^T.
            squares, vectors = linalg.eigh(products, overwrite_a=True, check_finite=False)
            singular = np.sqrt(squares.clip(0))
            # In float32, a decomposition of X has rounding errors of this size in place of zeros.
            singular = singular.clip(np.finfo(np.float32).eps * singular[-1])
        vectors *= np.sqrt(np.sqrt(count) / (singular + epsilon))
        return vectors @ vectors.T
