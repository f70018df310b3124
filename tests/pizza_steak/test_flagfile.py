"""Flagfiles are found by name from any folder."""

import os
import pathlib

import pytest

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
