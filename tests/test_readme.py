"""README.md says what is there."""

import dataclasses
import importlib.util
import pathlib
import re

import pytest
import yaml

from pizza_steak import configuration as pizza_steak_config
from trainers import configuration as trainers_config
from tuning import configuration as tuning_config

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""

FLAGS = {
    field.name
    for concern in (vars(pizza_steak_config) | vars(trainers_config) | vars(tuning_config)).values()
    if dataclasses.is_dataclass(concern)
    for field in dataclasses.fields(concern)
}


def test_continuous_integration_installs_and_tests_as_readme_says():
    (command,) = re.findall(r"^pip install .*pytest.*$", README, re.M)
    install, test = command.split(" && ")
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[lines.index(install) :][-1] == test


def test_a_commit_is_checked_as_in_continuous_integration():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"] for hook in repository["hooks"]]
    assert [*hooks, "pytest"] == (ROOT / ".ci/run").read_text().splitlines()[-len(hooks) - 1 :]


@pytest.mark.parametrize(
    "command",
    [
        "pip install -e . && "
        "python -m trainers.fit --flagfile=tinyvgg.flags --dataset=pizza_steak/sample",
        "pip install -e '.[test]' && pytest",
    ],
)
def test_the_commands_to_start_with_are_there(command):
    assert command in README


def test_every_flag_exists():
    commands = re.findall(r"-m [a-z_]+\.[a-z]+((?:.*\\\n)*.*)", README)
    named = re.findall(r"--(?:no)?([a-z_]+)", "\n".join(commands))
    named += re.findall(r"`--(?:no)?([a-z_]+)[^`]*`", README)
    assert commands
    others = {"help", "flagfile", "config"}  # absl's own, and that of `tfds build`.
    assert {*named} - FLAGS - others == set()


def test_every_module_that_is_run_exists():
    modules = set(re.findall(r"python3? -m ([\w.]+)", README))
    assert "trainers.fit" in modules
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
