"""What is exported is used without Keras and says what the Keras model says, or is not there."""

import ast
import importlib.util
import io
import json
import pathlib
import pickle
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_runs import SIZE, fit, layout, pictures, png, run_command, snapshot, train_and_test

from pizza_steak import decoding
from pizza_steak.errors import UserError
from trainers.configuration import ArtifactConfig
from trainers.finished import exporting
from trainers.runs import run_directory

FILES = {"saved_model": "saved_model", "litert": "model.tflite", "onnx": "model.onnx"}
PACKAGES = ("onnx", "onnxruntime", "tf2onnx")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)),
    reason="needs the packages of the extra onnx",
)
FORMATS = ["saved_model", "litert", pytest.param("onnx", marks=needs_onnx)]


def export(run_dir: pathlib.Path, **values) -> exporting.Export:
    return exporting.export(run_directory.open_run(str(run_dir)), ArtifactConfig(**values))


def encode(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


@pytest.fixture(scope="module")
def run_dir(small_flags, tmp_path_factory) -> pathlib.Path:
    """A run of two classes, and so of one probability, whose model augments."""
    flags = [*small_flags, "--rotation_range=90", "--contrast_factor=0.9", "--augment_on=device"]
    return fit(*flags, "--epochs=1", f"--run_dir={tmp_path_factory.mktemp('run') / 'run'}").run_dir


@pytest.fixture(scope="module")
def half_run_dir(make_archive, small_flags, tmp_path_factory) -> pathlib.Path:
    """A run of three classes in mixed precision, normalised by the pictures' statistics.

    One of the 18 pictures that it is tested on is a GIF.
    """
    files = layout(train_and_test("dark", "light", "middle"))
    files["test/dark/00.png"] = encode(Image.fromarray(pictures("test/dark", 1)[0]), "GIF")
    archive = make_archive(files, name="three")
    flags = [*small_flags, f"--archive={archive}", "--precision=mixed_bfloat16"]
    flags += ["--featurewise_std_normalization", "--batch_normalization", "--epochs=1"]
    return fit(*flags, f"--run_dir={tmp_path_factory.mktemp('run') / 'run'}").run_dir


@pytest.fixture(scope="module")
def exported(run_dir):
    """`exported(format)`: the file or folder that the command makes, and what it prints."""
    made = {}

    def make(format: str) -> tuple[pathlib.Path, tuple[int, str, str]]:
        if format not in made:
            flags = f"--run_dir={run_dir}", f"--format={format}"
            made[format] = (
                run_dir / FILES[format],
                run_command(*flags, command="export", fresh=format == "saved_model"),
            )
        return made[format]

    return make


@pytest.fixture(scope="module")
def files(jpeg, picture) -> list[bytes]:
    """Encoded pictures, of other sizes than the model's."""
    return [jpeg(0, 24, 20), jpeg(1, 50, 70), png(np.asarray(picture(2, 33, 41)))]


@pytest.fixture(scope="module")
def images(files) -> np.ndarray:
    """The same, decoded as for training: uint8 of shape (3, SIZE, SIZE, 3)."""
    format = decoding.Format((SIZE, SIZE))
    return np.stack([decoding.decode_image(file, format) for file in files])


@pytest.fixture(scope="module")
def expected(run_dir, images) -> np.ndarray:
    """The probabilities of both classes, by the Keras model."""
    of_light = keras.models.load_model(run_dir / "model.keras").predict(images, verbose=0)
    return np.concatenate([1 - of_light, of_light], axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_it_says_on_what_it_was_checked_and_nothing_else(exported, format):
    path, (status, stdout, stderr) = exported(format)
    checked, where = stdout.splitlines()
    as_files = ", 12 of them as files too" if format == "saved_model" else ""
    assert checked.startswith(f"checked on 12 images{as_files}: the same classes as the Keras ")
    assert float(checked.split()[-1]) <= 1e-4
    assert where == f"exported to {path}"
    assert (status, stderr) == (0, "")


WITHOUT_KERAS = """
import pickle, sys
sys.modules.update(keras=None, PIL=None, pizza_steak=None, trainers=None)
import tensorflow as tf
given = pickle.load(sys.stdin.buffer)
signatures = tf.saved_model.load(sys.argv[1]).signatures
outputs = [signatures[name](tf.constant(value)) for name, value in given.items()]
print([{name: value.numpy().tolist() for name, value in output.items()} for output in outputs])
"""


@pytest.mark.slow
def test_a_saved_model_needs_neither_keras_nor_this_project(
    exported, files, images, expected, start_python
):
    path, _ = exported("saved_model")
    process = start_python(WITHOUT_KERAS, path, fresh=True)
    process.stdin.buffer.write(pickle.dumps({"serving_default": images, "serving_encoded": files}))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    by_signature = ast.literal_eval(output)
    assert len(by_signature) == 2
    for outputs in by_signature:
        np.testing.assert_allclose(outputs["probabilities"], expected, rtol=0, atol=1e-6)
        named = [b"light" if light > dark else b"dark" for dark, light in expected]
        assert outputs["class_name"] == named
    assert (path / "assets.extra" / "labels.txt").read_text() == "dark\nlight\n"


@pytest.mark.slow
def test_a_saved_model_refuses_files_that_it_would_decode_to_other_pixels(exported, picture):
    path, _ = exported("saved_model")
    classify = tf.saved_model.load(str(path)).signatures["serving_encoded"]
    others = [encode(picture(0, 24, 20), format) for format in ("BMP", "GIF", "WEBP")]
    for content in (*others, b"no picture"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected a JPEG or PNG file"):
            classify(tf.constant([content]))


@pytest.mark.slow
def test_litert_says_the_same_of_batches_of_any_size(exported, images, expected):
    path, _ = exported("litert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's announcement of a package of its own.
        interpreter = tf.lite.Interpreter(str(path))
    run = interpreter.get_signature_runner()
    for batch in (slice(1), slice(None), slice(1)):
        probabilities = run(images=images[batch])["probabilities"]
        np.testing.assert_allclose(probabilities, expected[batch], rtol=0, atol=1e-4)
    assert zipfile.ZipFile(path).read("labels.txt") == b"dark\nlight\n"


@pytest.mark.slow
@needs_onnx
def test_onnx_says_the_same_of_batches_of_any_size(exported, images, expected):
    import onnxruntime

    path, _ = exported("onnx")
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [("images", [SIZE, SIZE, 3])]
    for batch in (slice(1), slice(None)):
        (probabilities,) = session.run(["probabilities"], {"images": images[batch]})
        np.testing.assert_allclose(probabilities, expected[batch], rtol=0, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == ["dark", "light"]


@pytest.mark.parametrize("format", FORMATS)
def test_it_computes_in_float32_what_was_trained_in_half_of_it(half_run_dir, format, tmp_path):
    made = export(half_run_dir, format=format, output=str(tmp_path / "made"))
    assert (made.images, made.files) == (18, 17 if format == "saved_model" else 0)
    assert made.difference <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_another_answer_than_the_keras_models_leaves_what_was_there(run_dir, tmp_path, monkeypatch):
    output = tmp_path / "model.tflite"
    output.write_text("before")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)  # Which no difference is within.
    with pytest.raises(UserError, match=r"not exported, because .* probabilities differ by "):
        export(run_dir, format="litert", output=str(output), overwrite=True)
    assert snapshot(tmp_path) == {"model.tflite": b"before"}


def test_nothing_is_replaced_but_an_export_with_overwrite(run_dir, tmp_path):
    output, folder = tmp_path / "made", tmp_path / "folder"
    output.write_text("before")
    folder.mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="already exists; pass --overwrite"):
        export(run_dir, output=str(output))
    with pytest.raises(UserError, match="is a folder but not a SavedModel"):
        export(run_dir, output=str(folder), overwrite=True)
    assert snapshot(tmp_path) == before
    for format in ("saved_model", "saved_model", "litert"):
        export(run_dir, format=format, output=str(output), overwrite=True)
        assert output.is_dir() == (format == "saved_model")
    assert {path.name for path in tmp_path.iterdir()} == {"made", "folder"}


def test_a_run_that_is_replaced_keeps_no_export_of_its_model(small_flags, tmp_path):
    flags = [*small_flags, "--epochs=1", f"--run_dir={tmp_path / 'run'}"]
    fit(*flags)
    assert export(tmp_path / "run", format="litert").path.exists()
    fit(*flags, "--overwrite")
    assert not (tmp_path / "run" / "model.tflite").exists()


def model_with_code(path: pathlib.Path) -> None:
    inputs = keras.Input((SIZE, SIZE, 3))
    outputs = keras.layers.Lambda(lambda images: images[:, :1, 0, 0])(inputs)
    keras.Model(inputs, outputs).save(path)


def model_of_other_pictures(path: pathlib.Path) -> None:
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "model .*model.keras: missing"),
        (
            lambda path: path.write_text("no zip"),
            "model .*model.keras: missing, or no Keras model",
        ),
        (model_with_code, "model .*model.keras: cannot be loaded .*Lambda"),
        (model_of_other_pictures, r"model .*model.keras: takes images of \(8, 8, 3\)"),
    ],
)
def test_a_model_that_is_not_the_runs_is_one_line(run_dir, tmp_path, write, message):
    for name in ("run.flags", "result.json"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    write(tmp_path / "model.keras")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        export(tmp_path, format="litert")
    assert "\n" not in str(raised.value)
    assert snapshot(tmp_path) == before


def test_a_missing_folder_is_named(run_dir, tmp_path):
    with pytest.raises(UserError, match="missing is not a writable folder"):
        export(run_dir, output=str(tmp_path / "missing" / "model"))


def test_a_missing_package_is_named_with_its_extra(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)  # As where it is not installed.
    with pytest.raises(UserError, match=r"tf2onnx; install .*: pip install -e '.\[onnx\]'"):
        export(run_dir, format="onnx")
