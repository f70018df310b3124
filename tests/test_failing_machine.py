"""Disks that fail, runs that are removed or trained twice at once: one line, nothing is lost."""

import errno
import os
import shutil
import signal
import time

import faults
import pytest
from small_runs import (
    assert_same_run,
    fit,
    fit_and_stop,
    layout,
    run_command,
    start_command,
    train_and_test,
)

from pizza_steak import errors, kept
from pizza_steak.errors import UserError
from trainers.configuration import EvaluateConfig, EvaluationDataConfig
from trainers.finished import evaluation
from trainers.runs import run_directory

FLAGS = ["--image_size=32", "--batch_size=8", "--filters=4", "--seed=7", "--epochs=2"]


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.EIO, "Input/output error", "a/b"), "a/b: Input/output error"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (RuntimeError("{{node}} a/b; No space left on device [Op:Save]\nmore"),
         "a/b: No space left on device"),
        (ValueError("a shape"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_faults_of_the_machine_are_told_from_bugs(error, line, wrapped):
    if wrapped:
        outer = KeyError("what another library makes of it")
        outer.__cause__, error = error, outer
    assert errors.fault_of_the_machine(error) == line


def test_of_a_full_disk_it_says_how_much_is_free(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))
    free = shutil.disk_usage(tmp_path).free / 1e6
    told = float(errors.told(error).split("(")[1].split(" MB free")[0].replace(",", ""))
    assert told == pytest.approx(free, rel=0.1)


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives") / "shades"
    for name, content in layout(train_and_test("dark", "light")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def whole(shades, tmp_path_factory):
    """`whole`: the folder of a run that nothing disturbed, and the number of its operations."""
    if not faults.COMPILER:
        pytest.skip("needs a C compiler")
    under = tmp_path_factory.mktemp("whole").resolve()
    ended = faults.run(under, "trainers", "fit", *flags_of(shades))
    assert ended.status == 0, ended.text
    return under, ended.operations


def flags_of(archive):
    return [*FLAGS, f"--archive={archive}", "--data_dir=data", "--run_dir=run", "--resume=auto"]


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.02, 0.15, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    "number, lasting", [(errno.ENOSPC, True), (0, False)], ids=["full", "killed"]
)
def test_a_fault_is_one_line_and_the_next_run_ends_as_if_there_was_none(
    whole, shades, tmp_path, part, number, lasting
):
    """tests/measurements/failing_disk.py has all operations, faults and commands."""
    expected, operations = whole
    under = tmp_path.resolve() / "under"
    under.mkdir()
    at = round(part * operations)
    ended = faults.run(
        under, "trainers", "fit", *flags_of(shades), at=at, number=number, lasting=lasting
    )
    lines = ended.text.splitlines()
    if number:
        assert (ended.status, len([line for line in lines if line.startswith("error: ")])) == (1, 1)
        assert os.strerror(number) in ended.text
        assert "Traceback" not in ended.text
    else:
        assert ended.status == -signal.SIGKILL
    assert faults.run(under, "trainers", "fit", *flags_of(shades)).status == 0
    assert_same_run(under / "run", expected / "run")
    assert all(kept.verify(under).values())


@pytest.mark.slow
def test_two_processes_do_not_train_in_one_run_directory(small_flags, tmp_path):
    flags = [*small_flags, f"--run_dir={tmp_path}/run", "--resume=auto", "--epochs=200"]
    with start_command(*flags) as first:
        while not (tmp_path / "run/backup/latest.npz").exists():
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)
        try:
            status, _, text = run_command(*flags)
        finally:
            first.send_signal(signal.SIGKILL)
        assert (status, text.splitlines()[-1]) == (
            1,
            f"error: run_dir {tmp_path}/run: process {first.pid} trains there; wait for its end, "
            "or pass another --run_dir",
        )
    fit_and_stop(*flags, epoch=run_directory.Run(tmp_path / "run").progress.epochs + 1)
    assert not list(tmp_path.glob(".*.lock"))


def test_a_run_that_is_removed_while_it_trains_is_told_in_one_line(small_flags, tmp_path):
    from trainers.training import callbacks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            callbacks.Backup, "on_epoch_begin", lambda *_, **__: shutil.rmtree(tmp_path / "run")
        )
        with pytest.raises(UserError, match=r"^run_dir .*/run: was removed during the training$"):
            fit(*small_flags, f"--run_dir={tmp_path}/run")


def test_a_run_whose_archive_was_replaced_says_so(shades, tmp_path, caplog):
    archive = shutil.copytree(shades, tmp_path / "shades")
    flags = [*FLAGS, f"--archive={archive}", f"--data_dir={tmp_path}/data", "--epochs=1"]
    run = run_directory.Run(fit(*flags, f"--run_dir={tmp_path}/run").run_dir)
    config = EvaluateConfig(data=EvaluationDataConfig(data_dir=f"{tmp_path}/data"))
    evaluation.evaluate(run, config)
    assert not [record for record in caplog.records if record.name == "absl"]
    image = archive / "test/dark/00.png"
    image.write_bytes((archive / "test/light/00.png").read_bytes())
    evaluation.evaluate(run, config)
    (told,) = [record.message for record in caplog.records if record.name == "absl"]
    assert told.endswith(f" have changed since {tmp_path}/run was trained")


@pytest.mark.slow
def test_a_run_is_resumed_with_records_that_were_lost_and_made_again(shades, tmp_path):
    flags = [*FLAGS, f"--archive={shades}", f"--data_dir={tmp_path}/data"]
    flags.append(f"--run_dir={tmp_path}/run")
    fit_and_stop(*flags, epoch=1)
    shutil.rmtree(tmp_path / "data")
    status, _, text = run_command(*flags, "--resume")
    assert status == 0, text


def test_too_few_addresses_are_told_before_tensorflow_is_imported(small_flags, tmp_path):
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**29,) * 2)
from trainers import command, fit
from trainers.configuration import FitConfig
sys.argv = ["fit", *sys.argv[1:]]
command.run(fit.main, FitConfig)
"""
    status, _, text = run_command(f"--run_dir={tmp_path}/run", code=code, fresh=True)
    assert status == 1
    assert text.startswith("error: address space: limited to 1.5 GiB (ulimit -v); expected 4 GiB")
    assert not list(tmp_path.iterdir())
