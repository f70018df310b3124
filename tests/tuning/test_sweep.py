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
    layout,
    parse_flags,
    result_of,
    rows,
    run_command,
    snapshot,
    start_command,
    train_and_test,
)

from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.runs import run_directory, scores
from tuning.configuration import SweepConfig

# The second trial of this seed has a learning rate that gives no numbers.
SPACE = [
    "--seed=25",
    "--filters=2,4,8",
    "--blocks=1",
    "--convolutions=1",
    "--kernel_size=3",
    "--pool_size=2",
    "--global_pooling=false",
    "--dense_layers=0",
    "--batch_normalization=false",
    "--dropout=0",
    "--optimizer=sgd",
    "--weight_decay=0",
    "--learning_rate=0.01,0.02,1e30",
    "--learning_rate_schedule=constant,cosine",
    "--label_smoothing=0",
    "--augmentation=none",
]
SOUND = "--seed=19"  # All trials of this seed have learning rates that are none too high.
EPOCHS = 30  # A second or two.


@pytest.fixture(scope="module")
def flags(small_flags) -> list[str]:
    """Those of a sweep of three trials, but for --sweep_dir."""
    known = ("--archive", "--data_dir", "--image_size", "--batch_size")
    pictures = [flag for flag in small_flags if flag.startswith(known)]
    return [*pictures, *SPACE, f"--max_epochs={EPOCHS}", "--max_trials=3", "--final_epochs=3"]


