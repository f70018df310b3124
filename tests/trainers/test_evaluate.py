"""`python -m trainers.evaluate`: its numbers, its figures, and its answers to wrong input."""

import io
import itertools
import json
import pickle
import shutil
import zipfile

import keras
import matplotlib
import numpy as np
import pytest
from PIL import ExifTags, Image
from small_runs import (
    fit,
    layout,
    pictures,
    png,
    result_of,
    run_command,
    snapshot,
    train_and_test,
)

from pizza_steak.errors import UserError
from trainers.configuration import EvaluateConfig, EvaluationConfig, EvaluationDataConfig
from trainers.finished import evaluation, prediction
from trainers.pages import plots
from trainers.runs import run_directory, scores

FIGURES = ("calibration.png", "confusion_matrix.png", "mistakes.png")


def evaluate(run_dir, data=None, **asked):
    config = EvaluateConfig(
        EvaluationConfig(run_dir=str(run_dir), **asked), EvaluationDataConfig(**data or {})
    )
    return evaluation.evaluate(run_directory.open_run(str(run_dir)), config)


@pytest.fixture(scope="module")
def evaluated(untrained):
    """The outcome for a model that guesses, on the test split."""
    return evaluate(untrained)


@pytest.fixture(scope="module")
def three_classes(make_archive):
    return make_archive(layout(train_and_test("dark", "light", "middle")), name="three")


# Its numbers.


def test_loss_and_accuracy_are_those_of_the_run(untrained, evaluated):
    result = result_of(untrained)
    assert evaluated.values["loss"] == result["test_loss"]
    assert evaluated.values["accuracy"] == result["test_accuracy"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--validation_split=none", "--label_smoothing=0.1"],
        ["--archive={three}"],
        ["--archive={three}", "--classes=middle,dark", "--test_split=test[:60%]"],
        ["--archive={three}", "--test_split=0.3", "--validation_split=0.3"],
    ],
)
def test_they_are_so_of_any_run(three_classes, small_flags, tmp_path, flags):
    flags = [flag.format(three=three_classes) for flag in flags]
    argv = [*small_flags, f"--run_dir={tmp_path}/run", "--learning_rate=1e-6", "--epochs=1"]
    result = fit(*argv, *flags).values
    values = evaluate(tmp_path / "run").values
    assert values["loss"] == result["test_loss"]
    assert values["accuracy"] == result["test_accuracy"]
    assert list(values["by_class"]) == result["classes"]


