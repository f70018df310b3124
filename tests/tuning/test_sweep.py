"""`python -m tuning.sweep`: what it leaves, and what it makes of processes that are killed."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from small_runs import (
    fit,
    parse_flags,
    result_of,
    rows,
    run_command,
    start_command,
)

from pizza_steak.errors import UserError
from trainers.configuration import EvaluateConfig
from trainers.finished import evaluation
from trainers.runs import run_directory, scores
from tuning.configuration import SweepConfig

SIZES = [
    "--filters=2,4,8",
    "--blocks=1",
    "--convolutions=1",
    "--kernel_size=3",
    "--pool_size=2",
    "--global_pooling=false",
    "--dense_layers=0",
    "--batch_normalization=false",
    "--dropout=0",
]
# The second trial of this seed has a learning rate that gives NaN.
SPACE = [
    "--seed=15",
    *SIZES,
    "--optimizer=sgd",
    "--weight_decay=0",
    "--learning_rate=0.01,0.02,1e30",
    "--learning_rate_schedule=constant,cosine",
    "--label_smoothing=0",
    "--horizontal_flip=false",
    "--zoom_range=0",
    "--width_shift_range=0",
    "--height_shift_range=0",
    "--rotation_range=0",
    "--brightness_range=none",
    "--mixup=none",
    "--ema=none",
]
SOUND = "--seed=20"  # No trial of this seed has a learning rate that gives NaN.
EPOCHS = 20  # A second or two.
# The first call never returns.
HANGING = """
import pathlib
import time

import keras

def network(image_shape, num_classes):
    marker = pathlib.Path({marker!r})
    if not marker.exists():
        marker.touch()
        time.sleep(3600)
    layers = [keras.layers.Flatten(), keras.layers.Dense(4, activation="relu")]
    outputs = keras.layers.Dense(1, activation="sigmoid")
    return keras.Sequential([keras.Input(image_shape), *layers, outputs])
