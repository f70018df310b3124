"""Shows which parts of an image a prediction depends on: Grad-CAM (Selvaraju et al., 2017)."""

import keras
import numpy as np
import tensorflow as tf

from pizza_steak.errors import UserError

_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)


def activation_maps(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns how much each place of an image supports a class, by Grad-CAM.

    With feature maps A and the score y of the class, the map is
    relu(sum_k mean_ij(dy / dA_ijk) A_k), resized bilinearly to the image and divided by its largest
    value.

    A is the output of the last layer that keeps the height and width of the last convolution. So it
    is what the next layers see: after normalization, activation and skip connection, whether these
    are layers of their own or not. The convolution may be in a model that is a layer of `model`.

    y is the score before the softmax. A sigmoid has the logit as the score of class 1, and its
    negative as that of class 0.

    Args:
      model: A functional model of one input that ends with a Dense layer, with a unit per class or
        with one sigmoid for two classes. Its activation may be a layer of its own, and the end of
        the model a model.
      images: Images as the model takes them, of shape (N, H, W, C). All are one batch.
      classes: The class index to explain for each image, int of shape (N,).

    Returns:
      float32 of shape (N, H, W), 0 to 1: 1 is the largest value of an image. A map without a
      positive value is 0 everywhere.

    Raises:
      UserError: The model has no convolution, or does not end so.
    """
    before, head = _apart(model)
    images = tf.cast(images, tf.float32)
    split = _with_features(before, images.shape[1:])
    if split is None:
        raise UserError(
            f"model {model.name}: has no convolution, which activation maps need; evaluate it "
            "without --activation_maps"
        )
    kernel = head.kernel.numpy()
    if kernel.shape[1] == 1:
        kernel = np.concatenate([-kernel, kernel], axis=1)
    with tf.GradientTape() as tape:
        tape.watch(images)  # Frozen weights are not watched.
        features, embedding = split(images, training=False)
    # The score is linear in the inputs of the last layer: its gradient there is a kernel's column.
    upstream = tf.cast(kernel[:, classes].T, embedding.dtype)
    gradients = tape.gradient(embedding, features, output_gradients=upstream)
    features, gradients = tf.cast(features, tf.float32), tf.cast(gradients, tf.float32)
    weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    maps = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1, keepdims=True))
    maps = tf.image.resize(maps, images.shape[1:3])[..., 0]
    return tf.math.divide_no_nan(maps, tf.reduce_max(maps, axis=(1, 2), keepdims=True)).numpy()


def _apart(model: keras.Model) -> tuple[keras.Model, keras.layers.Dense]:
    """Returns the layers before the last Dense layer, and that layer."""
    *layers, last = model.layers
    if isinstance(last, keras.Model):
        inner, head = _apart(last)
        return keras.Model(model.inputs, inner(layers[-1].output)), head
    if isinstance(last, keras.layers.Activation | keras.layers.Softmax):
        last = layers[-1]
    if not isinstance(last, keras.layers.Dense):
        raise UserError(
            f"model {model.name}: does not end with a dense layer, which activation maps need; "
            "evaluate it without --activation_maps"
        )
    return keras.Model(model.inputs, last.input), last


def _with_features(model: keras.Model, input_shape: tuple[int, int, int]) -> keras.Model | None:
    """Returns a model that shares the layers and has two outputs: feature maps, and the model's.

    Args:
      model: A functional model of one input and one output.
      input_shape: The shape of an input, which may be more exact than the model's.

    Returns:
      The model, or None if there is no convolution.
    """
    features = None

    def call(layer, *inputs, **options):
        nonlocal features
        nested = isinstance(layer, keras.Model)
        if nested and (inner := _with_features(layer, inputs[0].shape[1:])):
            features, outputs = inner(*inputs, **options)
            return outputs
        outputs = layer(*inputs, **options)
        if isinstance(layer, _CONVOLUTIONS) or _same_size(outputs, features):
            features = outputs
        return outputs

    (placeholder,) = model.inputs
    cloned = keras.models.clone_model(
        keras.Model(model.inputs, model.outputs[0]),  # A Sequential model becomes functional.
        input_tensors=[keras.Input(input_shape, dtype=placeholder.dtype)],
        clone_function=lambda layer: layer,
        call_function=call,
    )
    return None if features is None else keras.Model(cloned.inputs, [features, *cloned.outputs])


def _same_size(outputs: keras.KerasTensor, features: keras.KerasTensor | None) -> bool:
    """Returns whether outputs are feature maps of the same height and width."""
    if features is None or len(outputs.shape) != 4:
        return False
    return outputs.shape[1:3] == features.shape[1:3]
