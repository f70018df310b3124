"""The networks: what they are made of, and what goes in and comes out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pizza_steak.errors import UserError
from trainers.configuration import ModelConfig
from trainers.models import networks
from trainers.models.trained_model import TrainedModel

SHAPE = (32, 40, 3)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


@pytest.fixture
def dtype_policy():
    """Sets Keras's policy for one test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def build(num_classes=2, shape=SHAPE, **sizes) -> keras.Model:
    return networks.build(ModelConfig(**sizes), shape, "abcd"[:num_classes]).model


def test_tinyvgg_is_the_network_of_the_chapter():
    model = build(shape=(224, 224, 3))
    assert model.count_params() == 31_101
    assert [type(layer).__name__ for layer in model.layers] == [
        "InputLayer",
        "Rescaling",
        *["Conv2D", "Conv2D", "MaxPooling2D"] * 2,
        "Flatten",
        "Dense",
    ]
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.get_config().items() >= {"filters": 10, "activation": "relu"}.items()


@pytest.mark.parametrize(
    ("model", "parameters", "layer_types"),
    [
        ("playground", 602_141, ["Flatten", *["Dense"] * 3]),
        ("dense", 15_073_201, ["Flatten", *["Dense"] * 4]),
        ("conv3", 477_341, [*["Conv2D"] * 3, "Flatten", "Dense"]),
        ("conv3_pool", 8_861, [*["Conv2D", "MaxPooling2D"] * 3, "Flatten", "Dense"]),
    ],
)
def test_the_other_networks_of_the_chapter(model, parameters, layer_types):
    built = build(shape=(224, 224, 3), model=model)
    assert built.count_params() == parameters
    assert [type(layer).__name__ for layer in built.layers[2:]] == layer_types
    for layer in built.layers[2:-1]:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            assert layer.activation is keras.activations.relu


def test_regularisers_are_layers_of_their_own():
    model = build(
        batch_normalization=True, dropout=0.25, dense_layers=1, dense_units=7, global_pooling=True
    )
    assert [type(layer).__name__ for layer in model.layers[2:]] == [
        *[*["Conv2D", "BatchNormalization", "ReLU"] * 2, "MaxPooling2D"] * 2,
        "GlobalAveragePooling2D",
        *["Dense", "BatchNormalization", "ReLU", "Dropout"],
        "Dense",
    ]
    assert model.layers[-2].rate == 0.25
    assert model.layers[-5].units == 7


def test_arguments_change_what_they_name():
    model = build(filters=6, blocks=1, convolutions=3, kernel_size=5, pool_size=4)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    (pooling,) = (layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D))
    assert [(layer.filters, layer.kernel_size) for layer in convolutions] == [(6, (5, 5))] * 3
    assert pooling.pool_size == (4, 4)
    assert pooling.output.shape == (None, (32 - 3 * 4) // 4, (40 - 3 * 4) // 4, 6)


@pytest.mark.parametrize("growth, filters", [(1, [4, 4, 4]), (1.5, [4, 6, 9]), (0.1, [4, 1, 1])])
def test_filters_grow_from_block_to_block(growth, filters):
    model = build(filters=4, filter_growth=growth, blocks=3, convolutions=2, padding="same")
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [n for n in filters for _ in range(2)]


def test_padded_convolutions_keep_the_size_and_others_do_not():
    for padding, shapes in (("same", [(32, 40), (16, 20)]), ("valid", [(28, 36), (10, 14)])):
        model = build(kernel_size=5, convolutions=1, padding=padding)
        convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
        assert [layer.output.shape[1:3] for layer in convolutions] == shapes


@pytest.mark.parametrize(
    "num_classes, labels, units",
    [
        (2, np.float32([0, 1, 1, 0, 1]), 1),
        (4, np.int32([0, 1, 2, 3, 3]), 4),
    ],
)
def test_head_and_loss_fit_the_labels(images, num_classes, labels, units):
    model = build(num_classes, filters=2)
    probabilities = model.predict(images, verbose=0)
    assert probabilities.shape == (5, units)
    assert np.all((probabilities > 0) & (probabilities < 1))
    if units > 1:
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
        of_truth = probabilities[range(5), labels]
    else:
        of_truth = np.where(labels == 1, probabilities[:, 0], 1 - probabilities[:, 0])
    model.compile(loss=networks.loss_for(units))
    loss = model.evaluate(images, labels, verbose=0)
    assert loss == pytest.approx(-np.log(of_truth).mean(), rel=1e-5)


def test_raw_pictures_give_the_same_as_uint8_and_as_float(images):
    model = build(filters=2)
    np.testing.assert_array_equal(model(images).numpy(), model(images.astype(np.float32)).numpy())


def test_a_saved_model_gives_the_same_outputs(images, tmp_path):
    model = build(3, filters=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images).numpy(), model(images).numpy())


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_ends_before_the_probabilities(images, policy, dtype_policy):
    dtype_policy(policy)
    model = build(3, filters=2)
    *hidden, head = model.layers
    assert hidden[-1].compute_dtype == policy.removeprefix("mixed_")
    assert head.compute_dtype == model(images).dtype == "float32"


