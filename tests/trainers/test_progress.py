"""What one sees of a training: its table, a line for each epoch, its end, and Ctrl-C."""

import os
import re
import shlex
import shutil
import signal
import types

import numpy as np
import pytest
from small_runs import ROOT, assert_same_run, fit, layout, parse_flags, run_command, train_and_test

from pizza_steak.errors import UserError
from trainers.runs import run_directory, scores
from trainers.training import progress, results

# Ends the run by Ctrl-C at the start of a step: "EPOCH STEP" in the variable STOP, from 0.
INTERRUPTING = """
import os, signal, keras

class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if f"{self.epoch} {batch}" == os.environ.get("STOP"):
            signal.raise_signal(signal.SIGINT)
"""


@pytest.fixture(scope="module")
def finished(small_flags, tmp_path_factory):
    return fit(*small_flags, f"--run_dir={tmp_path_factory.mktemp('my runs') / 'a run'}")


@pytest.fixture
def interrupting(tmp_path, small_flags):
    """The flags of a run in `tmp_path / "run"` that the variable STOP interrupts."""
    (tmp_path / "stop.py").write_text(INTERRUPTING)
    return [*small_flags, f"--run_dir={tmp_path}/run", f"--callback={tmp_path}/stop.py:Interrupt"]


def epoch_lines(output: str) -> list[str]:
    return re.findall(r"^ *(\d+/\d+) ", output, re.MULTILINE)


def test_the_table_and_the_lines_have_80_columns_where_long_names_do_not_prevent_it(
    make_archive, small_flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    archive = make_archive(layout(train_and_test("dark", "light", "middle")))
    shutil.copy(archive, "three.zip")
    ranges = ["--rotation_range=20", "--zoom_range=0.2", "--shear_range=0.2", "--horizontal_flip"]
    fit(*small_flags, *ranges, "--archive=three.zip", "--run_dir=a", "--reduce_lr_patience=1")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (first,) = (index for index, line in enumerate(lines) if line.startswith("augmented "))
    assert lines[first + 1].startswith(" " * 12)
    assert "archive     three.zip" in lines
    assert "run         a" in lines


def test_a_file_gets_one_line_for_each_epoch(finished, small_flags, tmp_path, capsys):
    history = fit(*small_flags, f"--run_dir={tmp_path}/run").values["history"]
    output = capsys.readouterr().out
    assert "\r" not in output
    assert epoch_lines(output) == ["1/4", "2/4", "3/4", "4/4"]
    assert output.count("val_loss") == 1
    assert f"{history['val_loss'][2]:.4f}" in output.splitlines()[-2]


def test_epochs_count_over_the_whole_run(finished, small_flags, tmp_path, capsys):
    stages = [f"--model={finished.run_dir}", "--head_epochs=2", "--learning_rate=0.001"]
    sizes = ("--filters", "--convolutions")
    flags = [flag for flag in small_flags if not flag.startswith(sizes)]
    fit(*flags, *stages, f"--run_dir={tmp_path}/run")
    output = capsys.readouterr().out
    assert epoch_lines(output) == ["1/4", "2/4", "3/4", "4/4"]
    left = {line.split()[0]: line.split()[6:] for line in output.splitlines() if "/4 " in line}
    # Epochs of the head do not say how long those after them take.
    assert left["1/4"] == left["2/4"] == left["4/4"] == []
    assert left["3/4"][0] == "under"


def test_early_stopping_says_after_which_epoch(small_flags, tmp_path, capsys):
    flags = ["--learning_rate=0", "--early_stopping_patience=1"]
    fit(*small_flags, *flags, f"--run_dir={tmp_path}/run")
    assert "\nstopped early, after epoch 2 of 4\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "starts_within, left",
    [(False, ["under 27 min", "8 min", "7 min"]), (True, ["", "8 min", "7 min"])],
)
def test_the_time_left_leaves_the_compilation_out(monkeypatch, capsys, starts_within, left):
    # The first epoch takes 180 s, and each after it 60 s.
    now = iter([0, 180, 240, 300])
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: next(now)))
    lines = progress.EpochLines(10, starts_within=starts_within)
    lines.set_params({"epochs": 10, "steps": 1})
    lines.on_train_begin()
    for epoch in range(3):
        lines.on_epoch_begin(epoch)
        lines.on_epoch_end(epoch, {"loss": 1.0, "accuracy": 0.5})
    told = capsys.readouterr().out.splitlines()[1:]
    assert [re.split(r"\d\.0 *", line)[-1] for line in told] == left


# The end.


def test_the_end_names_each_class_and_commands_that_a_shell_takes(finished):
    lines = finished.summary().splitlines()
    by_class = finished.values["test_by_class"]
    assert [row["images"] for row in by_class.values()] == [6, 6]
    mean = sum(row["accuracy"] for row in by_class.values()) / 2
    assert mean == pytest.approx(finished.values["test_accuracy"])
    assert f"  dark   {by_class['dark']['accuracy']:.3f} (6 images)" in lines
    commands = [shlex.split(line) for line in lines if line.startswith("python -m trainers.")]
    assert [command[2] for command in commands] == [
        "trainers.evaluate",
        "trainers.predict",
        "trainers.export",
    ]
    for command in commands:
        assert command[3] == f"--run_dir={finished.run_dir}"  # It has a space.


