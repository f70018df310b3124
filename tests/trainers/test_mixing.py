"""MixUp and CutMix: what a training step sees, and runs with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_runs import (
    assert_same_run,
    fit,
    fit_and_stop,
    layout,
    result_of,
    start_command,
    train_and_test,
)

from trainers.configuration import OptimisationConfig
from trainers.models import mixing, networks
from trainers.models.trained_model import TrainedModel

BOTH = ("--mixup=0.4", "--cutmix=1")


def mixing_of(num_classes: int, **options) -> mixing.Mixing:
    return mixing.mixing_of(OptimisationConfig(**options), num_classes)


def plain_images(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Images of one color each: that of their class has the value 200."""
    images = np.zeros((len(labels), 40, 40, num_classes), np.uint8)
    images[np.arange(len(labels)), :, :, labels] = 200
    return images


@pytest.mark.parametrize("options, atol", [({"mixup": 0.4}, 1e-5), ({"cutmix": 1.0}, 0.06)])
def test_labels_have_the_shares_of_the_images(options, atol):
    labels = np.arange(30) % 3
    images, shares = mixing_of(3, **options)(plain_images(labels, 3), labels.astype(np.float32))
    pixels = np.mean(images, axis=(1, 2), dtype=np.float64) / 200
    np.testing.assert_allclose(pixels, shares, atol=atol)  # CutMix rounds edges to whole pixels.
    np.testing.assert_allclose(np.sum(shares, axis=1), 1, rtol=1e-6)
    assert np.mean(np.max(shares, axis=1) < 0.95) > 0.2


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 0.4}])
def test_mixing_is_that_of_keras(options):
    labels = np.float32(np.arange(10) % 3)
    images = plain_images(labels.astype(int), 3)
    layer = (
        keras.layers.MixUp(0.4, seed=7 + mixing._MIXUP)
        if "mixup" in options
        else keras.layers.CutMix((0.4, 0.4), seed=7 + mixing._CUTMIX)
    )
    ours = mixing_of(3, seed=7, **options)
    for _ in range(3):
        expected = layer({"images": np.float32(images), "labels": np.eye(3)[labels.astype(int)]})
        mixed, shares = ours(images, labels)
        np.testing.assert_allclose(mixed, expected["images"])
        np.testing.assert_allclose(shares, expected["labels"])


def test_of_two_classes_the_label_is_the_share_of_the_second():
    labels = np.arange(20) % 2
    images, shares = mixing_of(2, mixup=1.0)(plain_images(labels, 2), labels.astype(np.float32))
    assert shares.shape == (20, 1)
    pixels = np.mean(images, axis=(1, 2), dtype=np.float64) / 200
    np.testing.assert_allclose(pixels[:, 1], shares[:, 0], atol=1e-5)


def test_with_both_a_batch_gets_one_of_the_two():
    labels = np.arange(30) % 3
    images, batch = plain_images(labels, 3), labels.astype(np.float32)
    both = mixing_of(3, mixup=1.0, cutmix=1.0)
    alone = [mixing_of(3, mixup=1.0), mixing_of(3, cutmix=1.0)]
    chosen = []
    for _ in range(40):
        mixed, shares = both(images, batch)
        expected = [each(images, batch) for each in alone]
        (which,) = [n for n in (0, 1) if np.array_equal(mixed, expected[n][0])]
        np.testing.assert_array_equal(shares, expected[which][1])
        chosen.append(which)
    assert 10 <= sum(chosen) <= 30


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_shares_and_the_accuracy_that_of_the_greater(
    num_classes, smoothing
):
    labels = np.float32(np.arange(12) % num_classes)
    images = plain_images(labels.astype(int), 3)
    network = networks.build(
        networks.ModelConfig(filters=2), (40, 40, 3), "abcd"[:num_classes]
    ).model
    model = TrainedModel(network.input, network.output)
    units = model.output_shape[-1]
    model.mixing = mixing_of(num_classes, mixup=1.0)
    model.plain_loss = networks.loss_for(units)
    loss = networks.loss_for(units, smoothing, mixed=True)
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
    batches = tf.data.Dataset.from_tensors((images, labels))
    history = model.fit(batches, validation_data=batches, shuffle=False, verbose=0).history

    mixed, shares = map(np.asarray, mixing_of(num_classes, mixup=1.0)(images, labels))
    outputs = network.predict(mixed, verbose=0)
    if num_classes == 2:
        outputs = np.concatenate([1 - outputs, outputs], axis=1)
        shares = np.concatenate([1 - shares, shares], axis=1)
    smoothed = shares * (1 - smoothing) + smoothing / num_classes
    expected = -np.mean(np.sum(smoothed * np.log(outputs), axis=1))
    assert history["loss"] == pytest.approx([expected], rel=1e-4)
    accuracy = np.mean(np.argmax(outputs, axis=1) == np.argmax(shares, axis=1))
    assert history["accuracy"] == pytest.approx([accuracy])

    network.compile(loss=networks.loss_for(units), metrics=["accuracy"])
    validated = network.evaluate(images, labels, verbose=0)
    assert [history["val_loss"][0], history["val_accuracy"][0]] == pytest.approx(validated)


