"""Runs with --decoded_cache=none: an unreadable image is found when its batch needs it."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from small_runs import (
    IN_FLOAT64,
    ROOT,
    UNEVEN,
    assert_same_numbers,
    assert_same_run,
    fit,
    fit_and_stop,
    layout,
    parse_flags,
    result_of,
    run_command,
    start_command,
    train_and_test,
)

from pizza_steak import input_pipeline
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import EvaluateConfig
from trainers.finished import evaluation
from trainers.runs.run_directory import open_run

BAD_TRAIN = ["train/dark/00.png", "train/dark/07.png", "train/light/03.png"]
BAD_TEST = ["test/dark/01.png", "test/light/04.png"]
FLAGS = ["--decoded_cache=none", "--batch_size=5", "--epochs=3", "--dropout=0.3"]
FLAGS += ["--rotation_range=20", "--class_weight=balanced"]
SKIP = "--on_bad_image=skip"


@pytest.fixture(scope="module")
def spoilt(make_archive):
    """`spoilt(names)`: the archive of `small_flags`, in which these images are unreadable."""
    files = layout(train_and_test("dark", "light"))

    def make(names):
        return make_archive(files | dict.fromkeys(names, b"no image"))

    return make


@pytest.fixture(scope="module")
def flags(small_flags, spoilt):
    """The flags of a run with unreadable images to train on, but for --run_dir."""
    return [*small_flags, f"--archive={spoilt(BAD_TRAIN)}", *FLAGS]


@pytest.fixture(scope="module")
def skipped(flags, tmp_path_factory):
    """A run that leaves them out."""
    run_dir = tmp_path_factory.mktemp("skipped") / "run"
    return fit(*flags, SKIP, f"--run_dir={run_dir}")


def test_the_number_of_images_left_out_is_said_at_the_end(skipped):
    assert result_of(skipped.run_dir)["bad_train_images"] == len(BAD_TRAIN)
    assert "left out of the training: 3 images that cannot be decoded" in skipped.summary()


def test_a_run_without_unreadable_images_is_the_same_as_from_the_disk(small_flags, tmp_path):
    for name, other in {"disk": ["--decoded_cache=disk"], "none": [], "skip": [SKIP]}.items():
        fit(*small_flags, *FLAGS, *other, f"--run_dir={tmp_path}/{name}")
        assert "bad_train_images" not in result_of(tmp_path / name)
        assert_same_run(tmp_path / name, tmp_path / "disk")


def first_bad_step(flags) -> int:
    """The steps of the first epoch before the first that needs an unreadable image."""
    data = run_data.load(parse_flags(*flags, SKIP).data)
    for step, labels in enumerate(
        labels for _, labels in data.batches("train", 5, seed=42, shuffle=True)
    ):
        if len(labels) < 5 and step < 4:
            return step
    raise AssertionError("another seed is needed")


@pytest.mark.parametrize("steps", ["1", "auto"])
def test_it_ends_at_the_first_one_and_goes_on_without(flags, skipped, tmp_path, steps):
    run_dir = tmp_path / "run"
    given = [*flags, f"--run_dir={run_dir}", "--checkpoint_every=1"]
    before = first_bad_step(flags)
    with pytest.raises(UserError) as caught:
        fit(*given, f"--steps_per_execution={steps}")
    (line,) = str(caught.value).splitlines()
    assert any(name in line for name in BAD_TRAIN) and SKIP in line
    assert before > 0 and f"saved after step {before}" in line and "--resume" in line
    result = fit(*given, SKIP, "--resume")
    assert_same_run(run_dir, skipped.run_dir)
    assert result.values["bad_train_images"] == len(BAD_TRAIN)
    # What comes later knows that they are left out.
    assert open_run(str(run_dir)).config.data.on_bad_image == "skip"


def test_a_run_that_skips_is_resumed_at_any_step(flags, skipped, tmp_path):
    given = [*flags, SKIP, f"--run_dir={tmp_path}/run", "--checkpoint_every=1"]
    fit_and_stop(*given, epoch=1, step=3)
    fit_and_stop(*given, "--resume", epoch=2, step=1)
    fit(*given, "--resume")
    assert_same_run(tmp_path / "run", skipped.run_dir)


def test_before_the_first_backup_it_leaves_nothing(flags, tmp_path):
    status, _, stderr = run_command(*flags, f"--run_dir={tmp_path}/run")
    assert status == 1
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "cannot be decoded: train/" in errors[0] and SKIP in errors[0]
    assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_an_unreadable_test_image_loses_no_training(small_flags, spoilt, tmp_path):
    given = [*small_flags, *FLAGS, f"--archive={spoilt(BAD_TEST)}", "--validation_split=none"]
    given += [f"--run_dir={tmp_path}/run"]
    with pytest.raises(UserError, match=r"cannot be decoded: test/.*saved after epoch 3"):
        fit(*given)
    model = (tmp_path / "run" / "model.keras").read_bytes()
    fit(*given, SKIP, "--resume")
    assert (tmp_path / "run" / "model.keras").read_bytes() == model
    assert result_of(tmp_path / "run")["test_images"] == 10


def test_an_unreadable_validation_image_loses_no_training(small_flags, spoilt, tmp_path):
    bad = spoilt(["test/dark/01.png"])
    given = [*small_flags, f"--archive={bad}", *FLAGS, "--ema=0.8"]
    with pytest.raises(
        UserError, match=r"cannot be decoded: test/.*in epoch 1, saved after step 5"
    ):
        fit(*given, f"--run_dir={tmp_path}/run")
    fit(*given, SKIP, f"--run_dir={tmp_path}/run", "--resume")
    fit(*given, SKIP, f"--run_dir={tmp_path}/skip")
    assert_same_run(tmp_path / "run", tmp_path / "skip")


@pytest.mark.parametrize("split", ["train", "test", None])
def test_predictions_are_those_of_the_files_that_are_named(small_flags, spoilt, tmp_path, split):
    archive = spoilt([*BAD_TRAIN, *BAD_TEST])
    given = [*small_flags, f"--archive={archive}", "--epochs=1", SKIP]
    fit(*given, "--decoded_cache=none", f"--run_dir={tmp_path}/run")
    assert result_of(tmp_path / "run")["test_images"] == 10

    def evaluated(cache: str) -> dict:
        asked = [f"--split={split}"] if split else []
        asked += [f"--decoded_cache={cache}", f"--run_dir={tmp_path}/run"]
        asked += [flag for flag in given if flag.startswith("--data_dir")]
        config = parse_flags(*asked, config=EvaluateConfig)
        return evaluation.evaluate(open_run(f"{tmp_path}/run"), config).values

    values = evaluated("none")
    assert values == evaluated("memory")
    assert values["images"] == (21 if split == "train" else 10)


@pytest.mark.parametrize("more", [["--data_on_device"], ["--batch_size=1"]])
def test_other_ways_of_the_images(flags, tmp_path, more):
    fit(*flags, SKIP, *more, f"--run_dir={tmp_path}/run")
    history = result_of(tmp_path / "run")["history"]
    assert np.isfinite(history["loss"]).all() and np.isfinite(history["val_loss"]).all()
    if "--data_on_device" in more:  # They are known before, as with the other caches.
        fit(*flags, SKIP, "--decoded_cache=disk", f"--run_dir={tmp_path}/disk")
        assert_same_run(tmp_path / "run", tmp_path / "disk")


def test_kept_features_are_those_of_the_disk(head_flags, spoilt, tmp_path):
    given = [*head_flags, f"--archive={spoilt([*BAD_TRAIN, *BAD_TEST])}", "--epochs=2", SKIP]
    for cache in ("disk", "none"):
        fit(*given, f"--decoded_cache={cache}", f"--run_dir={tmp_path}/{cache}")
    assert_same_run(tmp_path / "none", tmp_path / "disk")


@pytest.mark.slow
def test_xla_computes_smaller_batches_too(small_flags, spoilt, tmp_path):
    given = [*small_flags, f"--archive={spoilt(BAD_TRAIN)}", "--batch_size=5", "--epochs=1", SKIP]
    for jit_compile in ("on", "off"):
        run = (f"--jit_compile={jit_compile}", f"--run_dir={tmp_path}/{jit_compile}")
        fit(*given, "--decoded_cache=none", *run)
    history = result_of(tmp_path / "off")["history"]
    for name, values in result_of(tmp_path / "on")["history"].items():
        np.testing.assert_allclose(values, history[name], rtol=1e-4, err_msg=name)


# Several devices.

REPLICAS = [*IN_FLOAT64, "--epochs=2", "--decoded_cache=none", SKIP]
# As of `test_replicas`: devices of one CPU are made before TensorFlow computes.
FIT = """
import json, sys
sys.path.insert(0, "tests")
from small_runs import fit
for flags in json.loads(sys.argv[1]):
    fit(*flags)