def test_a_run_of_an_older_version_may_have_an_output_for_each_of_two_classes(untrained, tmp_path):
    run_dir = shutil.copytree(untrained, tmp_path / "run")
    with (run_dir / "run.flags").open("a") as file:
        file.write("--class_mode=categorical\n")
    model = keras.models.load_model(run_dir / "model.keras")
    two = keras.layers.Dense(2, activation="softmax")(model.layers[-2].output)
    keras.Model(model.input, two).save(run_dir / "model.keras")

    values = evaluate(run_dir).values
    folder = tmp_path / "images"
    for name, content in layout({"dark": 6, "light": 7}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    archive = evaluate(run_dir, {"archive": str(folder)}).values
    predictions = prediction.predict(run_directory.open_run(str(run_dir)), [str(folder)])
    truth = np.repeat([0, 1], [6, 7])
    assert predictions.probabilities.shape == (13, 2)
    of_truth = predictions.probabilities[range(13), truth]
    assert archive["loss"] == pytest.approx(-np.log(of_truth).mean(), rel=1e-5)
    assert archive["accuracy"] == np.mean(predictions.probabilities.argmax(1) == truth)
    assert values["images"] == 12


def test_numbers_are_those_that_their_definitions_give(untrained, evaluated):
    model = keras.models.load_model(untrained / "model.keras")
    images = np.concatenate([pictures("test/dark", 6), pictures("test/light", 6)])
    light = model.predict(images, verbose=0)[:, 0]
    labels, predicted = np.repeat([0, 1], 6), (light > 0.5).astype(int)
    values = evaluated.values
    for label, name in enumerate(("dark", "light")):
        hits = np.sum((predicted == label) & (labels == label))
        row = values["by_class"][name]
        precision = hits / max(1, np.sum(predicted == label))
        assert row["recall"] == pytest.approx(hits / 6)
        assert row["precision"] == pytest.approx(precision)
        assert row["f1-score"] == pytest.approx(2 * hits / (np.sum(predicted == label) + 6))
        assert row["support"] == 6
        counts = [np.sum((labels == label) & (predicted == other)) for other in (0, 1)]
        assert values["confusion_matrix"][label] == counts
    wins = [float(b > a) + (a == b) / 2 for a, b in itertools.product(light[:6], light[6:])]
    assert values["roc_auc"] == pytest.approx(np.mean(wins))
    assert values["images"] == 12
    assert 0 < values["accuracy"] < 1


def test_the_area_of_many_classes_is_the_mean_of_one_against_the_others():
    rng = np.random.default_rng(0)
    labels, probabilities = np.arange(60) % 3, rng.dirichlet(np.ones(3), 60)

    def area(scores, positive):
        wins = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
        return np.mean(wins)

    expected = np.mean([area(probabilities[:, c], labels == c) for c in range(3)])
    assert evaluation.roc_auc(labels, probabilities) == pytest.approx(expected)
    assert evaluation.roc_auc(labels[labels < 2], probabilities[labels < 2]) is None


def test_top_5_accuracy_counts_labels_among_the_five_most_probable():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 9, 40), rng.dirichlet(np.ones(9), 40)
    hits = [label in np.argsort(row)[-5:] for label, row in zip(labels, probabilities, strict=True)]
    assert 0 < np.mean(hits) < 1
    expected = {"top_5_accuracy": pytest.approx(np.mean(hits))}
    assert evaluation.top_accuracy(labels, probabilities) == expected
    assert evaluation.top_accuracy(labels % 5, probabilities[:, :5]) == {}


def test_six_classes_have_a_top_5_accuracy(small_flags, make_archive, tmp_path):
    images = [png(image) for image in pictures("dark", 48)]
    files = {
        f"{split}/{name}/{number}.png": images.pop()
        for split in ("train", "test")
        for name in "abcdef"
        for number in range(4)
    }
    flags = [f"--archive={make_archive(files)}", "--learning_rate=0", "--epochs=1"]
    fit(*small_flags, *flags, f"--run_dir={tmp_path}/run")
    outcome = evaluate(tmp_path / "run")
    values = outcome.values
    assert len(values["by_class"]) == 6
    assert values["accuracy"] < values["top_5_accuracy"] <= 1
    assert f", top-5 accuracy {values['top_5_accuracy']:.4f}\n" in outcome.summary()


def test_calibration_is_that_of_the_predicted_class():
    confidence = np.array([0.95, 0.97, 0.65, 0.65, 0.65, 0.65, 0.5, 1.0])
    correct = np.array([True, False, True, True, True, True, False, True])
    bins = evaluation.calibration_bins(confidence, correct)
    assert [round(row["from"], 9) for row in bins] == [0.4, 0.6, 0.9]
    assert [row["images"] for row in bins] == [1, 4, 3]
    assert [row["accuracy"] for row in bins] == pytest.approx([0, 1, 2 / 3])
    assert [row["confidence"] for row in bins] == pytest.approx([0.5, 0.65, 2.92 / 3])
    expected = (1 * 0.5 + 4 * 0.35 + 3 * (2.92 / 3 - 2 / 3)) / 8
    assert evaluation.expected_calibration_error(bins) == pytest.approx(expected)


def test_calibration_of_a_model_that_is_always_right():
    bins = evaluation.calibration_bins(np.full(5, 0.8), np.ones(5, bool))
    assert evaluation.expected_calibration_error(bins) == pytest.approx(0.2)


def test_mistakes_are_wrong_and_the_surest_comes_first(evaluated):
    values = evaluated.values
    wrong = round(values["images"] * (1 - values["accuracy"]))
    assert len(values["mistakes"]) == wrong > 0
    for mistake in values["mistakes"]:
        assert mistake["class"] == mistake["file"].split("/")[1] != mistake["predicted"]
    sure = [mistake["probability"] for mistake in values["mistakes"]]
    assert sure == sorted(sure, reverse=True)


