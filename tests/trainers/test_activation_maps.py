"""Activation maps: Grad-CAM as its formula gives it, on any network."""

import keras
import numpy as np
import pytest
from PIL import Image

from pizza_steak.errors import UserError
from trainers.configuration import ModelConfig
from trainers.finished.activation_maps import activation_maps
from trainers.models import networks

layers = keras.layers
SIZE = 12
CLASSES = np.array([0, 1, 2, 1])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)


def randomized(model: keras.Model, seed: int = 1) -> keras.Model:
    """The model with random weights, so that its maps differ from place to place."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0.2, 0.5, weight.shape) ** 2 for weight in model.get_weights()])
    head = model.layers[-1]
    head.kernel.assign(rng.normal(size=head.kernel.shape))
    return model


def sequence(*parts: keras.layers.Layer) -> keras.Model:
    """A functional model of layers in a row."""
    inputs = x = keras.Input((SIZE, SIZE, 3))
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


def normalized(maps: np.ndarray) -> np.ndarray:
    maps = np.maximum(maps, 0)
    largest = maps.max(axis=(1, 2), keepdims=True)
    assert (largest > 0).sum() > 1
    return maps / np.where(largest > 0, largest, 1)


def features_of(model: keras.Model, index: int, images: np.ndarray) -> np.ndarray:
    return keras.Model(model.inputs, model.layers[index].output).predict(images, verbose=0)


# The end of a network.


def test_a_softmax_and_a_network_may_be_layers_of_their_own(images):
    parts = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3, name="last")]
    model = randomized(sequence(*parts))
    expected = activation_maps(model, images, CLASSES)
    assert expected.max() == 1
    own_softmax = keras.Model(model.input, layers.Softmax()(model.output))
    inputs = keras.Input((SIZE, SIZE, 3))
    nested = keras.Model(inputs, own_softmax(layers.Rescaling(1.0)(inputs)))
    for other in (own_softmax, nested):
        np.testing.assert_allclose(activation_maps(other, images, CLASSES), expected, atol=1e-5)


def test_a_network_that_does_not_end_with_a_dense_layer_is_named(images):
    model = sequence(layers.Conv2D(3, 3), layers.GlobalAveragePooling2D())
    with pytest.raises(UserError, match="does not end with a dense layer"):
        activation_maps(model, images, CLASSES)


# The formula.


def test_after_average_pooling_the_weights_are_the_kernels(images):
    model = randomized(
        sequence(
            layers.Rescaling(1 / 255),
            layers.Conv2D(5, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        )
    )
    kernel = model.layers[-1].kernel.numpy()
    expected = np.einsum("nijk,kn->nij", features_of(model, 2, images), kernel[:, CLASSES])
    maps = activation_maps(model, images, CLASSES)
    assert (maps.shape, maps.dtype) == ((4, SIZE, SIZE), np.float32)
    np.testing.assert_allclose(maps, normalized(expected), atol=1e-5)


def test_without_pooling_the_weights_are_means_over_all_places(images):
    model = randomized(
        sequence(
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        )
    )
    kernel = model.layers[-1].kernel.numpy().reshape(SIZE, SIZE, 4, 3).mean(axis=(0, 1))
    expected = np.einsum("nijk,kn->nij", features_of(model, 1, images), kernel[:, CLASSES])
    maps = activation_maps(model, images, CLASSES)
    np.testing.assert_allclose(maps, normalized(expected), atol=1e-5)


def test_smaller_maps_are_resized_bilinearly_to_the_image(images):
    model = randomized(
        sequence(
            layers.Conv2D(4, 3, strides=3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ),
        seed=2,
    )
    maps = activation_maps(model, images, CLASSES)
    # The largest value of each window, and no other, has the gradient of its mean.
    kernel = model.layers[-1].kernel.numpy()
    small = np.einsum("nijk,kn->nij", features_of(model, 1, images), kernel[:, CLASSES])
    resized = [
        np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        for one in np.maximum(small, 0)
    ]
    np.testing.assert_allclose(maps, normalized(np.stack(resized)), atol=1e-4)


def test_the_map_is_where_the_class_is():
    # A filter for red, one for blue; red speaks for class 1, blue for class 0.
    model = sequence(
        layers.Conv2D(2, 1, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(1, activation="sigmoid"),
    )
    colors = np.array([[1.0, 0], [0, 0], [0, 1]]).reshape(1, 1, 3, 2)
    model.set_weights([colors, np.zeros(2), np.array([[1.0], [-1]]), np.zeros(1)])
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    image[0, 2:5, 7:9, 0] = 255
    image[0, 8:11, 1:4, 2] = 255
    maps = activation_maps(model, np.repeat(image, 2, axis=0), np.array([1, 0]))
    np.testing.assert_allclose(maps[0], image[0, ..., 0] / 255)
    np.testing.assert_allclose(maps[1], image[0, ..., 2] / 255)


def test_maps_without_a_positive_value_are_zero(images):
    model = sequence(
        layers.Conv2D(2, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(1, activation="sigmoid"),
    )
    model.layers[-1].kernel.assign(np.full((2, 1), -1.0))
    assert not activation_maps(model, images, np.ones(4, int)).any()


def test_one_output_for_two_classes_is_as_two(images):
    body = (
        *(layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(3, 3)),
        *(layers.Flatten(), layers.Dense(4, activation="relu")),
    )
    one = randomized(sequence(*body, layers.Dense(1, activation="sigmoid")))
    two = sequence(*body, layers.Dense(2, activation="softmax"))
    kernel = one.layers[-1].kernel.numpy()
    two.layers[-1].kernel.assign(np.concatenate([-kernel, kernel], axis=1))
    classes = np.array([0, 1, 0, 1])
    maps = activation_maps(one, images, classes)
    assert maps.any()
    np.testing.assert_array_equal(maps, activation_maps(two, images, classes))


def test_a_confident_answer_has_the_map_of_its_score(images):
    # The gradient of its probability is 0 in float32.
    model = randomized(
        sequence(
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        )
    )
    maps = activation_maps(model, images, CLASSES)
    model.layers[-1].bias.assign([0.0, 1e4, 0.0])
    assert (model.predict(images, verbose=0) == [0, 1, 0]).all()
    np.testing.assert_array_equal(activation_maps(model, images, CLASSES), maps)


# Any network.


def test_the_maps_are_those_after_normalization_and_activation(images):
    model = randomized(
        sequence(
            *(layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()),
            *(layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")),
        )
    )
    kernel = model.layers[-1].kernel.numpy()
    expected = np.einsum("nijk,kn->nij", features_of(model, 3, images), kernel[:, CLASSES])
    maps = activation_maps(model, images, CLASSES)
    np.testing.assert_allclose(maps, normalized(expected), atol=1e-5)


def nested(body: list[keras.layers.Layer]) -> keras.Model:
    inputs = x = keras.Input((None, None, 3))  # As a backbone for images of any size.
    for layer in body:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    "wrap",
    [
        nested,
        keras.Sequential,
        lambda body: nested([body[0], keras.Sequential(body[1:3]), *body[3:]]),
        lambda body: keras.Sequential([*body[:2], keras.Sequential(body[2:])]),
    ],
    ids=["model", "sequential", "model in model", "sequential in sequential"],
)
@pytest.mark.parametrize("trainable", [True, False])
def test_a_nested_network_has_the_maps_of_a_flat_one(images, wrap, trainable):
    body = [
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(5, 3, activation="relu"),
        layers.MaxPooling2D(2),
    ]
    pooling, head = layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")
    flat = randomized(sequence(*body, pooling, head))
    expected = activation_maps(flat, images, CLASSES)
    assert 0 < expected.mean() < 1
    backbone = wrap(body)
    backbone.trainable = trainable
    inputs = keras.Input((SIZE, SIZE, 3))
    outputs = layers.Dense(3, activation="softmax")(pooling(backbone(inputs, training=False)))
    model = keras.Model(inputs, outputs)
    model.layers[-1].set_weights(head.get_weights())
    np.testing.assert_array_equal(activation_maps(model, images, CLASSES), expected)


def test_a_convolution_before_a_nested_network_without_one_is_found(images):
    convolution, head = layers.Conv2D(4, 3), layers.Dense(3, activation="softmax")
    body = [layers.Flatten(), layers.Dense(4, activation="relu")]
    flat = randomized(sequence(convolution, *body, head))
    model = sequence(convolution, keras.Sequential(body), layers.Dense(3, activation="softmax"))
    model.layers[-1].set_weights(head.get_weights())
    maps = activation_maps(model, images, CLASSES)
    assert maps.any()
    np.testing.assert_array_equal(maps, activation_maps(flat, images, CLASSES))


@pytest.mark.parametrize("name", ["tinyvgg", "conv3", "conv3_pool"])
@pytest.mark.parametrize("options", [{}, {"batch_normalization": True, "dropout": 0.5}])
@pytest.mark.parametrize("classes", [2, 3])
def test_every_network_has_maps(name, options, classes):
    keras.utils.set_random_seed(3)
    config = ModelConfig(model=name, global_pooling=True, **options)
    model = networks.build(config, (32, 48, 3), "abc"[:classes]).model
    images = np.random.default_rng(2).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)
    before = model.predict(images, verbose=0)
    maps = activation_maps(model, images, np.arange(6) % classes)
    assert maps.shape == (6, 32, 48)
    assert maps.min() >= 0
    assert set(maps.max(axis=(1, 2))) <= {0, 1}
    assert maps.any()
    one = activation_maps(model, images[1:2], np.array([1]))
    np.testing.assert_allclose(one[0], maps[1], atol=1e-4)
    np.testing.assert_array_equal(model.predict(images, verbose=0), before)


@pytest.mark.parametrize("name", ["dense", "playground"])
def test_a_network_without_convolution_is_one_line(images, name):
    model = networks.build(ModelConfig(model=name), (SIZE, SIZE, 3), "ab").model
    with pytest.raises(UserError, match=rf"model {name}: has no convolution") as caught:
        activation_maps(model, images, np.ones(4, int))
    assert len(str(caught.value).splitlines()) == 1


def test_half_precision_has_the_maps_of_float32(images):
    model = networks.build(ModelConfig(global_pooling=True), (SIZE * 4, SIZE * 4, 3), "abc").model
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = networks.build(
            ModelConfig(global_pooling=True), (SIZE * 4, SIZE * 4, 3), "abc"
        ).model
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(model.get_weights())
    images = images.repeat(4, axis=1).repeat(4, axis=2)
    maps, others = (activation_maps(one, images, CLASSES) for one in (model, half))
    assert maps.any()
    np.testing.assert_allclose(others, maps, atol=0.03)