@pytest.fixture(scope="module")
def start_sweep(flags):
    """`start_sweep(folder, *flags)`: a sweep as a terminal starts it; ended with the tests."""
    processes = []

    def start(folder: pathlib.Path, *more: str, **options) -> subprocess.Popen:
        process = start_command(
            *flags,
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


@pytest.fixture(scope="module")
def running(start_sweep, tmp_path_factory):
    """A sweep that nothing disturbs, and its folder."""
    folder = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    return start_sweep(folder, fresh=True), folder


@pytest.fixture(scope="module")
def finished(running):
    """What that sweep printed, and its folder."""
    process, folder = running
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    return stdout, folder


def wait_until(condition: Callable[[], object], *processes: subprocess.Popen):
    """What a condition gives as soon as it holds; these processes must not end before."""
    while not (value := condition()):
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate(timeout=30)
        time.sleep(0.01)
    return value


def backed_up(folder: pathlib.Path, trial: str = "*") -> list[pathlib.Path]:
    """The run directories of trials that are in training, with an epoch or more behind them."""
    backups = (folder / "trials").glob(f"{trial}/backup/latest.h5")
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
    return [{k: v for k, v in row.items() if k not in ("seconds", "ended_after")} for row in found]


def ends(stdout: str) -> list[str]:
    """The trials that a sweep told the end of."""
    return [line.split()[1] for line in stdout.splitlines() if line.startswith("trial ")]


def modified(folder: pathlib.Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# Killed.


@pytest.mark.slow
def test_a_sweep_killed_in_a_trial_goes_on_with_its_last_epoch(running, start_sweep, tmp_path):
    undisturbed, expected = running
    folder = tmp_path / "killed"
    process = start_sweep(folder)
    (trial,) = wait_until(lambda: backed_up(folder, "2"), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not list(family(process)))  # All end with it.
    assert 1 <= len(rows(trial)) < EPOCHS
    begun = (trial / "run.flags").stat().st_mtime_ns
    kept = modified(folder / "trials" / "0")

    again = start_sweep(folder)
    stdout, stderr = again.communicate()
    assert (again.returncode, stderr) == (0, "")
    assert ends(stdout) == ["2"]
    assert modified(folder / "trials" / "0") == kept
    assert (trial / "run.flags").stat().st_mtime_ns == begun
    assert len(result_of(trial)["epoch_end_seconds"]) < EPOCHS  # Those since it went on.
    assert [row["epoch"] for row in rows(trial)] == [str(epoch) for epoch in range(EPOCHS)]
    wait_until(lambda: undisturbed.poll() is not None)
    assert table(folder) == table(expected)
    assert rows(trial) == rows(expected / "trials" / "2")


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
    (trial,) = grandchildren(process, workers.pop(int(worker.split()[1]) - 1))
    os.kill(trial, signal.SIGSTOP)
    both = wait_until(lambda: (found := backed_up(folder)) and len(found) == 2 and found, process)
    (taken,) = set(both) - {failing}

    os.kill(workers.pop(), signal.SIGKILL)
    told = iter(process.stdout.readline, "")
    assert "killed" in next(line for line in told if line.startswith("worker "))
    begun = (taken / "run.flags").stat().st_mtime_ns
    os.kill(trial, signal.SIGKILL)
    line = next(line for line in told if line.startswith("trial "))
    assert line.startswith(f"trial {failing.name}  failed: killed")
    # The worker that is left goes on with the trial of the one that died.
    line = next(line for line in told if line.startswith("trial "))
    assert line.startswith(f"trial {taken.name}  val_accuracy")
    assert (taken / "run.flags").stat().st_mtime_ns == begun
    assert [row["epoch"] for row in rows(taken)] == [str(epoch) for epoch in range(EPOCHS)]

    wait_until(lambda: backed_up(folder, "2"), process)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (128 + signal.SIGINT, "interrupted\n")
    assert f"(trial {taken.name}); run the same command to resume" in stdout
    assert (folder / "sweep.html").exists()
    status = {row["trial"]: row["status"] for row in table(folder)}
    assert status == {taken.name: "completed", failing.name: "failed", "2": "running"}
    wait_until(lambda: not list(family(process)))


@pytest.mark.slow
def test_a_chief_killed_in_a_trial_goes_on_with_workers_that_outlived_it(start_sweep, interrupted):
    folder = interrupted
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]

    def start(name: str) -> subprocess.Popen:
        variables = {"TUNER_ID": name, "ORACLE_IP": "localhost", "ORACLE_PORT": str(port)}
        environment = {f"KERASTUNER_{key}": value for key, value in variables.items()}
        return start_sweep(folder, SOUND, "--worker_timeout=15", environment=environment)

    def epochs() -> int:
        return run_directory.Run(folder / "trials" / "2").progress.epochs

    before = epochs()
    worker, chief = start("worker"), start("chief")  # Who comes first does not matter.
    wait_until(lambda: epochs() > before, worker, chief)
    os.kill(chief.pid, signal.SIGKILL)
    chief.communicate()
    begun = (folder / "trials" / "2" / "run.flags").stat().st_mtime_ns

    again = start("chief")
    stdout, stderr = again.communicate()
    assert (again.returncode, stderr) == (0, "")
    assert ends(stdout) == ["2"]
    assert [row["trial"] for row in table(folder)] == ["0", "1", "2"]
    assert "running" not in {row["status"] for row in table(folder)}
    trial = folder / "trials" / "2"
    assert (trial / "run.flags").stat().st_mtime_ns == begun
    assert [row["epoch"] for row in rows(trial)] == [str(epoch) for epoch in range(EPOCHS)]
    assert len(result_of(trial)["epoch_end_seconds"]) == EPOCHS - before  # The worker had no rest.
    stdout, stderr = worker.communicate()
    assert (worker.returncode, stderr) == (0, "")
    assert stdout.startswith("worker: ")


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
    assert {path.name for path in trials} == {"0", "1", "2"}
    assert not list(folder.rglob("backup"))
    for trial in trials:
        assert not (trial / "model.keras").exists()
        logged = any((trial / "tensorboard").glob("events.out.tfevents.*"))
        assert logged == (trial / "result.json").exists()


@pytest.mark.slow
def test_the_table_has_a_row_for_each_trial_and_the_reason_of_one_that_failed(finished):
    stdout, folder = finished
    assert ends(stdout) == ["0", "1", "2"]
    found = table(folder)
    assert [row["status"] for row in found] == ["completed", "failed", "completed"]
    assert "loss became nan in epoch 1" in found[1]["reason"]
    assert [row["reason"] for row in (found[0], found[2])] == ["", ""]
    assert found[1]["learning_rate"] == "1e+30"
    for row in (found[0], found[2]):
        run = folder / "trials" / row["trial"]
        assert float(row["val_accuracy"]) == max(result_of(run)["history"]["val_accuracy"])
        assert row["epochs"] == str(EPOCHS) == str(len(rows(run)))
        config = run_directory.Run(run).config
        assert str(config.model.filters) == row["filters"]
        assert str(config.optimisation.learning_rate_schedule) == row["learning_rate_schedule"]
    assert "3 trials (2 completed, 1 failed)" in stdout


@pytest.mark.slow
def test_no_trial_is_tested_and_the_best_is_on_all_that_they_were_trained_on(finished):
    stdout, folder = finished
    for trial in ("0", "2"):
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
    from tuning.search import oracles, running, winner
    from tuning.search.plan import Plan
    from tuning.search.progress import Progress

    stdout, folder = finished
    parts = [modified(folder / part) for part in ("trials", "best", "oracle")]
    before = table(folder), (folder / "best.flags").read_text()
    plan = Plan.make(parse_flags(*flags, f"--sweep_dir={folder}", config=SweepConfig))
    plan.folder.start()
    oracle = oracles.make(plan.config, plan.space, remote=False)
    plan.folder.open_oracle(oracle)
    progress = Progress(plan, oracle)
    running.run_trials(plan, oracle, distributed=False)
    best = winner.train(progress)
    progress.write(best)
    assert stdout.endswith(f"{progress.summary(best)}\n")
    assert [modified(folder / part) for part in ("trials", "best", "oracle")] == parts
    assert (table(folder), (folder / "best.flags").read_text()) == before


# What is refused.


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["--filters=2,4", "--tuner=grid", "--archive={other}"])
def test_another_sweep_in_the_same_folder_is_refused(finished, flags, make_archive, changed):
    from tuning.search.plan import Plan

    _, folder = finished
    before = snapshot(folder)
    other = make_archive(layout(train_and_test("dark", "middle")), name="shades")
    changed = changed.format(other=other)
    argv = [*flags, f"--sweep_dir={folder}", changed]
    plan = Plan.make(parse_flags(*argv, config=SweepConfig))
    with pytest.raises(UserError, match="was started with other flags") as caught:
        plan.folder.start()
    assert changed in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(folder) == before


