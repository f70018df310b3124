"""`python -m trainers.average`: a model that is the mean of runs, and a run like any other."""

import ast
import errno
import html
import importlib.util
import json
import pathlib
import pickle
import re
import shutil

import keras
import numpy as np
import pytest
from small_runs import (
    Stopped,
    fit,
    layout,
    pictures,
    png,
    result_of,
    run_command,
    snapshot,
    train_and_test,
)

import trainers
from pizza_steak.errors import UserError
from trainers.configuration import (
    ArtifactConfig,
    AveragingConfig,
    EvaluateConfig,
    EvaluationConfig,
    PageConfig,
    ReportConfig,
)
from trainers.finished import averaging, evaluation, exporting, prediction
from trainers.pages import plots, run_report
from trainers.runs import run_directory, scores
from trainers.training import results

GUESSING = ["--learning_rate=1e-4", "--epochs=1"]  # Probabilities far from 0 and 1.
PACKAGES = ("onnx", "onnxruntime", "tf2onnx")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)),
    reason="needs the packages of the extra onnx",
)


@pytest.fixture(scope="module")
def two(small_flags, tmp_path_factory) -> list[pathlib.Path]:
    """Three runs of two classes; they differ in seed, size and augmentation."""
    folder = tmp_path_factory.mktemp("two")
    others = (["--seed=1"], ["--seed=2", "--filters=6"], ["--seed=3", "--horizontal_flip"])
    for number, flags in enumerate(others):
        fit(*small_flags, *GUESSING, *flags, f"--run_dir={folder}/{number}")
    return [folder / str(number) for number in range(len(others))]


@pytest.fixture(scope="module")
def three(small_flags, make_archive, tmp_path_factory) -> list[pathlib.Path]:
    """Two runs of three classes."""
    archive = make_archive(layout(train_and_test("dark", "light", "middle")), name="three")
    folder = tmp_path_factory.mktemp("three")
    for number in range(2):
        flags = [f"--archive={archive}", f"--seed={number}", f"--run_dir={folder}/{number}"]
        fit(*small_flags, *GUESSING, *flags)
    return [folder / str(number) for number in range(2)]


def average(runs, run_dir, **values) -> pathlib.Path:
    """The run directory of an average."""
    runs = tuple(map(str, runs)) if runs is not None else None
    run_dir = None if run_dir is None else str(run_dir)
    made, result = averaging.average(AveragingConfig(runs=runs, run_dir=run_dir, **values))
    assert result == result_of(made)
    return made


