"""What the flags of augmentation, normalisation and pictures do to a run."""

import json

import keras
import numpy as np
import pytest
from small_runs import SIZE, assert_same_run, fit, fit_and_stop, layout, pictures, train_and_test

from pizza_steak.errors import UserError

# One of each kind, for either place; Keras's own layers run in the model.
AUGMENTED = [
    "--rotation_range=20",
    "--width_shift_range=0.2",
    "--zoom_range=0.8,1.1",
    "--horizontal_flip",
    "--brightness_range=0.8,1.2",
    "--contrast_factor=0.2",
]


def loss_of(model, *, scale=1.0):
    images = np.concatenate([pictures("test/dark", 6), pictures("test/light", 6)])
    return model.evaluate(images * scale, np.repeat([0.0, 1.0], 6), verbose=0)[0]


def saved(result) -> keras.Model:
    return keras.models.load_model(result.run_dir / "model.keras")


def test_training_pictures_are_augmented_and_no_others(small_flags, tmp_path):
    flags = [*small_flags, "--learning_rate=0", "--epochs=2"]
    plain = fit(*flags, f"--run_dir={tmp_path}/plain").values["history"]
    assert plain["loss"][0] == pytest.approx(plain["loss"][1], rel=1e-5)
    assert not (tmp_path / "plain" / "augmentation.png").exists()
    for place in ("host", "device"):
        run_dir = tmp_path / place
        varied = fit(*flags, f"--run_dir={run_dir}", *AUGMENTED, f"--augment_on={place}")
        history = varied.values["history"]
        assert history["val_loss"] == plain["val_loss"]
        assert len({round(loss, 5) for loss in (plain["loss"][0], *history["loss"])}) == 3
        assert (run_dir / "augmentation.png").exists()


def test_what_image_data_generator_takes_works_on_the_host_and_the_device(small_flags, tmp_path):
    flags = ["--width_shift_range=2", "--height_shift_range=-3,0,3", "--rotation_range=-20"]
    flags += ["--horizontal_flip=1", "--zoom_range=-0.2", "--brightness_range=1.2,0.8"]
    flags += ["--channel_shift_range=-9", "--epochs=1"]
    for place in ("host", "device"):
        run_dir = tmp_path / place
        fit(*small_flags, *flags, f"--run_dir={run_dir}", f"--augment_on={place}")
        assert (run_dir / "augmentation.png").exists()
    fit(*small_flags, *flags, f"--run_dir={tmp_path}/resident", "--data_on_device")


def test_an_augmented_run_that_is_resumed_sees_the_same_pictures(small_flags, tmp_path):
    # Those that the pipeline augments are in every test of a resumed run.
    flags = [*small_flags, *AUGMENTED, "--augment_on=device"]
    whole = fit(*flags, f"--run_dir={tmp_path}/whole")
    fit_and_stop(*flags, f"--run_dir={tmp_path}/stopped", epoch=2)
    resumed = fit(*flags, f"--run_dir={tmp_path}/stopped", "--resume")
    assert_same_run(resumed.run_dir, whole.run_dir)


def test_augmentation_is_the_same_to_the_last_bit_on_the_host_and_the_device(small_flags, tmp_path):
    flags = [*small_flags, *AUGMENTED, "--epochs=2"]
    host, device = (
        fit(*flags, f"--run_dir={tmp_path}/{place}", f"--augment_on={place}")
        for place in ("host", "device")
    )
    assert_same_run(device.run_dir, host.run_dir)
    names = [[type(layer).__name__ for layer in saved(run).layers] for run in (host, device)]
    assert names[0] == names[1]  # Only Keras's own layers are in the model.


@pytest.mark.slow
def test_a_step_that_xla_compiles_augments_too(small_flags, tmp_path):
    flags = [*small_flags, *AUGMENTED[:-1], "--epochs=2"]
    host, device = (
        fit(*flags, f"--run_dir={tmp_path}/{place}", *more).values["history"]
        for place, more in {
            "host": ["--augment_on=host"],
            "device": ["--augment_on=device", "--jit_compile=on"],
        }.items()
    )
    for name, values in host.items():
        np.testing.assert_allclose(device[name], values, rtol=1e-3)


