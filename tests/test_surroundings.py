"""What surrounds the package: Keras's settings, its backend, the streams, and the whole process."""

import io
import json
import logging
import os
import random
import sys
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging as absl_logging
from small_runs import SIZE, fit, layout, result_of, run_command, start_command, train_and_test
from tensorflow.python.framework.config import is_op_determinism_enabled
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.utils import tqdm_utils

import pizza_steak
import trainers
from pizza_steak import command, records
from pizza_steak.augmentation import RandomAffine
from pizza_steak.errors import UserError

# What ~/.keras/keras.json of another project may say.
FOREIGN = {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 1e-2}


@pytest.fixture
def foreign_settings():
    """Keras as such a keras.json sets it."""
    before = {name: getattr(keras.config, name)() for name in FOREIGN}
    for name, value in FOREIGN.items():
        getattr(keras.config, f"set_{name}")(value)
    yield
    for name, value in before.items():
        getattr(keras.config, f"set_{name}")(value)


@pytest.fixture
def words(archive, tmp_path):
    return {
        "archive": archive,
        "data_dir": tmp_path / "data",
        "image_size": SIZE,
        "filters": 4,
        "convolutions": 1,
        "batch_size": 8,
        "epochs": 2,
        "validation_split": "test",
        "tensorboard": False,
    }


def as_flags(words: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in words.items()]


# Keras's settings


@pytest.mark.slow
def test_keras_json_does_not_change_a_run(words, tmp_path):
    (tmp_path / "home").mkdir()
    settings = json.dumps(FOREIGN | {"backend": "jax"})
    (tmp_path / "home" / "keras.json").write_text(settings)
    plain = fit(*as_flags(words), f"--run_dir={tmp_path}/plain")
    status, _, errors = run_command(
        *as_flags(words),
        f"--run_dir={tmp_path}/foreign",
        environment={
            "KERAS_HOME": str(tmp_path / "home"),
            "KERAS_BACKEND": "nonsense",
            "KERAS_MAX_EPOCHS": "1",
        },
        fresh=True,
    )
    assert status == 0, errors
    foreign = result_of(tmp_path / "foreign")
    assert foreign["parameters"] == plain.values["parameters"]
    assert foreign["history"] == plain.values["history"]