def test_the_summary_has_the_numbers(evaluated):
    text, values = evaluated.summary(), evaluated.values
    assert "top_5_accuracy" not in values and "top-5" not in text  # Of two classes, it is 1.
    for name in ("loss", "roc_auc", "expected_calibration_error"):
        assert f"{values[name]:.4f}" in text
    low, high = values["accuracy_interval"]
    assert f"accuracy {values['accuracy']:.3f} ({low:.2f} to {high:.2f}, 12 images)" in text
    rows = [line.split() for line in text.splitlines()]
    for name, counts in zip(("dark", "light"), values["confusion_matrix"], strict=True):
        assert [name, *map(str, counts)] in rows


def test_of_many_classes_the_summary_has_the_most_frequent_confusions():
    matrix = np.diag(np.full(101, 9))
    matrix[7, 5] = 3
    names = [f"class_{number}" for number in range(101)]
    values = {"by_class": dict.fromkeys(names), "confusion_matrix": matrix, "images": 912}
    _, line = evaluation.Evaluation(values, [])._confusions().splitlines()
    assert line.split() == ["3", "true", "class_7,", "predicted", "class_5"]


# What it is of.


@pytest.mark.parametrize("split, count", [("train", 24), ("train[:50%]", 12), ("train+test", 36)])
def test_any_split_can_be_evaluated(untrained, split, count):
    values = evaluate(untrained, split=split).values
    assert (values["split"], values["images"]) == (split, count)


@pytest.fixture(scope="module")
def cut(small_flags, make_archive, tmp_path_factory):
    """A run on class folders alone, and their archive: 20 images of each class."""
    archive = make_archive(layout({"dark": 20, "light": 20}), name="cut")
    run_dir = tmp_path_factory.mktemp("cut") / "run"
    flags = [f"--archive={archive}", "--validation_split=0.2", "--learning_rate=0", "--epochs=1"]
    fit(*small_flags, *flags, f"--run_dir={run_dir}")
    return run_dir, archive


@pytest.mark.parametrize(
    "split, text, seen",
    [
        (None, "15 % of train", (6, 0, 0)),
        ("test", "15 % of train", (6, 0, 0)),
        ("validation", "20 % of train", (8, 0, 8)),
        ("train", "train less validation and test", (26, 26, 0)),
        ("all", "all", (40, 26, 8)),
    ],
)
def test_the_runs_own_splits_are_evaluated_and_what_it_has_seen_is_said(cut, split, text, seen):
    run_dir, archive = cut
    outcome = evaluate(run_dir, split=split)
    values = outcome.values
    assert values["split"] == text
    assert (values["images"], values["trained_on"], values["validated_on"]) == seen
    assert values["test_images_chose_the_model"] == bool(seen[2])
    lines = outcome.summary().splitlines()
    assert (f"{seen[1]} of these images were trained on: this is no test" in lines) == bool(seen[1])
    told = f"{seen[2]} of these images chose the best epoch: expect less on new ones"
    assert (told in lines) == bool(seen[2])
    # A path to the same archive that is written otherwise changes nothing.
    same = {"archive": f"{archive.parent}/../{archive.parent.name}/cut.zip"}
    assert evaluate(run_dir, same, split=split).values == values
    same = {"archive": f"{archive.parent}/cu[t].zip"}
    assert evaluate(run_dir, same, split=split).values == values


def test_images_of_another_archive_that_the_run_has_seen_are_counted(cut, make_archive):
    run_dir, _ = cut
    files = layout({"dark": 20, "light": 20})
    new = {f"test/{name}/new.png": png(pictures(name, 21)[20]) for name in ("dark", "light")}
    old = {f"test/{name}": files[name] for name in files if name.startswith("dark")}
    values = evaluate(run_dir, {"archive": str(make_archive(old | new))}).values
    assert (values["trained_on"], values["validated_on"]) == (13, 4)
    assert values["test_images_chose_the_model"]