@pytest.fixture(scope="module")
def averages(two, three, tmp_path_factory):
    """`averages(classes, flips)`: the runs, and the run directory of their average."""
    folder, made = tmp_path_factory.mktemp("averages"), {}

    def make(classes: int, flips: bool) -> tuple[list[pathlib.Path], pathlib.Path]:
        runs = {2: two, 3: three}[classes]
        if (classes, flips) not in made:
            run_dir = folder / f"{classes}-{flips}"
            made[classes, flips] = average(runs, run_dir, average_flips=flips)
        return runs, made[classes, flips]

    return make


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Images of all shades, float32 of shape (12, SIZE, SIZE, 3)."""
    shades = [pictures(f"new/{name}", 4) for name in ("dark", "light", "middle")]
    return np.concatenate(shades).astype(np.float32)


def predicted(run_dir: pathlib.Path, images: np.ndarray) -> np.ndarray:
    model = keras.models.load_model(run_dir / "model.keras", compile=False)
    return np.asarray(model(images, training=False))


# Its probabilities.


@pytest.mark.parametrize("classes, units", [(2, 1), (3, 3)])
@pytest.mark.parametrize("flips", [False, True])
def test_its_probabilities_are_the_means_of_the_runs(averages, images, classes, units, flips):
    runs, run_dir = averages(classes, flips)
    inputs = [images, images[:, :, ::-1]] if flips else [images]
    of_runs = [predicted(run, one) for run in runs for one in inputs]
    found = predicted(run_dir, images)
    assert found.shape == (len(images), units)
    np.testing.assert_allclose(found, np.mean(of_runs, axis=0), rtol=0, atol=1e-6)
    assert np.abs(found - of_runs[0]).max() > 1e-4  # One run alone says something else.


@pytest.mark.parametrize("classes", [2, 3])
def test_with_flips_an_image_and_its_mirror_image_are_the_same(averages, images, classes):
    for flips in (True, False):
        _, run_dir = averages(classes, flips)
        found, mirrored = (predicted(run_dir, one) for one in (images, images[:, :, ::-1]))
        difference = np.abs(found - mirrored).max()
        assert (difference <= 1e-6) == flips


def test_one_run_may_be_averaged_over_flips(two, images, tmp_path):
    made = average(two[:1], tmp_path / "run", average_flips=True)
    both = [predicted(two[0], one) for one in (images, images[:, :, ::-1])]
    found = predicted(made, images)
    np.testing.assert_allclose(found, np.mean(both, axis=0), rtol=0, atol=1e-6)


def test_an_average_may_be_averaged_again(averages, two, images, tmp_path):
    _, first = averages(2, True)
    made = average([first, two[0]], tmp_path / "run")
    expected = np.mean([predicted(run, images) for run in (first, two[0])], axis=0)
    np.testing.assert_allclose(predicted(made, images), expected, rtol=0, atol=1e-6)


PLAIN_KERAS = """
import pickle, sys
sys.modules.update(pizza_steak=None, trainers=None)
import keras
images = pickle.load(sys.stdin.buffer)
print(keras.models.load_model(sys.argv[1]).predict(images, verbose=0).tolist())
"""


@pytest.mark.slow
def test_it_is_loaded_with_keras_alone(averages, images, start_python):
    _, run_dir = averages(2, True)
    process = start_python(PLAIN_KERAS, run_dir / "model.keras")
    process.stdin.buffer.write(pickle.dumps(images))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    found = ast.literal_eval(output.splitlines()[-1])
    np.testing.assert_allclose(found, predicted(run_dir, images), rtol=0, atol=1e-6)


# It is a run.


@pytest.mark.parametrize("classes, flips", [(2, True), (3, False)])
def test_its_evaluation_says_what_its_result_says(averages, classes, flips):
    _, run_dir = averages(classes, flips)
    result = result_of(run_dir)
    config = EvaluateConfig(EvaluationConfig(run_dir=str(run_dir)))
    values = evaluation.evaluate(run_directory.open_run(str(run_dir)), config).values
    assert values["loss"] == result["test_loss"]
    assert values["accuracy"] == result["test_accuracy"]
    assert values["accuracy_interval"] == result["test_accuracy_interval"]
    assert values["images"] == result["test_images"] == 6 * classes
    assert list(values["by_class"]) == result["classes"]


def test_its_files_are_those_of_a_finished_run(averages):
    runs, run_dir = averages(2, True)
    assert {path.name for path in run_dir.iterdir()} == {
        *("run.flags", "environment.json", "summary.txt", "model.keras", "result.json"),
        "confusion_matrix.png",
    }
    run = run_directory.open_run(str(run_dir))
    assert run.config == run_directory.open_run(str(runs[0])).config
    result, members = run.result, [result_of(one) for one in runs]
    assert (result["members"], result["flips"]) == ([str(one) for one in runs], True)
    assert result["parameters"] == sum(one["parameters"] for one in members)
    seconds = sum(one["fit_seconds"] for one in members)
    assert result["fit_seconds"] == pytest.approx(seconds, abs=1e-3)
    # They were validated on the test images.
    assert result["test_images_chose_the_model"]
    assert not list(run_dir.parent.glob(".*"))


@pytest.mark.parametrize(
    "flips, said",
    [
        (True, "average of 2 runs for each image and its mirror image"),
        (False, "average of 2 runs"),
    ],
)
def test_what_it_prints_are_its_numbers_and_its_folder(averages, flips, said):
    _, run_dir = averages(3, flips)
    result = result_of(run_dir)
    first, second, *lines = results.FitResult(run_dir, result).summary().splitlines()
    assert first == said
    assert second == (
        f"test accuracy {scores.test_accuracy_text(result)}, loss {result['test_loss']:.4f}"
    )
    assert f"results saved to {run_dir}" in lines
    commands = [line.split()[2] for line in lines if line.startswith("python -m ")]
    assert commands == [f"trainers.{name}" for name in ("evaluate", "predict", "export")]
    assert all(f"--run_dir={run_dir}" in line for line in lines if line.startswith("python -m "))


def test_what_it_prints_of_one_run_is_that_it_is_one(two, tmp_path):
    run_dir = average(two[:1], tmp_path / "run", average_flips=True)
    first, *_ = results.FitResult(run_dir, result_of(run_dir)).summary().splitlines()
    assert first == "average of a run for each image and its mirror image"


def test_files_are_predicted_with_its_probabilities(averages, images, tmp_path):
    _, run_dir = averages(3, True)
    for number, image in enumerate(images):
        (tmp_path / f"{number:02}.png").write_bytes(png(image.astype(np.uint8)))
    found = prediction.predict(run_directory.open_run(str(run_dir)), [str(tmp_path)])
    expected = predicted(run_dir, images)
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "format", ["saved_model", "litert", pytest.param("onnx", marks=needs_onnx)]
)
def test_its_exports_say_what_it_says(averages, tmp_path, format):
    _, run_dir = averages(2, True)
    run = run_directory.open_run(str(run_dir))
    made = exporting.export(run, ArtifactConfig(format=format, output=str(tmp_path / "made")))
    assert made.images == 12
    assert made.difference <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_the_report_shows_it_beside_its_runs(averages, two, tmp_path):
    runs = tmp_path / "runs"
    for run in two:
        shutil.copytree(run, runs / run.name)
    shutil.copytree(averages(2, True)[1], runs / "mean")
    output = tmp_path / "report.html"
    told = run_report.write(ReportConfig(PageConfig(f"{runs}/*", str(output))))
    assert "4 runs" in told.splitlines()[0]
    assert "left out" not in told
    page = html.unescape(output.read_text())
    assert "mean" in page
    assert scores.test_accuracy_text(result_of(runs / "mean")) in page
    entries, _ = run_report.find(f"{runs}/*")
    (entry,) = (entry for entry in entries if entry.name == "mean")
    assert (entry.epochs, entry.best_epoch, entry.kept("val_accuracy")) == (0, None, None)
    alone = run_report.write(ReportConfig(PageConfig(f"{runs}/mean", str(output))))
    assert "1 run" in alone


def test_a_run_may_be_trained_on_it(averages, small_flags, tmp_path):
    _, run_dir = averages(3, False)
    known = ("--data_dir", "--batch_size", "--notensorboard")
    flags = [flag for flag in small_flags if flag.startswith(known)]
    archive = run_directory.open_run(str(run_dir)).config.data.archive
    flags += [f"--archive={archive}", "--epochs=1", "--validation_split=test"]
    result = fit(*flags, f"--model={run_dir}", f"--run_dir={tmp_path}/run").values
    assert 0 <= result["test_accuracy"] <= 1
    assert (tmp_path / "run" / "model.keras").exists()


def test_it_has_no_activation_maps_and_says_so(averages, tmp_path):
    _, run_dir = averages(2, True)
    file = str(tmp_path / "maps.png")
    config = EvaluateConfig(EvaluationConfig(run_dir=str(run_dir), activation_maps=file))
    with pytest.raises(UserError, match="evaluate it without --activation_maps"):
        evaluation.evaluate(run_directory.open_run(str(run_dir)), config)


@pytest.mark.parametrize("resume", ["--resume", "--resume=auto"])
def test_it_cannot_be_resumed(averages, resume):
    _, run_dir = averages(2, True)
    before = snapshot(run_dir)
    with pytest.raises(UserError) as caught:
        fit(f"--flagfile={run_dir}/run.flags", f"--run_dir={run_dir}", resume)
    assert str(caught.value) == (f"run_dir {run_dir}: is an average of runs; it cannot be trained")
    assert snapshot(run_dir) == before


def test_it_is_shown_in_python(averages):
    _, run_dir = averages(2, True)
    run = trainers.open_run(run_dir)
    assert run.history == {}
    assert scores.test_accuracy_text(result_of(run_dir)) in repr(run)


# What is refused.


@pytest.fixture
def copies(two, tmp_path):
    """Copies of the runs of two classes, to be changed."""
    return [shutil.copytree(run, tmp_path / run.name) for run in two]


def refusal(tmp_path, runs, run_dir, **values) -> str:
    """The one line that refuses an average; nothing is written."""
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as caught:
        average(runs, run_dir, **values)
    assert snapshot(tmp_path) == before
    (line,) = str(caught.value).splitlines()
    return line


def test_runs_of_other_classes_are_refused(two, three, tmp_path):
    line = refusal(tmp_path, [two[0], three[0]], tmp_path / "run")
    assert line == (
        f"runs: {three[0]} has the classes dark, light, middle, and {two[0]} dark, light; expected "
        "the same"
    )


def test_runs_with_the_classes_in_another_order_are_refused(copies, tmp_path):
    file = copies[1] / "result.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"classes": values["classes"][::-1]}))
    line = refusal(tmp_path, copies, tmp_path / "run")
    assert line.startswith(f"runs: {copies[1]} has the classes light, dark, and {copies[0]} dark")


@pytest.mark.parametrize(
    "changed", ["--archive=/other.zip", "--image_size=48", "--test_split=train[90%:]"]
)
def test_runs_on_other_images_are_refused(copies, tmp_path, changed):
    with (copies[2] / "run.flags").open("a") as file:
        file.write(f"{changed}\n")
    line = refusal(tmp_path, copies, tmp_path / "run")
    assert line.startswith(f"runs: {copies[2]} and {copies[0]} have other images (")
    assert changed in line
    assert line.endswith("; expected the same")


def test_an_unfinished_run_is_refused(copies, tmp_path):
    (copies[1] / "result.json").unlink()
    line = refusal(tmp_path, copies, tmp_path / "run")
    assert f"run_dir {copies[1]}: the run is not finished" in line


@pytest.mark.parametrize("damaged", ["model.keras", "run.flags"])
def test_a_run_without_its_files_is_refused(copies, tmp_path, damaged):
    (copies[1] / damaged).unlink()
    assert str(copies[1]) in refusal(tmp_path, copies, tmp_path / "run")


@pytest.mark.parametrize("count", [None, 0, 1])
def test_fewer_than_two_runs_are_refused_without_flips(two, tmp_path, count):
    runs = None if count is None else two[:count]
    line = refusal(tmp_path, runs, tmp_path / "run")
    assert line == (
        "runs: expected two run directories or more, separated by commas, or one with "
        "--average_flips"
    )


def test_no_folder_for_the_average_is_refused(two, tmp_path):
    line = refusal(tmp_path, two, None)
    assert line == "run_dir: missing; expected the folder for the average"


def test_a_folder_that_holds_a_run_is_replaced_with_overwrite_alone(two, images, tmp_path):
    run_dir = tmp_path / "run"
    average(two[:1], run_dir, average_flips=True)
    (run_dir / "model.tflite").write_text("an export of the first average")
    line = refusal(tmp_path, two, run_dir)
    assert line.startswith(f"run_dir {run_dir}: already holds a run; pass ")
    assert "--overwrite" in line
    average(two[:2], run_dir, overwrite=True)
    assert len(result_of(run_dir)["members"]) == 2
    assert not (run_dir / "model.tflite").exists()
    expected = np.mean([predicted(run, images) for run in two[:2]], axis=0)
    np.testing.assert_allclose(predicted(run_dir, images), expected, rtol=0, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_refused(two, tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("")
    line = refusal(tmp_path, two, tmp_path, overwrite=overwrite)
    assert line == f"run_dir {tmp_path}: holds files that are not a run; pass another --run_dir"


# Where it cannot be written.


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def stopped(*_, **__):
    raise Stopped


@pytest.mark.parametrize(
    "place, name",
    [
        (run_directory.Run, "_write_json"),
        (keras.Model, "save"),
        (plots, "confusion_matrix"),
        (run_directory.Run, "finish"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_fails_removes_what_it_wrote(two, tmp_path, monkeypatch, place, name, there):
    run_dir = tmp_path / "run"
    if there:
        shutil.copytree(two[2], run_dir)
        (run_dir / "notes.txt").write_text("of mine")
    monkeypatch.setattr(place, name, full_disk)
    with pytest.raises(UserError) as caught:
        average(two[:1], run_dir, average_flips=True, overwrite=there)
    assert re.sub(r" \([\d,.]+ MB free\)", "", str(caught.value)) == (
        f"run_dir {run_dir}: No space left on device; pass another --run_dir"
    )
    assert [path.name for path in tmp_path.rglob("*")] == (["run", "notes.txt"] if there else [])


def test_a_killed_one_leaves_an_unfinished_run_that_overwrite_replaces(two, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(plots, "confusion_matrix", stopped)
        average(two[:1], run_dir, average_flips=True)
    with pytest.raises(UserError, match="the run is not finished"):
        run_directory.open_run(str(run_dir))
    line = refusal(tmp_path, two[:1], run_dir, average_flips=True)
    assert "already holds a run" in line
    average(two[:1], run_dir, average_flips=True, overwrite=True)
    assert len(result_of(run_dir)["members"]) == 1
    assert not list(run_dir.glob(".*"))


def test_files_of_others_in_a_run_stay_and_its_average_is_written(two, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(two[2], run_dir)
    (run_dir / "notes.txt").write_text("of mine")
    average(two[:2], run_dir, overwrite=True)
    assert (run_dir / "notes.txt").read_text() == "of mine"
    assert len(result_of(run_dir)["members"]) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_run_is_not_replaced_by_its_own_average(copies, tmp_path, number):
    line = refusal(tmp_path, copies, copies[number], overwrite=True)
    assert line == f"run_dir {copies[number]}: is one of --runs; pass another --run_dir"


@pytest.mark.parametrize(
    "other",
    [
        ["--batch_size=5"],
        ["--batch_size_per_replica=5"],
        ["--decoded_cache=none", "--data_on_device"],
        ["--data_dir=/somewhere/else"],
    ],
)
def test_runs_with_other_batches_and_caches_may_be_averaged(copies, images, tmp_path, other):
    flags = copies[1] / "run.flags"
    lines = flags.read_text().splitlines()
    lines = [line for line in lines if not line.startswith(("--batch_size", "--decoded_cache"))]
    flags.write_text("\n".join([*lines, *other]))
    made = average(copies[:2], tmp_path / "run")
    expected = np.mean([predicted(run, images) for run in copies[:2]], axis=0)
    np.testing.assert_allclose(predicted(made, images), expected, rtol=0, atol=1e-6)


def test_runs_of_an_older_version_may_be_averaged(copies, tmp_path):
    for run in copies:
        values = result_of(run)
        del values["test_images_chose_the_model"]
        (run / "result.json").write_text(json.dumps(values))
    average(copies, tmp_path / "run")


def test_runs_with_other_outputs_are_refused(copies, tmp_path):
    """The network of a function of the user's may have one for each of two classes."""
    model = keras.models.load_model(copies[1] / "model.keras")
    outputs = keras.layers.Dense(2, activation="softmax")(model.layers[-2].output)
    keras.Model(model.input, outputs).save(copies[1] / "model.keras")
    line = refusal(tmp_path, copies[:2], tmp_path / "run")
    assert line == (
        f"runs: {copies[1]} has outputs of shape (None, 2), and {copies[0]} of shape (None, 1); "
        "expected the same"
    )


