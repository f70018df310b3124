"""Pictures in the device's memory: a run on them is the run without them."""

import io
import os
import zipfile

import h5py
import keras
import numpy as np
import pytest
from small_runs import assert_same_run, fit, fit_and_stop

from pizza_steak.errors import UserError

AUGMENTED = [
    "--rotation_range=20",
    "--zoom_range=0.8,1.1",
    "--horizontal_flip",
    "--brightness_range=0.8,1.2",
    "--contrast_factor=0.2",  # Keras's own layer, in the model.
]
# What else draws, counts batches or weighs examples.
OTHERS = ["--dropout=0.3", "--batch_normalization", "--class_weight=balanced"]


def saved_arrays(run_dir) -> dict[str, np.ndarray]:
    """All that model.keras holds: weights, optimizer, states of generators."""
    arrays = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with zipfile.ZipFile(run_dir / "model.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        file.visititems(note)
    return arrays


def assert_same_to_the_last_bit(run_dir, expected):
    assert_same_run(run_dir, expected)
    arrays, others = saved_arrays(run_dir), saved_arrays(expected)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    model, other = (keras.models.load_model(path / "model.keras") for path in (run_dir, expected))
    assert [*map(type, model.layers)] == [*map(type, other.layers)]
    assert model.input_shape == other.input_shape


@pytest.fixture(scope="module")
def on_host(small_flags, tmp_path_factory):
    return fit(*small_flags, *AUGMENTED, *OTHERS, f"--run_dir={tmp_path_factory.mktemp('r')}/run")


def test_the_run_is_the_same_to_the_last_bit(on_host, small_flags, tmp_path):
    flags = [*small_flags, *AUGMENTED, *OTHERS, f"--run_dir={tmp_path}/run"]
    result = fit(*flags, "--data_on_device", "--decoded_cache=none")
    assert_same_to_the_last_bit(result.run_dir, on_host.run_dir)
    assert result.values["test_loss"] == on_host.values["test_loss"]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(on_host, small_flags, tmp_path):
    flags = [*small_flags, *AUGMENTED, *OTHERS, f"--run_dir={tmp_path}/run", "--data_on_device"]
    fit_and_stop(*flags, epoch=2)
    assert_same_to_the_last_bit(fit(*flags, "--resume").run_dir, on_host.run_dir)


def test_with_augmentation_on_the_device_it_is_the_same_too(small_flags, tmp_path):
    flags = [*small_flags, "--rotation_range=20", "--augment_on=device", "--validation_split=none"]
    on_host = fit(*flags, "--epochs=2", f"--run_dir={tmp_path}/host")
    result = fit(*flags, "--epochs=2", f"--run_dir={tmp_path}/device", "--data_on_device")
    assert_same_to_the_last_bit(result.run_dir, on_host.run_dir)


def test_pictures_that_do_not_fit_are_refused_before_anything_is_written(
    small_flags, tmp_path, monkeypatch
):
    pages = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 110}  # 36 pictures take 110,592 bytes.
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    with pytest.raises(UserError) as caught:
        fit(*small_flags, f"--run_dir={tmp_path}/run", "--data_on_device")
    assert str(caught.value).startswith("data_on_device: 36 images of 32 x 32 x 3 bytes take")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