def test_other_pictures_under_the_same_name_are_refused(small_flags, make_archive, tmp_path):
    from tuning.search.plan import Plan

    files = layout(train_and_test("dark", "light"))
    archive = make_archive(files, as_zip=False)
    argv = [*small_flags[1:3], f"--archive={archive}", f"--sweep_dir={tmp_path}/sweep"]
    config = parse_flags(*argv, config=SweepConfig)
    Plan.make(config).folder.start()
    Plan.make(config).folder.start()
    before = snapshot(tmp_path)
    (archive / "train/dark/00.png").write_bytes(files["train/dark/01.png"])
    with pytest.raises(UserError):
        Plan.make(config).folder.start()
    assert snapshot(tmp_path) == before


@pytest.fixture
def started(small_flags, tmp_path):
    """`started(*flags)`: starts a search of one trial, or goes on with it; its sweep.flags."""
    from tuning.search.plan import Plan

    def start(*flags: str) -> pathlib.Path:
        argv = [*small_flags[:3], f"--sweep_dir={tmp_path}/sweep", "--max_trials=1", *flags]
        Plan.make(parse_flags(*argv, config=SweepConfig)).folder.start()
        return tmp_path / "sweep" / "sweep.flags"

    return start


def test_a_search_goes_on_with_other_flags_that_are_not_its_identity(started):
    before = started().read_text()
    others = ["--max_trials=9", "--time_budget=9", "--workers=2", "--worker_timeout=9"]
    others += ["--final_epochs=9", "--notensorboard"]
    assert started(*others).read_text() == before


def test_a_search_goes_on_whatever_the_comments_and_new_flags_are(started):
    *lines, fingerprint = started().read_text().splitlines()
    old = ["# Reworded." if line.startswith("#") else line for line in lines]
    old.remove("--augment_on=host")
    flags = started()
    flags.write_text("\n".join([*old, fingerprint]))
    started()
    with pytest.raises(UserError, match=r"\(--augment_on=host, now --augment_on=device\)"):
        started("--augment_on=device")

    flags.write_text("\n".join([*old, "--flux_capacitor=1", fingerprint]))
    with pytest.raises(UserError, match=f"{flags}: --flux_capacitor is not a flag of this version"):
        started()


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_folder_of_other_files_is_refused(small_flags, tmp_path, more):
    from tuning.search.plan import Plan

    (tmp_path / "best").mkdir()
    (tmp_path / "thesis.tex").write_text("")
    before = snapshot(tmp_path)
    argv = [*small_flags[:3], f"--sweep_dir={tmp_path}", *more]
    with pytest.raises(UserError, match="has files that do not belong to a search"):
        Plan.make(parse_flags(*argv, config=SweepConfig)).folder.start()
    assert snapshot(tmp_path) == before