def test_without_the_runs_own_images_it_is_not_known_what_it_has_seen(cut, make_archive, tmp_path):
    run_dir, archive = cut
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    flags = run_dir / "run.flags"
    flags.write_text(flags.read_text().replace(str(archive), f"{tmp_path}/gone.zip"))
    other = make_archive(layout({"dark": 3, "light": 2}))
    outcome = evaluate(run_dir, {"archive": str(other)})
    names = ("trained_on", "validated_on", "test_images_chose_the_model")
    assert {outcome.values[name] for name in names} == {None}
    assert "not known whether the run was trained on these images" in outcome.summary()


def test_a_model_that_has_not_learned_is_said_not_to(evaluated):
    values = evaluated.values
    low, _ = values["accuracy_interval"]
    assert low < values["largest_class_share"] == 0.5
    text = evaluated.summary()
    assert "has not learned: always answering 'dark' is right for 0.500\n" in text


def test_another_archive_can_be_evaluated(untrained, make_archive):
    archive = make_archive(layout({"test/dark": 3, "test/light": 8}), name="other")
    values = evaluate(untrained, {"archive": str(archive)}).values
    assert [row["support"] for row in values["by_class"].values()] == [3, 8]
    assert "other-" in values["dataset"]


def test_bad_pictures_of_another_archive_can_be_left_out(untrained, make_archive):
    files = layout({"test/dark": 3, "test/light": 8}) | {"test/dark/bad.png": b"no picture"}
    data = {"archive": str(make_archive(files)), "on_bad_image": "skip"}
    assert evaluate(untrained, data).values["images"] == 11


# What it leaves.


def test_it_leaves_figures_and_json_in_the_run_directory(untrained, tmp_path):
    run_dir = shutil.copytree(untrained, tmp_path / "run")
    before = snapshot(run_dir)
    outcome = evaluate(run_dir)
    out_dir = outcome.write(EvaluationConfig())
    assert out_dir == run_dir / "evaluation"
    names = sorted(path.name for path in out_dir.iterdir())
    assert names == sorted([*FIGURES, "evaluation.json"])
    assert json.loads((out_dir / "evaluation.json").read_text()) == outcome.values
    for name in FIGURES:
        with Image.open(out_dir / name) as image:
            assert np.asarray(image).std() > 0
    after = snapshot(run_dir)
    assert {name: after[name] for name in before} == before