def test_of_many_classes_the_end_shows_the_worst(finished):
    matrix = [[20 if row == column else row for column in range(30)] for row in range(30)]
    names = [f"class {row}" for row in range(30)]
    by_class = scores.by_class(np.array(matrix), names)
    by_class["unseen"] = {"images": 0, "accuracy": None}
    values = finished.values | {"test_by_class": by_class}
    summary = results.FitResult(finished.run_dir, values).summary()
    shown = re.findall(r"^  (class \d+) ", summary, re.MULTILINE)
    assert shown == [f"class {row}" for row in range(29, 19, -1)]
    assert "\n  and 20 more classes, each at least as accurate\n" in summary
    assert "unseen" not in summary


# Ctrl-C.


def test_ctrl_c_before_anything_is_saved_leaves_nothing(
    interrupting, finished, tmp_path, monkeypatch
):
    monkeypatch.setenv("STOP", "0 2")
    with pytest.raises(KeyboardInterrupt, match=r"; the same command starts anew$"):
        fit(*interrupting)
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv("STOP")
    assert_same_run(fit(*interrupting).run_dir, finished.run_dir)


@pytest.mark.parametrize(
    "stop, more, place",
    [
        ("2 0", [], "after epoch 2"),
        ("0 2", ["--checkpoint_every=2"], "in epoch 1, saved after step 2"),
    ],
)
def test_ctrl_c_says_with_which_command_the_run_goes_on(
    interrupting, finished, tmp_path, monkeypatch, stop, more, place
):
    monkeypatch.setenv("STOP", stop)
    with pytest.raises(KeyboardInterrupt, match=f"^{place}; go on with ") as caught:
        fit(*interrupting, *more)
    _, command = str(caught.value).split("go on with ")
    *program, flags = "python", "-m", "trainers.fit", shlex.split(command)[3:]
    assert shlex.split(command)[:3] == program
    assert {*more, interrupting[-1]} <= {*flags}  # They are not in run.flags.
    monkeypatch.delenv("STOP")
    assert_same_run(fit(*flags).run_dir, finished.run_dir)


def test_ctrl_c_of_a_run_for_job_scripts_says_that_the_same_command_goes_on(
    interrupting, tmp_path, monkeypatch
):
    monkeypatch.setenv("STOP", "1 1")
    with pytest.raises(KeyboardInterrupt, match=r"^after epoch 1; the same command goes on$"):
        fit(*interrupting, "--resume=auto")
    # A second Ctrl-C in the same epoch removes nothing.
    with pytest.raises(KeyboardInterrupt, match=r"^after epoch 1; "):
        fit(*interrupting, "--resume=auto")


def test_a_run_that_fails_before_anything_is_saved_does_not_block_the_next(small_flags, tmp_path):
    flags = [*small_flags, f"--run_dir={tmp_path}/run", "--epochs=1"]
    with pytest.raises(UserError, match="loss became nan"):
        fit(*flags, "--optimizer=sgd", "--learning_rate=1e30")
    fit(*flags)


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_one_line_and_status_130(interrupting):
    status, _, stderr = run_command(*interrupting, environment={"STOP": "1 0"})
    (line,) = stderr.splitlines()
    assert status == 128 + signal.SIGINT
    assert line.startswith("interrupted after epoch 1; go on with python -m trainers.fit ")


# --run_dir=latest.


def test_the_latest_run_is_the_one_that_ended_last(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^run_dir latest: no finished run in {tmp_path}/runs; "):
        run_directory.named_run("latest")
    for name, ended in (("b", 2000), ("a", 3000), ("c", 1000)):
        shutil.copytree(finished.run_dir, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "result.json", (ended, ended))
    shutil.copytree(finished.run_dir, tmp_path / "runs" / "d")
    (tmp_path / "runs" / "d" / "result.json").unlink()
    assert run_directory.named_run("latest").path == tmp_path / "runs" / "a"
    assert capsys.readouterr() == ("", f"run_dir latest: {tmp_path}/runs/a\n")
    assert run_directory.named_run("runs/c").path == tmp_path / "runs" / "c"


def test_no_run_is_called_latest(small_flags):
    with pytest.raises(UserError, match=r"^run_dir latest: "):
        run_directory.plan(parse_flags(*small_flags, "--run_dir=latest"))


@pytest.mark.slow
@pytest.mark.parametrize("command, argument", [("predict", "{archive}"), ("export", "--overwrite")])
def test_commands_take_the_latest_run(finished, archive, tmp_path, command, argument):
    shutil.copytree(finished.run_dir, tmp_path / "runs" / "a")
    arguments = ["--run_dir=latest", argument.format(archive=archive)]
    environment = {"PYTHONPATH": str(ROOT)}
    status, stdout, stderr = run_command(
        *arguments, command=command, cwd=tmp_path, environment=environment
    )
    assert status == 0
    assert stderr.startswith(f"run_dir latest: {tmp_path}/runs/a\n")
    assert stderr.count("run_dir latest: ") == 1
    assert stdout
