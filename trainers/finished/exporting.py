"""Exports a run's model for use without Keras: SavedModel, LiteRT and ONNX.

Each export takes "images", raw pixels, uint8 of shape (B, H, W, C), and returns "probabilities",
float32 of shape (B, C), a column per class. It has the class names, in the order of the columns:

saved_model  returns "class_name" too, the most probable class; assets.extra/labels.txt has all
             names. Its signature "serving_encoded" takes "image_bytes", JPEG and PNG files of shape
             (B,), and decodes and resizes them as in training; see `decoding_in_graph`.
litert       labels.txt, in a zip that is appended to the file, as LiteRT's tools do.
onnx         "labels" in the metadata, a JSON list.

Exports compute in float32 whatever the precision of the run, because LiteRT and ONNX Runtime lack
kernels for float16. Augmentation layers do nothing.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import decoding, decoding_in_graph
from pizza_steak.atomic import output_file, remove, remove_temporary
from pizza_steak.errors import UserError
from pizza_steak.tensorflow_import import stderr_dropped
from trainers import data as run_data
from trainers import user_code
from trainers.configuration import ArtifactConfig
from trainers.finished import loading
from trainers.models import nested, saved_networks
from trainers.runs import run_directory

# The largest difference between a probability and that of the Keras model.
TOLERANCE = 1e-4

_CHECKED_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Export:
    """A checked export.

    Attributes:
      path: The file, or the folder of a SavedModel.
      images: The number of images that it was checked on.
      files: The number of these images that it decoded itself.
      difference: The largest difference between its probabilities and those of the Keras model.
    """

    path: pathlib.Path
    images: int
    files: int
    difference: float

    def summary(self) -> str:
        """Returns the result of the check and the path, as text."""
        as_files = f", {self.files} of them as files too" if self.files else ""
        return (
            f"checked on {self.images} images{as_files}: the same classes as the Keras model, "
            f"probabilities differ by at most {self.difference:.1g}\n"
            f"exported to {self.path}"
        )


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Images to check an export on.

    Attributes:
      images: uint8 of shape (N, H, W, C).
      files: The encoded files that do not need Pillow, by their index in `images`.
    """

    images: np.ndarray
    files: Mapping[int, bytes]


@dataclasses.dataclass(frozen=True)
class _Answer:
    """The output of an export for B images of a sample.

    Attributes:
      positions: The indices of the images in the sample.
      probabilities: float32 of shape (B, C).
      class_names: The predicted classes, B names.
    """

    positions: Sequence[int]
    probabilities: np.ndarray
    class_names: Sequence[str]


class _Classifier(tf.Module):
    """A Keras model with its class names, to be exported.

    Args:
      model: The model, from images of `format` to probabilities.
      classes: The class names, in the labels' order.
      format: The format of the images.
    """

    def __init__(self, model: keras.Model, classes: Sequence[str], format: decoding.Format):
        super().__init__()
        self.classes = tuple(classes)
        self._weights = [variable.value for variable in model.variables]

        @tf.function(input_signature=[tf.TensorSpec((None, *format.shape), tf.uint8, "images")])
        def probabilities(images):
            outputs = model(images, training=False)
            if outputs.shape[-1] == 1:  # The probability of class 1 of two.
                outputs = tf.concat([1 - outputs, outputs], axis=-1)
            return {"probabilities": outputs}

        @tf.function(input_signature=probabilities.input_signature)
        def classify(images):
            outputs = probabilities(images)
            best = tf.argmax(outputs["probabilities"], axis=-1)
            return {**outputs, "class_name": tf.gather(tf.constant(self.classes), best)}

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "image_bytes")])
        def classify_encoded(image_bytes):
            images = tf.map_fn(
                lambda encoded: decoding_in_graph.decode_image(encoded, format),
                image_bytes,
                fn_output_signature=tf.TensorSpec(format.shape, tf.uint8),
            )
            return classify(images)

        self.probabilities, self.classify = probabilities, classify
        self.classify_encoded = classify_encoded


