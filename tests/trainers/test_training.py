"""A run from flags to its directory: what it leaves, learns, repeats and goes on with."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import time
import types

import keras
import numpy as np
import pytest
from PIL import Image
from small_runs import (
    ROOT,
    assert_same_run,
    fit,
    fit_and_stop,
    layout,
    parse_flags,
    pictures,
    plan_of,
    png,
    result_of,
    rows,
    snapshot,
    start_command,
    train_and_test,
    weights,
)

from pizza_steak.errors import UserError
from trainers.hardware.preemption import PreemptedError
from trainers.runs import checkpoint, run_directory, scores
from trainers.runs.checkpoint import Progress
from trainers.training import callbacks
from trainers.training.callbacks import Backup

PHOTOGRAPHS = ROOT / "../shared/data/pizza_steak_64px.zip"
# Of losses: single precision has no more for probabilities near 1.
approx = functools.partial(pytest.approx, rel=1e-5, abs=1e-6)
METRICS = {"accuracy", "loss", "val_accuracy", "val_loss"}


@pytest.fixture(scope="module")
def finished(small_flags, tmp_path_factory):
    """The result of a run with TensorBoard's curves and all defaults."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    return fit(*small_flags, f"--run_dir={run_dir}", "--tensorboard")


# What it leaves.


