"""Several devices, all of one CPU: the numbers of one, whatever a batch divides into."""

import json
import pathlib
import subprocess
from collections.abc import Sequence

import keras
import pytest
from small_runs import (
    IN_FLOAT64,
    ROOT,
    UNEVEN,
    assert_same_numbers,
    assert_same_run,
    fit,
    layout,
    result_of,
    rows,
    start_command,
)

FLAGS = {
    # All batches are uneven, the first ones too: 13, 13 and 3 to train on, 13 to validate.
    2: (
        "--batch_size=13",
        "--augment_on=device",
        "--rotation_range=20",
        "--batch_normalization",
        "--blocks=1",
        "--learning_rate=0.001",
        "--label_smoothing=0.1",
    ),
    # The last ones hold 5, of which a fourth replica gets none.
    4: IN_FLOAT64,
}

# Runs, each with its flags and where to stop and go on, in one process.
RUNS = """
import json, sys
sys.path.insert(0, "tests")
from small_runs import fit, fit_and_stop
for flags, stops in json.loads(sys.argv[1]):
    for number, stop in enumerate(stops):
        fit_and_stop(*flags, *(["--resume"] if number else []), **stop)
    fit(*flags, *(["--resume"] if stops else []))
"""
# Each replica goes on with the metrics that it had: their sum alone would be rounded otherwise.
METRICS = """
import io, numpy as np
from trainers.training.callbacks import Backup
def load_and_compare(self, load=Backup._load):
    with np.load(io.BytesIO(self._saved.content)) as file:
        saved = file["metrics"]
    load(self)
    assert len(saved) == 2 and (saved[0] != saved[1]).any(), saved
    np.testing.assert_array_equal(self._metrics(), saved)
Backup._load = load_and_compare
"""
# A step that overflows half precision on one of two replicas, the last or the first.
OVERFLOW = """
import keras, numpy as np, tensorflow as tf
from trainers.hardware import devices
from trainers.configuration import DevicesConfig
from trainers.models.trained_model import ReplicatedModel
keras.config.set_dtype_policy("mixed_float16")
with devices.choose(DevicesConfig(cpu_devices=2)).scope():
    inputs = keras.Input((2,))
    model = ReplicatedModel(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
before = model.get_weights()[0].tolist()
images = np.array([[1, 1], [1, 1], [3e4, 3e4], [3e4, 3e4]], "float32")
for batch in (images, images[::-1]):
    model.fit(tf.data.Dataset.from_tensors((batch, np.ones(4))), shuffle=False, verbose=0)
    assert model.get_weights()[0].tolist() == before
assert model.optimizer.dynamic_scale == 2**13, model.optimizer.dynamic_scale
"""
# A step whose gradient is clipped: of the sum over both replicas, whose own gradients are unlike.
CLIPPED = """
import keras, numpy as np, tensorflow as tf
from trainers.hardware import devices
from trainers.configuration import DevicesConfig
from trainers.models.trained_model import ReplicatedModel
images = np.float32([[3, 0], [2, 1], [0, 1], [0, 1]]) / 16  # float16 has these numbers.
for precision in ("float32", "mixed_float16"):
    keras.config.set_dtype_policy(precision)
    with devices.choose(DevicesConfig(cpu_devices=2)).scope():
        inputs = keras.Input((2,))
        model = ReplicatedModel(
            inputs, keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(inputs)
        )
        model.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.05), "mse")
        model.optimizer.build(model.trainable_variables)
    model.fit(tf.data.Dataset.from_tensors((images, np.ones(4))), shuffle=False, verbose=0)
    gradient = -2 * images.mean(axis=0)
    expected = -0.05 * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(model.get_weights()[0][:, 0], expected, rtol=1e-6)
"""


def start(code: str, asked: list) -> subprocess.Popen:
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return start_command(json.dumps(asked), code=code, environment=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def folder(small_flags, make_archive, tmp_path_factory) -> pathlib.Path:
    """Run directories: what 1, 2 and 4 devices make of the same flags."""
    folder = tmp_path_factory.mktemp("replicas")
    archive = make_archive(layout(UNEVEN))

    def run(name: str, *flags: str, stops: Sequence[dict] = ()) -> tuple[list[str], Sequence[dict]]:
        given = [*small_flags, f"--archive={archive}", "--epochs=2", f"--run_dir={folder}/{name}"]
        return [*given, *flags], stops

    two = (*FLAGS[2], "--cpu_devices=2", "--checkpoint_every=2")
    four = (*FLAGS[4], "--cpu_devices=5", "--devices=0,1,3,4")
    within = [{"epoch": epoch, "step": 2} for epoch in (1, 2)]
    mixed = (*two, "--mixup=0.2", "--cutmix=1", "--ema=0.8", "--dropout=0.3")
    processes = [
        start(RUNS + OVERFLOW + CLIPPED, [run("2", *two)]),
        start(METRICS + RUNS, [run("mixed", *mixed), run("mixed-resumed", *mixed, stops=within)]),
        start(RUNS, [run("4", *four), run("4-on-device", *four, "--data_on_device")]),
    ]
    for devices, flags in FLAGS.items():
        fit(*run(f"one-for-{devices}", *flags)[0])
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("devices, rtol", [(2, 1e-4), (4, 1e-12)])
def test_replicas_have_the_numbers_of_one_device(folder, devices, rtol):
    environment = json.loads((folder / str(devices) / "environment.json").read_text())
    assert environment["strategy"] == "mirrored"
    assert len(environment["devices"]) == devices
    assert_same_numbers(folder / str(devices), folder / f"one-for-{devices}", rtol)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2", "one-for-2"])
def test_validation_and_test_have_the_same_loss_on_the_same_images(folder, name):
    result = result_of(folder / name)
    assert result["test_loss"] == pytest.approx(min(result["history"]["val_loss"]), rel=1e-5)


@pytest.mark.slow
def test_replicas_go_on_where_they_were_stopped(folder):
    assert len(rows(folder / "mixed-resumed")) == 2
    assert_same_run(folder / "mixed-resumed", folder / "mixed")


@pytest.mark.slow
def test_the_saved_model_is_that_of_one_device(folder):
    models = [keras.models.load_model(folder / name / "model.keras") for name in ("one-for-2", "2")]
    first, second = (model.get_config() for model in models)
    assert type(models[0]) is type(models[1])
    assert [layer["class_name"] for layer in first["layers"]] == [
        layer["class_name"] for layer in second["layers"]
    ]
    assert models[0].optimizer.iterations == models[1].optimizer.iterations == 6


@pytest.mark.slow
def test_pictures_on_each_device_are_those_of_the_host(folder):
    assert_same_run(folder / "4-on-device", folder / "4")
