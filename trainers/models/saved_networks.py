"""Networks in .keras files and in finished runs, whole and without their heads."""

import io
import json
import pathlib
import re
import zipfile

import h5py
import keras

from pizza_steak import augmentation, normalization  # noqa: F401  Registers layers.
from pizza_steak.errors import UserError, first_line
from pizza_steak.flags import Numbers
from trainers.configuration import ModelConfig
from trainers.models import nested
from trainers.runs import run_directory

# What Keras writes into a .keras file of a network for images, without compression.
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = {_CONFIG, _WEIGHTS, "metadata.json"}
_MOST_BYTES_OF_CONFIG = 2**26

_COLOR_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}

# Layers after the features, if their inputs are vectors.
_HEAD_LAYERS = (
    keras.layers.Activation,
    keras.layers.BatchNormalization,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.ReLU,
    keras.layers.Softmax,
)


def build(
    config: ModelConfig, image_shape: tuple[int, int, int], classes: tuple[str, ...]
) -> tuple[keras.Model, list[keras.layers.Layer]]:
    """Loads the network that --model names, and takes it apart.

    Args:
      config: The flags.
      image_shape: Height, width and channels of the images.
      classes: The class names.

    Returns:
      The network up to its features; and if its classes are these, the layers after them.

    Raises:
      UserError: There is no such run, file or layer, or the network does not take such images.
    """
    path, same = path_of(config), None
    if path.is_dir():
        run = run_directory.open_run(config.model)
        model, same = load_model(run), tuple(run.result["classes"]) == classes
    else:
        model = _load(path)
    model = _functional(nested.in_precision(model, keras.config.dtype_policy()))
    check_images(config, model, image_shape)
    features, head = _split(config, model)
    if not (_has_classes(model, len(classes)) if same is None else same):
        head = []
    name = path.stem if path.suffix == ".keras" else model.name
    return keras.Model(model.input, features, name=re.sub(r"\W", "_", f"{name}_backbone")), head


def load_model(run: run_directory.Run) -> keras.Model:
    """Returns the model of a finished run, not compiled.

    It imports no code. Layers of the user's have been registered before, as by --code.

    Raises:
      UserError: The file is missing, is not a Keras model, or contains code of its own.
    """
    path = run.path / "model.keras"
    if not path.is_file() or not zipfile.is_zipfile(path):  # It may be a pipe.
        raise UserError(f"model {path}: missing, or no Keras model; train the run again")
    try:
        _check_file(path)
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras, zipfile, json and h5py raise different ones.
        raise UserError(
            f"model {path}: cannot be loaded ({first_line(error)}); train the run again, or if it "
            "has layers of your own, pass --code=FILE.py"
        ) from error


def image_size(config: ModelConfig) -> Numbers | None:
    """Returns the height and width that the network that --model names wants; None if any.

    Raises:
      UserError: There is no such run or file.
    """
    path = path_of(config)
    if path.is_dir():
        return run_directory.open_run(config.model).config.data.image_size
    return _input_size(path)


def path_of(config: ModelConfig) -> pathlib.Path:
    """Returns the path that --model names.

    Raises:
      UserError: There is no such file or folder.
    """
    path = pathlib.Path(config.model).expanduser().absolute()
    if not path.is_file() and not path.is_dir():
        raise UserError(
            f"model {config.model}: no such file or folder; expected a .keras file or the "
            "directory of a finished run"
        )
    return path


def _input_size(path: pathlib.Path) -> tuple[int, int] | None:
    """Returns the height and width of a .keras file's images, without loading it."""
    try:
        with zipfile.ZipFile(path) as file:
            _check_members(file)
            first, *_ = json.loads(file.read(_CONFIG))["config"]["layers"]
        _, height, width, _ = first["config"]["batch_shape"]
    except (OSError, zipfile.BadZipFile, LookupError, TypeError, ValueError, RecursionError):
        return None  # `_load` says what is wrong.
    return (height, width) if height and width else None


def _load(path: pathlib.Path) -> keras.Model:
    """Loads a .keras file; Keras refuses one that contains code."""
    try:
        _check_file(path)
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras, zipfile, json and h5py raise different ones.
        raise UserError(f"model {path}: cannot be loaded ({first_line(error)})") from error
    if not isinstance(model, keras.Model) or not is_functional(model):
        raise UserError(f"model {path}: expected a functional or sequential Keras model")
    return model


def _check_file(path: pathlib.Path) -> None:
    """Checks that a .keras file has what Keras writes, and nothing else, before Keras reads it.

    Keras's safe mode keeps code out. This keeps out what it lets through: compressed members, which
    may be of any size, and HDF5 that takes its data from other files (keras pull request 23163).

    Raises:
      ValueError: It has something else.
    """
    with zipfile.ZipFile(path) as file:
        _check_members(file)
        weights = file.read(_WEIGHTS)
    with h5py.File(io.BytesIO(weights)) as group:
        _check_group(group, set())