def test_the_figure_of_mistakes_shows_the_original_photographs(untrained, make_archive, jpeg):
    sideways = Image.open(io.BytesIO(jpeg(1, 1000, 600)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # To be turned by a quarter.
    file = io.BytesIO()
    sideways.save(file, "JPEG", exif=exif)
    files = {
        "test/dark/wide.jpg": jpeg(2, 300, 100),
        "test/dark/turned.jpg": file.getvalue(),
        "test/light/wide.jpg": jpeg(3, 300, 100),
        "test/light/turned.jpg": jpeg(4, 600, 1000),
    }
    outcome = evaluate(untrained, {"archive": str(make_archive(files))})
    mistakes = outcome.values["mistakes"]
    assert mistakes
    for image, mistake in zip(outcome.mistakes, mistakes, strict=True):
        # As large as the figure needs, and upright.
        expected = {"wide.jpg": (100, 300, 3), "turned.jpg": (400, 240, 3)}
        assert image.shape == expected[mistake["file"].split("/")[-1]]


def test_of_many_mistakes_the_most_confident_are_drawn_and_all_are_listed(
    untrained, make_archive, tmp_path
):
    files = layout({"test/dark": 40, "test/light": 40})
    outcome = evaluate(untrained, {"archive": str(make_archive(files))})
    mistakes = outcome.values["mistakes"]
    assert len(mistakes) > len(outcome.mistakes) == 24
    drawn = [np.asarray(Image.open(io.BytesIO(files[one["file"]]))) for one in mistakes[:24]]
    for image, expected in zip(outcome.mistakes, drawn, strict=True):
        np.testing.assert_array_equal(image, expected)
    outcome.write(EvaluationConfig(out_dir=str(tmp_path)))
    listed = json.loads((tmp_path / "evaluation.json").read_text())["mistakes"]
    assert listed == mistakes
    with Image.open(tmp_path / "mistakes.png") as figure:
        width, height = figure.size
        assert np.asarray(figure).std() > 0
    assert 0.6 < height / width < 1  # Four rows of six.


def test_captions_are_said_in_words():
    mistake = {"class": "bibimbap", "predicted": "beet_salad", "probability": 0.785}
    caption = evaluation._caption(mistake | {"file": "test/bibimbap/1.jpg"})
    said, file = caption.replace(",\n", ", ").splitlines()
    assert said == "true bibimbap, predicted beet_salad (78 %)"
    assert file == "1.jpg"


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_activation_maps_are_of_the_most_confident_right_and_wrong_images(
    untrained, evaluated, tmp_path, suffix
):
    file = tmp_path / f"maps{suffix}"
    outcome = evaluate(untrained, activation_maps=str(file))
    assert outcome.values == evaluated.values
    explained = outcome.explained
    count = len(explained.predictions)
    assert explained.images.shape == (count, 32, 32, 3)
    assert explained.maps.shape == (count, 32, 32)
    assert set(explained.maps.max(axis=(1, 2))) <= {0, 1}
    right = [one for one in explained.predictions if one["class"] == one["predicted"]]
    wrong = explained.predictions[len(right) :]
    assert len(right) == min(9, round(12 * evaluated.values["accuracy"])) > 0
    sure = [one["probability"] for one in right]
    assert sure == sorted(sure, reverse=True)
    assert wrong == evaluated.values["mistakes"][:9]
    outcome.write(EvaluationConfig(out_dir=str(tmp_path), activation_maps=str(file)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*FIGURES, "evaluation.json", file.name]
    )
    if suffix == ".png":
        with Image.open(file) as image:
            assert np.asarray(image).std() > 0
    else:
        assert file.read_bytes().startswith({".pdf": b"%PDF", ".svg": b"<?xml"}[suffix])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_heat_map_is_over_the_gray_image(channels):
    images = np.zeros((1, 2, 2, channels), np.uint8)
    images[0, 0] = 100
    maps = np.array([[[0, 1], [0, 1]]], np.float32)
    heat = plots.heat_maps(images, maps)
    assert (heat.shape, heat.dtype) == ((1, 2, 2, 3), np.uint8)
    violet, yellow = (np.multiply(matplotlib.colormaps["viridis"](v)[:3], 255) for v in (0.0, 1.0))
    for row, gray in enumerate((100, 0)):
        for column, color in enumerate((violet, yellow)):
            np.testing.assert_allclose(heat[0, row, column], 0.4 * gray + 0.6 * color, atol=1)


@pytest.mark.parametrize(
    "name, message", [("maps.exe", "unknown format"), ("nowhere/maps.png", "No such file")]
)
def test_activation_maps_that_cannot_be_written_are_one_line(untrained, tmp_path, name, message):
    asked = {"activation_maps": f"{tmp_path}/{name}", "out_dir": str(tmp_path)}
    outcome = evaluate(untrained, **asked)
    with pytest.raises(UserError, match=message) as caught:
        outcome.write(EvaluationConfig(**asked))
    assert f"{tmp_path}/{name}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(tmp_path) == {}


def test_a_network_without_convolution_has_no_activation_maps(small_flags, tmp_path):
    flags = ["--model=dense", "--epochs=1", f"--run_dir={tmp_path}/run"]
    fit(*(flag for flag in small_flags if "filters" not in flag and "convol" not in flag), *flags)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="model dense: has no convolution"):
        evaluate(tmp_path / "run", activation_maps=str(tmp_path / "maps.png"))
    assert snapshot(tmp_path) == before


def test_without_mistakes_there_is_no_figure_of_earlier_ones(evaluated, tmp_path):
    (tmp_path / "mistakes.png").write_text("of an earlier evaluation")
    values = evaluated.values | {"mistakes": []}
    outcome = evaluation.Evaluation(values, evaluated.mistakes[:0])
    asked = EvaluationConfig(out_dir=str(tmp_path), json=str(tmp_path / "numbers.json"))
    assert outcome.write(asked) == tmp_path
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["calibration.png", "confusion_matrix.png", "numbers.json"]
    assert json.loads((tmp_path / "numbers.json").read_text()) == values


# Wrong input.


def without_flags(run_dir):
    (run_dir / "run.flags").unlink()


def unfinished(run_dir):
    (run_dir / "result.json").unlink()


def without_model(run_dir):
    (run_dir / "model.keras").unlink()


def pickled(run_dir):
    (run_dir / "model.keras").write_bytes(pickle.dumps(open))


def truncated(run_dir):
    model = (run_dir / "model.keras").read_bytes()
    (run_dir / "model.keras").write_bytes(model[: len(model) // 2])


def zip_of_something(run_dir):
    with zipfile.ZipFile(run_dir / "model.keras", "w") as zip_file:
        zip_file.writestr("a.txt", "")


def with_a_lambda(run_dir):
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Lambda(lambda x: x[:, :1, 0, 0])(inputs)
    keras.Model(inputs, outputs).save(run_dir / "model.keras")


def with_unknown_flags(run_dir):
    (run_dir / "run.flags").write_text("--flux_capacitor=1\n")


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "no run there"),
        (without_flags, "no run there"),
        (with_unknown_flags, "flux_capacitor"),
        (unfinished, "not finished"),
        (without_model, "missing, or no Keras model"),
        (pickled, "missing, or no Keras model"),
        (truncated, "missing, or no Keras model"),
        (zip_of_something, "cannot be loaded"),
        (with_a_lambda, "cannot be loaded"),
    ],
)
def test_a_run_that_cannot_be_used_is_one_line(untrained, tmp_path, damage, message):
    run_dir = shutil.copytree(untrained, tmp_path / "run")
    damage(run_dir)
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as caught:
        evaluate(run_dir)
    assert message in str(caught.value)
    assert str(run_dir) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "names, message",
    [
        (["dark", "middle"], "it lacks light and has middle"),
        (["dark", "light", "middle"], "it has middle"),
    ],
)
def test_other_classes_than_the_runs_are_one_line(
    untrained, make_archive, tmp_path, names, message
):
    archive = make_archive(layout(train_and_test(*names)))
    with pytest.raises(UserError) as caught:
        evaluate(untrained, {"archive": str(archive)})
    assert message in str(caught.value)
    assert str(archive) in str(caught.value)


