"""A run of another person: what its files can do to the commands that open it."""

import json
import os
import pathlib
import re
import shutil
import zlib

import pytest
from PIL import Image
from small_runs import run_command, snapshot, time_limit

from pizza_steak.errors import UserError
from trainers.configuration import (
    ArtifactConfig,
    AveragingConfig,
    EvaluateConfig,
    EvaluationDataConfig,
    PageConfig,
    ReportConfig,
)
from trainers.finished import averaging, evaluation, exporting, prediction
from trainers.pages import run_report
from trainers.runs import run_directory

ESC = "\x1b"


@pytest.fixture
def run(untrained, tmp_path) -> pathlib.Path:
    """A copy of a finished run, to be changed; another one is beside it."""
    shutil.copytree(untrained, tmp_path / "runs" / "good")
    return shutil.copytree(untrained, tmp_path / "runs" / "theirs")


def report(run: pathlib.Path) -> tuple[str, str]:
    """The page about both runs, and why theirs is left out."""
    output = run.parent.parent / "report.html"
    with time_limit(60):
        said = run_report.write(ReportConfig(PageConfig(f"{run.parent}/*", str(output))))
    page = output.read_text(encoding="utf-8")
    assert "</svg>good" in page
    reasons = [line for line in said.splitlines() if line.startswith("left out: ")]
    return page, "".join(reasons)


