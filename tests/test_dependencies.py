"""Everything that the packages import is declared in pyproject.toml."""

import ast
import importlib.metadata
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("pizza_steak", "trainers", "tuning")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
DISTRIBUTIONS = importlib.metadata.packages_distributions()


def declared(text: str) -> set[str]:
    """The distributions that a list of requirements in pyproject.toml names, all extras too."""
    names = re.findall(r'"([A-Za-z0-9_.-]+)(?:\[[^"]*\])?[<>=!~]', text)
    return {normalized(name) for name in names}


def normalized(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


PYPROJECT = (ROOT / "pyproject.toml").read_text()
DECLARED = declared(PYPROJECT[PYPROJECT.index("dependencies = [") : PYPROJECT.index("test = [")])


def imported(path: pathlib.Path) -> set[str]:
    """The first parts of the names of the modules that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def undeclared(names: set[str]) -> set[str]:
    others = names - {*PACKAGES} - sys.stdlib_module_names
    return {
        name
        for name in others
        if not {normalized(found) for found in DISTRIBUTIONS.get(name, ())} & DECLARED
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_nothing_that_is_not_declared(path):
    assert undeclared(imported(path)) == set()


def test_what_is_not_declared_is_found():
    assert undeclared({"os", "trainers", "numpy", "cv2", "PIL", "sklearn"}) == set()
    assert undeclared({"pytest", "markupsafe", "no_such_module"}) == {
        "pytest",
        "markupsafe",
        "no_such_module",
    }
