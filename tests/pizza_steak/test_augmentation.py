"""The augmenting layers against the real ImageDataGenerator, their determinism, their use."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from pizza_steak import augmentation
from pizza_steak.augmentation import (
    RandomAffine,
    RandomIntensity,
    compose,
    draw_uniforms,
    resample,
)
from pizza_steak.input_pipeline import example_seeds
from pizza_steak.normalization import SamplewiseNormalization

SETS = 200
STRONG = {
    "rotation_range": 40,
    "width_shift_range": 0.3,
    "height_shift_range": 0.3,
    "shear_range": 20,
    "zoom_range": 0.4,
    "horizontal_flip": True,
    "vertical_flip": True,
}
NAMES = ("theta", "tx", "ty", "shear", "zx", "zy", "flip_horizontal", "flip_vertical")
IDENTITY = {name: np.array([name in ("zx", "zy")], float) for name in NAMES}


@pytest.fixture(scope="module", params=[(64, 64), (48, 61)], ids=["square", "oblong"])
def noise(request) -> np.ndarray:
    """White noise, where an error in a coordinate shows most: float32 of shape (200, H, W, 3)."""
    return np.random.default_rng(0).uniform(0, 255, (SETS, *request.param, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 24, 31, 3), np.uint8)


def image_data_generator(**arguments):
    pytest.importorskip("scipy")
    return tf.keras.preprocessing.image.ImageDataGenerator(**arguments)


def draw_from(generator, shape, count) -> dict[str, np.ndarray]:
    np.random.seed(0)
    drawn = [generator.get_random_transform(shape) for _ in range(count)]
    return {name: np.array([parameters[name] for parameters in drawn]) for name in NAMES}


def example(parameters, index) -> dict:
    return {name: values[index] for name, values in parameters.items()}


def draws(layer, size=(100, 200), count=4000) -> dict[str, np.ndarray]:
    seeds = example_seeds(0, 0, tf.range(count))
    parameters = layer.parameters(draw_uniforms(seeds, len(NAMES)), size)
    return {name: values.numpy().astype(float) for name, values in parameters.items()}


@pytest.mark.parametrize("fill_mode", augmentation.FILL_MODES)
@pytest.mark.parametrize(("interpolation", "order"), [("bilinear", 1), ("nearest", 0)])
def test_pixels_are_those_of_image_data_generator(noise, fill_mode, interpolation, order):
    cval = 100.0 if fill_mode == "constant" else 0.0
    generator = image_data_generator(
        **STRONG, fill_mode=fill_mode, cval=cval, interpolation_order=order
    )
    parameters = draw_from(generator, noise.shape[1:], SETS)
    expected = [
        generator.apply_transform(image, example(parameters, index))
        for index, image in enumerate(noise)
    ]
    matrices = compose(parameters, noise.shape[1:3])
    images = resample(noise, matrices, fill_mode, cval, interpolation)
    np.testing.assert_allclose(images, expected, rtol=0, atol=0.001)


def test_wrap_repeats_like_scipy_at_whole_pixels():
    ramp = np.arange(10, dtype=np.float32)[np.newaxis, np.newaxis, :, np.newaxis]
    ramp = np.repeat(ramp, 5, axis=1)
    generator = image_data_generator(fill_mode="wrap")
    for shift in range(-30, 31):
        expected = generator.apply_transform(ramp[0], {"tx": shift})
        matrices = compose({**IDENTITY, "tx": np.array([shift])}, (5, 10))
        np.testing.assert_allclose(resample(ramp, matrices, "wrap")[0], expected, atol=1e-4)


def test_fill_modes_of_a_single_pixel():
    image = tf.fill((1, 1, 1, 1), 7.0)
    matrices = compose({**IDENTITY, "tx": np.array([3.0])}, (1, 1))
    filled = [
        resample(image, matrices, mode, 9.0).numpy().item() for mode in augmentation.FILL_MODES
    ]
    assert filled == [9.0, 7.0, 7.0, 7.0]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("interpolation", augmentation.INTERPOLATIONS)
@pytest.mark.parametrize("fill_mode", augmentation.FILL_MODES)
def test_no_transform_gives_the_same_bits(pixels, dtype, interpolation, fill_mode):
    images = tf.cast(pixels, dtype)
    layer = RandomAffine(fill_mode=fill_mode, interpolation=interpolation)
    augmented = layer(images, training=True)
    assert augmented.dtype == images.dtype
    np.testing.assert_array_equal(augmented, images)


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flips_are_exact(pixels, flips):
    horizontal, vertical = (np.full(len(pixels), flip) for flip in flips)
    flips_only = {**IDENTITY, "flip_horizontal": horizontal, "flip_vertical": vertical}
    flips_only = {name: np.broadcast_to(values, len(pixels)) for name, values in flips_only.items()}
    matrices = compose(flips_only, pixels.shape[1:3])
    expected = pixels[:, :: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    np.testing.assert_array_equal(resample(pixels, matrices, "constant", 99.0), expected)


def test_integers_are_rounded_to_the_nearest(pixels):
    layer = RandomAffine(**STRONG, fill_mode="constant", cval=300.0)
    seeds = example_seeds(0, 0, tf.range(len(pixels)))
    exact = layer.augment(pixels.astype(np.float32), seeds).numpy()
    np.testing.assert_array_equal(
        layer.augment(pixels, seeds), np.minimum(np.round(exact), 255).astype(np.uint8)
    )
    assert exact.max() == 300.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_geometry_of_float32(dtype):
    large = np.random.default_rng(0).integers(0, 256, (2, 600, 600, 1), np.uint8)
    layer = RandomAffine(**STRONG)
    seeds = example_seeds(0, 0, tf.range(2))
    exact = layer.augment(tf.cast(large, tf.float32), seeds)
    images = layer.augment(tf.cast(large, dtype), seeds)
    np.testing.assert_array_equal(images, tf.cast(exact, dtype))


@pytest.mark.parametrize(
    "arguments",
    [
        STRONG,
        {"width_shift_range": 5, "height_shift_range": 7.5, "zoom_range": (0.5, 0.75)},
        {"width_shift_range": [2, 3, 20], "height_shift_range": [0.1, 0.25]},
        {"width_shift_range": 1, "height_shift_range": 1.0, "zoom_range": [1, 1]},
        {"rotation_range": -20, "shear_range": -5.5, "zoom_range": -0.5, "height_shift_range": -3},
        {"width_shift_range": (-3, 0, 3), "height_shift_range": [-5, 0.5], "zoom_range": 2},
        {"width_shift_range": range(5), "height_shift_range": -7.5, "zoom_range": (1.5, -0.5)},
        {"rotation_range": None, "shear_range": None, "width_shift_range": [], "zoom_range": 1.0},
        {"horizontal_flip": 1, "vertical_flip": 0, "width_shift_range": np.int64(3)},
    ],
    ids=["fractions", "pixels", "lists", "ones", "negative", "signs", "ranges", "none", "switches"],
)
def test_parameters_are_distributed_as_in_image_data_generator(arguments):
    ours = draws(RandomAffine(**arguments))
    theirs = draw_from(image_data_generator(**arguments), (100, 200, 3), 4000)
    for name in NAMES:
        spread = max(np.std(theirs[name]), 1e-9)
        assert abs(np.mean(ours[name]) - np.mean(theirs[name])) < 0.1 * spread, name
        assert np.std(ours[name]) == pytest.approx(np.std(theirs[name]), rel=0.05), name
        assert np.min(ours[name]) == pytest.approx(np.min(theirs[name]), abs=0.02 * spread), name
        assert np.max(ours[name]) == pytest.approx(np.max(theirs[name]), abs=0.02 * spread), name
    for name in ("tx", "ty"):
        if len(np.unique(theirs[name])) < 100:
            np.testing.assert_allclose(np.unique(ours[name]), np.unique(theirs[name]))


# What eager TensorFlow converts by itself, and a graph refuses.
ARGUMENTS = {
    "pixels": {"width_shift_range": 2, "height_shift_range": 5},
    "list": {"width_shift_range": [0.1, 0.2], "height_shift_range": (-3, 0, 3)},
    "range": {"width_shift_range": range(5), "height_shift_range": range(-2, 3)},
    "negative": {"rotation_range": -20, "shear_range": -0.5, "zoom_range": -0.2},
    "switches": {"horizontal_flip": 1, "vertical_flip": np.bool_(True)},
    "numpy": {
        "rotation_range": np.float32(20),
        "width_shift_range": np.array([1, 2]),
        "height_shift_range": np.int64(4),
        "zoom_range": np.array([0.8, 1.2]),
        "horizontal_flip": np.True_,
        "seed": np.int64(3),
    },
    "none": {"rotation_range": None, "width_shift_range": None, "horizontal_flip": True},
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_every_kind_of_argument_works_in_every_graph(pixels, arguments):
    arguments = {"seed": 3, **arguments}
    seeds = example_seeds(7, 3, tf.range(len(pixels)))
    layer = RandomAffine(**arguments)
    eager = layer.augment(pixels, seeds).numpy()
    (mapped,) = tf.data.Dataset.from_tensors((pixels, seeds)).map(layer.augment)
    np.testing.assert_array_equal(mapped, eager)
    # XLA draws other numbers from the same seed: they are drawn outside.
    compiled = tf.function(layer.apply, jit_compile=True)
    np.testing.assert_array_equal(compiled(tf.constant(pixels), layer.draw(seeds)), eager)
    assert (eager != pixels).any()

    called = layer(pixels, training=True).numpy()
    for jit_compile in (False, True):
        again = RandomAffine(**arguments)
        model = keras.Sequential([keras.Input(pixels.shape[1:], dtype="uint8"), again])
        train = tf.function(lambda x, m=model: m(x, training=True), jit_compile=jit_compile)
        augmented = train(tf.constant(pixels))
        if not jit_compile:
            np.testing.assert_array_equal(augmented, called)
        assert np.any(augmented != pixels)


def test_whole_pixels_need_no_memory():
    shifts = draws(RandomAffine(width_shift_range=10**12))["ty"]
    assert np.abs(shifts).max() < 10**12
    assert shifts.std() > 10**11


def test_parameters_are_independent():
    parameters = np.stack(list(draws(RandomAffine(**STRONG)).values()))
    correlations = np.corrcoef(parameters) - np.eye(len(NAMES))
    neighbours = [np.corrcoef(values[:-1], values[1:])[0, 1] for values in parameters]
    assert np.abs(correlations).max() < 0.07  # More than four standard errors of 4,000 draws.
    assert np.abs(neighbours).max() < 0.07


def test_seeds_differ_for_every_seed_epoch_and_row():
    seeds = [
        tuple(pair)
        for seed in (-1, 0, 1, 2**31 - 1)
        for epoch in (0, 1, 2**31)
        for pair in example_seeds(seed, epoch, tf.constant([0, 1, 2**40 - 1])).numpy()
    ]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    "layer",
    [RandomAffine(**STRONG), RandomIntensity((0.5, 1.5), 80)],
    ids=["affine", "intensity"],
)
def test_pixels_do_not_depend_on_the_batch(layer):
    array = np.random.default_rng(0).integers(0, 256, (SETS, 32, 32, 3), np.uint8)

    def augment(rows):
        return layer.augment(tf.gather(array, rows), example_seeds(7, 3, rows))

    def epoch(batch_size):
        batches = tf.data.Dataset.range(SETS).batch(batch_size).map(augment, num_parallel_calls=2)
        return np.concatenate(list(batches.as_numpy_iterator()))

    whole = epoch(SETS)
    for batch_size in (1, 7, 32):
        np.testing.assert_array_equal(epoch(batch_size), whole)
    assert len(np.unique(whole.reshape(SETS, -1), axis=0)) == SETS


def test_layer_does_nothing_unless_it_trains(pixels):
    layer = RandomAffine(**STRONG)
    np.testing.assert_array_equal(layer(pixels), pixels)
    np.testing.assert_array_equal(layer(pixels, training=False), pixels)
    assert np.any(layer(pixels, training=True) != pixels)


def test_layer_draws_anew_for_each_call_and_again_from_the_same_seed(pixels):
    first, again = RandomAffine(**STRONG, seed=1), RandomAffine(**STRONG, seed=1)
    calls = [first(pixels, training=True).numpy() for _ in range(2)]
    assert np.any(calls[0] != calls[1])
    for call in calls:
        np.testing.assert_array_equal(again(pixels, training=True), call)


def test_single_picture_is_augmented_as_a_batch_of_one(pixels):
    single = RandomAffine(**STRONG, seed=1)(pixels[0], training=True)
    batch = RandomAffine(**STRONG, seed=1)(pixels[:1], training=True)
    np.testing.assert_array_equal(single, batch[0])


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
def test_output_has_the_inputs_shape_and_dtype(pixels, dtype, policy):
    layer = RandomAffine(**STRONG, dtype=policy)
    symbolic = layer(keras.Input(pixels.shape[1:], dtype=dtype))
    assert symbolic.dtype == layer(pixels.astype(dtype), training=True).dtype == dtype
    assert symbolic.shape == layer.compute_output_shape((None, 24, 31, 3)) == (None, 24, 31, 3)


def test_config_restores_the_layer(pixels):
    arguments = {
        **STRONG,
        "width_shift_range": [1, 2],
        "zoom_range": [0.5, 1.5],
        "fill_mode": "constant",
        "cval": 3.0,
        "interpolation": "nearest",
        "seed": 5,
    }
    layer = RandomAffine(**arguments, name="affine")
    config = keras.saving.serialize_keras_object(layer)
    restored = keras.saving.deserialize_keras_object(config)
    assert config["registered_name"] == "pizza_steak>RandomAffine"
    assert restored.get_config() == layer.get_config()
    assert arguments.items() <= layer.get_config().items()
    np.testing.assert_array_equal(restored(pixels, training=True), layer(pixels, training=True))


def small_model() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((24, 31, 3), dtype="uint8"),
            RandomAffine(**STRONG, seed=1),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_model_trains_and_is_saved(pixels, tmp_path, jit_compile):
    model = small_model()
    model.compile("sgd", "mse", jit_compile=jit_compile)
    model.fit(pixels, np.zeros(40), batch_size=16, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        restored.predict(pixels, verbose=0), model.predict(pixels, verbose=0)
    )
    np.testing.assert_array_equal(
        restored.layers[0](pixels, training=True),
        RandomAffine(**STRONG, seed=1)(pixels, training=True),
    )


def test_two_replicas_train(run_python):
    code = """