"""


@pytest.fixture(scope="module")
def flags(small_flags) -> list[str]:
    """Those of a sweep of three trials, but for --sweep_dir."""
    known = ("--archive", "--data_dir", "--image_size", "--batch_size")
    pictures = [flag for flag in small_flags if flag.startswith(known)]
    limits = [f"--max_epochs={EPOCHS}", "--max_trials=3", "--final_epochs=3", "--finalists=1"]
    return [*pictures, *SPACE, *limits]


@pytest.fixture(scope="module")
def start_sweep(flags):
    """`start_sweep(folder, *flags)`: a sweep as a terminal starts it; ended with the tests.

    `without` is a list of flags that it does not get.
    """
    processes = []

    def start(folder: pathlib.Path, *more: str, without=(), **options) -> subprocess.Popen:
        process = start_command(
            *(flag for flag in flags if flag not in without),
            f"--sweep_dir={folder}",
            *more,
            command="sweep",
            package="tuning",
            start_new_session=True,
            **options,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def cluster(port: int = 1, **more: str) -> dict[str, str]:
    """Environment variables of a sweep on several machines, of which this is the only one."""
    variables = {"ORACLE_IP": "localhost", "ORACLE_PORT": str(port), **more}
    return {f"KERASTUNER_{name}": value for name, value in variables.items()}


@pytest.fixture(scope="module")
def running(start_sweep, tmp_path_factory):
    """A sweep that nothing disturbs, not even the address of a chief; and its folder."""
    folder = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    return start_sweep(folder, environment=cluster(), fresh=True), folder


def output_of(process: subprocess.Popen) -> str:
    """What a process prints that succeeds without a warning."""
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    return stdout


@pytest.fixture(scope="module")
def finished(running):
    """What that sweep printed, and its folder."""
    process, folder = running
    return output_of(process), folder


def wait_until(condition: Callable[[], object], *processes: subprocess.Popen):
    """What a condition gives as soon as it holds; these processes must not end before."""
    while not (value := condition()):
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate(timeout=30)
        time.sleep(0.01)
    return value


def backed_up(folder: pathlib.Path, trial: str = "*") -> list[pathlib.Path]:
    """The run directories of trials that are in training, with an epoch or more behind them."""
    backups = (folder / "trials").glob(f"{trial}/backup/latest.npz")
    return [path.parents[1] for path in backups if not (path.parents[1] / "result.json").exists()]


def stat(pid: int) -> list[str]:
    """State, parent, process group and more of a process; nothing where there is none."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def family(process: subprocess.Popen) -> Iterator[tuple[int, int]]:
    """All that live of a process group, with their parents, in the order of their births."""
    pids = sorted(int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*"))
    for pid in pids:
        state, parent, group = [*stat(pid), *"   "][:3]
        if group == str(process.pid) and state != "Z":
            yield pid, int(parent)


def grandchildren(process: subprocess.Popen, pid: int) -> list[int]:
    """What a process has forked by its forkserver: trials, or workers, and these have trials."""
    living = list(family(process))
    children = {child for child, parent in living if parent == pid}
    return [grandchild for grandchild, parent in living if parent in children]


def table(folder: pathlib.Path) -> list[dict[str, str]]:
    """trials.csv without what differs from time to time."""
    with (folder / "trials.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    times = ("seconds", "ended_after", "predict_cpu_ms")
    return [{name: row[name] for name in row if name not in times} for row in found]


def ends(stdout: str) -> list[str]:
    """The trials that a sweep told the end of."""
    return [line.split()[1] for line in stdout.splitlines() if line.startswith("trial ")]


def modified(folder: pathlib.Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# Killed.


@pytest.mark.slow
def test_a_sweep_killed_in_a_trial_goes_on_with_its_last_epoch(
    running,
    hanging,  # It waits in the meantime.
    start_sweep,
    tmp_path,
):
    undisturbed, expected = running
    folder = tmp_path / "killed"
    process = start_sweep(folder)
    (trial,) = wait_until(lambda: backed_up(folder, "0002"), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not list(family(process)))  # All end with it.
    assert 1 <= len(rows(trial)) < EPOCHS
    begun = (trial / "run.flags").stat().st_mtime_ns
    kept = modified(folder / "trials" / "0000")

    assert ends(output_of(start_sweep(folder))) == ["0002"]
    assert modified(folder / "trials" / "0000") == kept
    assert (trial / "run.flags").stat().st_mtime_ns == begun
    assert len(result_of(trial)["epoch_end_seconds"]) < EPOCHS  # Those since it went on.
    assert [row["epoch"] for row in rows(trial)] == [str(epoch) for epoch in range(EPOCHS)]
    wait_until(lambda: undisturbed.poll() is not None)
    assert table(folder) == table(expected)
    assert rows(trial) == rows(expected / "trials" / "0002")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a sweep that one test leaves as Ctrl-C does, and another goes on with."""
    return tmp_path_factory.mktemp("sweeps") / "interrupted"


@pytest.mark.slow
def test_workers_and_trials_are_killed_and_ctrl_c_ends_it_in_order(start_sweep, interrupted):
    folder = interrupted
    process = start_sweep(folder, SOUND, "--workers=2")
    # One trial waits for the other.
    (failing,) = wait_until(lambda: backed_up(folder)[:1], process)
    state = json.loads((folder / "oracle" / "oracle.json").read_text())
    (worker,) = (name for name, trial in state["ongoing_trials"].items() if trial == failing.name)
    workers = grandchildren(process, process.pid)  # In the order of their numbers.
    own = workers.pop(int(worker.split()[1]) - 1)
    (trial,) = grandchildren(process, own)
    os.kill(trial, signal.SIGSTOP)
    both = wait_until(lambda: (found := backed_up(folder)) and len(found) == 2 and found, process)
    (taken,) = set(both) - {failing}

    os.kill(workers.pop(), signal.SIGKILL)
    told = iter(process.stdout.readline, "")
    assert "killed" in next(line for line in told if line.startswith("worker "))
    begun = (taken / "run.flags").stat().st_mtime_ns
    os.kill(trial, signal.SIGKILL)
    (again,) = wait_until(lambda: {*grandchildren(process, own)} - {trial}, process)
    os.kill(again, signal.SIGKILL)  # Twice is no chance.
    line = next(line for line in told if line.startswith("trial "))
    assert line.startswith(f"trial {failing.name}  failed: killed")
    # The worker that is left goes on with the trial of the one that died.
    line = next(line for line in told if line.startswith("trial "))
    assert line.startswith(f"trial {taken.name}  val_accuracy")
    assert (taken / "run.flags").stat().st_mtime_ns == begun
    assert [row["epoch"] for row in rows(taken)] == [str(epoch) for epoch in range(EPOCHS)]

    wait_until(lambda: backed_up(folder, "0002"), process)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (128 + signal.SIGINT, "interrupted\n")
    resume = f"to resume: python -m tuning.sweep --flagfile={folder / 'sweep.flags'} "
    assert f"(trial {taken.name}); {resume}" in stdout
    assert (folder / "sweep.html").exists()
    status = {row["trial"]: row["status"] for row in table(folder)}
    assert status == {taken.name: "completed", failing.name: "failed", "0002": "running"}
    wait_until(lambda: not list(family(process)))


@pytest.mark.slow
def test_a_chief_killed_in_a_trial_goes_on_with_workers_that_outlived_it(start_sweep, interrupted):
    folder = interrupted
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]

    trial = folder / "trials" / "0002"

    def start(name: str) -> subprocess.Popen:
        # A job that is queued again has the same command, with --overwrite.
        options = ["--worker_timeout=15", "--overwrite"]
        return start_sweep(folder, SOUND, *options, environment=cluster(port, TUNER_ID=name))

    def epochs() -> int:
        return run_directory.Run(trial).progress.epochs

    before = epochs()
    worker, chief = start("worker"), start("chief")  # Who comes first does not matter.
    wait_until(lambda: epochs() > before, worker, chief)
    os.kill(chief.pid, signal.SIGKILL)
    chief.communicate()
    begun = (trial / "run.flags").stat().st_mtime_ns

    assert ends(output_of(start("chief"))) == ["0002"]
    assert [row["trial"] for row in table(folder)] == ["0000", "0001", "0002"]
    assert "running" not in {row["status"] for row in table(folder)}
    assert (trial / "run.flags").stat().st_mtime_ns == begun
    assert [row["epoch"] for row in rows(trial)] == [str(epoch) for epoch in range(EPOCHS)]
    assert len(result_of(trial)["epoch_end_seconds"]) == EPOCHS - before  # The worker had no rest.
    assert output_of(worker).startswith("worker: ")


@pytest.mark.slow
def test_a_worker_that_comes_when_the_sweep_has_ended_ends_too(finished, start_sweep):
    _, folder = finished
    before = modified(folder)
    late = start_sweep(folder, environment=cluster(TUNER_ID="late"))
    assert output_of(late) == "late: 0 trials\n"
    assert modified(folder) == before


# Hyperband, finals and an average.


@pytest.fixture(scope="module")
def hyperband(start_sweep, tmp_path_factory):
    """A sweep by hyperband that ends by itself, with finals and an average; and its folder."""
    folder = tmp_path_factory.mktemp("sweeps") / "hyperband"
    process = start_sweep(
        folder,
        "--tuner=hyperband",
        "--learning_rate=0.01,0.02",
        "--max_epochs=3",
        "--workers=2",
        "--validation_fraction=0.4",
        "--finalists=2",
        "--final_models=2",
        "--average_flips",
        without=["--max_trials=3"],
    )
    return output_of(process), folder


@pytest.mark.slow
def test_a_promoted_trial_continues_the_run_of_the_trial_before_it(hyperband):
    _, folder = hyperband
    trials = [row for row in table(folder) if not row["finalist"]]
    assert [row["status"] for row in trials] == ["completed"] * 6
    (promoted,) = (row for row in trials if row["trial"] != row["run"])
    assert not (folder / "trials" / promoted["trial"]).exists()
    first, longer = (
        json.loads((folder / "trials" / f"{promoted[name]}.json").read_text())["history"]
        for name in ("run", "trial")
    )
    run = folder / "trials" / promoted["run"]
    assert [row["epoch"] for row in rows(run)] == ["0", "1", "2"]
    assert result_of(run)["history"] == longer
    for name, values in first.items():
        assert values == longer[name][:1] == [float(rows(run)[0][name])]
    by_trial = {row["trial"]: row["epochs"] for row in trials}
    assert (by_trial[promoted["run"]], by_trial[promoted["trial"]]) == ("1", "3")


@pytest.mark.slow
def test_finals_are_validated_on_other_folds_and_choose_the_best(hyperband):
    stdout, folder = hyperband
    trials = {row["run"]: row for row in table(folder) if not row["finalist"]}
    finals = [row for row in table(folder) if row["finalist"]]
    assert "6 trials (6 completed) and " in stdout
    assert len({row["finalist"] for row in finals}) == 2
    runs = {path.parent.name for path in folder.glob("finals/*/run.flags")}
    assert runs == {row["trial"] for row in finals}
    own = {run: row["epochs"] == "3" for run, row in trials.items()}
    for run in {row["finalist"] for row in finals}:
        folds = [row["fold"] for row in finals if row["finalist"] == run]
        assert sorted(folds) == (["1"] if own[run] else ["0", "1"])
    for row in finals:
        config = run_directory.Run(folder / "finals" / row["trial"]).config
        assert config.data.validation_fold == {"0": None, "1": "1/1"}[row["fold"]]
        assert row["epochs"] == "3"
        assert row["filters"] == trials[row["finalist"]]["filters"] == str(config.model.filters)
    line = next(line for line in stdout.splitlines() if line.startswith("6 trials"))
    assert "on all folds" in line
    best = line.rpartition("(trial ")[2].strip(")")
    assert best in {trials[row["finalist"]]["trial"] for row in finals}
    assert f"# Trial {best}: " in (folder / "best.flags").read_text()


@pytest.mark.slow
def test_the_average_of_the_final_models_is_evaluated_like_any_run(hyperband):
    stdout, folder = hyperband
    best = run_directory.open_run(folder / "best")
    members = [run_directory.open_run(path) for path in best.result["members"]]
    assert [run.path.parent for run in members] == [folder / "members"] * 2
    assert [run.config.optimisation.seed for run in members] == [15, 16]
    assert [len(run.history["loss"]) for run in members] == [3, 3]
    assert best.result["flips"]
    assert f"test accuracy {scores.test_accuracy_text(best.result)}" in stdout
    evaluated = evaluation.evaluate(best, EvaluateConfig())
    assert evaluated.values["accuracy"] == best.result["test_accuracy"]
    assert evaluated.values["loss"] == pytest.approx(best.result["test_loss"], rel=1e-6)


# Trials that fail.


@pytest.fixture(scope="module")
def hanging(start_sweep, tmp_path_factory):
    """A sweep of two trials, of which the first hangs and the second gives NaN; and its folder."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "own.py").write_text(HANGING.format(marker=str(folder / "marker")))
    more = [f"--model={folder}/own.py:network", "--learning_rate=1e30", "--trial_timeout=40"]
    return start_sweep(folder / "sweep", *more, "--max_trials=2", without=SIZES), folder / "sweep"


@pytest.fixture(scope="module")
def hopeless(hanging):
    """What that sweep printed, to stderr too; and its folder."""
    process, folder = hanging
    stdout, stderr = process.communicate()
    assert process.returncode == 1
    wait_until(lambda: not list(family(process)))  # The trial that hangs, too.
    return stdout, stderr, folder


@pytest.mark.slow
def test_a_trial_that_hangs_is_ended_and_the_sweep_goes_on(hopeless):
    stdout, _, folder = hopeless
    assert ends(stdout) == ["0000", "0001"]
    assert "trial 0000  failed: took longer than 40 s" in stdout
    first, second = table(folder)
    assert (first["status"], first["reason"]) == ("failed", "took longer than 40 s")
    assert second["status"] == "failed"
    assert "loss became nan in epoch 1" in second["reason"]


@pytest.mark.slow
def test_a_sweep_of_which_no_trial_completes_says_so_in_a_line(hopeless):
    _, stderr, folder = hopeless
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    assert "no trial is completed" in line
    assert "loss became nan in epoch 1" in line
    page = (folder / "sweep.html").read_text()
    assert "No trial is completed yet" in page
    assert 'http-equiv="refresh"' not in page
    assert not (folder / "best").exists()
    assert not (folder / "best.flags").exists()


# What it leaves.


@pytest.mark.slow
def test_the_folder_holds_what_the_design_says(finished):
    _, folder = finished
    assert {path.name for path in folder.iterdir()} == {
        "best",
        "best.flags",
        "oracle",
        "sweep.flags",
        "sweep.html",
        "trials",
        "trials.csv",
    }
    trials = [path for path in folder.glob("trials/*") if path.is_dir()]
    assert {path.name for path in trials} == {"0000", "0001", "0002"}
    assert not list(folder.rglob("backup"))
    for trial in trials:
        assert not (trial / "model.keras").exists()
        logged = any((trial / "tensorboard").glob("events.out.tfevents.*"))
        assert logged == (trial / "result.json").exists()


@pytest.mark.slow
def test_the_table_has_a_row_for_each_trial_and_the_reason_of_one_that_failed(finished):
    stdout, folder = finished
    assert ends(stdout) == ["0000", "0001", "0002"]
    found = table(folder)
    assert [row["status"] for row in found] == ["completed", "failed", "completed"]
    assert "loss became nan in epoch 1" in found[1]["reason"]
    assert [row["reason"] for row in (found[0], found[2])] == ["", ""]
    assert found[1]["learning_rate"] == "1e+30"
    for row in (found[0], found[2]):
        run = folder / "trials" / row["trial"]
        last = result_of(run)["history"]["val_accuracy"][-3:]
        assert float(row["val_accuracy"]) == pytest.approx(sum(last) / 3)
        assert row["epochs"] == str(EPOCHS) == str(len(rows(run)))
        config = run_directory.Run(run).config
        assert str(config.model.filters) == row["filters"]
        assert str(config.optimisation.learning_rate_schedule) == row["learning_rate_schedule"]
    assert "3 trials (2 completed, 1 failed)" in stdout


@pytest.mark.slow
def test_no_trial_is_tested_and_the_best_is_on_all_that_they_were_trained_on(finished):
    stdout, folder = finished
    for trial in ("0000", "0002"):
        data = run_directory.Run(folder / "trials" / trial).config.data
        assert (data.train_split, data.validation_split) == (None, None)
        assert not any("test" in name for name in result_of(folder / "trials" / trial))
    best = run_directory.open_run(folder / "best")
    data = best.config.data
    assert (data.train_split, data.validation_split) == (None, "none")
    assert f"test accuracy {scores.test_accuracy_text(best.result)}" in stdout
    assert "expect less on new ones" not in stdout
    found = {row["trial"]: float(row["val_accuracy"] or 0) for row in table(folder)}
    assert f"(trial {max(found, key=found.get)})" in stdout


@pytest.mark.slow
def test_best_flags_repeat_the_best_run(finished, tmp_path):
    _, folder = finished
    again = fit(f"--flagfile={folder / 'best.flags'}", f"--run_dir={tmp_path}/run")
    expected = result_of(folder / "best")
    assert again.values["test_accuracy"] == expected["test_accuracy"]
    for name, values in again.values["history"].items():
        # In another process, which may compute with other kernels.
        assert values == pytest.approx(expected["history"][name], rel=1e-3)


@pytest.mark.slow
def test_the_same_again_trains_nothing_and_says_the_same(finished, flags):
    from tuning.trials import running, winner
    from tuning.trials.plan import Plan
    from tuning.trials.progress import Progress

    stdout, folder = finished
    parts = [modified(folder / part) for part in ("trials", "best", "oracle")]
    before = table(folder), (folder / "best.flags").read_text()
    plan = Plan.make(parse_flags(*flags, f"--sweep_dir={folder}", config=SweepConfig))
    plan.folder.start()
    oracle = plan.make_oracle(remote=False)
    plan.folder.open_oracle(oracle)
    progress = Progress(plan, oracle)
    running.run_trials(plan, oracle, distributed=False)
    best = winner.train(progress)
    progress.write(best)
    assert stdout.endswith(f"{progress.summary(best)}\n")
    assert [modified(folder / part) for part in ("trials", "best", "oracle")] == parts
    assert (table(folder), (folder / "best.flags").read_text()) == before


# What is refused.


def test_half_of_an_environment_of_workers_is_told(monkeypatch):
    from tuning.trials import distribution

    assert distribution.role() is None
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker-3")
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "10.0.0.1")
    with pytest.raises(UserError, match="KERASTUNER_TUNER_ID is set and KERASTUNER_ORACLE_PORT"):
        distribution.role()
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8000")
    assert distribution.role() == "worker"
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    assert distribution.role() == "chief"
    assert distribution.chief_address() == "10.0.0.1:8000"


@pytest.mark.slow
def test_a_wrong_flag_exits_with_status_2():
    status, stdout, stderr = run_command("--filters=8,a", command="sweep", package="tuning")
    (line,) = stderr.splitlines()
    assert (status, stdout) == (2, "")
    assert line.startswith("error: ")
    assert "filters=8,a" in line.replace("'", "")
    assert "'a': expected a whole number" in line
