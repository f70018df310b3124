"""Warm-up, clipped gradients and averaged weights, against NumPy and plain Keras."""

import io
import signal
import zipfile

import h5py
import keras
import numpy as np
import pytest
from small_runs import assert_same_run, fit, fit_and_stop, pictures, result_of

from trainers.configuration import OptimisationConfig
from trainers.hardware.preemption import PreemptedError
from trainers.models import optimizers
from trainers.training.callbacks import Backup

STEPS = 3  # Per epoch of the small archive.


def arrays(file: h5py.File) -> dict[str, np.ndarray]:
    found = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    file.visititems(note)
    return found


def saved_arrays(run_dir) -> dict[str, np.ndarray]:
    """All that model.keras holds: weights, optimizer, random states."""
    with zipfile.ZipFile(run_dir / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        return arrays(file)


def trained_weights(run_dir) -> list[np.ndarray]:
    """The weights of a backup, in the order of `get_weights`."""
    with np.load(run_dir / "backup/latest.npz") as file:
        return [
            file[f"variables/{variable.path}"]
            for variable in keras.models.load_model(run_dir / "model.keras").weights
        ]


def model_of(run_dir) -> keras.Model:
    return keras.models.load_model(run_dir / "model.keras")


# The learning rate.


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [1, 1.5])
def test_the_learning_rate_grows_from_0_before_the_schedule(schedule, warmup):
    config = OptimisationConfig(
        epochs=4, learning_rate=0.1, warmup_epochs=warmup, learning_rate_schedule=schedule
    )
    schedule_of_rates = optimizers.build(
        config, config.learning_rate, 1, config.epochs, 10
    ).get_config()["learning_rate"]
    found = keras.optimizers.schedules.deserialize(schedule_of_rates)
    steps, first = np.arange(41), int(10 * warmup)
    share = (steps - first) / (40 - first)
    after = 0.05 * (1 + np.cos(np.pi * share)) if schedule == "cosine" else 0.1
    expected = np.where(steps < first, 0.1 * steps / first, after)
    np.testing.assert_allclose([float(found(step)) for step in steps], expected, atol=1e-7)


def test_the_learning_rate_of_all_replicas_is_reached_even_in_the_last_step():
    config = OptimisationConfig(
        epochs=2, learning_rate=0.1, scale_learning_rate="linear", warmup_epochs=1.9
    )
    optimizer = optimizers.build(config, config.learning_rate, 4, config.epochs, 1)
    rates = []
    for step in range(2):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    assert rates == pytest.approx([0, 0.4])


def test_a_first_step_at_a_learning_rate_of_0_changes_no_weight(small_flags, tmp_path, capsys):
    flags = [*small_flags, "--epochs=3", "--checkpoint_every=1", "--warmup_epochs=1.5"]
    fit(*small_flags, "--learning_rate=0", "--epochs=1", f"--run_dir={tmp_path}/untrained")
    weights = []
    for step in (1, 2):
        run_dir = tmp_path / f"{step}"
        fit_and_stop(*flags, f"--run_dir={run_dir}", epoch=1, step=step)
        with np.load(run_dir / "backup/latest.npz") as file:
            weights.append(file["variables/probabilities/kernel"])
    before = model_of(tmp_path / "untrained").get_layer("probabilities").get_weights()[0]
    np.testing.assert_array_equal(weights[0], before)
    assert (weights[1] != before).any()
    assert "learning rate 0.01 after a warm-up of 1.5 epochs, " in capsys.readouterr().out


# The gradient.


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_gradient_is_scaled_down_to_the_norm(small_flags, tmp_path, precision):
    flags = [*small_flags, "--batch_size=24", "--epochs=1", "--optimizer=sgd"]
    flags += [f"--precision={precision}", "--learning_rate=1"]

    def weights(name: str, *more: str) -> np.ndarray:
        fit(*flags, *more, f"--run_dir={tmp_path}/{name}")
        return np.concatenate([w.ravel() for w in model_of(tmp_path / name).get_weights()])

    before = weights("before", "--learning_rate=0")
    gradient = before - weights("free")
    norm = np.linalg.norm(gradient)
    clipped = before - weights("clipped", f"--clip_norm={norm / 10}")
    np.testing.assert_allclose(clipped, gradient / 10, atol=1e-6)
    assert np.linalg.norm(clipped) == pytest.approx(norm / 10, rel=1e-3)
    np.testing.assert_allclose(before - weights("loose", f"--clip_norm={norm * 2}"), gradient)


# Averaged weights.


@pytest.fixture(scope="module")
def averaged_flags(small_flags):
    """The flags of a run that draws, counts epochs and averages."""
    return [
        *small_flags,
        "--epochs=6",
        "--ema=0.7",
        "--batch_normalization",
        "--dropout=0.3",
        "--learning_rate=0.1",
        "--reduce_lr_patience=1",
        "--early_stopping_patience=3",
        "--checkpoint_every=1",
        "--resume=auto",
    ]