def test_the_run_directory_holds_what_the_design_says(finished):
    assert {path.name for path in finished.run_dir.iterdir()} == {
        "confusion_matrix.png",
        "curves.png",
        "environment.json",
        "metrics.csv",
        "model.keras",
        "result.json",
        "run.flags",
        "summary.txt",
        "tensorboard",
    }
    assert any((finished.run_dir / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["curves.png", "confusion_matrix.png"])
def test_figures_are_sound_pngs(finished, name):
    with Image.open(finished.run_dir / name) as image:
        image.load()
        assert image.format == "PNG"
        assert np.asarray(image).std() > 0


def test_result_json_has_the_final_numbers(finished):
    result = result_of(finished.run_dir)
    assert result == finished.values
    assert result["classes"] == ["dark", "light"]
    assert result["parameters"] == sum(weight.size for weight in weights(finished.run_dir))
    assert result["fit_cpu_seconds"] > 0
    assert result["epoch_end_seconds"] == sorted(result["epoch_end_seconds"])
    assert result["epoch_end_seconds"][-1] == result["fit_seconds"]
    assert result["train_images_per_second"] == pytest.approx(
        4 * 24 / result["fit_seconds"], rel=0.01
    )
    assert {name: len(values) for name, values in result["history"].items()} == dict.fromkeys(
        METRICS, 4
    )


def test_metrics_csv_is_the_history(finished):
    history = finished.values["history"]
    assert [row["epoch"] for row in rows(finished.run_dir)] == ["0", "1", "2", "3"]
    assert history == {n: [float(row[n]) for row in rows(finished.run_dir)] for n in METRICS}


def test_environment_json_says_what_it_was_computed_with(finished):
    environment = json.loads((finished.run_dir / "environment.json").read_text())
    assert environment["keras"] == keras.__version__
    assert environment["precision"] == "float32"
    assert environment["bad_images"] == {}
    assert "shades-" in environment["dataset"]


def test_summary_names_every_layer(finished):
    summary = (finished.run_dir / "summary.txt").read_text()
    for layer in keras.models.load_model(finished.run_dir / "model.keras").layers:
        assert layer.name in summary


def test_it_learns(finished):
    assert finished.values["test_accuracy"] > 0.9
    assert finished.values["history"]["val_accuracy"][-1] > 0.9


def test_the_test_numbers_are_those_of_the_saved_model(finished):
    model = keras.models.load_model(finished.run_dir / "model.keras")
    images = np.concatenate([pictures("test/dark", 6), pictures("test/light", 6)])
    loss, accuracy = model.evaluate(images, np.repeat([0.0, 1.0], 6), verbose=0)
    assert finished.values["test_accuracy"] == pytest.approx(accuracy)
    assert finished.values["test_loss"] == approx(loss)


def test_the_saved_model_is_the_best_by_validation_loss(finished):
    # The test split is the validation split here.
    best = min(finished.values["history"]["val_loss"])
    assert finished.values["test_loss"] == approx(best)


def test_class_names_may_be_any_that_a_folder_can_have(make_archive, small_flags, tmp_path):
    names = {"dark": "$5_$7", "light": "été <&>"}
    files = {
        path.replace(old, new): content
        for old, new in names.items()
        for path, content in layout(train_and_test(old)).items()
    }
    archive = make_archive(files)
    result = fit(*small_flags, f"--archive={archive}", f"--run_dir={tmp_path}/run", "--epochs=1")
    assert result.values["classes"] == [*names.values()]
    assert (result.run_dir / "confusion_matrix.png").exists()


# The same again.


def test_another_seed_gives_another_history(finished, small_flags, tmp_path):
    other = fit(*small_flags, f"--run_dir={tmp_path}/other", "--seed=43")
    assert other.values["history"] != finished.values["history"]


def test_run_flags_repeat_the_run_from_another_folder(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = fit(f"--flagfile={finished.run_dir}/run.flags")
    assert again.run_dir.parent == tmp_path / "runs"
    assert_same_run(again.run_dir, finished.run_dir)


def test_overwrite_replaces_the_run(finished, small_flags, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished.run_dir, run_dir)
    fit(*small_flags, f"--run_dir={run_dir}", "--epochs=1", "--overwrite")
    assert len(rows(run_dir)) == 1
    assert not (run_dir / "tensorboard").exists()


def test_two_runs_started_at_once_have_two_directories(small_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans = [run_directory.plan(parse_flags(*small_flags, f"--seed={seed}")) for seed in (1, 2)]
    for plan in plans:
        plan.create("", {})
    kept = sorted((plan.path / "run.flags").read_text() for plan in plans)
    assert kept == sorted(plan.flags for plan in plans)


def test_the_run_directory_may_be_a_link_and_hold_the_data_dir(small_flags, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    where = [f"--run_dir={tmp_path}/link", f"--data_dir={tmp_path}/link/data"]
    fit(*small_flags, *where, "--epochs=1")
    assert (tmp_path / "folder" / "result.json").exists()
    assert any((tmp_path / "folder" / "data").rglob("*.tfrecord*"))


# Stopped and resumed.


@pytest.mark.slow
def test_a_killed_and_a_preempted_run_go_on_as_if_they_had_not_been(small_flags, tmp_path):
    flags = [*small_flags, "--epochs=20", "--checkpoint_every=2", "--resume=auto"]
    killed, preempted, whole = (tmp_path / name for name in ("killed", "preempted", "whole"))
    processes = {
        run_dir: start_command(*flags, f"--run_dir={run_dir}", fresh=run_dir == killed)
        for run_dir in (killed, preempted, whole)
    }
    signals = {killed: signal.SIGKILL, preempted: signal.SIGTERM}
    while signals:
        time.sleep(0.01)
        for run_dir in [*signals]:
            assert processes[run_dir].poll() is None, processes[run_dir].communicate()
            if (run_dir / "metrics.csv").exists() and len(rows(run_dir)) >= 2:
                processes[run_dir].send_signal(signals.pop(run_dir))
    stderr = {run_dir: process.communicate()[1] for run_dir, process in processes.items()}
    assert [process.returncode for process in processes.values()] == [-signal.SIGKILL, 75, 0]
    (line,) = stderr[preempted].splitlines()
    assert line.startswith("preempted; run again with --resume: python -m trainers.fit ")
    assert max(len(rows(run_dir)) for run_dir in (killed, preempted)) < 20

    processes = {
        run_dir: start_command(*flags, f"--run_dir={run_dir}") for run_dir in (killed, preempted)
    }
    for run_dir, process in processes.items():
        stdout, stderr = process.communicate()
        assert (process.returncode, stderr) == (0, "")
        assert f"test accuracy {scores.test_accuracy_text(result_of(run_dir))}" in stdout
        assert_same_run(run_dir, whole)
        assert result_of(run_dir)["history"] == result_of(whole)["history"]
        assert snapshot(run_dir).keys() == snapshot(whole).keys()


@pytest.fixture(scope="module")
def stopped_run(small_flags, tmp_path_factory):
    """`stopped_run(epoch, backed_up)`: the directory of a run that was stopped there."""

    @functools.cache
    def stop(epoch: int, backed_up: bool) -> pathlib.Path:
        run_dir = tmp_path_factory.mktemp("stopped") / "run"
        flags = [*small_flags, f"--run_dir={run_dir}", "--tensorboard"]
        fit_and_stop(*flags, epoch=epoch, backed_up=backed_up)
        return run_dir

    return stop


def half_written(backup: pathlib.Path):
    whole = (backup / "latest.npz").read_bytes()
    (backup / f".{'0' * 32}.latest.npz").write_bytes(whole[:1000])


def model_half_written(backup: pathlib.Path):
    model = backup.parent / "model.keras"
    model.write_bytes(model.read_bytes()[:1000])


def cut(backup: pathlib.Path):
    os.truncate(backup / "latest.npz", 1000)


def metrics_cut(backup: pathlib.Path):
    metrics = backup.parent / "metrics.csv"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])


def metrics_removed(backup: pathlib.Path):
    (backup.parent / "metrics.csv").unlink()


@pytest.mark.parametrize(
    "epoch, backed_up, damage",
    [
        pytest.param(1, False, None, id="before the first backup"),
        pytest.param(2, False, model_half_written, id="while the second model is written"),
        pytest.param(2, True, half_written, id="while the third backup is written"),
        pytest.param(4, True, None, id="after the last backup"),
        pytest.param(4, True, shutil.rmtree, id="after the backup was removed"),
        pytest.param(2, True, cut, id="after the last backup was damaged"),
        pytest.param(2, True, metrics_cut, id="after the metrics were damaged"),
        pytest.param(2, True, metrics_removed, id="after the metrics were removed"),
    ],
)
def test_a_run_stopped_anywhere_goes_on(
    finished, stopped_run, small_flags, tmp_path, epoch, backed_up, damage
):
    run_dir = shutil.copytree(stopped_run(epoch, backed_up), tmp_path / "run")
    if damage:
        damage(run_dir / "backup")
    resumed = fit(*small_flags, f"--run_dir={run_dir}", "--tensorboard", "--resume")
    assert_same_run(run_dir, finished.run_dir)
    assert resumed.values["history"] == finished.values["history"]
    assert resumed.values["test_loss"] == finished.values["test_loss"]


def test_a_damaged_backup_is_named(stopped_run, small_flags, tmp_path):
    run_dir = shutil.copytree(stopped_run(1, True), tmp_path / "run")
    backup = run_dir / "backup" / "latest.npz"
    cut(backup.parent)
    with pytest.raises(UserError, match=f"{backup}: damaged"):
        fit(*small_flags, f"--run_dir={run_dir}", "--tensorboard", "--resume")


def test_a_run_is_not_resumed_with_other_pictures(make_archive, small_flags, tmp_path):
    files = layout(train_and_test("dark", "light"))
    archive = make_archive(files, as_zip=False)
    flags = [*small_flags, f"--archive={archive}", f"--run_dir={tmp_path}/run"]
    fit_and_stop(*flags, epoch=1)
    (archive / "train/dark/00.png").write_bytes(files["train/dark/01.png"])
    with pytest.raises(UserError, match=r"images of .* have changed"):
        fit(*flags, "--resume")


@pytest.fixture(scope="module")
def random_flags(small_flags):
    """The flags of a run that draws what it can, and whose callbacks count epochs."""
    return [
        *small_flags,
        "--epochs=9",
        "--batch_size=4",
        "--rotation_range=20",
        "--horizontal_flip",
        "--batch_normalization",
        "--dropout=0.3",
        "--learning_rate=0.1",
        "--reduce_lr_patience=1",
        "--early_stopping_patience=3",
        "--checkpoint_every=2",
        "--resume=auto",
    ]


@pytest.fixture(scope="module")
def random_run(random_flags, tmp_path_factory):
    """The directory of such a run, never stopped; it lowers its learning rate, and ends early."""
    run_dir = tmp_path_factory.mktemp("random") / "run"
    history = fit(*random_flags, f"--run_dir={run_dir}").values["history"]
    assert len(set(history["learning_rate"])) > 1
    assert 4 < len(history["loss"]) < 9
    return run_dir


def assert_goes_on(run_dir: pathlib.Path, whole: pathlib.Path, *flags: str):
    result = fit(*flags, f"--run_dir={run_dir}").values
    assert_same_run(run_dir, whole)
    expected = result_of(whole)
    for name in ("history", "test_accuracy", "test_loss"):
        assert result[name] == expected[name]


@pytest.mark.parametrize(
    "epoch, step, saved",
    [
        pytest.param(1, 1, Progress(), id="before the first backup"),
        pytest.param(1, 2, Progress(0, 2), id="after a backup in the first epoch"),
        pytest.param(3, 5, Progress(2, 4), id="between two backups"),
        pytest.param(4, 6, Progress(3, 6), id="before an epoch's validation"),
        pytest.param(3, None, Progress(3), id="at the end of an epoch"),
    ],
)
def test_a_run_stopped_within_an_epoch_goes_on_from_its_last_backup(
    random_flags, random_run, tmp_path, epoch, step, saved
):
    run_dir = tmp_path / "run"
    fit_and_stop(*random_flags, f"--run_dir={run_dir}", epoch=epoch, step=step)
    assert checkpoint.read(run_dir / "backup").progress == saved
    assert_goes_on(run_dir, random_run, *random_flags)


def test_a_run_that_shuffles_in_blocks_goes_on_within_an_epoch(small_flags, tmp_path):
    flags = [*small_flags, "--shuffle_block=3", "--checkpoint_every=1"]
    whole = fit(*flags, f"--run_dir={tmp_path}/whole").run_dir
    fit_and_stop(*flags, f"--run_dir={tmp_path}/run", epoch=3, step=2)
    assert_goes_on(tmp_path / "run", whole, *flags, "--resume")
    shuffled = fit(*small_flags, f"--run_dir={tmp_path}/shuffled").run_dir
    assert result_of(shuffled)["history"] != result_of(whole)["history"]


def test_a_run_without_validation_goes_on_within_an_epoch(small_flags, tmp_path):
    flags = [*small_flags, "--validation_split=none", "--checkpoint_every=1"]
    fit(*flags, f"--run_dir={tmp_path}/whole")
    for epoch, step in ((3, 2), (4, 3)):
        run_dir = tmp_path / f"{epoch}"
        fit_and_stop(*flags, f"--run_dir={run_dir}", epoch=epoch, step=step)
        assert_goes_on(run_dir, tmp_path / "whole", *flags, "--resume")


@pytest.mark.parametrize(
    "hook, saved",
    [
        pytest.param("on_train_batch_begin", Progress(1, 1), id="in a step"),
        pytest.param("on_test_begin", Progress(1, 6), id="in a validation"),
        pytest.param("on_epoch_end", Progress(2), id="at the end of an epoch"),
        pytest.param("on_train_end", Progress(5, stopped=True), id="at the end of the last"),
    ],
)
def test_a_run_goes_on_after_the_step_that_sigterm_came_in(
    random_flags, random_run, tmp_path, monkeypatch, hook, saved
):
    original = getattr(Backup, hook)

    def terminated(self, *arguments, **options):
        if hook == "on_train_end" or self._epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        original(self, *arguments, **options)

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(PreemptedError, match=f"{run_dir} --resume"):
        patch.setattr(Backup, hook, terminated)
        fit(*random_flags, f"--run_dir={run_dir}", "--steps_per_execution=1")
    assert checkpoint.read(run_dir / "backup").progress == saved
    assert_goes_on(run_dir, random_run, *random_flags)


def test_backups_are_made_every_so_many_seconds(small_flags, tmp_path, monkeypatch):
    flags = [*small_flags, "--batch_size=1", f"--run_dir={tmp_path}/run"]
    seconds = iter(range(1000))  # One passes a step.
    clock = types.SimpleNamespace(**vars(time) | {"monotonic": lambda: next(seconds)})
    monkeypatch.setattr(callbacks, "time", clock)
    fit_and_stop(*flags, "--checkpoint_every=5s", epoch=1, step=18)
    assert checkpoint.read(tmp_path / "run/backup").progress.step == 15


def test_a_run_may_be_resumed_with_other_intervals_between_backups(finished, tmp_path, small_flags):
    run_dir = shutil.copytree(finished.run_dir, tmp_path / "run")
    flags = [f"--run_dir={run_dir}", "--tensorboard", "--checkpoint_every=7"]
    assert fit(*small_flags, *flags, "--resume=auto").values == finished.values


@pytest.mark.parametrize("resume_comes_last", [True, False])
def test_resume_of_a_finished_run_gives_its_numbers_and_changes_nothing(
    finished, small_flags, tmp_path, resume_comes_last
):
    run_dir = shutil.copytree(finished.run_dir, tmp_path / "run")
    before = snapshot(run_dir)
    flags = [f"--run_dir={run_dir}", "--resume", f"--flagfile={run_dir}/run.flags"]
    flags += [flag for flag in small_flags if flag.startswith("--data_dir")]
    again = fit(*(reversed(flags) if resume_comes_last else flags))
    assert again.values == finished.values
    assert again.summary() == finished.summary().replace(str(finished.run_dir), str(run_dir))
    assert snapshot(run_dir) == before


def test_a_run_killed_before_its_flags_were_written_can_be_begun_again(small_flags, tmp_path):
    run_dir = tmp_path / "run"
    run = run_directory.plan(parse_flags(*small_flags, f"--run_dir={run_dir}"))
    run.create("", {})
    (run_dir / "run.flags").rename(run_dir / f".{'0' * 32}.run.flags")
    again = run_directory.plan(parse_flags(*small_flags, f"--run_dir={run_dir}"))
    again.create("", {})
    assert (run_dir / "run.flags").read_text() == run.flags

    (run_dir / "run.flags").unlink()
    (run_dir / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds files that are not a run"):
        run_directory.plan(parse_flags(*small_flags, f"--run_dir={run_dir}"))


# What the flags change.


@pytest.fixture(scope="module")
def unvalidated(small_flags, tmp_path_factory):
    """The result of a run without validation, whose learning rate falls; and its flags."""
    flags = [*small_flags, "--validation_split=none", "--learning_rate_schedule=cosine"]
    run_dir = tmp_path_factory.mktemp("runs") / "unvalidated"
    return fit(*flags, f"--run_dir={run_dir}"), flags


def test_without_validation_the_last_model_is_kept_and_tested(unvalidated):
    result, _ = unvalidated
    assert result.values["history"].keys() == {"accuracy", "loss"}
    model = keras.models.load_model(result.run_dir / "model.keras")
    assert model.optimizer.iterations == 4 * 3
    images = np.concatenate([pictures("test/dark", 6), pictures("test/light", 6)])
    loss, accuracy = model.evaluate(images, np.repeat([0.0, 1.0], 6), verbose=0)
    assert result.values["test_accuracy"] == pytest.approx(accuracy)
    assert result.values["test_loss"] == approx(loss)
    accuracy = result.values["history"]["accuracy"][-1]
    assert result.summary().startswith(f"last epoch 4 of 4: accuracy {accuracy:.4f}\n")
    with Image.open(result.run_dir / "curves.png") as image:
        assert np.asarray(image).std() > 0


def test_a_cosine_schedule_ends_at_0_after_all_epochs(unvalidated, tmp_path):
    result, flags = unvalidated
    fit_and_stop(*flags, f"--run_dir={tmp_path}/run", epoch=2)
    rates = [
        float(keras.models.load_model(run_dir / "model.keras").optimizer.learning_rate)
        for run_dir in (tmp_path / "run", result.run_dir)
    ]
    assert rates == pytest.approx([0.01 / 2, 0], abs=1e-8)

    # Resumed, it goes on where it was.
    resumed = fit(*flags, f"--run_dir={tmp_path}/run", "--resume")
    assert_same_run(resumed.run_dir, result.run_dir)
    assert resumed.values["history"] == result.values["history"]
    assert resumed.values["test_loss"] == result.values["test_loss"]


def test_early_stopping_ends_before_the_last_epoch(small_flags, tmp_path):
    flags = ["--learning_rate=0", "--early_stopping_patience=1", "--epochs=5"]
    result = fit(*small_flags, f"--run_dir={tmp_path}/run", *flags)
    assert len(result.values["history"]["loss"]) == 2


def test_a_plateau_divides_the_learning_rate_by_ten(small_flags, tmp_path):
    flags = ["--learning_rate=1e-6", "--reduce_lr_patience=1", "--epochs=4"]
    result = fit(*small_flags, f"--run_dir={tmp_path}/run", *flags)
    rates = result.values["history"]["learning_rate"]
    np.testing.assert_allclose(rates, [1e-6, 1e-6, 1e-7, 1e-8], rtol=1e-5)


def test_balanced_class_weights_are_those_of_scikit_learn(make_archive, small_flags, tmp_path):
    counts = {"train/dark": 15, "train/light": 5, "test/dark": 2, "test/light": 2}
    flags = [
        f"--archive={make_archive(layout(counts))}",
        f"--run_dir={tmp_path}/run",
        "--class_weight=balanced",
        "--learning_rate=0",  # So that the saved model is the one that the loss was taken of.
        "--epochs=1",
    ]
    loss = fit(*small_flags, *flags).values["history"]["loss"][0]
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    dark = -np.log(1 - model.predict(pictures("train/dark", 15), verbose=0)[:, 0])
    light = -np.log(model.predict(pictures("train/light", 5), verbose=0)[:, 0])
    # n_samples / (n_classes * n_samples_of_class)
    weighted = (20 / (2 * 15) * dark.sum() + 20 / (2 * 5) * light.sum()) / 20
    unweighted = (dark.sum() + light.sum()) / 20
    assert loss == pytest.approx(weighted, rel=1e-4)
    assert loss != pytest.approx(unweighted, rel=1e-3)


def test_three_classes_train_by_the_cross_entropy_of_their_probabilities(
    make_archive, small_flags, tmp_path
):
    archive = make_archive(layout(train_and_test("dark", "light", "middle")))
    result = fit(*small_flags, f"--archive={archive}", f"--run_dir={tmp_path}/run").values
    assert result["classes"] == ["dark", "light", "middle"]
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    images = np.concatenate([pictures(f"test/{name}", 6) for name in result["classes"]])
    of_truth = model.predict(images, verbose=0)[range(18), np.repeat(range(3), 6)]
    assert result["test_loss"] == approx(-np.log(of_truth).mean())
    assert min(result["history"]["val_loss"]) == approx(result["test_loss"])


@pytest.fixture
def by_default(small_flags):
    """The flags of such a run without those of splits."""
    return [flag for flag in small_flags if "_split" not in flag]


def test_class_folders_alone_have_three_splits(make_archive, by_default, tmp_path, capsys):
    archive = make_archive(layout({"dark": 20, "light": 20}))
    result = fit(*by_default, f"--archive={archive}", f"--run_dir={tmp_path}/run").values
    plan = plan_of(capsys.readouterr().out)
    assert plan["train"].startswith("train less validation and test: 28 images (dark 14, light 14)")
    assert plan["validation"].startswith("15 % of train: 6 images (dark 3, light 3)")
    assert plan["test"].startswith("15 % of train: 6 images (dark 3, light 3)")
    assert result["test_images"] == 6
    assert not result["test_images_chose_the_model"]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [split["images"] for split in environment["splits"].values()] == [28, 6, 6]
    assert environment["overlaps"] == {}


def test_the_validation_folder_of_an_archive_is_the_validation_split(
    make_archive, by_default, tmp_path, capsys
):
    counts = {"train/dark": 9, "train/light": 9, "val/dark": 2, "val/light": 2}
    archive = make_archive(layout(counts | {"test/dark": 3, "test/light": 3}))
    fit(*by_default, f"--archive={archive}", f"--run_dir={tmp_path}/run", "--epochs=1")
    plan = plan_of(capsys.readouterr().out)
    assert plan["train"].startswith("train: 18 images")
    assert plan["validation"].startswith("validation: 4 images")
    assert plan["test"].startswith("test: 6 images")


def test_what_is_shared_or_missing_is_named_before_training(
    make_archive, by_default, tmp_path, capsys
):
    files = layout({"train/dark": 15, "train/light": 15, "train/middle": 2})
    files |= {f"test/{name}/new.png": png(pictures(name, 21)[20]) for name in ("light", "middle")}
    files["test/dark/again.png"] = files["train/dark/00.png"]
    flags = [f"--archive={make_archive(files)}", "--epochs=1", f"--run_dir={tmp_path}/run"]
    fit(*by_default, *flags, "--train_split=train", "--validation_split=train[:50%]")
    output = capsys.readouterr().out
    cautions = [line.split(None, 1)[1] for line in output.splitlines() if line[:7] == "caution"]
    assert cautions[:2] == [
        "16 of 16 validation images are train images too",
        "1 of 3 test images are train images too",
    ]
    assert cautions[-1].startswith("an epoch has only 4 steps: pass more --epochs")
    overlaps = json.loads((tmp_path / "run" / "environment.json").read_text())["overlaps"]
    assert overlaps["validation in train"] == 16
    assert overlaps["test in train"] == 1


def test_a_class_that_is_too_small_for_three_splits_is_named(
    make_archive, by_default, tmp_path, capsys
):
    archive = make_archive(layout({"dark": 15, "light": 1, "middle": 2}))
    fit(*by_default, f"--archive={archive}", "--epochs=1", f"--run_dir={tmp_path}/run")
    output = capsys.readouterr().out
    assert "caution     no validation images of light, middle\n" in output
    assert "caution     no test images of light\n" in output


def test_label_smoothing_is_for_training_alone(make_archive, small_flags, tmp_path):
    models = []
    for classes in (("dark", "light"), ("dark", "light", "middle")):
        flags = [*small_flags, f"--archive={make_archive(layout(train_and_test(*classes)))}"]
        run_dir = tmp_path / str(len(classes))
        result = fit(*flags, f"--run_dir={run_dir}", "--label_smoothing=0.1").values
        assert result["test_loss"] == approx(min(result["history"]["val_loss"]))
        plain = fit(*flags, f"--run_dir={tmp_path}/plain", "--overwrite").values
        assert abs(result["history"]["loss"][0] - plain["history"]["loss"][0]) > 1e-4
        models.append(str(run_dir / "model.keras"))

    # Keras alone loads the models, with the loss that they were tested by.
    code = (
        "import sys, keras\n"
        "for path in sys.argv[1:]: print(keras.models.load_model(path).loss.get_config())"
    )
    process = start_command(*models, code=code, cwd=tmp_path, fresh=True)
    told, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(told.splitlines()) == 2
    assert "'label_smoothing': 0.1" not in told


def test_the_summary_says_what_the_test_accuracy_is_worth(finished, small_flags, tmp_path):
    values = finished.values
    low, high = values["test_accuracy_interval"]
    lines = finished.summary().splitlines()
    assert (
        f"test accuracy {values['test_accuracy']:.3f} ({low:.2f} to {high:.2f}, 12 images), "
        f"loss {values['test_loss']:.4f}"
    ) in lines
    assert "these images also chose the best epoch: expect less on new ones" in lines
    assert not any("has not learned" in line for line in lines)

    flags = ["--learning_rate=0", "--epochs=1", "--validation_split=none"]
    untrained = fit(*small_flags, *flags, f"--run_dir={tmp_path}/run")
    assert "has not learned: always answering 'dark' is right for 0.500\n" in untrained.summary()
    assert "best epoch" not in untrained.summary()


def test_a_finished_run_of_an_older_version_has_a_summary(finished):
    values = {name: value for name, value in finished.values.items() if "interval" not in name}
    assert "test accuracy 1.000, loss" in dataclasses.replace(finished, values=values).summary()


def test_the_interval_is_wilsons():
    for correct, count in ((24, 36), (0, 5), (5, 5), (450, 500)):
        share, z = correct / count, 1.959964
        middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
        half = z / (1 + z**2 / count)
        half *= np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
        expected = [middle - half, middle + half]
        assert scores.interval(correct, count) == pytest.approx(expected, abs=1e-6)
    assert scores.accuracy_text(24 / 36, scores.interval(24, 36), 36) == (
        "0.667 (0.50 to 0.80, 36 images)"
    )


def test_bad_pictures_are_left_out_and_named(make_archive, finished, small_flags, tmp_path, capsys):
    bad = {
        "train/dark/bad.jpg": b"no picture",
        "test/light/bad.png": png(np.zeros((9, 9, 3), "u1"))[:50],
    }
    archive = make_archive(layout(train_and_test("dark", "light")) | bad)
    result = fit(
        *small_flags,
        f"--archive={archive}",
        f"--run_dir={tmp_path}/run",
        "--on_bad_image=skip",
    )
    environment = json.loads((result.run_dir / "environment.json").read_text())
    assert environment["bad_images"].keys() == bad.keys()
    assert environment["left_out"] == {"cannot be decoded": 2}
    plan = capsys.readouterr().out
    assert "train: 24 images (dark 12, light 12)" in plan
    assert "2 cannot be decoded" in plan
    assert result.values["test_accuracy"] > 0.9


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"needs {PHOTOGRAPHS}")
def test_one_epoch_on_photographs_is_better_than_chance(tmp_path):
    result = fit(
        f"--archive={PHOTOGRAPHS}",
        f"--data_dir={tmp_path}",
        f"--run_dir={tmp_path}/run",
        "--image_size=64",
        "--epochs=1",
    )
    assert result.values["history"]["val_accuracy"][0] > 0.6
