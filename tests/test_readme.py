"""README.md, docs and CONTRIBUTING.md say what is there, and their commands work."""

import ast
import dataclasses
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import sys

import pytest
import small_runs
import warm
import yaml
from PIL import Image
from test_help import CONFIGS

from pizza_steak import configuration as pizza_steak_config
from pizza_steak.__main__ import COMMANDS
from trainers import configuration as trainers_config
from tuning import configuration as tuning_config

ROOT = pathlib.Path(__file__).parents[1]
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}

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


PROGRAM = r"\bpython -m ((?:pizza_steak|trainers|tuning)\.\w+)(.*)"


def commands(text):
    """Yields the module and the arguments of each command in a page's code."""
    code = re.findall(r"```(?:bash|console)\n(.*?)```", text, re.S) + re.findall(
        r"`([^`\n]+)`", text
    )
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        for name, module in COMMANDS.items():
            line = line.replace(f"pizza-steak {name} ", f"python -m {module} ")
        for command in re.split("&&|;", line):
            if found := re.search(
                r"\bpython -m ((?:pizza_steak|trainers|tuning)\.\w+)(.*)", command
            ):
                yield found[1], shlex.split(found[2], comments=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_has_flags_that_exist_and_values_that_are_allowed(page):
    for module, arguments in commands(PAGES[page]):
        # The flagfile of a run, which is not here, and what stands for arguments.
        given = [text for text in arguments if not re.search(r"^--flagfile=.*/|^--$|\.\.\.", text)]
        small_runs.parse_flags(*given, config=CONFIGS[module])


def test_commands_are_found_in_every_page_on_the_command_line():
    counts = {page: len([*commands(text)]) for page, text in PAGES.items()}
    assert counts["README.md"] >= 6
    assert counts["docs/runs.md"] >= 8
    assert sum(counts.values()) >= 45


@pytest.mark.parametrize("page", PAGES)
def test_code_is_closed_and_python_can_be_compiled(page):
    fences = re.findall(r"^ *```(\w*)", PAGES[page], re.M)
    assert fences[1::2] == [""] * (len(fences) // 2) and len(fences) % 2 == 0
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.S):
        assert ast.parse(code).body


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_exists(page):
    named = re.findall(r"`--(?:no)?([a-z_]+)[^`]*`", PAGES[page])
    # absl's own, wrong ones, one of the program that this one replaces, and those of `tfds build`.
    others = {"help", "helpfull", "version", "flagfile", "lr", "augment"}
    others |= {"config", "beam_pipeline_options", "max_shard_size_mb"}
    assert {*named} - FLAGS - others == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_is_run_exists(page):
    modules = set(re.findall(r"python3? -m ([\w.]+)", PAGES[page])) - {"venv", "pip"}
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def slugs(text):
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_points_at_something(page):
    for path, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#]*)(?:#([^)]*))?\)", PAGES[page]):
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), path
        assert not anchor or anchor in slugs(target.read_text()), f"{path}#{anchor}"


SMALL = {"model": "tinyvgg", "image_size": 32, "epochs": 1}  # In place of pretrained.flags.


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photographs in ~/holiday_pictures, in which README's commands were run."""
    home = tmp_path_factory.mktemp("home")
    for label, shade in (("apple_pie", "dark"), ("beet_salad", "light"), ("other", "middle")):
        folder = home / "holiday_pictures" / label
        folder.mkdir(parents=True)
        for number, pixels in enumerate(small_runs.pictures(f"train/{shade}", 16)):
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    shutil.copy(folder / "0.jpg", home / "photo.jpg")
    start = README.index("## Train on your folder")
    for module, arguments in commands("".join(re.findall(r"```bash.*?```", README[start:], re.S))):
        for name, value in SMALL.items() if module == "trainers.fit" else ():
            arguments.append(f"--{name}={value}")
        given = [text.replace("~", str(home)) for text in arguments if "pretrained" not in text]
        run(home, "-m", module, *given)
    return home


def run(home, *arguments):
    """Runs Python in a home, and returns its standard output."""
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    options = {"cwd": home, "env": environment, "text": True}
    process = warm.Popen([sys.executable, *arguments], stdout=-1, stderr=-1, **options)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout


@pytest.mark.slow
def test_the_commands_of_readme_train_predict_and_export(home):
    assert {path.name for path in (home / "runs/holiday").iterdir()} >= {
        "model.onnx",
        "model.tflite",
    }


@pytest.mark.slow
def test_the_programs_of_readme_use_the_exports_and_the_package(home):
    onnx, litert, notebook = re.findall(r"```python\n(.*?)```", README, re.S)
    probabilities = ast.literal_eval(
        run(home, "-c", onnx.replace("probabilities[0]", "probabilities[0].tolist()"))
    )
    assert [*probabilities] == ["apple_pie", "beet_salad", "other"]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    images = onnx[: onnx.index("(probabilities,)")]
    numbers = [float(text) for text in run(home, "-c", images + litert).strip(" []\n").split()]
    assert numbers == pytest.approx([*probabilities.values()], abs=1e-4)
    code = "import trainers; print(trainers.open_run('runs/holiday').predict('photo.jpg'))"
    (row,) = ast.literal_eval(run(home, "-c", code))
    assert row["probabilities"] == pytest.approx(probabilities, abs=1e-4)
    program = (
        notebook.replace('flagfile="pretrained.flags"', f"**{SMALL}")
        + "\nprint(run.predict('photo.jpg'))"
    )
    (row,) = ast.literal_eval(run(home, "-c", program).splitlines()[-1])
    assert [*row["probabilities"]] == ["apple_pie", "beet_salad", "other"]


def test_readme_fits_a_reader():
    assert len(README.splitlines()) <= 150


def test_the_map_names_every_folder_and_only_modules_that_exist():
    section = CONTRIBUTING[CONTRIBUTING.index("## Where things are") :].split("## Every module")[0]
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
