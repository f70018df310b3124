"""What --model names beyond the networks built here: where it comes from, and what is trained."""

import shutil
import urllib.error

import keras
import numpy as np
import pytest
from small_runs import (
    SIZE,
    fit,
    fit_and_stop,
    layout,
    parse_flags,
    pictures,
    plan_of,
    run_command,
    train_and_test,
    write_backbone,
)

from pizza_steak.errors import UserError
from trainers import setup
from trainers.configuration import ArtifactConfig, EvaluateConfig, EvaluationConfig, ModelConfig
from trainers.finished import evaluation, exporting, prediction
from trainers.models import applications, backbones, nested, networks
from trainers.runs.run_directory import open_run, plan
from trainers.training import descriptions

CLASSES = ("dark", "light", "middle")
SMALL = (SIZE, SIZE, 3)

FUNCTIONS = """
import keras

def build(image_shape, num_classes):
    units, activation = (1, "sigmoid") if num_classes == 2 else (num_classes, "softmax")
    return keras.Sequential([
        keras.Input(image_shape),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, strides=4, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.5),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(units, activation=activation),
    ])

def softmax_of_two(image_shape, num_classes):
    layers = [keras.Input(image_shape), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([*layers, keras.layers.Dense(num_classes, activation="softmax")])

@keras.saving.register_keras_serializable()
class Halved(keras.layers.Layer):
    def call(self, x):
        return x / 2

def with_a_layer_of_its_own(image_shape, num_classes):
    layers = [keras.Input(image_shape), Halved(), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([*layers, keras.layers.Dense(1, activation="sigmoid")])

def failing(image_shape, num_classes):
    raise RuntimeError("no more ideas\\nat all")

def returning_a_layer(image_shape, num_classes):
    return keras.layers.Dense(3)

def without_head(image_shape, num_classes):
    return keras.Sequential([keras.Input(image_shape), keras.layers.Conv2D(4, 3)])

def logits(image_shape, num_classes):
    layers = [keras.Input(image_shape), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(1)])

def for_other_images(image_shape, num_classes):
    return build((8, 8, 1), num_classes)

def for_vectors(image_shape, num_classes):
    return keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, activation="sigmoid")])

not_a_function = 3
"""


def of(model: str, **options) -> ModelConfig:
    return ModelConfig(model=model, **options)


