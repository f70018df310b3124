"""Several steps in one call of TensorFlow: the same run, whatever their number."""

import itertools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_runs import assert_same_run, fit, fit_and_stop, parse_flags, run_command

from trainers import setup
from trainers.configuration import executed_steps
from trainers.models.steps import Steps
from trainers.runs import checkpoint
from trainers.runs.checkpoint import Progress
from trainers.training import executions, own_callbacks
from trainers.training.callbacks import Backup

# 24 pictures make 5 steps, the last of which is smaller; all that a step may draw or count.
FLAGS = ["--batch_size=5", "--epochs=3", "--dropout=0.3", "--batch_normalization", "--ema=0.9"]
FLAGS += ["--rotation_range=20", "--contrast_factor=0.2", "--learning_rate_schedule=cosine"]


@pytest.fixture(scope="module")
def step_by_step(small_flags, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("executions") / "run"
    fit(*small_flags, *FLAGS, f"--run_dir={run_dir}", "--steps_per_execution=1")
    return run_dir


@pytest.mark.parametrize("steps", ["2", "3", "5", "1000", "auto"])
def test_the_run_is_the_same_to_the_last_bit(small_flags, step_by_step, tmp_path, steps):
    fit(*small_flags, *FLAGS, f"--run_dir={tmp_path}/run", f"--steps_per_execution={steps}")
    assert_same_run(tmp_path / "run", step_by_step)
    # It is no part of what a run is: it may go on with another number.
    assert "steps_per_execution" not in (tmp_path / "run" / "run.flags").read_text()


@pytest.mark.parametrize("steps", ["1", "4", "auto"])
def test_replicas_have_the_same_numbers(small_flags, step_by_step, tmp_path, steps):
    fit(
        *small_flags,
        *FLAGS,
        f"--run_dir={tmp_path}/run",
        f"--steps_per_execution={steps}",
        "--strategy=mirrored",
    )
    alone, mirrored = (
        np.loadtxt(path / "metrics.csv", delimiter=",", skiprows=1)
        for path in (step_by_step, tmp_path / "run")
    )
    np.testing.assert_allclose(mirrored, alone, rtol=1e-3)


@pytest.mark.parametrize("steps", ["2", "3", "1000"])
@pytest.mark.parametrize("stop", [(1, 2), (2, 4), (3, 5)])
def test_a_run_stopped_at_any_step_goes_on(small_flags, step_by_step, tmp_path, steps, stop):
    epoch, step = stop
    flags = [*small_flags, *FLAGS, f"--run_dir={tmp_path}/run"]
    fit_and_stop(*flags, "--checkpoint_every=1", epoch=epoch, step=step)
    assert checkpoint.read(tmp_path / "run" / "backup").progress == Progress(epoch - 1, step)
    fit(*flags, f"--steps_per_execution={steps}", "--resume")
    assert_same_run(tmp_path / "run", step_by_step)


class Seen(keras.callbacks.Callback):
    """Notes what it is called for."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(("begin", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("end", batch))
        self.steps = int(self.model.optimizer.iterations)
        assert logs["loss"] > 0

    def on_test_batch_end(self, batch, logs=None):
        self.calls.append(("test", batch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append("epoch")


@pytest.mark.parametrize(
    "at_once, every_steps, ends",
    [
        (1, float("inf"), [1, 2, 3, 4, 5, 6, 7]),
        (3, float("inf"), [3, 6, 7]),
        (7, float("inf"), [7]),
        (100, float("inf"), [7]),
        (100, 2, [2, 4, 6, 7]),
        (3, 5, [3, 5, 7]),
        (100, 100, [7]),
    ],
)
def test_an_execution_ends_with_the_epoch_and_where_the_run_is_saved(at_once, every_steps, ends):
    model, seen = small_model(), Seen()
    batches = some_batches(7)
    model.fit(
        batches.repeat(),
        epochs=2,
        steps_per_epoch=7,
        validation_data=batches,
        validation_steps=7,
        verbose=0,
        callbacks=executions.Executions(
            [seen],
            model,
            steps=(7, 7),
            smaller=(False, False),
            at_once=at_once,
            every_steps=every_steps,
            epochs=2,
        ),
    )
    starts = [0, *ends[:-1]]
    train = [
        call
        for start, end in zip(starts, ends, strict=True)
        for call in (("begin", start), ("end", end - 1))
    ]
    test = [("test", end - 1) for end in [*range(at_once, 7, at_once), 7]]
    assert seen.calls == [*train, *test, "epoch"] * 2
    assert seen.steps == 14
    assert model.train_function is None  # Keras makes its own again.


def test_an_execution_grows_to_a_tenth_of_a_second(monkeypatch):
    now = 0.0
    monkeypatch.setattr(executions.time, "perf_counter", lambda: now)
    counts = []

    def run(batches, count, *, smaller):
        nonlocal now
        counts.append(count)
        now += 5.0 if len(counts) == 1 else 0.0004 * count  # The first one is compiled.
        return {}

    one = executions._Pass(run, 1000, False, None)
    one.begin({})
    for _ in range(1000):
        one.starts()
        one(None)
        one.ends()
    assert counts[:4] == [1, 1, 10, 100]
    assert all(0.08 < 0.0004 * count <= 0.1 for count in counts[4:-1])
    assert sum(counts) == 1000


def test_steps_that_take_longer_are_executed_one_by_one(monkeypatch):
    seconds = itertools.count(0.0, 0.2)
    monkeypatch.setattr(executions.time, "perf_counter", lambda: next(seconds))
    one = executions._Pass(lambda batches, count, smaller: {"count": count}, 5, False, None)
    one.begin({})
    found = []
    for _ in range(5):
        one.starts()
        found.append(one(None)["count"])
    assert found == [1] * 5


@pytest.mark.parametrize(
    "callback, acts",
    [
        (keras.callbacks.LambdaCallback(on_epoch_end=print), False),
        (keras.callbacks.LambdaCallback(on_train_batch_end=print), True),
        (keras.callbacks.EarlyStopping(), False),
        (Seen(), True),
    ],
)
def test_a_callback_that_acts_on_steps_gets_all_of_them(callback, acts):
    assert own_callbacks.act_on_steps([callback]) == acts


def test_the_users_callbacks_get_each_step_unless_they_ask_for_more(small_flags, tmp_path):
    code = tmp_path / "own.py"
    code.write_text(
        "import keras, pathlib\n"
        "def steps():\n"
        f"    file = pathlib.Path({str(tmp_path)!r}, 'steps').open('a', buffering=1)\n"
        "    return keras.callbacks.LambdaCallback(\n"
        "        on_train_batch_end=lambda batch, logs: print(batch, file=file))\n"
    )
    flags = [*small_flags, *FLAGS[:1], "--epochs=1", f"--callback={code}:steps"]
    fit(*flags, f"--run_dir={tmp_path}/one")
    fit(*flags, f"--run_dir={tmp_path}/more", "--steps_per_execution=3")
    assert (tmp_path / "steps").read_text().split() == ["0", "1", "2", "3", "4", "2", "4"]


def test_sigterm_acts_after_the_execution_that_it_came_in(small_flags, step_by_step, tmp_path):
    import signal

    from trainers.hardware.preemption import PreemptedError

    flags = [*small_flags, *FLAGS, f"--run_dir={tmp_path}/run", "--resume=auto"]
    begin = Backup.on_train_batch_begin

    def terminated(self, batch, logs=None):
        if (self._epoch, batch) == (1, 2):
            signal.raise_signal(signal.SIGTERM)
        begin(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PreemptedError):
        patch.setattr(Backup, "on_train_batch_begin", terminated)
        fit(*flags, "--steps_per_execution=2")
    assert checkpoint.read(tmp_path / "run" / "backup").progress == Progress(1, 4)
    fit(*flags, "--steps_per_execution=3")
    assert_same_run(tmp_path / "run", step_by_step)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "1000000", ""])
def test_other_numbers_of_steps_are_refused(text):
    with pytest.raises(ValueError, match="expected 'auto', or a number of steps"):
        executed_steps(text)


# XLA.


def small_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def some_batches(count: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(count).map(lambda i: (tf.ones((2, 4)), tf.ones((2, 1))))


def test_the_smaller_batch_is_computed_without_xla(small_flags):
    ready = setup.prepare(parse_flags(*small_flags, "--batch_size=5", "--jit_compile=on"))
    traced, step = [], ready.model.train_step
    steps = Steps(ready.model, lambda batch: traced.append(batch) or step(batch))
    batches = iter(ready.data.batches("train", 5))
    steps(batches, 4)
    assert len(traced) == 1
    steps(batches, 1, smaller=True)
    assert len(traced) == 2  # Another function.
    assert int(ready.model.optimizer.iterations) == 5


COUNTED = """
import os, pathlib, sys
os.environ["XLA_FLAGS"] = f"--xla_dump_to={sys.argv[1]} --xla_dump_hlo_as_text"
sys.path.insert(0, "tests")
from small_runs import fit
fit(*sys.argv[2:])
"""


@pytest.mark.slow
def test_xla_compiles_a_step_for_one_shape(small_flags, tmp_path):
    dump = tmp_path / "dump"
    flags = [*small_flags, "--batch_size=5", "--epochs=2", f"--run_dir={tmp_path}/run"]
    status, _, stderr = run_command(str(dump), *flags, "--jit_compile=on", code=COUNTED, fresh=True)
    assert status == 0, stderr
    modules = [path.name for path in dump.glob("*before_optimizations.txt")]
    assert len([name for name in modules if "on_batch" in name]) == 2, modules


# --precision=fastest.


@pytest.mark.slow
def test_a_measured_precision_is_kept_with_the_run(small_flags, tmp_path, monkeypatch, capsys):
    from trainers.models import precision

    monkeypatch.setattr(
        precision, "_timed", lambda model, _: lambda steps: len(model.dtype_policy.name)
    )
    flags = [*small_flags, "--epochs=2", "--precision=fastest"]
    fit_and_stop(*flags, f"--run_dir={tmp_path}/run", epoch=1)
    told = "float32 (measured: 2.00 times as fast as mixed_bfloat16)"
    assert told in capsys.readouterr().out
    written = pathlib.Path(tmp_path / "run" / "run.flags").read_text()
    assert "--precision=float32\n" in written
    monkeypatch.setattr(precision, "fastest", None)  # It is not measured again.
    fit(*flags, f"--run_dir={tmp_path}/run", "--resume")
    assert "float32 (as when the run was started)" in capsys.readouterr().out
    monkeypatch.undo()
    fit(*flags[:-1], f"--run_dir={tmp_path}/plain", "--precision=float32")
    assert_same_run(tmp_path / "run", tmp_path / "plain")


def test_the_fastest_takes_the_least_time_over_rounds():
    from trainers.models import precision

    with pytest.MonkeyPatch.context() as patch:
        seconds = {"a": iter([0.09, 9.0, 4.0, 5.0]), "b": iter([3.0, 2.0, 8.0])}
        asked = []

        def timed(name, _):
            return lambda steps: asked.append((name, steps)) or next(seconds[name])

        patch.setattr(precision, "_timed", timed)
        found, reason = precision.fastest(["a", "b"], lambda name: (name, None), lambda get: get())
    assert (found, reason) == ("b", "measured: 1.67 times as fast as a")
    assert asked == [("a", 1), *[("a", 4), ("b", 4)] * 3]  # 0.3 s take four steps of "a".
    assert precision.fastest(["a"], None, None)[0] == "a"


@pytest.mark.slow
def test_the_fastest_precision_is_measured_on_the_real_step(small_flags, tmp_path):
    status, stdout, stderr = run_command(
        *small_flags, "--epochs=1", "--precision=fastest", f"--run_dir={tmp_path}/run"
    )
    assert status == 0, stderr
    (line,) = (line for line in stdout.splitlines() if line.startswith("precision"))
    found = line.split()[1]
    assert found in ("float32", "mixed_bfloat16")
    assert "(measured: " in line
    assert f"--precision={found}\n" in (tmp_path / "run" / "run.flags").read_text()
