"""Pictures that are told apart in a second, and commands on them."""

import contextlib
import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import warm
from absl import flags
from PIL import Image

from pizza_steak import flagfile
from pizza_steak.flags import define_flags, from_flags
from trainers.configuration import FitConfig

ROOT = pathlib.Path(__file__).parents[1]
SIZE = 32
# Pictures that no batch size and no number of replicas divide: 29 to train on, 13 to test on.
UNEVEN = {"train/dark": 12, "train/light": 17, "test/dark": 6, "test/light": 7}
# The last of their batches holds 5 pictures.
IN_FLOAT64 = (
    *("--batch_size=8", "--class_weight=balanced", "--rotation_range=20", "--precision=float64"),
    *("--clip_norm=0.1", "--ema=0.8", "--warmup_epochs=0.5"),
)
SHADES = {"dark": (0, 60), "light": (190, 250), "middle": (100, 150)}


def parse_flags(*argv: str, config: type = FitConfig) -> Any:
    """What a command reads from its command line, by default `trainers.fit`."""
    values = flags.FlagValues()
    define_flags(config, values)
    values(["command", *flagfile.expand(argv, config)])
    return from_flags(config, values)


def fit(*argv: str):
    """The result of `trainers.fit`, in this process."""
    from trainers.training import loop

    return loop.fit(parse_flags(*argv))


class Stopped(BaseException):
    """Ends a run at an exact point, as a signal would."""


def fit_and_stop(*flags: str, epoch: int, step: int | None = None, backed_up: bool = True):
    """Stops a run at the end of an epoch or of one of its steps, counted from 1.

    Args:
      *flags: Of the run.
      epoch: Which epoch.
      step: Which step of it; None for its end, after its validation.
      backed_up: Whether it is stopped after the backup that is made there, or before it.
    """
    from trainers.training import callbacks

    def stopping(end, last):
        def stop(self, index, logs=None):
            reached = index + 1 == last and self._epoch + 1 == epoch
            if not reached or backed_up:
                end(self, index, logs)
            if reached:
                raise Stopped

        return stop

    name, last = ("on_epoch_end", epoch) if step is None else ("on_train_batch_end", step)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(callbacks.Backup, name, stopping(getattr(callbacks.Backup, name), last))
        # Else other steps may be in the same call. They compute the same.
        fit(*flags, *(["--steps_per_execution=1"] if step else []))


def rows(run_dir: pathlib.Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def result_of(run_dir: pathlib.Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())


def weights(run_dir: pathlib.Path) -> list[np.ndarray]:
    import keras

    from pizza_steak import augmentation  # noqa: F401  Keras loads its layer.

    return keras.models.load_model(run_dir / "model.keras").get_weights()


def assert_same_run(run_dir: pathlib.Path, expected: pathlib.Path):
    """The same metrics to the last digit, every epoch once, and the same best model."""
    metrics, others = ((path / "metrics.csv").read_bytes() for path in (run_dir, expected))
    assert metrics == others
    for weight, other in zip(weights(run_dir), weights(expected), strict=True):
        np.testing.assert_array_equal(weight, other)


def assert_same_numbers(run_dir: pathlib.Path, expected: pathlib.Path, rtol: float = 1e-4):
    """Of runs on an `UNEVEN` archive: the history to a part, and predictions to ten times that."""
    import keras

    for name, values in result_of(expected)["history"].items():
        np.testing.assert_allclose(result_of(run_dir)["history"][name], values, rtol=rtol)
    images = np.concatenate(
        [pictures(name, count) for name, count in UNEVEN.items() if name.startswith("test/")]
    )
    outputs, others = (
        keras.models.load_model(path / "model.keras").predict(images, verbose=0)
        for path in (run_dir, expected)
    )
    np.testing.assert_allclose(outputs, others, atol=10 * rtol)


def start_command(
    *argv: str,
    python: Iterable[str] = (),
    command: str = "fit",
    package: str = "trainers",
    code: str | None = None,
    environment: Mapping[str, str] | None = None,
    fresh: bool = False,
    **options: Any,
) -> subprocess.Popen:
    """Starts `python -m <package>.<command>`, or the code that is given.

    Args:
      *argv: Arguments of the program.
      python: Arguments of Python.
      command: Module of the package.
      package: Package of the command.
      code: Code to run in place of a command.
      environment: Environment variables to add.
      fresh: Whether Python itself starts. Else the program finds TensorFlow imported.
      **options: Options of `Popen`.
    """
    program = ["-c", code] if code else ["-m", f"{package}.{command}"]
    fresh = fresh or bool(python) or sys.platform != "linux"
    return (subprocess.Popen if fresh else warm.Popen)(
        [sys.executable, *python, *program, *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_command(*argv: str, **options: Any) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command; `options` as of `start_command`."""
    process = start_command(*argv, **options)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def plan_of(output: str) -> dict[str, str]:
    """The rows of a printed plan; of those with one name the last."""
    lines = output.replace("\n" + " " * 12, " ").splitlines()  # Without the line breaks in a row.
    return dict(line.split(None, 1) for line in lines if " " in line)


def snapshot(folder: pathlib.Path) -> dict[str, bytes | None]:
    """Everything under a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def pictures(folder: str, count: int) -> np.ndarray:
    """The `count` pictures of a folder such as train/dark: noise within the limits of its shade."""
    low, high = SHADES[pathlib.PurePath(folder).name]
    rng = np.random.default_rng(list(folder.encode()))
    return rng.integers(low, high, (count, SIZE, SIZE, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """An array as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def layout(counts: Mapping[str, int]) -> dict[str, bytes]:
    """The files of an archive with so many pictures in each folder."""
    return {
        f"{folder}/{number:02}.png": png(pixels)
        for folder, count in counts.items()
        for number, pixels in enumerate(pictures(folder, count))
    }


def train_and_test(*classes: str) -> dict[str, int]:
    """12 pictures of each class to train on, 6 to test on."""
    return {f"train/{name}": 12 for name in classes} | {f"test/{name}": 6 for name in classes}


def write_backbone(
    path: pathlib.Path, seed: int = 1, size: int | None = SIZE, channels: int = 3
) -> pathlib.Path:
    """A network with what a pretrained one has, and weights that no training gives; 5 classes."""
    import keras

    layers = keras.layers
    rng = np.random.default_rng(seed)
    inputs = keras.Input((size, size, channels), name="pixels")
    x = layers.Rescaling(1 / 255, name="scaled")(inputs)
    for number, filters in enumerate((4, 6)):
        x = layers.Conv2D(filters, 3, strides=2, use_bias=False, name=f"conv_{number}")(x)
        x = layers.BatchNormalization(name=f"normalized_{number}")(x)
        x = layers.ReLU(name=f"relu_{number}")(x)
        x = layers.Dropout(0.3, name=f"dropped_{number}")(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    x = layers.Dropout(0.2, name="dropped")(x)
    outputs = layers.Dense(5, activation="softmax", name="classes")(x)
    model = keras.Model(inputs, outputs, name="small")
    # Variances of batch normalization are positive.
    model.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else rng.normal(0, 0.5, w.shape)
            for w in model.get_weights()
        ]
    )
    model.save(path)
    return path


@contextlib.contextmanager
def time_limit(seconds: int):
    """Ends a block that hangs."""

    def end(*_):
        pytest.fail(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