"""
# A step in which no replica has an image, of a network whose loss is not that of images alone.
EMPTY = """
import keras, numpy as np, tensorflow as tf
from trainers.hardware import devices
from trainers.configuration import DevicesConfig
from trainers.models.trained_model import ReplicatedModel
with devices.choose(DevicesConfig(cpu_devices=2)).scope():
    inputs = keras.Input((2,))
    layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer="l2")
    model = ReplicatedModel(inputs, layer(inputs))
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
before = model.get_weights()[0]
empty = tf.data.Dataset.from_tensors((np.zeros((0, 2)), np.zeros(0))).repeat()
dealt = model.distribute_strategy.distribute_datasets_from_function(lambda context: empty)
model.fit(dealt, steps_per_epoch=1, verbose=0)
np.testing.assert_array_equal(model.get_weights()[0], before)
"""


@pytest.fixture(scope="module")
def replicas(small_flags, make_archive, tmp_path_factory) -> pathlib.Path:
    """Run directories of two devices, for which all images of a share or a batch are unreadable."""
    folder, files = tmp_path_factory.mktemp("replicas"), layout(UNEVEN)
    sound = [*small_flags, f"--archive={make_archive(files)}", "--decoded_cache=none"]
    data = run_data.load(parse_flags(*sound).data)
    batch = input_pipeline.batch_rows(
        tf.constant(1, tf.int64), tf.constant(data.rows["train"]), 8, seed=42, shuffle=True
    ).numpy()
    asked = {}
    for name, rows in {"share": batch[:4], "batch": batch}.items():
        bad = dict.fromkeys((data.records.filenames[row] for row in rows), b"no image")
        asked[name] = [*small_flags, f"--archive={make_archive(files | bad)}", *REPLICAS]
    two = [
        [*flags, "--cpu_devices=2", f"--run_dir={folder}/{name}"] for name, flags in asked.items()
    ]
    mixed = [flag for flag in asked["batch"] if "class_weight" not in flag]
    mixed += ["--mixup=0.2", "--cutmix=1"]
    two.append([*mixed, "--cpu_devices=2", f"--run_dir={folder}/mixed"])
    process = start_command(json.dumps(two), code=FIT + EMPTY, cwd=ROOT)
    fit(*asked["share"], f"--run_dir={folder}/one")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder


@pytest.mark.slow
def test_replicas_have_the_numbers_of_one_device(replicas):
    assert result_of(replicas / "share")["bad_train_images"] == 4
    assert_same_numbers(replicas / "share", replicas / "one", 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch", "mixed"])
def test_a_step_without_images_trains_nothing_and_spoils_nothing(replicas, name):
    result = result_of(replicas / name)
    assert result["bad_train_images"] == 8
    assert len(result["history"]["loss"]) == 2
