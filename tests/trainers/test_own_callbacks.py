"""--callback: Keras callbacks of the user's."""

import contextlib
import json
import re
import sqlite3

import pytest
from small_runs import (
    ROOT,
    assert_same_run,
    fit,
    fit_and_stop,
    parse_flags,
    result_of,
    run_command,
    snapshot,
)

from pizza_steak.errors import UserError

LOGGING = """
import json, keras

calls = []

class Log(keras.callbacks.Callback):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        with open(self.path, "a") as file:
            print(json.dumps([epoch, logs]), file=file)
        logs.clear()  # Nothing of the run reads them after this.

def make():
    calls.append(1)
    assert len(calls) == 1
    return Log("one")

def several():
    return [Log("two"), Log("three")]
"""
WRONG = {
    "no file": ("nowhere.py:make", "no file nowhere.py"),
    "no module": ("no_such_module:make", "no_such_module cannot be imported (ModuleNotFoundError"),
    "no function": ("wrong.py:nothing", "wrong.py has no function nothing"),
    "no import": ("broken.py:make", "broken.py cannot be imported (SyntaxError"),
    "an error": ("wrong.py:failing", "failing() raised ZeroDivisionError: division by zero"),
    "arguments": ("wrong.py:with_arguments", "with_arguments() raised TypeError"),
    "no callback": ("wrong.py:number", "returned int; expected a keras.callbacks.Callback"),
    "no callbacks": ("wrong.py:numbers", "returned int; expected a keras.callbacks.Callback"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(LOGGING)
    (tmp_path / "broken.py").write_text("def make(:")
    (tmp_path / "wrong.py").write_text(
        "def failing():\n    1 / 0\n\n"
        "def with_arguments(model):\n    pass\n\n"
        "def number():\n    return 1\n\n"
        "def numbers():\n    return [1]\n"
    )
    return tmp_path


def test_callbacks_get_the_logs_and_change_nothing(here, small_flags):
    plain = fit(*small_flags, "--run_dir=plain")
    result = fit(*small_flags, "--run_dir=run", "--callback=my.py:make", "--callback=my.py:several")
    assert_same_run(result.run_dir, plain.run_dir)
    logged = [json.loads(line) for line in (here / "one").read_text().splitlines()]
    assert [epoch for epoch, _ in logged] == [0, 1, 2, 3]
    for name, values in result.values["history"].items():
        assert [logs[name] for _, logs in logged] == pytest.approx(values)
    assert all(len((here / name).read_text().splitlines()) == 4 for name in ("two", "three"))
    assert (here / "run" / "run.flags").read_text() == (here / "plain" / "run.flags").read_text()


def test_a_run_goes_on_with_other_callbacks(here, small_flags):
    flags = [*small_flags, "--run_dir=run"]
    fit_and_stop(*flags, "--callback=my.py:make", epoch=2)
    fit(*flags, "--resume", "--callback=my.py:several")
    epochs = [json.loads(line)[0] for line in (here / "two").read_text().splitlines()]
    assert epochs == [2, 3]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_callback_is_one_line_and_leaves_nothing(here, small_flags, name):
    text, message = WRONG[name]
    before = snapshot(here)
    with pytest.raises(UserError) as caught:
        fit(*small_flags, "--run_dir=run", f"--callback={text}")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"callback {text}: ")
    assert message in line
    after = {name for name in snapshot(here) if "__pycache__" not in name}
    assert after == before.keys()


@pytest.mark.parametrize("text", ["my.py", "make", "my.py:", "my.py:1st"])
def test_a_value_of_another_form_is_a_wrong_flag(text):
    with pytest.raises(Exception, match=r"expected FILE\.py:FUNCTION or MODULE:FUNCTION"):
        parse_flags(f"--callback={text}")


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_trackers_of_the_docs_get_the_metrics_without_a_network(here, small_flags, tracker):
    pytest.importorskip(tracker, reason="the extra `trackers` has it")
    page = (ROOT / "docs/runs.md").read_text()
    (code,) = re.findall(r"```python\n(# my\.py.*?)```", page, re.S)
    (here / "trackers.py").write_text(code)
    flags = [f"--callback=trackers.py:{tracker}_callback", "--run_dir=run", "--epochs=2"]
    status, _, errors = run_command(*small_flags, *flags, cwd=here)
    assert status == 0, errors
    if tracker == "mlflow":
        with contextlib.closing(sqlite3.connect(here / "mlflow.db")) as database:
            query = "select value from metrics where key = 'val_loss' order by step"
            losses = [value for (value,) in database.execute(query)]
        assert losses == pytest.approx(result_of(here / "run")["history"]["val_loss"])
    else:
        (log,) = here.glob("wandb/offline-run-*/*.wandb")
        assert b"epoch/val_loss" in log.read_bytes()