def test_an_unknown_name_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"model 'vgg': unknown; expected one of .*tinyvgg"):
        build(model="vgg")


@pytest.mark.parametrize(
    "height, width, sizes",
    [
        (12, 40, {}),
        (40, 12, {}),
        (5, 5, {"blocks": 1}),
        (8, 8, {"kernel_size": 9, "blocks": 1}),
    ],
)
def test_pictures_too_small_for_the_layers_are_the_users_to_mend(height, width, sizes):
    with pytest.raises(UserError, match=rf"{height} x {width} pixels; .*--image_size") as caught:
        build(shape=(height, width, 3), **sizes)
    assert "Exception encountered" not in str(caught.value)


def test_what_fits_is_what_keras_can_build():
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(80):
        sizes = networks.sizes_of(
            ModelConfig(
                filters=1,
                blocks=int(rng.integers(0, 4)),
                convolutions=int(rng.integers(1, 3)),
                kernel_size=int(rng.integers(1, 5)),
                padding=str(rng.choice(["valid", "same"])),
                pool_size=int(rng.integers(1, 4)),
            )
        )
        shape = (int(rng.integers(1, 24)), int(rng.integers(1, 24)), 1)
        inputs = keras.Input(shape)
        try:
            model = keras.Model(inputs, networks.blocks(inputs, sizes))
            built = all(0 not in layer.output.shape for layer in model.layers)
        except ValueError:
            built = False
        assert networks.fits(sizes, shape) == built, (sizes, shape)
        outcomes.append(built)
    assert 20 < sum(outcomes) < 60


# Label smoothing.


def test_smoothed_class_indices_give_the_loss_of_smoothed_one_hot_labels(images):
    labels = np.int32([0, 1, 2, 2, 1])
    one_hot = np.eye(3, dtype=np.float32)[labels]
    plain = build(3, filters=2)
    model = TrainedModel(plain.input, plain.output)
    probabilities = model.predict(images, verbose=0)
    for smoothing in (0.1, 1.0):
        model.compile(loss=networks.loss_for(3, smoothing))
        expected = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
        loss = float(model.compute_loss(y=labels, y_pred=keras.ops.array(probabilities)))
        assert loss == pytest.approx(float(expected(one_hot, probabilities)), rel=1e-6)
        assert loss != pytest.approx(-np.log(probabilities[one_hot == 1]).mean())


def test_a_model_that_gathers_trains_on_the_images_and_predicts_from_images(images):
    labels = np.float32([0, 1, 1, 0, 1])

    def trained(inputs, gather) -> list[np.ndarray]:
        keras.utils.set_random_seed(3)
        plain = build(filters=2)
        model = TrainedModel(plain.input, plain.output)
        model.gather = gather
        model.compile("sgd", networks.loss_for(1))
        batches = tf.data.Dataset.from_tensors((inputs, labels))
        history = model.fit(batches, validation_data=batches, epochs=2, verbose=0).history
        return [*history.values(), model.predict(images, verbose=0), *model.get_weights()]

    order = np.int32([4, 2, 0, 1, 3])
    gathered = trained(order, lambda places: tf.gather(images, places))
    for value, other in zip(gathered, trained(images[order], None), strict=True):
        np.testing.assert_array_equal(value, other)