def edit(file: pathlib.Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# Its figures, in the report.

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"


def png(width: int, height: int) -> bytes:
    """A PNG that says so and has no pixels."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\2\0\0\0"
    checked = header + zlib.crc32(header).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + checked + b"\0\0\0\0IEND\xaeB`\x82"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> pathlib.Path:
    """A file that is there once a program gs was started."""
    marker, folder = tmp_path / "started", tmp_path / "programs"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return marker


@pytest.mark.parametrize(
    "content",
    [
        POSTSCRIPT,
        b"\xc5\xd0\xd3\xc6" + bytes(26) + POSTSCRIPT,  # With a preview, as on DOS.
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"GIF89a" + bytes(99),
        b"\xd7\xcd\xc6\x9a" + bytes(99),  # WMF.
        png(20_000, 20_000),
        png(2**31 - 1, 2**31 - 1),
        b"\x89PNG\r\n\x1a\n",
        b"",
    ],
)
@pytest.mark.parametrize("name", ["augmentation.png", "curves.png", "evaluation/mistakes.png"])
def test_a_figure_that_is_no_png_of_a_run_costs_the_page_only_its_run(
    run, ghostscript, name, content, recwarn
):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(content)
    page, reason = report(run)
    assert str(run / name) in reason
    assert "\n" not in reason
    assert "alert" not in page
    assert not ghostscript.exists()
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "sparse"])
def test_nor_does_a_figure_that_is_no_file(run, kind):
    file = run / "confusion_matrix.png"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as sparse:
            sparse.write(png(9, 9))
            sparse.truncate(2**33)
    assert str(file) in report(run)[1]


def test_a_private_image_is_not_shown(run, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "private.png")
    (run / "confusion_matrix.png").unlink()
    (run / "confusion_matrix.png").symlink_to(tmp_path / "private.png")
    assert "is a link to a file outside the run" in report(run)[1]


# Its JSON and CSV.

NESTED = "[" * 100_000
TEXTS = [
    "",
    "[]",
    '{"classes": ',
    NESTED,
    '{"classes": ' + NESTED,
    "\ufeff{}",
    "9" * 5000,
    '{"a": 1}',
]
WRONG_RESULTS = [
    {"classes": "dark"},
    {"classes": ["dark", 1]},
    {"classes": ["dark", None]},
    {"classes": ["dark\nerror: the disk is full", "light"]},
    {"classes": [f"dark{ESC}[2J", "light"]},
    {"classes": ["dark\ud800", "light"]},
    {"classes": ["d" * 100_000, "light"]},
    {"parameters": 10**400},
    {"parameters": 1e308},
    {"parameters": "9"},
    {"test_accuracy": "high"},
    {"test_accuracy": True},
    {"test_loss": 1e308},
    {"fit_seconds": -1e308},
    {"train_images_per_second": None},
    {"epoch_end_seconds": 3},
    {"largest_class": ["dark"]},
    {"history": [1]},
    {"history": {"loss": "low"}},
    {"test_by_class": {"dark": [1]}},
    {"members": "all"},
]


def one_line(file: pathlib.Path, read) -> None:
    with time_limit(60), pytest.raises(UserError) as caught:
        read()
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert str(file) in report(file.parent)[1]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["result", "environment"])
def test_json_that_is_damaged_is_one_line(run, name, text):
    (run / f"{name}.json").write_text(text)
    one_line(run / f"{name}.json", lambda: getattr(run_directory.Run(run), name))


@pytest.mark.parametrize("content", [b"\xff\xfe{\0}\0", b'{"a": "\xff"}', bytes(99)])
def test_so_is_json_that_is_no_text(run, content):
    (run / "result.json").write_bytes(content)
    one_line(run / "result.json", lambda: run_directory.Run(run).result)


@pytest.mark.parametrize("values", WRONG_RESULTS)
def test_values_of_another_type_are_one_line(run, values):
    edit(run / "result.json", **values)
    one_line(run / "result.json", lambda: run_directory.Run(run).result)


@pytest.mark.parametrize(
    "values",
    [
        {"names": "CPU"},
        {"names": [["CPU"]]},
        {"precision": None},
        {"fingerprint": 12},
        {"splits": []},
        {"splits": {"test": "all"}},
        {"splits": {"test": {"fingerprint": ["a"]}}},
        {"batch_size": "8"},
        {"backbone": "a"},
    ],
)
def test_so_are_those_of_the_environment(run, values):
    edit(run / "environment.json", **values)
    one_line(run / "environment.json", lambda: run_directory.Run(run).environment)


HEADING = "epoch,accuracy,loss,val_accuracy,val_loss\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADING}0,high,0,0,0\n",
        f"{HEADING}0,1e308,0,0,0\n",
        f"{HEADING}0,0\n",
        f"{HEADING}0,0,0,0,0,0,0\n",
        f'{HEADING}0,"{"9" * 200_000}",0,0,0\n',
        f"{HEADING}0,\0,0,0,0\n",
        f"{HEADING}0,0,0,{ESC}[2J,0\n",
    ],
)
def test_metrics_that_are_no_numbers_are_one_line(run, text):
    (run / "metrics.csv").write_text(text)
    one_line(run / "metrics.csv", lambda: run_directory.Run(run).logs)


@pytest.mark.parametrize("name", ["result.json", "environment.json", "metrics.csv", "run.flags"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "sparse"])
def test_what_is_no_file_or_has_no_end_is_not_read(run, name, kind):
    file = run / name
    content = file.read_bytes()
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as sparse:
            sparse.write(content)
            sparse.truncate(2**33)
    read = {"result.json": "result", "environment.json": "environment", "metrics.csv": "logs"}
    with time_limit(60), pytest.raises(UserError, match=r"not a regular file|larger than \d+ MiB"):
        getattr(run_directory.Run(run), read.get(name, "config"))
    assert str(file) in report(run)[1] or "run.flags is missing" in report(run)[1]


def test_floats_that_a_training_gives_are_no_damage(run):
    edit(run / "result.json", test_loss=float("inf"), fit_seconds=3, new_in_a_later_version=[1])
    (run / "metrics.csv").write_text(f"{HEADING}0,0.5,inf,0.5,3.4e38\n")
    assert run_directory.Run(run).result["test_loss"] == float("inf")
    assert run_directory.Run(run).logs[0]["val_loss"] == 3.4e38


@pytest.mark.parametrize("classes", [[], ["dark"], ["dark", "light", "middle"]])
def test_a_model_for_other_classes_is_one_line(run, classes, archive):
    edit(run / "result.json", classes=classes)
    with pytest.raises(UserError, match=f"model {run}/model.keras: takes images of .* classes"):
        prediction.predict(run_directory.open_run(str(run)), [f"{archive}/test/dark/00.png"])


@pytest.mark.parametrize("line", ["--color_mode=rgba", "--image_size=9", "--image_size=9,9,9"])
def test_so_is_a_model_for_other_images(run, line, archive):
    (run / "run.flags").write_text(f"{(run / 'run.flags').read_text()}{line}\n")
    with pytest.raises(UserError) as caught:
        prediction.predict(run_directory.open_run(str(run)), [f"{archive}/test/dark/00.png"])
    assert "\n" not in str(caught.value)


# Its run.flags.


def test_its_flags_name_no_place_no_host_and_no_code(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "hostile.py").write_text("import os; os.mkdir('written by hostile code')")
    lines = [f"--data_dir={tmp_path}/elsewhere", "--data_service=grpc://192.0.2.1:5050"]
    lines += [f"--callback={run}/hostile.py:make", f"--code={run}/hostile.py"]
    lines += [f"--model={run}/hostile.py:build", f"--run_dir={run.parent}/good", "--overwrite"]
    (run / "run.flags").write_text("\n".join([(run / "run.flags").read_text(), *lines]))
    before = snapshot(tmp_path)
    with time_limit(100):
        evaluated = evaluation.evaluate(run_directory.open_run(str(run)), EvaluateConfig())
    assert evaluated.values["images"] == 12
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["evaluate", "average", "export"])
def test_records_are_where_the_user_says(run, tmp_path, command):
    data_dir, opened = str(tmp_path / "data"), run_directory.open_run(str(run))
    if command == "evaluate":
        config = EvaluateConfig(data=EvaluationDataConfig(data_dir=data_dir))
        evaluation.evaluate(opened, config)
    elif command == "average":
        made = AveragingConfig((str(run),), True, str(tmp_path / "average"), data_dir=data_dir)
        averaging.average(made)
    else:
        exporting.export(opened, ArtifactConfig(format="litert", data_dir=data_dir))
    assert (tmp_path / "data" / "pizza_steak").is_dir()


@pytest.mark.slow
def test_a_stranger_does_not_replace_a_run_of_ones_own(run, small_flags):
    flags = (run / "run.flags").read_text()
    (run / "run.flags").write_text(f"{flags}--run_dir={run.parent}/good\n--overwrite\n")
    before = snapshot(run.parent)
    status, stdout, stderr = run_command(f"--flagfile={run}/run.flags")
    assert (status, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith(f"error: --flagfile={run}/run.flags: --run_dir does not count in ")
    assert snapshot(run.parent) == before


# Names on the terminal and on the page.


@pytest.mark.slow
def test_no_name_steers_the_terminal(run, tmp_path):
    classes = ["dark\u202egpj.exe", "li\x9bght"]
    edit(run / "result.json", classes=classes, largest_class=classes[0])
    image = tmp_path / f"a{ESC}[2J\nerror: b.png"
    Image.new("RGB", (9, 9)).save(image)
    missing = f"{tmp_path}/\x9b2J\u2028none.png"
    argv = [f"--run_dir={run}", "--top=2", str(image), missing]
    status, stdout, stderr = run_command(*argv, command="predict")
    assert status == 1
    (line,) = stdout.splitlines()
    assert r"/a\x1b[2J\nerror: b.png" in line
    assert r"dark\u202egpj.exe" in line and r"li\x9bght" in line
    (error,) = stderr.splitlines()
    assert r"\x9b2J\u2028none.png: no image there" in error
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", stdout + stderr)


def test_no_name_steers_the_page(run):
    edit(run / "result.json", classes=["dark\u202egpj.exe", "li\x9bght"])
    run.rename(run.with_name(f"a{ESC}\u202ename"))
    page, reason = report(run)
    assert not reason
    assert r"a\x1b\u202ename" in page and r"dark\u202egpj.exe" in page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", page)