def _write_saved_model(classifier: _Classifier, path: pathlib.Path) -> None:
    signatures = {
        "serving_default": classifier.classify,
        "serving_encoded": classifier.classify_encoded,
    }
    tf.saved_model.save(classifier, str(path), signatures=signatures)
    extra = path / "assets.extra"  # SavedModels keep files here that their graph does not read.
    extra.mkdir()
    (extra / "labels.txt").write_text(_labels(classifier), encoding="utf-8")


def _write_litert(classifier: _Classifier, path: pathlib.Path) -> None:
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [classifier.probabilities.get_concrete_function()], classifier
    )
    path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as zip_file:
        zip_file.writestr("labels.txt", _labels(classifier))


def _write_onnx(classifier: _Classifier, path: pathlib.Path) -> None:
    import onnx
    import tf2onnx

    function = classifier.probabilities.get_concrete_function()
    # tf2onnx.convert.from_function (1.17) takes captured constants, such as the statistics of a
    # Normalization layer, for inputs.
    inputs, outputs = [function.inputs[0].name], [function.outputs[0].name]
    model, _ = tf2onnx.convert.from_graph_def(
        tf2onnx.tf_loader.from_function(function, inputs, outputs),
        name="classifier",
        input_names=inputs,
        output_names=outputs,
        tensors_to_rename={inputs[0]: "images", outputs[0]: "probabilities"},
    )
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(model, {"labels": json.dumps(classifier.classes)})
    onnx.save(model, path)


def _labels(classifier: _Classifier) -> str:
    return "".join(f"{name}\n" for name in classifier.classes)


def _ask_saved_model(path: pathlib.Path, sample: _Sample) -> Iterator[_Answer]:
    signatures = tf.saved_model.load(str(path)).signatures

    def answer(positions, outputs):
        names = [name.decode() for name in outputs["class_name"].numpy()]
        return _Answer(positions, outputs["probabilities"].numpy(), names)

    yield answer(
        range(len(sample.images)), signatures["serving_default"](tf.constant(sample.images))
    )
    if sample.files:
        files = tf.constant([*sample.files.values()])
        yield answer([*sample.files], signatures["serving_encoded"](files))


def _ask_litert(path: pathlib.Path, sample: _Sample) -> Iterator[_Answer]:
    with zipfile.ZipFile(path) as zip_file:
        labels = zip_file.read("labels.txt").decode().split("\n")
    run = tf.lite.Interpreter(str(path)).get_signature_runner()
    yield _answer(run(images=sample.images)["probabilities"], labels)


def _ask_onnx(path: pathlib.Path, sample: _Sample) -> Iterator[_Answer]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except (
        Exception
    ) as error:  # Its exceptions have no public names. ConvNeXt's gelu is one reason.
        reason = str(error).strip().rpartition(":")[2].strip()
        raise UserError(
            f"format 'onnx': ONNX Runtime does not take the graph of this network ({reason}); "
            "expected --format=litert or saved_model"
        ) from error
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    yield _answer(session.run(["probabilities"], {"images": sample.images})[0], labels)


def _answer(probabilities: np.ndarray, labels: Sequence[str]) -> _Answer:
    names = [labels[best] for best in probabilities.argmax(axis=-1)]
    return _Answer(range(len(probabilities)), probabilities, names)


@dataclasses.dataclass(frozen=True)
class _ExportFormat:
    """A format of exports.

    Attributes:
      name: The name of its file or folder in a run directory.
      write: Writes a classifier to a path.
      ask: Loads an export, and yields its outputs for a sample.
      packages: The packages that it needs besides the project's own dependencies.
    """

    name: str
    write: Callable[[_Classifier, pathlib.Path], None]
    ask: Callable[[pathlib.Path, _Sample], Iterator[_Answer]]
    packages: tuple[str, ...] = ()


_FORMATS = {
    "saved_model": _ExportFormat("saved_model", _write_saved_model, _ask_saved_model),
    "litert": _ExportFormat("model.tflite", _write_litert, _ask_litert),
    "onnx": _ExportFormat("model.onnx", _write_onnx, _ask_onnx, ("onnx", "onnxruntime", "tf2onnx")),
}