def _check_members(file: zipfile.ZipFile) -> None:
    members = {member.filename: member for member in file.infolist()}
    expected = {_CONFIG, _WEIGHTS} <= members.keys() <= _MEMBERS
    if not expected or len(file.infolist()) != len(members):
        raise ValueError(f"expected a .keras file, a zip of {', '.join(sorted(_MEMBERS))}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise ValueError("its members are compressed; load it and save it again with Keras")
    if members[_CONFIG].file_size > _MOST_BYTES_OF_CONFIG:
        raise ValueError(f"{_CONFIG} is larger than {_MOST_BYTES_OF_CONFIG:,} bytes")


def _check_group(group: h5py.Group, seen: set[int]) -> None:
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError("its weights have a link")
        item = group[name]
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:  # A group may be within itself.
            raise ValueError("its weights have a name for what has another name")
        seen.add(address)
        if isinstance(item, h5py.Group):
            _check_group(item, seen)
        # No data in other files; no compression, nor data that is not there.
        elif not isinstance(item, h5py.Dataset) or (
            item.external
            or item.is_virtual
            or item.dtype.hasobject
            or item.id.get_storage_size() != item.nbytes
        ):
            raise ValueError("its weights are not plain arrays")


def is_functional(model: keras.Model) -> bool:
    """Returns whether a model is functional or sequential, and has been built."""
    return getattr(model, "inputs", None) is not None and model.outputs is not None


def check_images(
    config: ModelConfig, model: keras.Model, image_shape: tuple[int, int, int]
) -> None:
    """Checks that a model takes images of this height, width and number of channels alone.

    Raises:
      UserError: It does not, or has several outputs.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.input_shape) != 4:
        raise UserError(f"model {config.model}: expected one input of images and one output")
    height, width, channels = model.input_shape[1:]
    expected = []
    if any(w not in (None, s) for w, s in zip((height, width), image_shape[:2], strict=True)):
        expected.append(f"--image_size={height or image_shape[0]},{width or image_shape[1]}")
    if channels not in (None, image_shape[2]):
        mode = _COLOR_MODES.get(channels)
        expected.append(f"--color_mode={mode}" if mode else "a network for 1, 3 or 4 channels")
    if expected:
        raise UserError(
            f"model {config.model}: takes images of {_by(model.input_shape[1:])}, not "
            f"{_by(image_shape)}; expected {' and '.join(expected)}"
        )


def _by(shape: tuple[int | None, ...]) -> str:
    return " x ".join("any" if length is None else str(length) for length in shape)


def _split(
    config: ModelConfig, model: keras.Model
) -> tuple[keras.KerasTensor, list[keras.layers.Layer]]:
    """Returns the features of a network, and the layers after them if --features names none."""
    head: list[keras.layers.Layer] = []
    if config.features is not None:
        names = [layer.name for layer in model.layers]
        if config.features not in names:
            raise UserError(
                f"features {config.features!r}: {config.model} has no such layer; its last ones "
                f"are {', '.join(names[-6:])}"
            )
        tensor = model.get_layer(config.features).output
    else:
        tensor, head = _without_head(model)
    if len(tensor.shape) != 2:
        raise UserError(
            f"model {config.model}: the output of {config.features or model.layers[-1].name} has "
            f"the shape {tuple(tensor.shape)}; expected --features to name a layer whose output "
            "is one vector per image, such as a global pooling"
        )
    return tensor, head


def _without_head(model: keras.Model) -> tuple[keras.KerasTensor, list[keras.layers.Layer]]:
    """Returns the input of the dense layers at the end of a model, and these layers."""
    tensor = model.output
    head: list[keras.layers.Layer] = []
    while True:
        # Of this call: a layer may be shared, and Keras has no public name for it.
        layer, node_index, _ = tensor._keras_history
        (before, *_) = layer._inbound_nodes[node_index].input_tensors or [None]
        if isinstance(layer, keras.Model):  # A run of a user's function ends with its network.
            inner, rest = _without_head(_functional(layer))
            if rest:
                part = keras.Model(layer.inputs[0], inner, name=layer.name)
                return part(before), rest + head
        if not isinstance(layer, _HEAD_LAYERS) or len(before.shape) > 2:
            return tensor, head
        tensor, head = before, [layer, *head]


def _functional(model: keras.Model) -> keras.Model:
    """Returns a model that is not sequential, which has an input layer."""
    if not isinstance(model, keras.Sequential):
        return model
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _has_classes(model: keras.Model, num_classes: int) -> bool:
    """Returns whether a model ends with the probabilities of so many classes."""
    units, last = model.output_shape[-1], model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        activation = "softmax"
    else:
        activation = getattr(getattr(last, "activation", None), "__name__", "")
    expected = {1: "sigmoid"}.get(units, "softmax")
    return activation == expected and units == (1 if num_classes == 2 else num_classes)
