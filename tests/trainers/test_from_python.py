"""`trainers.train` and `trainers.open_run`: training and predicting from Python."""

import inspect
import pathlib

import keras
import numpy as np
import pytest
from small_runs import SIZE, fit, pictures, plan_of, png, weights

import trainers
from pizza_steak import cores
from pizza_steak.errors import UserError
from pizza_steak.flags import fields
from trainers.configuration import FitConfig


@pytest.fixture(scope="module")
def words(small_flags):
    """The flags of a small run, as arguments of Python."""
    given = dict(flag[2:].split("=") for flag in small_flags if "=" in flag)
    return given | {"tensorboard": False, "epochs": 2, "batch_size": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def run(words, tmp_path_factory):
    return trainers.train(**words, run_dir=tmp_path_factory.mktemp("runs") / "python")


def test_it_gives_the_weights_and_history_of_the_command(run, words, small_flags, tmp_path):
    result = fit(*small_flags, "--epochs=2", f"--run_dir={tmp_path / 'run'}")
    for own, other in zip(weights(run.run_dir), weights(result.run_dir), strict=True):
        np.testing.assert_array_equal(own, other)
    assert run.history == result.values["history"]
    assert run.result["test_accuracy"] == result.values["test_accuracy"]


def test_the_result_says_what_it_is(run):
    assert "results saved to" in repr(run) and run.run_dir.name in repr(run)
    assert f"test accuracy {run.result['test_accuracy']:.3f}" in repr(run)


def test_the_model_is_the_kept_one_and_takes_raw_pixels(run):
    assert run.model.input_shape == (None, SIZE, SIZE, 3)
    assert run.model is run.model
    for own, other in zip(run.model.get_weights(), weights(run.run_dir), strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_predict_takes_one_path_or_several_and_gives_class_names(run, tmp_path, kind):
    images = {name: pictures(f"test/{name}", 1) for name in run.class_names}
    for name, image in images.items():
        (tmp_path / f"{name}.png").write_bytes(png(image[0]))
    paths = [kind(tmp_path / f"{name}.png") for name in images]
    rows = run.predict(paths)
    outputs = run.model.predict(np.concatenate([*images.values()]), verbose=0)[:, 0]
    for row, path, output in zip(rows, paths, outputs, strict=True):
        assert row["path"] == str(path)
        assert row["class"] == run.class_names[int(output > 0.5)]
        assert row["probabilities"]["light"] == pytest.approx(output, abs=1e-6)
        assert row["probability"] == max(row["probabilities"].values())
        assert [*row["probabilities"]] == ["dark", "light"]
    assert run.predict(paths[0]) == rows[:1]
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "1.jpg").symlink_to(paths[0])
    (row,) = run.predict(tmp_path / "link")
    assert "is a link to a file outside the folder" in row["error"]
    (row,) = run.predict(tmp_path / "link", follow_links=True)
    assert row["class"] == rows[0]["class"]


def test_open_run_gives_the_same_run(run):
    again = trainers.open_run(run.run_dir)
    assert (again.run_dir, again.history) == (run.run_dir, run.history)
    assert again.class_names == ("dark", "light")
    with pytest.raises(UserError, match="no run there"):
        trainers.open_run(run.run_dir.parent)


def test_it_leaves_the_dtype_policy_of_the_process(words, tmp_path):
    trainers.train(**words, precision="mixed_bfloat16", run_dir=tmp_path / "run")
    assert keras.config.dtype_policy().name == "float32"
    assert keras.config.floatx() == "float32"


@pytest.mark.skipif(cores.count() < 2, reason="needs two cores")
def test_it_gives_the_cores_of_the_process_back(words, tmp_path, capsys):
    before = cores.count()
    trainers.train(**words, threads=1, run_dir=tmp_path / "run")
    assert plan_of(capsys.readouterr().out)["devices"] == "CPU, 1 core"
    assert cores.count() == before
    with pytest.raises(UserError, match=r"^threads 1000: expected at most the number of cores"):
        trainers.train(**words, threads=1000, run_dir=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_flagfile_comes_before_the_other_arguments(words, tmp_path):
    (tmp_path / "three.flags").write_text("--epochs=3\n--filters=5\n")
    given = {name: value for name, value in words.items() if name != "filters"}
    run = trainers.train(**given, flagfile=tmp_path / "three.flags", run_dir=tmp_path / "run")
    assert len(run.history["loss"]) == 2
    assert run.model.layers[2].filters == 5


def test_none_is_the_default_and_lists_are_values_with_commas(words, tmp_path):
    given = words | {
        "image_size": [SIZE, SIZE],
        "classes": ["light", "dark"],
        "weight_decay": None,
        "epochs": np.int64(1),
        "width_shift_range": range(5),
        "zoom_range": np.array([0.8, 1.2]),
        "horizontal_flip": np.True_,
    }
    run = trainers.train(given.pop("archive"), **given, run_dir=tmp_path / "run")
    assert run.class_names == ("light", "dark")
    told = (run.run_dir / "run.flags").read_text()
    assert "--width_shift_range=0,1,2,3,4\n--" in told
    assert "--zoom_range=0.8,1.2\n--horizontal_flip\n" in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "train has no argument epoch; did you mean epochs?"),
        ({"learning_rat": 3}, "train has no argument learning_rat; did you mean learning_rate?"),
        ({"xyzzy": 3}, "train has no argument xyzzy; it takes the flags of trainers.fit"),
        ({"epochs": "five"}, "epochs='five': invalid literal for int"),
        ({"epochs": True}, "epochs='true': invalid literal for int"),
        ({"learning_rate": -1}, "learning_rate=-1: -1.0 is not a non-negative number"),
        ({"color_mode": "cmyk"}, "color_mode='cmyk': value should be one of"),
        ({"trainable": "some"}, "expected head, all, or a number of layers"),
        ({"archive": "nowhere.zip"}, "archive nowhere.zip: no such file"),
    ],
)
def test_a_mistake_is_one_line_in_the_words_of_python(words, tmp_path, given, message):
    with pytest.raises(UserError) as caught:
        trainers.train(**words | given, run_dir=tmp_path / "run")
    assert message in str(caught.value)
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_command_in_an_error_keeps_its_dashes(run):
    (run.run_dir / "result.json").rename(run.run_dir / "result")
    try:
        with pytest.raises(UserError, match=r"to resume it: python -m trainers.fit --flagfile="):
            run.predict("photo.jpg")
    finally:
        (run.run_dir / "result").rename(run.run_dir / "result.json")


def test_notebooks_can_complete_every_flag():
    parameters = inspect.signature(trainers.train).parameters
    assert {*parameters} == {"flagfile"} | {field.name for _, field in fields(FitConfig)}
    assert parameters["epochs"].default == 5