def export(run: run_directory.Run, config: ArtifactConfig) -> Export:
    """Exports the model of a finished run, and checks the export on images of its test split.

    Raises:
      UserError: The model or the images cannot be read, packages are missing, the output exists, or
        the export does not predict what the Keras model predicts; then the export is removed.
    """
    user_code.import_all(config.code)
    export_format = _FORMATS[config.format]
    if missing := [name for name in export_format.packages if not importlib.util.find_spec(name)]:
        raise UserError(
            f"format {config.format!r}: needs the packages {', '.join(missing)}; install them: "
            f"pip install -e '.[{config.format}]'"
        )
    path = pathlib.Path(config.output or run.path / export_format.name).expanduser().absolute()
    _check_free(path, config.overwrite)
    remove_temporary(path.parent, path.name)  # Exports may be large.
    if config.format == "saved_model" and (special := set(str(path)) & set("*?[\\")):
        raise UserError(
            f"output {path}: TensorFlow takes the path of a SavedModel with {min(special)} for a "
            "pattern and cannot load it; pass another --output"
        )
    # A GPU multiplies float32 as TF32, whose 10 bits are further from the export than `TOLERANCE`.
    with tf.device("CPU:0"):
        return _exported(run, config, path)


def _exported(run: run_directory.Run, config: ArtifactConfig, path: pathlib.Path) -> Export:
    export_format = _FORMATS[config.format]
    model = saved_networks.load_model(run)
    loading.check_fits(model, run)
    model = nested.in_precision(model, keras.DTypePolicy("float32"))
    classes = run.result["classes"]
    format = run_data.format_of(run.config.data)
    data_config = dataclasses.replace(run.config.data, data_dir=config.data_dir)
    data = run_data.load(data_config, scored=["test"])
    run.warn_of_other_images(data.records.fingerprint)
    sample = _sample(data, format)
    expected = loading.class_probabilities(model(sample.images, training=False).numpy())
    with output_file(path) as temporary, stderr_dropped():  # Converters log a lot.
        export_format.write(_Classifier(model, classes, format), temporary)
        answers = list(export_format.ask(temporary, sample))
        difference = max(_difference(answer, expected, classes, path) for answer in answers)
        if path.is_dir() or temporary.is_dir():
            remove(path)  # A folder cannot be renamed over a file or another folder.
    files = sum(len(answer.positions) for answer in answers[1:])
    return Export(path, len(sample.images), files, difference)


def _check_free(path: pathlib.Path, overwrite: bool) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"output {path}: {path.parent} is not a writable folder")
    if not os.path.lexists(path):
        return
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        raise UserError(f"output {path}: is a folder but not a SavedModel; pass another --output")
    if not overwrite:
        raise UserError(f"output {path}: already exists; pass --overwrite or another --output")


def _sample(data: run_data.Data, format: decoding.Format) -> _Sample:
    """Returns images spread evenly over the test split."""
    rows = data.rows["test"]
    count = min(len(rows), _CHECKED_IMAGES)
    rows = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    files = enumerate(data.records.encoded(rows))
    return _Sample(
        data.pictures.gather(tf.constant(rows)).numpy(),
        {place: file for place, file in files if not decoding_in_graph.needs_pillow(file, format)},
    )


def _difference(
    answer: _Answer, expected: np.ndarray, classes: Sequence[str], path: pathlib.Path
) -> float:
    """Returns the largest difference between an answer's probabilities and the Keras model's.

    Raises:
      UserError: It exceeds `TOLERANCE`, or the predicted class differs. Two classes whose
        probabilities are equal within the tolerance may be swapped.
    """
    expected = expected[[*answer.positions]]
    difference = float(np.abs(answer.probabilities - expected).max())
    named = [classes.index(name) for name in answer.class_names]
    behind = float((expected.max(axis=-1) - expected[range(len(named)), named]).max())
    if not (difference <= TOLERANCE and behind <= 2 * TOLERANCE):  # Also refuses NaN.
        raise UserError(
            f"output {path}: not exported, because its predictions are not the Keras model's: "
            f"probabilities differ by {difference:.1g} (expected at most {TOLERANCE:g}), those of "
            f"the predicted classes by {behind:.1g}"
        )
    return difference