def test_augmented_pixels_do_not_depend_on_where_pictures_are_kept(small_flags, tmp_path):
    flags = [*small_flags, "--rotation_range=20", "--epochs=2"]
    disk, memory, none = (
        fit(*flags, f"--run_dir={tmp_path}/{cache}", f"--decoded_cache={cache}").values["history"]
        for cache in ("disk", "memory", "none")
    )
    assert disk == memory == none


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cval=9", "--horizontal_flip"], "expected fill_mode='constant'"),
        (["--classes=dark,blue"], "class 'blue': unknown; expected some of dark, light"),
        (["--classes=dark"], "expected two or more"),
        (["--classes=dark,dark"], "each once"),
        (["--zca_whitening", "--image_size=65"], "smaller --image_size"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_leaves_nothing(small_flags, tmp_path, flags, message):
    with pytest.raises(UserError) as caught:
        fit(*small_flags, f"--run_dir={tmp_path}/run", *flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--featurewise_center", "--featurewise_std_normalization"],
        ["--samplewise_center", "--featurewise_std_normalization"],
        ["--zca_whitening", "--image_size=6,6", "--kernel_size=1"],
    ],
    ids=["featurewise", "both", "zca"],
)
def test_normalisation_is_saved_with_the_model(small_flags, tmp_path, flags):
    result = fit(*small_flags, f"--run_dir={tmp_path}/run", *flags)
    if "--zca_whitening" in flags:  # Its pictures are resized: what is known is that it runs.
        assert np.isfinite(result.values["test_loss"])
        return
    assert loss_of(saved(result)) == pytest.approx(result.values["test_loss"], rel=1e-4, abs=1e-5)
    assert result.values["test_accuracy"] > 0.9 or "--samplewise_center" in flags


def test_rescale_is_the_factor_of_the_pixels(small_flags, tmp_path):
    plain = fit(*small_flags, f"--run_dir={tmp_path}/plain", "--epochs=1")
    scaled = fit(*small_flags, f"--run_dir={tmp_path}/scaled", "--epochs=1", "--rescale=0.01")
    assert plain.values["history"] != scaled.values["history"]
    model = saved(scaled)
    halved = keras.Model.from_config(model.get_config())
    halved.set_weights(model.get_weights())
    rescaling = next(layer for layer in model.layers if isinstance(layer, keras.layers.Rescaling))
    assert rescaling.scale == 0.01


def test_some_classes_in_an_order_of_their_own(make_archive, small_flags, tmp_path, capsys):
    archive = make_archive(layout(train_and_test("dark", "light", "middle")))
    flags = [f"--archive={archive}", "--classes=light,dark"]
    result = fit(*small_flags, f"--run_dir={tmp_path}/run", *flags)
    assert result.values["classes"] == ["light", "dark"]
    assert "24 images (light 12, dark 12)" in capsys.readouterr().out
    probabilities = saved(result).predict(pictures("test/dark", 6), verbose=0)
    assert probabilities.shape == (6, 1)  # Two classes: one sigmoid, for the second of them.
    assert probabilities.min() > 0.5


@pytest.mark.parametrize(
    ("flags", "shape"),
    [
        (["--image_size=24,40"], (24, 40, 3)),
        (["--color_mode=grayscale"], (SIZE, SIZE, 1)),
        (["--color_mode=rgba", "--aspect_ratio=pad"], (SIZE, SIZE, 4)),
        (["--aspect_ratio=crop", "--interpolation=nearest"], (SIZE, SIZE, 3)),
    ],
)
def test_pictures_have_the_form_that_the_flags_ask_for(small_flags, tmp_path, flags, shape):
    given = [*small_flags, "--horizontal_flip", "--filters=8"]
    result = fit(*given, f"--run_dir={tmp_path}/run", *flags)
    assert saved(result).input_shape == (None, *shape)
    assert result.values["test_accuracy"] > 0.9


def test_links_are_followed_when_asked(make_archive, small_flags, tmp_path):
    folder = make_archive(layout(train_and_test("dark", "light")), as_zip=False)
    (folder / "train" / "light").rename(tmp_path / "elsewhere")
    (folder / "train" / "light").symlink_to(tmp_path / "elsewhere")
    flags = [*small_flags, f"--archive={folder}", f"--run_dir={tmp_path}/run", "--epochs=1"]
    with pytest.raises(UserError, match=r"light' is a link to a folder.*--follow_links"):
        fit(*flags)
    fit(*flags, "--follow_links")
    (folder / "train" / "dark" / "loop").symlink_to(folder / "train")
    with pytest.raises(UserError, match="loop' is a link to a folder around it"):
        fit(*flags, "--follow_links", "--overwrite")


def test_run_flags_repeat_an_augmented_run(small_flags, tmp_path):
    flags = [*small_flags, *AUGMENTED, "--classes=light,dark", "--image_size=24,40", "--epochs=2"]
    first = fit(*flags, f"--run_dir={tmp_path}/first")
    again = fit(f"--flagfile={tmp_path}/first/run.flags", f"--run_dir={tmp_path}/again")
    assert_same_run(again.run_dir, first.run_dir)
    assert json.loads((first.run_dir / "result.json").read_text())["classes"] == ["light", "dark"]
