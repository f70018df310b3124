"""Flagfiles are found by name from any folder."""

import os
import pathlib

import pytest
from small_runs import time_limit

from pizza_steak import flagfile
from pizza_steak.configuration import PreparedConfig
from pizza_steak.flagfile import FlagfileError
from trainers.configuration import FitConfig
from tuning.configuration import SweepConfig


def expand(*arguments: str) -> list[str]:
    return flagfile.expand(arguments, FitConfig)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [("--flagfile=tinyvgg",), ("--flagfile=tinyvgg.flags",), ("-flagfile", "tinyvgg")],
)
def test_a_flagfile_of_the_package_is_found_by_name(arguments):
    found = expand("--epochs=1", *arguments, "--epochs=2")
    assert found[0] == "--epochs=1"
    assert "--model=tinyvgg" in found
    assert found[-1] == "--epochs=2"
    assert [line for line in found if not line.startswith("--")] == []


@pytest.mark.parametrize("name", ["tinyvgg", "tinyvgg.flags"])
def test_a_file_in_the_current_folder_comes_first(elsewhere, name):
    (elsewhere / "tinyvgg").mkdir()  # A folder is no flagfile.
    (elsewhere / "tinyvgg.flags").write_text("# Mine.\n\n  --epochs=7\n// and\n")
    assert expand(f"--flagfile={name}") == ["--epochs=7"]


def test_a_path_is_no_name_of_the_package(elsewhere):
    with pytest.raises(FlagfileError, match=r"^nowhere/tinyvgg: no such file; expected a file"):
        expand("--flagfile=nowhere/tinyvgg")


def test_a_flagfile_may_include_others(elsewhere):
    (elsewhere / "mine.flags").write_text("--flagfile=tinyvgg\n--epochs=7\n")
    assert expand("--flagfile=mine") == [*expand("--flagfile=tinyvgg"), "--epochs=7"]


def test_a_flagfile_that_includes_itself_is_an_error(elsewhere):
    (elsewhere / "a.flags").write_text("--flagfile=b")
    (elsewhere / "b.flags").write_text("--flagfile=a.flags")
    with pytest.raises(FlagfileError, match="includes itself"):
        expand("--flagfile=a")


def test_a_flagfile_without_a_name_is_an_error():
    for arguments in (["--flagfile"], ["--flagfile="], ["--flagfile", ""]):
        with pytest.raises(FlagfileError, match="expected a file"):
            expand(*arguments)


def test_a_pipe_is_read():
    reader, writer = os.pipe()
    os.write(writer, b"--epochs=3\n")
    os.close(writer)
    assert expand(f"--flagfile=/dev/fd/{reader}") == ["--epochs=3"]
    os.close(reader)


def test_what_is_no_text_is_named(elsewhere):
    (elsewhere / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(FlagfileError, match=r"photo\.jpg: cannot be read"):
        expand("--flagfile=photo.jpg")


def test_an_unknown_flagfile_lists_those_that_the_command_can_use():
    with pytest.raises(FlagfileError) as caught:
        expand("--flagfile=resnet")
    message = str(caught.value)
    assert message.startswith("resnet: no such file; expected a file, or one of ")
    names = message.rpartition("one of ")[2].split(", ")
    assert {"tinyvgg", "pretrained", "tuned"} <= {*names}
    assert "sweep" not in names
    assert flagfile.names(SweepConfig) == ["sweep"]
    assert flagfile.names(PreparedConfig) == []


def test_no_argument_after_two_dashes_is_a_flag():
    assert expand("--", "--flagfile=tinyvgg") == ["--", "--flagfile=tinyvgg"]


def test_every_flagfile_says_the_command_that_uses_it():
    folder = pathlib.Path(flagfile.__file__).parent / "flagfiles"
    for path in folder.glob("*.flags"):
        assert f"--flagfile={path.name}" in path.read_text()


# The flagfiles of runs and sweeps may be another person's.

ONLY_TYPED = [
    "--run_dir=/home/me/runs/mine",
    "--overwrite",
    "--resume=auto",
    "--data_dir=/home/me",
    "--data_service=grpc://192.0.2.1:5050",
    "--callback=hostile.py:make",
    "--code=hostile.py",
    "--model=hostile.py:build",
    "--model=antigravity:build",
]


@pytest.mark.parametrize("line", ONLY_TYPED)
@pytest.mark.parametrize("name", ["run.flags", "best.flags", "RUN.FLAGS"])
def test_the_flagfile_of_a_run_names_no_place_no_host_and_no_code(elsewhere, name, line):
    (elsewhere / "theirs").mkdir()
    (elsewhere / "theirs" / name).write_text(f"--epochs=3\n{line}\n")
    flag = line.partition("=")[0]
    with pytest.raises(FlagfileError) as caught:
        expand(f"--flagfile=theirs/{name}")
    assert str(caught.value).startswith(f"theirs/{name}: {flag} does not count in the flagfile of ")
    assert "\n" not in str(caught.value)
    # Within another flagfile too.
    (elsewhere / "mine.flags").write_text(f"--flagfile=theirs/{name}\n")
    with pytest.raises(FlagfileError, match=f"{flag} does not count"):
        expand("--flagfile=mine.flags")
    # What is typed counts, and a flagfile of one's own may say all of it.
    assert expand(f"--flagfile=theirs/{name}", line) == ["--epochs=3", line]
    assert expand(line, f"--flagfile=theirs/{name}") == [line, "--epochs=3"]
    (elsewhere / "mine.flags").write_text(f"{line}\n")
    assert expand("--flagfile=mine.flags") == [line]


@pytest.mark.parametrize("line", ["--sweep_dir=/home/me", "--overwrite", "--model=a.py:f,tinyvgg"])
def test_nor_does_that_of_a_sweep(elsewhere, line):
    (elsewhere / "theirs").mkdir()
    (elsewhere / "theirs" / "sweep.flags").write_text(f"--workers=2\n{line}\n")
    with pytest.raises(FlagfileError, match="does not count"):
        flagfile.expand(["--flagfile=theirs/sweep.flags"], SweepConfig)
    assert "--first_trials=tuned" in flagfile.expand(["--flagfile=sweep.flags"], SweepConfig)


@pytest.mark.parametrize(
    "text",
    ["--flagfile=/dev/zero", "--flagfile\n/dev/zero", "-flagfile=a", "--undefok=a", "password=1"],
)
def test_the_flagfile_of_a_run_is_read_as_plain_lines(elsewhere, text):
    (elsewhere / "run.flags").write_text(f"--epochs=3\n{text}\n")
    with pytest.raises(FlagfileError) as caught:
        expand("--flagfile=run.flags")
    assert str(caught.value).startswith("run.flags: has a line that is not --name=value; ")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.flags", "mine.flags"])
def test_a_flagfile_without_end_is_not_read_to_its_end(elsewhere, name):
    (elsewhere / name).symlink_to("/dev/zero")
    with pytest.raises(FlagfileError, match=r"not a regular file|larger than 1 MiB"):
        expand(f"--flagfile={name}")


def test_the_flagfile_of_a_run_is_no_pipe(elsewhere):
    os.mkfifo(elsewhere / "run.flags")
    with time_limit(20), pytest.raises(FlagfileError, match="not a regular file"):
        expand("--flagfile=run.flags")
