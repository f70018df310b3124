"""README.md and CONTRIBUTING.md say what is there."""

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
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))

MODULES = [
    path
    for package in ("pizza_steak", "trainers", "tuning")
    for path in (ROOT / package).rglob("*.py")
]
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
    assert install in lines
    assert lines[-1] == test


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
    others = {"help", "helpfull", "flagfile", "config"}  # absl's own, and that of `tfds build`.
    assert {*named} - FLAGS - others == set()


def test_every_module_that_is_run_exists():
    modules = set(re.findall(r"python3? -m ([\w.]+)", README))
    assert "trainers.fit" in modules
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_map_names_every_folder_and_only_modules_that_exist():
    section = README[README.index("## Where things are") :]
    folders = {path.parent for path in MODULES if path.name != "__main__.py"}
    assert {*re.findall(r"^\| `([\w/]+)` \|", section, re.M)} == {
        "tests",
        *(folder.relative_to(ROOT).as_posix() for folder in folders),
    }
    known = {path.stem for path in MODULES} | {path.name for path in folders}
    named = {*re.findall(r"`([a-z_]+)`", section)}
    assert named - known == {"flow_from_directory", "inspect", "tests"}


def test_the_listing_of_files_is_complete():
    (listing,) = re.findall(r"```\n(pizza_steak/.*?)```", CONTRIBUTING, re.S)
    listed, folders = set(), []
    for indent, name in re.findall(r"^( *)(\S+)", listing, re.M):
        folders = folders[: len(indent) // 2]
        if name.endswith("/"):
            folders.append(name)
        else:
            listed.add("".join(folders) + name)
    assert listed == {
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        if len(path.read_text().splitlines()) > 1  # Some __init__.py hold nothing but a docstring.
    }


def test_files_to_change_exist():
    named = re.findall(r"`(\w+/[\w/]+\.py)`", CONTRIBUTING)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