@pytest.fixture(scope="module")
def averaged(averaged_flags, tmp_path_factory):
    """The directory of such a run, never stopped."""
    run_dir = tmp_path_factory.mktemp("averaged") / "run"
    fit(*averaged_flags, f"--run_dir={run_dir}")
    return run_dir


def test_the_average_is_validated_and_kept_and_the_training_is_the_same(small_flags, tmp_path):
    flags = [*small_flags, "--optimizer=sgd", "--learning_rate=0.1", "--checkpoint_every=1"]
    plain, run_dir = tmp_path / "plain", tmp_path / "averaged"
    fit(*flags, "--epochs=1", f"--run_dir={plain}")
    average: list[np.ndarray] = []
    for step in range(1, STEPS + 1):
        stopped = tmp_path / f"{step}"
        fit_and_stop(*flags, "--epochs=1", f"--run_dir={stopped}", epoch=1, step=step)
        (stopped / "model.keras").symlink_to(plain / "model.keras")
        weights = trained_weights(stopped)
        average = [0.7 * a + 0.3 * w for a, w in zip(average or weights, weights, strict=True)]

    result = fit(*flags, "--epochs=1", "--ema=0.7", f"--run_dir={run_dir}").values
    model = model_of(run_dir)
    for weight, expected in zip(model.get_weights(), average, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)
    images = np.concatenate([pictures("test/dark", 6), pictures("test/light", 6)])
    loss, _ = model.evaluate(images, np.repeat([0.0, 1.0], 6), verbose=0)
    assert result["history"]["val_loss"] == pytest.approx([loss], rel=1e-5)
    assert result["test_loss"] == pytest.approx(loss, rel=1e-5)
    history = result_of(plain)["history"]
    assert result["history"]["loss"] == history["loss"]
    assert result["history"]["val_loss"] != history["val_loss"]


def test_weights_come_back_to_the_last_bit_after_a_validation(small_flags, tmp_path):
    flags = [*small_flags, "--epochs=3", "--learning_rate=0.1"]
    plain = fit(*flags, f"--run_dir={tmp_path}/plain").values["history"]
    average = fit(*flags, f"--run_dir={tmp_path}/averaged", "--ema=0.9").values["history"]
    assert average["loss"] == plain["loss"]
    assert average["val_loss"] != plain["val_loss"]


def assert_same_to_the_last_bit(run_dir, expected):
    assert_same_run(run_dir, expected)
    np.testing.assert_equal(saved_arrays(run_dir), saved_arrays(expected))
    result, other = result_of(run_dir), result_of(expected)
    for name in ("history", "test_accuracy", "test_loss"):
        assert result[name] == other[name]


@pytest.mark.parametrize("epoch, step", [(1, 1), (3, STEPS), (1, None)])
def test_a_stopped_run_goes_on_with_weights_and_averages(
    averaged_flags, averaged, tmp_path, epoch, step
):
    fit_and_stop(*averaged_flags, f"--run_dir={tmp_path}/run", epoch=epoch, step=step)
    fit(*averaged_flags, f"--run_dir={tmp_path}/run")
    assert_same_to_the_last_bit(tmp_path / "run", averaged)


def test_a_run_stopped_within_a_validation_goes_on_with_weights_and_averages(
    averaged_flags, averaged, tmp_path, monkeypatch
):
    begin = Backup.on_test_begin

    def terminated(self, logs=None):
        if self._epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        begin(self, logs)

    with monkeypatch.context() as patch, pytest.raises(PreemptedError):
        patch.setattr(Backup, "on_test_begin", terminated)
        fit(*averaged_flags, f"--run_dir={tmp_path}/run")
    fit(*averaged_flags, f"--run_dir={tmp_path}/run")
    assert_same_to_the_last_bit(tmp_path / "run", averaged)


def test_the_average_of_images_on_the_device_is_the_same(averaged_flags, averaged, tmp_path):
    fit(*averaged_flags, f"--run_dir={tmp_path}/run", "--data_on_device")
    assert_same_to_the_last_bit(tmp_path / "run", averaged)


def test_without_a_step_there_is_no_average(small_flags, tmp_path, monkeypatch):
    # All steps of the only epoch overflow float16.
    monkeypatch.setattr(keras.optimizers.LossScaleOptimizer, "check_finite", lambda *_: False)
    flags = [*small_flags, "--epochs=1", "--precision=mixed_float16", "--ema=0.9"]
    fit(*flags, f"--run_dir={tmp_path}/run")
    assert all(np.any(w) for w in model_of(tmp_path / "run").get_weights() if w.ndim > 1)