def test_an_unknown_split_is_one_line(untrained):
    with pytest.raises(
        UserError, match=r"--split='tes': .*shades.zip has test \(12 images\), train"
    ):
        evaluate(untrained, split="tes")


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"out_dir": "{here}/file/out"}, "{here}/file/out"),
        ({"out_dir": "{here}", "json": "{here}/nowhere/a.json"}, "{here}/nowhere/a.json"),
    ],
)
def test_what_cannot_be_written_is_one_line(evaluated, tmp_path, asked, message):
    (tmp_path / "file").write_text("")
    asked = {name: value.format(here=tmp_path) for name, value in asked.items()}
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as caught:
        evaluated.write(EvaluationConfig(**asked))
    assert message.format(here=tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_the_command_prints_the_numbers_and_nothing_else(untrained, tmp_path):
    argv = [f"--run_dir={untrained}", f"--out_dir={tmp_path}/out"]
    status, stdout, stderr = run_command(*argv, command="evaluate", fresh=True)
    assert (status, stderr) == (0, "")
    result = result_of(untrained)
    assert f"accuracy {scores.test_accuracy_text(result)}, loss {result['test_loss']:.4f}" in stdout
    assert f"figures saved to {tmp_path}/out" in stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, status, named", [([], 1, "run_dir"), (["--split"], 2, "split"), (["a.zip"], 2, "a.zip")]
)
def test_wrong_flags_and_input_are_one_line_and_a_status(argv, status, named):
    done = run_command(*argv, command="evaluate")
    (line,) = done[2].splitlines()
    assert done[:2] == (status, "")
    assert line.startswith("error: ")
    assert named in line
