"""`pizza-steak`: lists the commands and runs them."""

import subprocess
import sys

import pytest
from small_runs import ROOT

import pizza_steak
from pizza_steak import __main__ as front_door
from pizza_steak.__main__ import COMMANDS


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(*arguments)`: exit status, stdout and stderr of `pizza-steak`, in this process."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pizza-steak", *arguments])
        status = 0
        try:
            front_door.main()
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_it_lists_every_command_with_one_line_of_80_columns(run, arguments):
    status, stdout, stderr = run(*arguments)
    assert (status, stderr) == (0, "")
    lines = stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    for name in COMMANDS:
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.split(maxsplit=1)[1].endswith(".")


def test_it_says_its_version(run):
    assert run("--version") == (0, f"pizza-steak {pizza_steak.__version__}\n", "")


def test_a_command_finds_modules_in_the_current_folder(run, monkeypatch, tmp_path):
    paths = []
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(front_door.runpy, "run_module", lambda *_, **__: paths.append(sys.path[0]))
    monkeypatch.chdir(tmp_path)
    assert run("fit")[0] == 0
    assert paths == [str(tmp_path)]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("fitt", "did you mean fit?"),
        ("learning_rate", "did you mean learning-rate?"),
        ("predictions", "did you mean predict?"),
        ("--flagfile=tinyvgg", "unknown command '--flagfile=tinyvgg'; --help lists"),
        ("xyzzy", "unknown command 'xyzzy'; --help lists"),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest(run, wrong, said):
    status, stdout, stderr = run(wrong)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert said in stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "inspect", "learning-rate"])
def test_a_command_is_the_module_that_python_runs(name):
    for argument in ("--help", "--epochs=many"):
        ours, module = (
            subprocess.run(
                [sys.executable, "-m", *argv, argument], cwd=ROOT, capture_output=True, text=True
            )
            for argv in (["pizza_steak", name], [COMMANDS[name]])
        )
        assert (ours.returncode, ours.stdout, ours.stderr) == (
            module.returncode,
            module.stdout,
            module.stderr,
        )


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["pizza_steak"], ["trainers.fit", "--helpfull"]])
def test_a_reader_that_leaves_ends_help_without_a_traceback(argv):
    with subprocess.Popen(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
