"""`--help` of every command answers without waiting for TensorFlow or TFDS."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in ("pizza_steak", "trainers", "tuning")
    for path in (ROOT / package).rglob("*.py")
    if "\n    command.run(" in path.read_text() and path.parts[-1] != "command.py"
)


def test_all_commands_are_found():
    assert {"pizza_steak.inspect", "pizza_steak.prepared", "trainers.fit", "tuning.sweep"} <= {
        *COMMANDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_neither_tensorflow_nor_tfds(name):
    command = [sys.executable, "-X", "importtime", "-m", name, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python -m {name}" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "absl.flags" in imported
    assert not imported & {"tensorflow", "tensorflow_datasets", "keras"}