def test_what_a_sweep_killed_at_its_beginning_left_can_be_begun_again(small_flags, tmp_path):
    from tuning.search.plan import Plan

    (tmp_path / f".{'0' * 32}.sweep.flags").write_text("--half")
    (tmp_path / "oracle").mkdir()  # By a worker that came before its chief.
    argv = [*small_flags[:3], f"--sweep_dir={tmp_path}"]
    Plan.make(parse_flags(*argv, config=SweepConfig)).folder.start()
    assert (tmp_path / "sweep.flags").exists()


def test_two_searches_are_not_at_work_in_one_folder(small_flags, tmp_path):
    from tuning.search.plan import Plan

    argv = [*small_flags[:3], f"--sweep_dir={tmp_path}/sweep"]
    plan = Plan.make(parse_flags(*argv, config=SweepConfig))
    with (
        plan.folder.lock(),
        pytest.raises(UserError, match="another search is running there"),
        plan.folder.lock(),
    ):
        pass


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--validation_split=none", "chosen by"),
        ("--test_split=final", "'final'"),
        ("--optimizer=adam,adamant", "'adamant'"),
    ],
)
def test_what_a_sweep_cannot_do_with_is_told_before_it_begins(small_flags, tmp_path, flag, said):
    from tuning.search.plan import Plan

    argv = [*small_flags[:3], f"--sweep_dir={tmp_path}/sweep", flag]
    with pytest.raises(UserError, match=said):
        Plan.make(parse_flags(*argv, config=SweepConfig))
    assert snapshot(tmp_path) == {}


CLASSES = {"dark": 20, "light": 20}
FOLDERS = {f"train/{name}": count for name, count in CLASSES.items()}
VALIDATION = {"val/dark": 5, "val/light": 5}
TEST = {"test/dark": 6, "test/light": 6}


@pytest.mark.parametrize(
    "counts, asked",
    [
        (CLASSES, []),
        (CLASSES, ["--validation_split=0.3", "--test_split=0.3"]),
        (CLASSES, ["--train_split=0.3"]),
        (CLASSES, ["--train_split=train[:80%]"]),
        (FOLDERS | VALIDATION, []),
        (FOLDERS | VALIDATION, ["--test_split=train[:20%]", "--validation_split=0.1"]),
        (FOLDERS | TEST, []),
        (FOLDERS | TEST, ["--test_split=0.2"]),
        (FOLDERS | TEST, ["--train_split=train[:80%]", "--validation_split=train[80%:]"]),
        (FOLDERS | VALIDATION | TEST, []),
        (FOLDERS | VALIDATION | TEST, ["--validation_split=0.2"]),
    ],
)
def test_the_best_is_tested_on_what_no_trial_has_seen(
    small_flags, make_archive, tmp_path, counts, asked
):
    from tuning.search import final_data
    from tuning.search.plan import Plan

    argv = [*small_flags[:3], f"--archive={make_archive(layout(counts))}", *asked]
    config = parse_flags(*argv, config=SweepConfig)
    trials = Plan.make(config).space.data
    best = run_data.load(final_data.data_flags(config, trials))
    seen = {*trials.rows["train"], *trials.rows["validation"]}
    assert sorted(trials.rows["test"]) == sorted(best.rows["test"])
    assert not seen & {*best.rows["test"]}
    assert seen <= {*best.rows["train"]}
    assert not {*best.rows["train"]} & {*best.rows["test"]}
    assert len(best.rows["train"]) == len({*best.rows["train"]})


@pytest.mark.parametrize(
    "counts, asked",
    [
        (CLASSES, ["--train_split=train[:80%]", "--validation_split=train[80%:]"]),
        (CLASSES, ["--validation_split=train[80%:]"]),
        (FOLDERS | TEST, ["--validation_split=train[80%:]"]),
        (FOLDERS | VALIDATION, ["--test_split=train[:20%]"]),
    ],
)
def test_splits_that_leave_no_fair_test_are_told_before_a_search_begins(
    small_flags, make_archive, tmp_path, counts, asked
):
    from tuning.search.plan import Plan

    archive = make_archive(layout(counts))
    argv = [*small_flags[:3], f"--archive={archive}", f"--sweep_dir={tmp_path}/sweep", *asked]
    with pytest.raises(UserError, match="pass all three as split strings, or none") as caught:
        Plan.make(parse_flags(*argv, config=SweepConfig))
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == {}


def test_half_of_an_environment_of_workers_is_told(monkeypatch):
    from tuning.search import distribution

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
