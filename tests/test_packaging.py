"""The wheel holds the packages with their data, and works without the checkout."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("pizza_steak", "trainers", "tuning")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "-w", str(folder)]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run_unpacked(wheel, tmp_path_factory):
    """Runs Python with what the wheel holds, and gives stdout."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as zip_file:
        zip_file.extractall(folder)

    def run(*argv: str) -> str:
        return subprocess.run(
            [sys.executable, *argv],
            cwd=tmp_path_factory.mktemp("elsewhere"),
            env=os.environ | {"PYTHONPATH": str(folder)},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    return folder, run


def test_it_holds_every_file_of_the_packages_and_no_test(wheel):
    with zipfile.ZipFile(wheel) as zip_file:
        names = {name for name in zip_file.namelist() if ".dist-info/" not in name}
    assert names == {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in ("checksums.tsv", "TAGS.txt", "CITATIONS.bib", "README.md"):
        assert f"pizza_steak/{name}" in names
    for package in PACKAGES:
        assert f"{package}/py.typed" in names


@pytest.mark.parametrize("command", ["trainers.fit", "pizza_steak.inspect"])
def test_its_command_works_without_the_checkout(run_unpacked, command):
    _, run = run_unpacked
    assert "--archive" in run("-m", command, "--help")


def test_its_dataset_is_found_by_tfds(run_unpacked):
    folder, run = run_unpacked
    program = (
        "import pizza_steak, tensorflow_datasets as tfds;"
        "print(pizza_steak.__file__, tfds.builder('pizza_steak/sample').info.full_name)"
    )
    file, name = run("-c", program).split()
    assert pathlib.Path(file).is_relative_to(folder)
    assert name == "pizza_steak/sample/1.0.0"


def test_its_flagfiles_are_found_by_name(run_unpacked):
    _, run = run_unpacked
    program = (
        "from pizza_steak import flagfile; from trainers.configuration import FitConfig;"
        "print(*flagfile.expand(['--flagfile=tinyvgg'], FitConfig))"
    )
    assert "--model=tinyvgg" in run("-c", program).split()


def test_its_program_is_pizza_steak(run_unpacked):
    _, run = run_unpacked
    program = (
        "import importlib.metadata as metadata, sys;"
        "(script,) = metadata.entry_points(group='console_scripts', name='pizza-steak');"
        "print(script.dist.version);"
        "sys.argv = ['pizza-steak', '--version'];"
        "script.load()()"
    )
    version, said = run("-c", program).splitlines()
    assert said == f"pizza-steak {version}"
