import itertools
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf

from pizza_steak.errors import UserError
from pizza_steak.normalization import normalization_layers

IMAGES = np.random.default_rng(0).integers(0, 256, (90, 2, 3, 3), dtype=np.uint8)
IMAGES[..., 0] //= 2  # Channels that differ in mean and deviation.
OTHERS = np.random.default_rng(1).integers(0, 256, (7, 2, 3, 3), dtype=np.uint8)


def dataset(images=IMAGES):
    return tf.data.Dataset.from_tensor_slices(images).batch(40)


def model_of(layers, shape=IMAGES.shape[1:]):
    return keras.Sequential([keras.Input(shape), *layers])


def normalized(images=OTHERS, **options):
    return model_of(normalization_layers(dataset(), **options)).predict(images, verbose=0)


def by_image_data_generator(images=OTHERS, **options):
    generator = tf.keras.preprocessing.image.ImageDataGenerator(**options)
    generator.fit(IMAGES)
    return np.stack([generator.standardize(image.astype(np.float32)) for image in images])


@pytest.mark.filterwarnings("ignore:This ImageDataGenerator specifies")
@pytest.mark.parametrize("rescale", [1.0, 1 / 255])
@pytest.mark.parametrize(
    "names",
    [
        [],
        ["samplewise_center"],
        ["samplewise_std_normalization"],
        ["samplewise_center", "samplewise_std_normalization"],
        ["featurewise_center"],
        ["featurewise_std_normalization"],
        ["featurewise_center", "featurewise_std_normalization"],
        ["zca_whitening"],
        ["zca_whitening", "featurewise_center"],
        ["zca_whitening", "featurewise_std_normalization"],
    ],
    ids="+".join,
)
def test_pixels_are_those_of_image_data_generator(names, rescale):
    options = {"rescale": rescale, **dict.fromkeys(names, True)}
    expected = by_image_data_generator(**options)
    np.testing.assert_allclose(normalized(**options), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:This ImageDataGenerator specifies")
def test_zca_epsilon_is_added_to_the_singular_values():
    options = {"zca_whitening": True, "rescale": 1 / 255, "zca_epsilon": 3.0}
    strong = normalized(**options)
    np.testing.assert_allclose(strong, by_image_data_generator(**options), rtol=1e-4, atol=1e-4)
    assert np.abs(strong).max() < np.abs(normalized(**options | {"zca_epsilon": 1e-6})).max()


def test_zca_whitens():
    flat = normalized(IMAGES, zca_whitening=True).reshape(90, -1)
    # About the mean of each channel, as ImageDataGenerator centers, not that of each pixel.
    np.testing.assert_allclose(flat.T @ flat / 90, np.eye(2 * 3 * 3), atol=1e-5)


@pytest.mark.filterwarnings("ignore:This ImageDataGenerator specifies")
@pytest.mark.parametrize("count", [1, 17, 18, 19, 90])
def test_zca_is_that_of_image_data_generator_with_fewer_images_than_values_too(count):
    # Images of 2 * 3 * 3 values, several in a chunk and several chunks.
    generator = tf.keras.preprocessing.image.ImageDataGenerator(zca_whitening=True, rescale=1 / 255)
    generator.fit(IMAGES[:count])
    expected = [generator.standardize(image.astype(np.float32)) for image in OTHERS]
    layers = normalization_layers(dataset(IMAGES[:count]), zca_whitening=True)
    actual = model_of(layers).predict(OTHERS, verbose=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_zca_of_images_with_borders_amplifies_rounding_errors_little():
    # Many values are equal in all images: X X^T has no inverse.
    images = np.random.default_rng(2).integers(0, 256, (400, 6, 6, 3), dtype=np.uint8)
    images = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    layers = normalization_layers(dataset(images), zca_whitening=True)
    flat = model_of(layers, images.shape[1:]).predict(images, verbose=0).reshape(400, -1)
    variances = np.linalg.eigvalsh(flat.T.astype(float) @ flat / 400)
    # Of the 109 directions that there are. ImageDataGenerator's largest is 100 here.
    assert np.median(variances[-109:]) == pytest.approx(1, abs=1e-3)
    assert variances[-1] < 10


def test_zca_takes_no_more_memory_for_more_images():
    def peak(count):
        images = np.random.default_rng(3).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
        batches = tf.data.Dataset.from_tensors(images).repeat(count // 64)
        tracemalloc.start()
        try:
            normalization_layers(batches, zca_whitening=True)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(640)  # Imports modules.
    # Of 768 bytes each.
    assert peak(6400) < peak(640) + 500_000


def test_featurewise_statistics_are_of_what_comes_to_the_layer():
    images = normalized(
        IMAGES, samplewise_std_normalization=True, featurewise_std_normalization=True
    )
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "names",
    [
        ["samplewise_std_normalization"],
        ["featurewise_center"],
        ["featurewise_std_normalization"],
        ["samplewise_center", "zca_whitening"],
    ],
    ids="+".join,
)
def test_statistics_are_saved_with_the_model(tmp_path, names):
    model = model_of(normalization_layers(dataset(), **dict.fromkeys(names, True)))
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model.predict(OTHERS, verbose=0)
    np.testing.assert_array_equal(reloaded.predict(OTHERS, verbose=0), expected)
    assert not reloaded.trainable_weights


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_it_is_as_exact_under_any_dtype_policy(policy):
    options = {"featurewise_std_normalization": True, "samplewise_center": True}
    for zca_whitening in (False, True):
        expected = normalized(**options, zca_whitening=zca_whitening)
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            images = normalized(**options, zca_whitening=zca_whitening)
        finally:
            keras.config.set_dtype_policy(before)
        np.testing.assert_array_equal(images, expected)


def test_pictures_are_read_only_where_statistics_are_asked_for():
    reads = itertools.count()

    def read():
        next(reads)
        yield IMAGES

    spec = tf.TensorSpec((None, *IMAGES.shape[1:]), tf.uint8)
    pictures = tf.data.Dataset.from_generator(read, output_signature=spec)
    normalization_layers(pictures, samplewise_center=True, samplewise_std_normalization=True)
    assert next(reads) == 0
    normalization_layers(pictures, featurewise_center=True)
    assert next(reads) == 2


def test_no_factor_is_no_layer():
    assert normalization_layers(dataset(), rescale=None) == []


def test_pictures_too_large_for_zca_are_refused():
    large = tf.data.Dataset.from_tensors(np.zeros((1, 64, 65, 3), np.uint8))
    with pytest.raises(UserError) as raised:
        normalization_layers(large, zca_whitening=True)
    message = str(raised.value)
    assert "\n" not in message
    assert "64 x 65 images of 3 channels has 12,480 rows; expected at most 12,288" in message