def test_a_model_that_mixes_is_not_compiled_with_xla_which_cannot_draw():
    network = networks.build(networks.ModelConfig(filters=2), (40, 40, 3), "ab").model
    model = TrainedModel(network.input, network.output)
    model.mixing = mixing_of(2, mixup=1.0)
    with pytest.warns(UserWarning, match="jit_compile"):
        model.compile("sgd", networks.loss_for(1), jit_compile=True)
    assert not model.jit_compile


# Runs.


TWO, THREE = ("dark", "light"), ("dark", "light", "middle")


@pytest.fixture(scope="module", params=[TWO, THREE], ids=["two classes", "three classes"])
def mixed(request, make_archive, small_flags, tmp_path_factory):
    """The flags of a run that mixes, and its directory."""
    flags = [*small_flags, f"--archive={make_archive(layout(train_and_test(*request.param)))}"]
    flags += [*BOTH, "--dropout=0.3", "--label_smoothing=0.1", "--checkpoint_every=2"]
    run_dir = tmp_path_factory.mktemp("mixed") / "run"
    fit(*flags, f"--run_dir={run_dir}")
    return flags, run_dir


@pytest.mark.parametrize(
    "mixed, epoch, step", [(TWO, 1, 2), (THREE, 2, 3), (THREE, 3, None)], indirect=["mixed"]
)
def test_a_stopped_run_draws_as_if_it_had_not_been(mixed, tmp_path, epoch, step):
    flags, whole = mixed
    fit_and_stop(*flags, f"--run_dir={tmp_path}/run", epoch=epoch, step=step)
    fit(*flags, f"--run_dir={tmp_path}/run", "--resume")
    assert_same_run(tmp_path / "run", whole)
    assert result_of(tmp_path / "run")["history"] == result_of(whole)["history"]


def test_images_on_the_device_are_mixed_as_others_are(mixed, tmp_path):
    flags, whole = mixed
    fit(*flags, f"--run_dir={tmp_path}/run", "--data_on_device")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("mixed", [THREE], indirect=True)
def test_the_saved_model_does_not_mix_and_keras_alone_loads_it(mixed, tmp_path):
    _, run_dir = mixed
    code = (
        "import sys, keras; model = keras.models.load_model(sys.argv[1]); "
        "print(*[type(layer).__name__ for layer in model.layers], model.loss.name)"
    )
    model = str(run_dir / "model.keras")
    process = start_command(model, code=code, cwd=tmp_path, fresh=True)
    told, errors = process.communicate()
    assert process.returncode == 0, errors
    *layers, loss = told.split()
    assert layers == [
        *["InputLayer", "Rescaling"],
        *["Conv2D", "MaxPooling2D"] * 2,
        *["Flatten", "Dropout", "Dense"],
    ]
    assert loss == "sparse_categorical_crossentropy"
    assert "mix" not in (run_dir / "summary.txt").read_text()


@pytest.mark.parametrize("precision", ["float64", "mixed_float16"])
def test_images_are_mixed_in_every_precision(small_flags, tmp_path, precision):
    flags = [*small_flags, *BOTH, f"--precision={precision}", "--epochs=2"]
    history = fit(*flags, f"--run_dir={tmp_path}/run").values["history"]
    assert history["loss"][1] < history["loss"][0]


@pytest.mark.parametrize("flag", BOTH)
def test_training_images_are_mixed_in_each_epoch_anew_and_no_others(small_flags, tmp_path, flag):
    flags = [*small_flags, "--learning_rate=0", "--epochs=2"]
    plain = fit(*flags, f"--run_dir={tmp_path}/plain").values["history"]
    history = fit(*flags, flag, f"--run_dir={tmp_path}/mixed").values["history"]
    assert history["val_loss"] == plain["val_loss"]
    assert len({round(loss, 5) for loss in (plain["loss"][0], *history["loss"])}) == 3