import keras, numpy as np, tensorflow as tf
from pizza_steak.augmentation import RandomAffine
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = RandomAffine(rotation_range=20, horizontal_flip=True, seed=1)
    model = keras.Sequential([keras.Input((8, 8, 1)), layer, keras.layers.Flatten(),
                              keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
images = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype("float32")
model.fit(images, np.ones(20), batch_size=8, epochs=2, verbose=0)
images = tf.constant(images[:4])
for _ in range(2):
    results = strategy.run(tf.function(lambda: layer(images, training=True)))
    print(*[tf.reduce_mean(tf.abs(result - images)).numpy() for result in
            strategy.experimental_local_results(results)])
"""
    first, second = (line.split() for line in run_python(code).splitlines()[-2:])
    assert len(first) == len(second) == 2
    assert set(first).isdisjoint(second)
    assert "0.0" not in first + second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotation_range": np.nan}, "rotation_range=nan: expected a finite number"),
        ({"rotation_range": [20]}, r"rotation_range=\[20\]: expected a finite number"),
        ({"shear_range": "0.2"}, "shear_range=0.2: expected a finite number"),
        ({"width_shift_range": np.inf}, "width_shift_range=inf: expected a finite number, or a"),
        ({"height_shift_range": [1, np.nan]}, r"height_shift_range=\[1, nan\]: expected a finite"),
        ({"height_shift_range": [[1], [2]]}, r"height_shift_range=\[\[1\], \[2\]\]: expected a"),
        ({"height_shift_range": [[1], 2]}, r"height_shift_range=\[\[1\], 2\]: expected a finite"),
        ({"zoom_range": np.eye(3)}, r"zoom_range=\[\[1. 0. 0.\] .*: expected a finite number or a"),
        ({"zoom_range": [0.5]}, r"zoom_range=\[0.5\]: expected a finite number or a pair"),
        ({"zoom_range": (1, 2, 3)}, r"zoom_range=\(1, 2, 3\): expected a finite number or a pair"),
        ({"zoom_range": None}, "zoom_range=None: expected a finite number or a pair"),
        ({"horizontal_flip": "no"}, "horizontal_flip=no: expected True or False"),
        ({"seed": 1.5}, "seed=1.5: expected None, or a whole number of 64 bits"),
        ({"seed": 2**63}, f"seed={2**63}: expected None, or a whole number of 64 bits"),
        ({"fill_mode": "mirror"}, r"fill_mode='mirror': expected one of \('constant',"),
        ({"interpolation": "cubic"}, r"interpolation='cubic': expected one of \('bilinear',"),
        ({"cval": 1.0}, "cval=1.0 has no use with fill_mode='nearest'; expected fill_mode="),
    ],
)
def test_bad_argument_gets_one_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        RandomAffine(**arguments)


# RandomIntensity


def test_intensity_is_image_data_generators(noise):
    images = np.round(noise * 0.8 + 20)  # Whole numbers, and room to either side.
    seeds = example_seeds(0, 0, tf.range(SETS))
    brightness, shift = draw_uniforms(seeds, 2, 1).numpy().T
    layer = RandomIntensity(brightness_range=(0.4, 1.8), channel_shift_range=60)
    ours = layer.augment(images, seeds).numpy()
    generator = image_data_generator(brightness_range=(0.4, 1.8), channel_shift_range=60)
    for index in range(SETS):
        parameters = {
            "brightness": 0.4 + 1.4 * brightness[index],
            "channel_shift_intensity": 60 * (2 * shift[index] - 1),
        }
        theirs = generator.apply_transform(images[index], parameters)
        # It cuts a fraction off before it multiplies, and another one after.
        assert np.abs(ours[index] - theirs).max() < parameters["brightness"] + 1
    assert ours.std() > 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"brightness_range": np.array([0.5, 1.5]), "channel_shift_range": np.int64(60)},
        {"brightness_range": [-0.5, 1.5], "channel_shift_range": -60, "seed": np.int64(3)},
        {"brightness_range": (1.5, 0.5), "channel_shift_range": None},
    ],
    ids=["numpy", "negative", "reversed"],
)
def test_every_kind_of_intensity_works_in_every_graph(pixels, arguments):
    seeds = example_seeds(7, 3, tf.range(len(pixels)))
    layer = RandomIntensity(**arguments)
    eager = layer.augment(pixels, seeds).numpy()
    (mapped,) = tf.data.Dataset.from_tensors((pixels, seeds)).map(layer.augment)
    np.testing.assert_array_equal(mapped, eager)
    compiled = tf.function(layer.apply, jit_compile=True)
    np.testing.assert_array_equal(compiled(tf.constant(pixels), layer.draw(seeds)), eager)
    brightness, shift = layer.draw(seeds).numpy().T
    low, high = arguments["brightness_range"]
    largest = arguments["channel_shift_range"] or 0
    generator = image_data_generator(brightness_range=[low, high], channel_shift_range=largest)
    for index, image in enumerate(pixels):
        parameters = {
            "brightness": low + (high - low) * brightness[index],
            "channel_shift_intensity": (2 * shift[index] - 1) * largest,
        }
        theirs = generator.apply_transform(image.astype(np.float32), parameters)
        # It cuts a fraction off before it multiplies, and another one after.
        assert np.abs(eager[index] - theirs).max() < max(parameters["brightness"], 0) + 1.5


def test_intensity_draws_within_its_ranges_and_apart_from_the_geometry():
    seeds = example_seeds(0, 0, tf.range(4000))
    affine = draw_uniforms(seeds, len(NAMES), 0).numpy()
    intensity = draw_uniforms(seeds, 2, 1).numpy()
    both = np.corrcoef(np.concatenate([affine, intensity], axis=1).T) - np.eye(10)
    assert np.abs(both).max() < 0.07
    grey = np.full((4000, 1, 1, 3), 100, np.float32)
    factors = RandomIntensity((0.5, 1.5)).augment(grey, seeds).numpy()[:, 0, 0, 0] / 100
    assert 0.5 <= factors.min() < 0.52 and 1.48 < factors.max() <= 1.5
    assert factors.mean() == pytest.approx(1, abs=0.02)


def test_intensity_without_ranges_gives_the_same_bits(pixels):
    images = RandomIntensity()(pixels, training=True)
    assert images.dtype == "uint8"
    np.testing.assert_array_equal(images, pixels)


def test_intensity_is_restored_from_its_config(pixels):
    layer = RandomIntensity((0.5, 0.9), 30, seed=4)
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    images = layer(pixels, training=True)
    np.testing.assert_array_equal(again(pixels, training=True), images)
    assert not np.array_equal(images, pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brightness_range": 0.2}, "brightness_range=0.2: expected a pair"),
        ({"brightness_range": (1, np.inf)}, r"brightness_range=\(1, inf\): expected a pair"),
        ({"brightness_range": [1, 1, 1]}, r"brightness_range=\[1, 1, 1\]: expected a pair"),
        ({"channel_shift_range": np.nan}, "channel_shift_range=nan: expected a finite number"),
    ],
)
def test_bad_intensity_gets_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomIntensity(**arguments)


# Layers that are saved


def test_every_layer_is_loaded_in_a_fresh_process(pixels, tmp_path, run_python):
    layers = [RandomAffine(**arguments) for arguments in ARGUMENTS.values()]
    layers += [
        RandomAffine(width_shift_range=range(5), fill_mode="constant", cval=np.uint8(3)),
        RandomIntensity(np.array([0.8, 1.2]), np.float32(20), seed=np.int64(3)),
        RandomIntensity(range(1, 3), np.int8(2)),
        SamplewiseNormalization(np.True_, np.False_),
    ]
    for number, layer in enumerate(layers):
        model = keras.Sequential([keras.Input(pixels.shape[1:]), layer])
        model.save(tmp_path / f"{number}.keras")
    code = """
import json, pathlib, sys
import keras
import pizza_steak.augmentation, pizza_steak.normalization
for number in range(int(sys.argv[2])):
    (layer,) = keras.models.load_model(pathlib.Path(sys.argv[1], f"{number}.keras")).layers
    print(json.dumps(layer.get_config()))
"""
    output = run_python(code, tmp_path, len(layers), fresh=True)
    loaded = [json.loads(line) for line in output.splitlines()]
    assert loaded == [json.loads(json.dumps(layer.get_config())) for layer in layers]