OWN = """
import keras

@keras.saving.register_keras_serializable("mine")
class Halved(keras.layers.Layer):
    def call(self, images):
        return images / 510

def build(image_shape, num_classes):
    inputs = keras.Input(image_shape)
    x = keras.layers.GlobalAveragePooling2D()(Halved()(inputs))
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x))
"""


@pytest.mark.slow
def test_an_average_with_a_function_of_the_users_is_used_in_another_process(
    two, small_flags, tmp_path
):
    (tmp_path / "mine.py").write_text(OWN)
    flags = [flag for flag in small_flags if not flag.startswith(("--filters", "--convolutions"))]
    fit(*flags, *GUESSING, f"--model={tmp_path}/mine.py:build", f"--run_dir={tmp_path}/own")
    average([two[0], tmp_path / "own"], tmp_path / "run")
    code = f"--code={tmp_path}/mine.py"
    argv = [f"--run_dir={tmp_path}/run", f"--out_dir={tmp_path}/out", code]
    status, stdout, stderr = run_command(*argv, command="evaluate")
    assert (status, stderr) == (0, "")
    assert f"accuracy {scores.test_accuracy_text(result_of(tmp_path / 'run'))}" in stdout


# The command.


@pytest.mark.slow
def test_the_command_averages_runs_and_says_so(two, tmp_path):
    argv = [f"--runs={two[0]},{two[1]}", "--average_flips", f"--run_dir={tmp_path}/run"]
    status, stdout, stderr = run_command(*argv, command="average")
    assert (status, stderr) == (0, "")
    assert stdout.startswith("average of 2 runs for each image and its mirror image\n")
    assert f"\nresults saved to {tmp_path}/run\n" in stdout
    assert stdout.endswith(f"python -m trainers.export --run_dir={tmp_path}/run\n")
    assert result_of(tmp_path / "run")["members"] == [str(run) for run in two[:2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, status, named",
    [
        ([], 1, "run_dir"),
        (["--run_dir=a"], 1, "runs"),
        (["--runs=/nowhere,/nothing", "--run_dir=a"], 1, "/nowhere"),
        (["--flip"], 2, "--average_flips"),
    ],
)
def test_wrong_flags_and_input_are_one_line_and_a_status(argv, status, named):
    done = run_command(*argv, command="average")
    (line,) = done[2].splitlines()
    assert done[:2] == (status, "")
    assert line.startswith("error: ")
    assert named in line