def test_settings_of_keras_do_not_change_a_training_from_python(words, tmp_path, foreign_settings):
    run = trainers.train(**words, run_dir=tmp_path / "foreign")
    assert {name: getattr(keras.config, name)() for name in FOREIGN} == FOREIGN
    predicted = trainers.open_run(run.run_dir).predict(words["archive"])
    for name, value in {"image_data_format": "channels_last", "floatx": "float32"}.items():
        getattr(keras.config, f"set_{name}")(value)
    keras.config.set_epsilon(1e-7)
    plain = trainers.train(**words, run_dir=tmp_path / "plain")
    assert run.history == plain.history
    for one, other in zip(predicted, plain.predict(words["archive"]), strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_channels_first_is_refused_where_it_would_make_another_network(words, foreign_settings):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    layer = RandomAffine(rotation_range=20, dtype="float32")
    np.testing.assert_array_equal(layer(images), images)  # It does nothing but in training.
    with pytest.raises(ValueError, match=r"RandomAffine: takes .* channels last, .*call keras"):
        layer(images, training=True)
    with pytest.raises(UserError, match=r"keras.json says channels_first, .*: call keras"):
        pizza_steak.load(words["archive"], SIZE, data_dir=words["data_dir"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch", "nonsense"])
def test_another_backend_is_refused_in_one_line_by_the_library(backend, start_python):
    code = """
import sys, pizza_steak, trainers
calls = [
    lambda: pizza_steak.load("food.zip"),
    lambda: pizza_steak.flow_from_directory("food"),
    lambda: trainers.train("food.zip"),
]
for call in calls:
    try:
        call()
    except pizza_steak.UserError as error:
        print(error)
"""
    environment = {"KERAS_BACKEND": backend}
    process = start_python(code, fresh=True, environment=environment)
    output, errors = process.communicate()
    lines = output.splitlines()
    assert len(lines) == 3, errors
    assert all("expected KERAS_BACKEND=tensorflow" in line for line in lines)
    assert "Traceback" not in errors


# The process


def state() -> list:
    """What a library must leave as it is."""
    return [
        *(sys.stdout, sys.stderr, absl_logging.get_verbosity(), logging.getLogger().level),
        *(tqdm_utils._active, downloader.MAX_RETRIES, list(warnings.filters)),
        *(keras.config.dtype_policy().name, keras.config.floatx(), keras.config.epsilon()),
        *(keras.config.image_data_format(), tf.get_logger().level),
        *(is_op_determinism_enabled(), dict(os.environ)),
    ]


def test_threads_that_prepare_at_once_change_nothing_in_the_process(make_archive, tmp_path):
    stream = io.StringIO()
    pairs = (("dark", "light"), ("dark", "middle"), ("light", "middle"))
    archives = [make_archive(layout(train_and_test(*pair)), name="_".join(pair)) for pair in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        before = state()
        ended, seen, failures = threading.Event(), set(), []

        def watch():
            while not ended.is_set():
                print("watching")
                seen.add((id(sys.stdout), absl_logging.get_verbosity()))
                ended.wait(0.001)

        def prepare(archive):
            try:
                records.prepare(archive=archive, data_dir=tmp_path)
            except BaseException as error:
                failures.append(error)

        watcher = threading.Thread(target=watch)
        watcher.start()
        threads = [threading.Thread(target=prepare, args=(archive,)) for archive in archives * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()
        watcher.join()
        assert not failures
        assert seen == {(id(stream), absl_logging.get_verbosity())}
        assert state() == before
        assert set(stream.getvalue().split()) == {"watching"}


def test_warnings_of_other_threads_are_logged_while_one_prepares(caplog):
    with records._quiet_tfds():
        absl_logging.warning("of this thread")
        other = threading.Thread(target=absl_logging.warning, args=("of another thread",))
        other.start()
        other.join()
    absl_logging.warning("afterwards")
    told = [record.getMessage() for record in caplog.records]
    assert told == ["of another thread", "afterwards"]


def test_a_training_gives_the_process_its_random_states_and_settings_back(words, tmp_path):
    def draw():
        return [
            *(random.random(), float(np.random.random()), float(tf.random.uniform(()))),
            float(keras.random.uniform(())),
        ]

    def seed():
        keras.utils.set_random_seed(7)
        return draw()

    names = {keras.layers.Dense(1).name}
    first, undisturbed = seed(), draw()
    assert seed() == first
    before = state()
    trainers.train(**words, deterministic=True, run_dir=tmp_path / "run")
    assert draw() == undisturbed
    assert state() == before
    assert keras.layers.Dense(1).name not in names  # The numbers of its own layers go on.


def test_trainings_at_once_take_turns(words, tmp_path):
    runs, before = {}, state()

    def train(name, precision):
        runs[name] = trainers.train(**words, precision=precision, run_dir=tmp_path / name)

    asked = [("a", "float32"), ("b", "float64"), ("c", "float32")]
    threads = [threading.Thread(target=train, args=one) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs["a"].history == runs["c"].history != runs["b"].history
    assert state() == before


# Streams and files

# A program with streams of another encoding, as PYTHONIOENCODING sets it.
IN_CP1252 = """
import runpy, sys
sys.stdout, sys.stderr = (open(n, "w", encoding="cp1252", closefd=False) for n in (1, 2))
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def in_cp1252(module: str, *argv: object) -> tuple[int, str, str]:
    process = start_command(module, *map(str, argv), code=IN_CP1252, encoding="cp1252")
    output, errors = process.communicate()
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def abroad(make_archive, tmp_path_factory):
    """A folder with an archive whose classes most code pages lack, and a run on it."""
    folder = tmp_path_factory.mktemp("abroad")
    images = layout(train_and_test("dark", "light"))
    renamed = {
        name.replace("dark", "日本").replace("light", "café"): content
        for name, content in images.items()
    }
    make_archive(renamed).rename(folder / "寿司.zip")
    return folder


@pytest.mark.slow
def test_what_a_stream_cannot_encode_is_printed_escaped(abroad):
    archive, run_dir = abroad / "寿司.zip", abroad / "ラン"
    flags = [f"--archive={archive}", f"--data_dir={abroad}/data", f"--image_size={SIZE}"]
    flags += ["--filters=4", "--convolutions=1", "--epochs=1", "--validation_split=test"]
    commands = [
        ("trainers.fit", *flags, f"--run_dir={run_dir}", "--rotation_range=5"),
        ("trainers.evaluate", f"--run_dir={run_dir}"),
        ("trainers.predict", f"--run_dir={run_dir}", f"{archive}/test"),
        ("trainers.predict", f"--run_dir={run_dir}", "--csv=-", f"{archive}/test"),
        ("trainers.export", f"--run_dir={run_dir}", "--format=litert"),
        ("trainers.report", f"--runs={abroad}/ラ*", f"--output={abroad}/レポート.html"),
        ("pizza_steak.inspect", f"--archive={archive}", f"--json={abroad}/検査.json"),
        ("pizza_steak.prepared", f"--data_dir={abroad}/data"),
    ]
    for arguments in commands:
        status, output, errors = in_cp1252(*arguments)
        assert status == 0, errors
        assert "Traceback" not in errors
        if arguments[0] not in ("trainers.export", "pizza_steak.prepared"):
            assert "\\u" in output, arguments
    assert "café" in in_cp1252("trainers.predict", f"--run_dir={run_dir}", f"{archive}/test")[1]
    status, output, errors = in_cp1252("trainers.fit", "--archive=無い.zip", "--run_dir=無い")
    assert (status, output) == (1, "")
    assert errors.startswith("error: archive \\u7121\\u3044.zip: no such file")
    # Files are in UTF-8, whatever the streams are.
    assert "寿司.zip" in (run_dir / "run.flags").read_text(encoding="utf-8")
    assert "日本" in (abroad / "レポート.html").read_text(encoding="utf-8")
    assert result_of(run_dir)["classes"] == ["café", "日本"]


@pytest.mark.slow
def test_a_run_in_the_c_locale_is_like_any_other(abroad, make_archive, tmp_path):
    (tmp_path / "food.zip").write_bytes((abroad / "寿司.zip").read_bytes())
    flags = [f"--archive={tmp_path}/food.zip", f"--data_dir={tmp_path}", f"--image_size={SIZE}"]
    flags += ["--filters=4", "--convolutions=1", "--epochs=1", "--validation_split=test"]
    flags += [f"--run_dir={tmp_path}/run", "--classes=日本,café"]
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, _, errors = run_command(*flags, environment=environment, fresh=True, encoding="ascii")
    assert (status, errors) == (2, errors)
    assert "UTF-8" in errors
    status, output, errors = run_command(
        *flags[:-1], environment=environment, fresh=True, encoding="ascii"
    )
    assert status == 0, errors
    assert "\\u65e5\\u672c" in output
    assert result_of(tmp_path / "run")["classes"] == ["café", "日本"]
    text = (tmp_path / "run" / "run.flags").read_text(encoding="utf-8")
    assert "food.zip" in text


def test_own_process_leaves_streams_that_are_no_files(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    with warnings.catch_warnings():
        command.own_process()
    print("日本")
    assert sys.stdout.getvalue() == "日本\n"