def built(config: ModelConfig, classes=CLASSES[:2], shape=SMALL, **options) -> networks.Network:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    return networks.build(config, shape, classes, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with own.py and backbones: small.keras, any.keras, grey.keras, other.keras."""
    folder = tmp_path_factory.mktemp("backbones")
    (folder / "own.py").write_text(FUNCTIONS)
    (folder / "broken.py").write_text("import no_such_module")
    write_backbone(folder / "small.keras")
    write_backbone(folder / "any.keras", size=None)
    write_backbone(folder / "grey.keras", channels=1)
    inputs = keras.Input(SMALL)
    x = keras.layers.Conv2D(2, 3, name="convolved")(inputs)
    x = keras.layers.Lambda(lambda x: x * 2)(x)
    keras.Model(inputs, keras.layers.Flatten()(x)).save(folder / "lambda.keras")
    convolved = keras.Model(inputs, keras.layers.Conv2D(2, 3, name="convolved")(inputs))
    convolved.save(folder / "convolved.keras")
    keras.Model(inputs, [convolved.output, convolved.output]).save(folder / "two_outputs.keras")
    (folder / "text.keras").write_text("no model")
    return folder


@pytest.fixture(scope="module")
def finished(head_flags, tmp_path_factory):
    """The run directory of a head with a dense layer, trained on a backbone for two classes."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    flags = ["--dense_layers=1", "--dense_units=5", "--epochs=2", f"--run_dir={run_dir}"]
    return fit(*head_flags, *flags).run_dir


# What --model may be.


@pytest.mark.parametrize(
    "model", ["tinyvgg", "mobilenetv3small", "MobileNetV3Small", "own.py:build", "own:build"]
)
def test_every_kind_of_model_is_found(folder, monkeypatch, model):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    weights = "none" if "mobile" in model.lower() else None
    network = built(of(model, weights=weights), CLASSES)
    assert network.model.input_shape == (None, *SMALL)
    assert network.model.output_shape == (None, 3)


def test_a_run_and_a_file_are_found(finished, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for model in (str(finished), f"{finished}/", "small.keras", f"{folder}/any.keras"):
        network = built(of(model), CLASSES)
        assert network.model.output_shape == (None, 3)
        assert network.features.output_shape == (None, 6)
    monkeypatch.chdir(finished.parent)
    assert built(of(finished.name)).features.output_shape == (None, 6)


def test_a_name_comes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinyvgg").mkdir()
    assert setup.resolved(parse_flags("--model=tinyvgg")).model.model == "tinyvgg"


def test_run_flags_and_run_directory_name_the_file(head_flags, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    for model, name in (
        ("small.keras", "small"),
        ("own.py:build", "own"),
        ("efficientnetb1", "efficientnetb1"),
    ):
        flags = [flag for flag in head_flags if not flag.startswith("--dropout")]
        config = setup.resolved(parse_flags(*flags, f"--model={model}", "--weights=own.weights.h5"))
        run = plan(config)
        assert run.path.parent == folder / "runs"
        assert run.path.name.startswith(f"{name}-2")
        said = model if model == "efficientnetb1" else f"{folder}/{model}"
        assert f"--model={said}\n" in run.flags
        assert f"--weights={folder}/own.weights.h5\n" in run.flags


# Networks of keras.applications.

PREPROCESSING = {
    "vgg16": keras.applications.vgg16,  # caffe
    "mobilenet": keras.applications.mobilenet,  # tf
    "densenet121": keras.applications.densenet,  # torch
    "mobilenetv3small": keras.applications.mobilenet_v3,  # none
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_is_that_of_the_network(tmp_path, name):
    backbone = backbones.build(of(name, weights="none"), SMALL, CLASSES).model
    images = np.random.default_rng(0).uniform(0, 255, (3, *SMALL)).astype(np.float32)
    original = backbone.layers[-1]
    expected = original(PREPROCESSING[name].preprocess_input(images.copy()), training=False)
    limit = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(backbone(images, training=False), expected, atol=limit)
    backbone.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(loaded(images, training=False), expected, atol=limit)


@pytest.mark.parametrize("name", ["MobileNet", "Xception", "EfficientNetV2B1"])
def test_an_application_gets_images_of_its_own_size(name):
    network = getattr(keras.applications, name)(weights=None)
    size = backbones.image_size(of(name.lower()))
    assert network.input_shape[1:3] == (size, size)


def test_every_application_is_offered():
    found = applications.functions()
    assert len(found) == 40
    assert all(callable(vars(keras.applications)[f.__name__]) for f in found.values())
    assert found.keys() >= applications._SIZES.keys()
    modules = {function.__module__.rpartition(".")[2] for function in found.values()}
    assert modules - {"resnet_v2"} == applications._LICENCES.keys()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A file of weights that MobileNetV3Small has without its last layers, and the weights."""
    options = {"include_top": False, "weights": None, "pooling": "avg", "input_shape": SMALL}
    network = keras.applications.MobileNetV3Small(**options)
    path = tmp_path_factory.mktemp("weights") / "own.weights.h5"
    network.save_weights(path)
    return path, network.get_weights()


def test_weights_come_from_a_file(weights_file):
    path, expected = weights_file
    network = built(of("mobilenetv3small", weights=str(path)))
    for weight, other in zip(network.backbone.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, other)
    assert network.trainable == 0
    assert network.origin == {"weights": str(path)}
    assert built(of("mobilenetv3small", weights="none")).trainable == float("inf")


def test_weights_that_cannot_be_downloaded_are_named(tmp_path, monkeypatch):
    def fail(url, *arguments):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.src.backend.config, "_KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(keras.src.utils.file_utils, "urlretrieve", fail)
    message = refusal(of("mobilenetv3small"))
    assert message.startswith("weights of mobilenetv3small: cannot be downloaded; fetch https://")
    assert "small_224_1.0_float_no_top_v2.h5 where there is a network" in message
    assert f"put it into {tmp_path}/models, or pass --weights=none" in message

    def break_off(url, *arguments):
        raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(keras.src.utils.file_utils, "urlretrieve", break_off)
    assert refusal(of("mobilenetv3small")) == (
        "weights of mobilenetv3small: cannot be downloaded (Connection reset by peer); run the "
        "command again"
    )


def refusal(config: ModelConfig, shape=SMALL) -> str:
    with pytest.raises(UserError) as caught:
        built(config, shape=shape)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_weights_that_do_not_fit_are_named(weights_file, tmp_path):
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    for path in (tmp_path / "other.weights.h5", tmp_path / "text.weights.h5"):
        if "text" in path.name:
            path.write_text("no weights")
        assert f"weights {path}: are not those of mobilenetv3small without its last layers" in (
            refusal(of("mobilenetv3small", weights=str(path)))
        )
    missing = refusal(of("mobilenetv3small", weights="/nowhere/a.weights.h5"))
    assert missing == (
        "weights /nowhere/a.weights.h5: no such file; expected imagenet, none or a file"
    )


def test_images_that_an_application_does_not_take_are_named():
    grey = refusal(of("mobilenet", weights="none"), (SIZE, SIZE, 1))
    assert "takes images of 3 channels, not 1; expected --color_mode=rgb" in grey
    assert "'xception'" in refusal(of("xception", weights="none"))


# The size of the images.


def test_images_have_the_size_that_the_model_wants(folder, finished, head_flags, tmp_path):
    def size(*flags):
        return setup.resolved(parse_flags(*flags)).data.image_size

    assert size(f"--model={folder}/small.keras") == (SIZE, SIZE)
    assert size(f"--model={folder}/any.keras") == 224
    assert size(f"--model={folder}/own.py:build") == 224
    assert size("--model=efficientnetb1") == 240
    assert size("--model=tinyvgg") == 224
    assert size(f"--model={finished}") == (SIZE, SIZE)
    assert size(f"--model={folder}/any.keras", "--image_size=20") == 20
    assert f"--image_size={SIZE},{SIZE}\n" in (finished / "run.flags").read_text()


# The head.


def test_a_head_is_new_where_the_classes_differ(finished):
    saved = keras.models.load_model(finished / "model.keras")
    images = np.concatenate([pictures("test/dark", 3), pictures("test/light", 3)])
    same = built(of(str(finished)))
    np.testing.assert_allclose(
        same.model.predict(images, verbose=0), saved.predict(images, verbose=0), rtol=1e-5
    )
    assert [layer.name for layer in same.head.layers][-1] == "probabilities"
    assert same.trainable == float("inf")
    for classes in (CLASSES, ("light", "dark"), ("dark", "middle")):
        other = built(of(str(finished)), classes)
        assert other.model.output_shape[-1] == (1 if len(classes) == 2 else 3)
        assert other.trainable == 0
        assert len(other.head.weights) == 2  # One dense layer, in place of the two of the run.


def test_a_file_keeps_its_head_where_the_number_of_classes_is_the_same(folder):
    images = pictures("test/dark", 3)
    expected = keras.models.load_model(folder / "small.keras").predict(images, verbose=0)
    five = built(of(f"{folder}/small.keras"), tuple("abcde"))
    np.testing.assert_allclose(five.model.predict(images, verbose=0), expected, rtol=1e-5)
    assert built(of(f"{folder}/small.keras"), CLASSES).model.output_shape == (None, 3)


@pytest.mark.parametrize("name", ["dense", "images", "probabilities"])
def test_a_network_may_have_the_name_of_a_layer(folder, tmp_path, name):
    path = shutil.copy(folder / "small.keras", tmp_path / f"{name}.keras")
    model = built(of(str(path), dense_layers=1), CLASSES).model
    assert model.name == name
    assert model.output_shape == (None, 3)


def test_a_softmax_or_relu_of_its_own_is_kept(tmp_path):
    layers = keras.layers
    relu, x = layers.ReLU(), layers.GlobalAveragePooling2D()(inputs := keras.Input(SMALL))
    for units in (8, 4):
        x = relu(layers.Dense(units)(x))  # Shared by two calls.
    model = keras.Model(inputs, layers.Softmax()(layers.Dense(3)(x)))
    model.save(tmp_path / "own.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, *SMALL)).astype(np.float32)
    network = built(of(f"{tmp_path}/own.keras"), CLASSES)
    np.testing.assert_allclose(network.model(images), model(images), rtol=1e-5)
    assert len(network.head.weights) == 6
    assert network.backbone.output_shape == (None, 3)


def test_a_network_of_mixed_precision_keeps_layers_that_need_float32():
    inputs = keras.Input((4,))
    x = keras.layers.Normalization(mean=1, variance=2, dtype="float32")(inputs)
    x = keras.layers.Dense(3, dtype="mixed_float16")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(x))
    assert nested.in_precision(model, keras.DTypePolicy("mixed_float16")) is model
    other = nested.in_precision(model, keras.DTypePolicy("mixed_bfloat16"))
    dtypes = [layer.dtype_policy.name for layer in nested.all_layers(other)]
    assert dtypes == ["float32", "mixed_bfloat16", "float32"]


def test_flags_of_a_head_that_is_kept_say_what_it_is(folder, finished):
    network, five = f"{folder}/small.keras", tuple("abcde")  # It has a dropout of 0.2.
    assert built(of(network, dropout=0.2), five).model.output_shape == (None, 5)
    for options, told in (
        ({"dropout": 0.5}, f"dropout 0.5: {network} keeps its last layers, which have 0.2; "),
        ({"dense_layers": 1}, f"dense_layers 1: {network} keeps its last layers, which have none"),
        ({"dense_units": 8}, "dense_units 8: "),
        ({"batch_normalization": True}, "batch_normalization True: "),
    ):
        with pytest.raises(UserError) as caught:
            built(of(network, **options), five)
        assert str(caught.value).startswith(told)
        assert built(of(network, **options), CLASSES).model.output_shape == (None, 3)
        assert built(of(network, features="pooled", **options), five).trainable == 0
    # The run has a dense layer of its own.
    assert built(of(str(finished), dense_layers=1)).model.output_shape == (None, 1)


def test_features_are_the_inputs_of_the_last_dense_layers_or_named(folder, finished):
    assert built(of(f"{folder}/small.keras")).backbone.layers[-1].name == "pooled"
    network = built(of(f"{folder}/small.keras", features="classes"))
    assert network.features.output_shape == (None, 5)
    # Those of the run's dense layer, in place of its backbone's.
    dense = next(
        layer.name
        for layer in keras.models.load_model(finished / "model.keras").layers
        if isinstance(layer, keras.layers.Dense)
    )
    assert built(of(str(finished), features=dense)).features.output_shape == (None, 5)
    assert built(of(str(finished))).features.output_shape == (None, 6)


# What is trained.


def trained(flags, *more) -> tuple[setup.Setup, set[str]]:
    """A network after an epoch of its last stage, and the paths of its variables that changed."""
    ready = setup.prepare(parse_flags(*flags, *more))
    model = ready.compiled(ready.stages[-1])
    before = [weight.numpy() for weight in model.weights]
    model.fit(ready.data.batches("train", 8), verbose=0)
    changed = {
        weight.path
        for weight, value in zip(model.weights, before, strict=True)
        if (weight.numpy() != value).any()
    }
    return ready, changed


HEAD = {"probabilities/kernel", "probabilities/bias"}
NORMALIZED_1 = {"normalized_1/gamma", "normalized_1/beta"}
CONVOLVED_1 = {"conv_1/kernel"}
ALL = HEAD | NORMALIZED_1 | CONVOLVED_1
ALL |= {"conv_0/kernel", "normalized_0/gamma", "normalized_0/beta"}


@pytest.mark.parametrize(
    "flags, expected",
    [
        ((), HEAD),
        (("--trainable=head",), HEAD),
        (("--trainable=4",), HEAD | NORMALIZED_1),  # And relu_1, dropped_1 and pooled.
        (("--trainable=5",), HEAD | NORMALIZED_1 | CONVOLVED_1),
        (("--trainable=1000",), ALL),
        (("--trainable=all",), ALL),
        (("--head_epochs=1",), ALL),
        (("--head_epochs=1", "--trainable=4"), HEAD | NORMALIZED_1),
    ],
)
def test_what_a_step_changes(head_flags, flags, expected):
    _, changed = trained(head_flags, *flags)
    assert changed == expected


def test_the_layers_of_an_application_are_counted_one_by_one():
    network = built(of("mobilenetv3small", weights="none", trainable="6"), CLASSES)
    network.set_trainable(network.trainable)
    count = sum(layer.trainable for layer in nested.all_layers(network.backbone))
    assert count == 6
    assert 2 < len(network.model.trainable_variables) < 8
    network.set_trainable(float("inf"))
    trainable = network.model.trainable_variables
    assert len(trainable) > 100
    network.set_trainable(0)
    assert {variable.path for variable in network.model.trainable_variables} == HEAD


def test_a_pretrained_backbone_computes_as_in_inference(folder):
    images = pictures("test/dark", 4).astype(np.float32)
    original = keras.models.load_model(folder / "small.keras")
    expected = keras.Model(original.input, original.get_layer("pooled").output)(images)
    for options in ({}, {"trainable": "4"}, {"trainable": "all"}):
        features = built(of(f"{folder}/small.keras", **options)).features
        np.testing.assert_allclose(features(images, training=True), expected, rtol=1e-5)


def test_random_weights_are_trained_as_in_training(folder):
    images = np.random.default_rng(0).uniform(0, 255, (4, *SMALL)).astype(np.float32)
    free, frozen = (
        built(of("mobilenetv3small", weights="none", trainable=what)).features
        for what in ("all", "head")
    )
    for features, changes in ((free, True), (frozen, False)):
        before = [weight.numpy() for weight in features.weights]
        features(images, training=True)
        after = [weight.numpy() for weight in features.weights]
        changed = any((a != b).any() for a, b in zip(after, before, strict=True))
        assert changed == changes


def test_a_backbone_that_is_used_again_changes_nothing(head_flags, tmp_path):
    flags = [*head_flags, "--epochs=2", "--dense_layers=1"]
    backbones.forget()
    first = fit(*flags, f"--run_dir={tmp_path}/first")
    again = fit(*flags, f"--run_dir={tmp_path}/again")
    assert first.values["history"] == again.values["history"]
    # A run that was started with a new backbone goes on with one that is used again.
    backbones.forget()
    fit_and_stop(*flags, f"--run_dir={tmp_path}/stopped", epoch=1)
    resumed = fit(*flags, f"--run_dir={tmp_path}/stopped", "--resume")
    assert resumed.values["history"] == first.values["history"]
    # The head of a run is trained, and must not be used again.
    flags = [*head_flags, "--epochs=2", f"--model={first.run_dir}", "--trainable=head"]
    third = fit(*flags, f"--run_dir={tmp_path}/third")
    fourth = fit(*flags, f"--run_dir={tmp_path}/fourth")
    assert third.values["history"] == fourth.values["history"]


def test_the_plan_says_what_is_trained_and_where_features_come_from(head_flags, monkeypatch):
    def said(*flags):
        config = setup.resolved(parse_flags(*head_flags, "--run_dir=/tmp/nowhere", *flags))
        text = descriptions.plan_table(setup.prepare(config), plan(config))
        return plan_of(text)

    table = said()
    assert table["model"].endswith("parameters, the head trained")
    assert table["features"] == "computed once and kept"
    table = said("--horizontal_flip", "--head_epochs=2", "--trainable=3")
    assert table["model"].endswith(
        "the head trained for 2 epochs, then the head and the last 3 layers before it"
    )
    assert table["features"].startswith("computed in each step; --augmentation_cycle=10 keeps")
    assert "then 0.001" in table["training"]
    table = said("--horizontal_flip", "--augmentation_cycle=3")
    assert table["features"] == "computed once and kept, of 3 versions of each image"
    assert "features" not in said("--trainable=all")
    ready = setup.prepare(
        parse_flags(*head_flags, "--head_epochs=1", "--scale_learning_rate=linear")
    )
    monkeypatch.setattr(type(ready.chosen), "replicas", 2)
    training = plan_of(descriptions.plan_table(ready, plan(ready.config)))["training"]
    assert "learning rate 0.02 (0.01 a replica), then 0.002," in training


# In another precision than it was saved in.


@pytest.mark.parametrize("precision", ["mixed_float16", "float64"])
def test_a_loaded_backbone_has_the_precision_of_the_run(head_flags, folder, precision):
    try:
        ready = setup.prepare(parse_flags(*head_flags, f"--precision={precision}"))
        policies = {layer.dtype_policy.name for layer in nested.all_layers(ready.network.backbone)}
        digest = backbones.digest(ready.network.features)
    finally:
        keras.config.set_floatx("float32")
    assert policies == {precision}
    assert ready.network.head.layers[-1].compute_dtype == precision.removeprefix("mixed_").replace(
        "16", "32"
    )
    if precision == "mixed_float16":
        single = setup.prepare(parse_flags(*head_flags, "--precision=float32"))
        assert digest == backbones.digest(single.network.features)


# Bad input.

BAD_INPUT = {
    "no such name": ("--model=resnet", "'resnet': unknown; expected one of tinyvgg"),
    "no such file": ("--model={here}/no.keras", "no.keras: no such file or folder; expected a"),
    "no such run": ("--model={here}/no/run", "no/run: no such file or folder; expected a"),
    "a folder without a run": ("--model={here}", "{here}: no run there"),
    "no file of functions": ("--model={here}/no.py:build", "no file {here}/no.py"),
    "no module": ("--model=no_such_module:build", "no_such_module cannot be imported"),
    "a module that fails": ("--model={here}/broken.py:build", "broken.py cannot be imported ("),
    "no such function": ("--model={here}/own.py:make", "own.py has no function make"),
    "no function": ("--model={here}/own.py:not_a_function", "has no function not_a_function"),
    "a function that fails": (
        "--model={here}/own.py:failing",
        "failing((32, 32, 3), 2) raised RuntimeError: no more ideas",
    ),
    "a function of a layer": (
        "--model={here}/own.py:returning_a_layer",
        "returned Dense; expected a functional or sequential keras.Model",
    ),
    "a function of features": (
        "--model={here}/own.py:without_head",
        "its output has the shape (None, 30, 30, 4); expected (None, 1) or (None, 2), the",
    ),
    "a function of logits": (
        "--model={here}/own.py:logits",
        "its outputs are no probabilities; expected a last layer with activation='sigmoid'",
    ),
    "a function for other images": (
        "--model={here}/own.py:for_other_images",
        "takes images of 8 x 8 x 1, not 32 x 32 x 3",
    ),
    "code in a file": ("--model={here}/lambda.keras", "lambda.keras: cannot be loaded ("),
    "no Keras model": ("--model={here}/text.keras", "text.keras: cannot be loaded ("),
    "two outputs": ("--model={here}/two_outputs.keras", "expected one input of images and one"),
    "no vector": (
        "--model={here}/convolved.keras",
        "the output of convolved has the shape (None, 30, 30, 2); expected --features to name",
    ),
    "features that are no vector": ("--features=relu_1", "the output of relu_1 has the shape"),
    "no such features": (
        "--features=logits",
        "'logits': {model} has no such layer; its last ones are normalized_1, relu_1, dropped_1,",
    ),
    "images of another size": (
        "--image_size=16",
        "takes images of 32 x 32 x 3, not 16 x 16 x 3; expected --image_size=32,32",
    ),
    "images of other channels": (
        "--model={here}/grey.keras",
        "takes images of 32 x 32 x 1, not 32 x 32 x 3; expected --color_mode=grayscale",
    ),
    "vectors": ("--model={here}/own.py:for_vectors", "expected one input of images and one output"),
    "sizes of blocks": ("--filters=3", "filters 3: has no meaning for --model={model}"),
    "padding of blocks": ("--padding=same", "padding same: has no meaning for --model={model}"),
    "growth of blocks": ("--filter_growth=2", "filter_growth 2.0: has no meaning for"),
    "features of an application": (
        "--model=mobilenet --weights=none --features=conv1",
        "features 'conv1': is for runs and .keras files; mobilenet has",
    ),
    "weights of a file": (
        "--weights=none",
        "weights 'none': only networks of keras.applications take it; {model} has its own weights",
    ),
    "weights of a network built here": ("--model=tinyvgg --weights=none", "weights none: has no"),
    "a part of a network built here": ("--model=tinyvgg --trainable=2", "trainable 2: has no mean"),
    "a part of a function": ("--model={here}/own.py:build --trainable=2", "trainable 2: has no"),
    "head_epochs without a head": ("--model=tinyvgg --head_epochs=1", "has no head of its own"),
    "head_epochs to the end": ("--head_epochs=4", "head_epochs 4: expected fewer than --epochs=4"),
    "head_epochs of the head": ("--head_epochs=1 --trainable=head", "--trainable=head trains noth"),
    "fine_tuning_rate alone": (
        "--fine_tuning_rate=0.1",
        "fine_tuning_rate: is for the epochs after --head_epochs; expected both",
    ),
    "a cycle of Keras's own layers": (
        "--augmentation_cycle=2 --rand_augment=1",
        "augmentation_cycle: Keras's own layers, such as --rand_augment, draw anew",
    ),
    "features on the device": (
        "--data_on_device",
        "data_on_device: has no meaning while the head alone is trained",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_no_run(name, head_flags, folder, tmp_path):
    argv, message = BAD_INPUT[name]
    flags = [flag for flag in head_flags if not flag.startswith("--dropout")]
    model = next(flag.partition("=")[2] for flag in flags if flag.startswith("--model"))
    fill = {"here": folder, "model": model}
    if "own.py" in argv:
        flags.append("--image_size=32")
    with pytest.raises(UserError) as caught:
        fit(*flags, f"--run_dir={tmp_path}/run", *argv.format(**fill).split())
    assert message.format(**fill) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["0", "-1", "some", "1.5"])
def test_trainable_is_head_all_or_a_number(value):
    with pytest.raises(Exception, match="expected head, all, or a number of layers"):
        parse_flags(f"--trainable={value}")


# Finished runs.


@pytest.mark.parametrize("kind", ["onnx", "litert"])
def test_a_run_on_a_backbone_is_exported(finished, tmp_path, kind):
    config = ArtifactConfig(run_dir=str(finished), format=kind, output=f"{tmp_path}/model.{kind}")
    assert exporting.export(open_run(str(finished)), config).difference < 1e-5


def test_a_run_on_a_backbone_evaluates_and_predicts(finished, archive):
    run = open_run(str(finished))
    evaluated = evaluation.evaluate(
        run, EvaluateConfig(evaluation=EvaluationConfig(run_dir=str(finished)))
    )
    assert evaluated.values["accuracy"] == run.result["test_accuracy"]
    assert evaluated.values["loss"] == pytest.approx(run.result["test_loss"], rel=1e-5)
    assert len(prediction.predict(run, [str(archive)]).paths) == 36


def test_a_run_in_half_precision_is_exported_and_a_backbone_itself(head_flags, tmp_path):
    half, second = tmp_path / "half", tmp_path / "second"
    fit(*head_flags, "--precision=mixed_float16", "--epochs=1", f"--run_dir={half}")
    # A nested network within a nested network.
    flags = ["--epochs=1", "--head_epochs=0", "--trainable=2", "--precision=mixed_float16"]
    fit(*head_flags, f"--model={half}", *flags, f"--run_dir={second}")
    for run_dir in (half, second):
        config = ArtifactConfig(run_dir=str(run_dir), format="litert")
        exporting.export(open_run(str(run_dir)), config)


def test_a_run_goes_on_with_other_classes(finished, head_flags, make_archive, tmp_path):
    archive = make_archive(layout(train_and_test(*CLASSES)))
    flags = [f"--archive={archive}", f"--model={finished}", "--epochs=8", "--learning_rate=0.1"]
    result = fit(*head_flags, *flags, f"--run_dir={tmp_path}/run").values
    assert result["classes"] == [*CLASSES]
    assert min(result["history"]["val_loss"]) < result["history"]["val_loss"][0]
    origin = open_run(str(tmp_path / "run")).path / "environment.json"
    assert f'"source": "{finished}"' in origin.read_text()


@pytest.mark.parametrize("function", ["build", "softmax_of_two", "with_a_layer_of_its_own"])
def test_a_function_of_the_users_trains_as_any_network(head_flags, folder, tmp_path, function):
    flags = [flag for flag in head_flags if not flag.startswith("--dropout")]
    flags += [f"--model={folder}/own.py:{function}", "--image_size=32", "--learning_rate=0.1"]
    flags += ["--rotation_range=20", "--horizontal_flip", f"--run_dir={tmp_path}/run"]
    result = fit(*flags, "--epochs=6").values
    losses = result["history"]["val_loss"]
    assert min(losses) < losses[0]
    assert result["test_loss"] == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.slow
def test_a_layer_of_the_users_is_known_to_other_commands_with_its_code(
    head_flags, folder, tmp_path
):
    flags = [flag for flag in head_flags if not flag.startswith("--dropout")]
    flags += [f"--model={folder}/own.py:with_a_layer_of_its_own", "--image_size=32"]
    result = fit(*flags, "--epochs=1", f"--run_dir={tmp_path}/run")
    code = f"--code={folder}/own.py:with_a_layer_of_its_own"
    assert result.summary().count(code) == 3
    argv = [f"--run_dir={tmp_path}/run", *(f for f in flags if f.startswith("--data_dir"))]
    status, stdout, stderr = run_command(*argv, code, command="evaluate")
    assert (status, stderr) == (0, "")
    assert "accuracy" in stdout
    # The run's own files name that code too, but it is not imported because of them.
    status, stdout, stderr = run_command(*argv, command="evaluate")
    assert (status, stdout) == (1, "")
    (line,) = stderr.splitlines()
    assert line.endswith("if it has layers of your own, pass --code=FILE.py")


def test_a_run_stands_on_a_run_of_the_users_function(head_flags, folder, tmp_path):
    plain = [flag for flag in head_flags if not flag.startswith("--dropout")]
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    flags = [*plain, "--epochs=1", "--image_size=32", "--augment_on=device", "--vertical_flip"]
    fit(*flags, f"--model={folder}/own.py:build", f"--run_dir={first}")
    fit(*plain, f"--model={first}", "--epochs=1", f"--run_dir={second}")
    fit(*plain, f"--model={second}", "--epochs=1", "--trainable=head", f"--run_dir={third}")
    images = pictures("test/dark", 3)
    kept = built(of(str(first)))
    expected = keras.models.load_model(first / "model.keras").predict(images, verbose=0)
    np.testing.assert_allclose(kept.model.predict(images, verbose=0), expected, rtol=1e-5)
    for run_dir in (first, second, third):
        network = built(of(str(run_dir)), CLASSES)
        assert network.features.output_shape == (None, 4)  # The filters of its convolution.


def test_a_sequential_file_is_a_backbone(tmp_path):
    layers = [keras.Input(SMALL), keras.layers.Conv2D(3, 3), keras.layers.GlobalMaxPooling2D()]
    model = keras.Sequential([*layers, keras.layers.Dense(7), keras.layers.Softmax()])
    model.save(tmp_path / "sequential.keras")
    network = built(of(f"{tmp_path}/sequential.keras"), CLASSES)
    assert network.features.output_shape == (None, 3)
    assert setup.resolved(parse_flags(f"--model={tmp_path}/sequential.keras")).data.image_size == (
        SIZE,
        SIZE,
    )


def test_layers_that_were_saved_frozen_are_trained_if_asked(tmp_path):
    path = write_backbone(tmp_path / "frozen.keras")
    model = keras.models.load_model(path)
    model.trainable = False
    inputs = keras.Input(SMALL)
    keras.Model(inputs, model(inputs)).save(path)
    network = built(of(str(path), trainable="all"), tuple("abcde"))
    network.set_trainable(network.trainable)
    assert {variable.path for variable in network.model.trainable_variables} >= ALL - HEAD
    assert len(network.head.trainable_variables) == 2
