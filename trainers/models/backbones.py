"""The networks that --model names but that are not built here.

A backbone turns images, values 0 to 255, into features of shape (B, F); a head of a few layers
turns these into probabilities. Backbones come from keras.applications, from finished runs and from
.keras files. A function of the user's returns a whole network.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import pathlib
import random
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.utils import naming

from pizza_steak.errors import UserError
from pizza_steak.flags import Numbers
from trainers.configuration import ModelConfig
from trainers.models import nested
from trainers.runs import run_directory

# Height and width that a network of keras.applications was trained with, where they are not 224.
_SIZES = {
    "efficientnetb1": 240,
    "efficientnetb2": 260,
    "efficientnetb3": 300,
    "efficientnetb4": 380,
    "efficientnetb5": 456,
    "efficientnetb6": 528,
    "efficientnetb7": 600,
    "efficientnetv2b1": 240,
    "efficientnetv2b2": 260,
    "efficientnetv2b3": 300,
    "efficientnetv2s": 384,
    "efficientnetv2m": 480,
    "efficientnetv2l": 480,
    "inceptionresnetv2": 299,
    "inceptionv3": 299,
    "nasnetlarge": 331,
    "xception": 299,
}
# The licences of the ImageNet weights, by module, as their authors and Keras's documentation say.
_LICENCES = {
    "convnext": "MIT (Facebook Research)",
    "densenet": "BSD 3-clause (Gao Huang et al.)",
    "efficientnet": "Apache 2.0 (Google)",
    "efficientnet_v2": "Apache 2.0 (Google)",
    "inception_resnet_v2": "Apache 2.0 (Google)",
    "inception_v3": "Apache 2.0 (Google)",
    "mobilenet": "Apache 2.0 (Google)",
    "mobilenet_v2": "Apache 2.0 (Google)",
    "mobilenet_v3": "Apache 2.0 (Google)",
    "nasnet": "Apache 2.0 (Google)",
    "resnet": "MIT (Kaiming He)",
    "vgg16": "CC BY 4.0 (VGG, Oxford)",
    "vgg19": "CC BY 4.0 (VGG, Oxford)",
    "xception": "MIT (François Chollet)",
}

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


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network up to its features.

    Attributes:
      model: From images, values 0 to 255, to features of shape (B, F).
      origin: Where its weights come from, and their licence; for environment.json.
      pretrained: Whether its weights have been trained.
      head: The rest of the network, from features to probabilities, if it fits the classes: layers
        to apply one after the other.
    """

    model: keras.Model
    origin: Mapping[str, str]
    pretrained: bool
    head: Sequence[keras.layers.Layer] = ()


def applications() -> dict[str, Callable[..., keras.Model]]:
    """Returns the functions of keras.applications, by their names in lower case."""
    found = vars(keras.applications).items()
    return {name.lower(): function for name, function in found if inspect.isfunction(function)}


def is_application(config: ModelConfig) -> bool:
    """Returns whether the flags name a network of keras.applications."""
    return config.model.lower() in applications()


def is_function(config: ModelConfig) -> bool:
    """Returns whether the flags name a function of the user's, in a file or a module."""
    return re.fullmatch(r".+:[A-Za-z_]\w*", config.model) is not None


def is_saved(config: ModelConfig) -> bool:
    """Returns whether the flags name the directory of a run, or a file."""
    text = config.model
    return "/" in text or text.endswith(".keras") or pathlib.Path(text).expanduser().exists()


def with_absolute_paths(config: ModelConfig) -> ModelConfig:
    """Returns the flags with absolute paths of files and runs; the network is not built here."""
    model, weights = config.model, config.weights
    if is_function(config):
        place, _, name = model.rpartition(":")
        if place.endswith(".py"):
            model = f"{_absolute(place)}:{name}"
    elif not is_application(config) and is_saved(config):
        model = str(_absolute(model))
    if weights not in (None, "imagenet", "none"):
        weights = str(_absolute(weights))
    return dataclasses.replace(config, model=model, weights=weights)


def _absolute(path: str) -> pathlib.Path:
    return pathlib.Path(path).expanduser().absolute()


def image_size(config: ModelConfig) -> Numbers | None:
    """Returns the height and width that a network wants; None if it has no preference.

    Raises:
      UserError: There is no such run or file.
    """
    if is_application(config):
        return _SIZES.get(config.model.lower(), 224)
    if is_function(config) or not is_saved(config):
        return None
    if _path(config).is_dir():
        return run_directory.open_run(config.model).config.data.image_size
    return _input_size(_path(config))


def build(
    config: ModelConfig, image_shape: tuple[int, int, int], classes: tuple[str, ...]
) -> Backbone:
    """Builds or loads the backbone that the flags name.

    Args:
      config: The flags; `is_application` or `is_saved` is true.
      image_shape: Height, width and channels of the images.
      classes: The class names.

    Raises:
      UserError: The network does not take such images, its weights cannot be had, there is no such
        run, file or layer, or a flag has no meaning for it.
    """
    if is_application(config):
        if config.features is not None:
            raise UserError(
                f"features {config.features!r}: is for runs and .keras files; {config.model} has "
                "its own pooled features"
            )
    elif config.weights is not None:
        raise UserError(
            f"weights {config.weights!r}: is for networks of keras.applications; {config.model} "
            "has its own"
        )
    determining = ModelConfig(config.model, weights=config.weights, features=config.features)
    kinds = (keras.config.dtype_policy().name, tf.distribute.get_strategy())
    # What is built after it has the same seeds and names, whether it is used again or not: a backup
    # finds variables by names that Keras numbers.
    seeds = random.getstate()
    found = _built(determining, image_shape, classes, kinds, _changed(config))
    random.setstate(seeds)
    naming.reset_uids()  # Keras has no public name for it.
    if found.head or not found.pretrained:
        forget()  # Its head is going to be trained; its weights depend on the seed.
    return found


@functools.lru_cache(maxsize=2)
def _built(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    classes: tuple[str, ...],
    kinds: tuple[Any, ...],
    changed: int,
) -> Backbone:
    """Builds or loads a backbone; later trainings of this process use it again while it is frozen.

    Args:
      config: The flags.
      image_shape: Height, width and channels of the images.
      classes: The class names.
      kinds: The dtype policy and the strategy that the variables are made in.
      changed: What `_changed` returns.
    """
    if is_application(config):
        return _application(config, image_shape)
    return _saved(config, image_shape, classes)


def forget() -> None:
    """Lets later trainings build their backbones anew, as one of them is going to be trained."""
    _built.cache_clear()


def _changed(config: ModelConfig) -> int:
    """Returns when the file of the network or its weights was changed last, in nanoseconds."""
    if is_application(config):
        path = pathlib.Path(config.weights or "").expanduser()
    else:
        path = _path(config)
        path = path / "model.keras" if path.is_dir() else path
    return path.stat().st_mtime_ns if path.is_file() else 0


def digest(model: keras.Model) -> str:
    """Returns a hexadecimal digest of a model's architecture and weights, in any precision."""
    architecture = _determining(json.loads(model.to_json()))
    found = hashlib.sha256(json.dumps(architecture).encode())
    for weight in model.weights:
        found.update(np.ascontiguousarray(weight.numpy()).data)
    return found.hexdigest()[:16]


def _determining(part: Any) -> Any:
    """Returns the part of an architecture that determines outputs in any precision."""
    if isinstance(part, dict):
        others = ("dtype", "compile_config")
        return {name: _determining(value) for name, value in part.items() if name not in others}
    return [_determining(value) for value in part] if isinstance(part, list) else part


def _application(config: ModelConfig, image_shape: tuple[int, int, int]) -> Backbone:
    name = config.model.lower()
    function, weights = applications()[name], config.weights or "imagenet"
    module = sys.modules[function.__module__]
    if image_shape[2] != 3:
        raise UserError(
            f"model {config.model!r}: takes images of 3 channels, not {image_shape[2]}; expected "
            "--color_mode=rgb"
        )
    from_file = weights not in ("imagenet", "none")
    if from_file and not pathlib.Path(weights).expanduser().is_file():
        raise UserError(f"weights {weights}: no such file; expected imagenet, none or a file")
    inputs = keras.Input(image_shape, name="images")
    try:
        network = function(
            include_top=False,
            weights="imagenet" if weights == "imagenet" else None,
            input_shape=image_shape,
            pooling="avg",
        )
    except ValueError as error:  # The images are too small, or the layers do not fit them.
        raise UserError(f"model {config.model!r}: {_first_line(error)}") from error
    except Exception as error:  # Keras raises a plain Exception if it cannot download a file.
        raise _no_download(config.model, error) from error
    if from_file:
        _load_weights(network, config)
    outputs = network(module.preprocess_input(inputs))
    origin = {"weights": weights}
    if weights == "imagenet":
        licence = _LICENCES.get(module.__name__.rpartition(".")[2], "not known here; see keras.io")
        origin |= {
            "source": f"keras.applications.{function.__name__}, trained on ImageNet",
            "licence": licence,
        }
    return Backbone(keras.Model(inputs, outputs, name=name), origin, weights != "none")


def _no_download(name: str, error: Exception) -> UserError:
    address = re.search(r"https?://\S+?(?=:? |:?$)", str(error))
    if not address:
        return UserError(f"model {name!r}: {_first_line(error)}")
    folder = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras"), "models")
    return UserError(
        f"weights of {name}: cannot be downloaded; fetch {address[0]} where there is a network and "
        f"put it into {folder}, or pass --weights=none"
    )


def _load_weights(network: keras.Model, config: ModelConfig) -> None:
    try:
        network.load_weights(pathlib.Path(config.weights or "").expanduser())
    except Exception as error:  # Keras and h5py raise different ones.
        raise UserError(
            f"weights {config.weights}: are not those of {config.model} without its last layers "
            f"({_first_line(error)})"
        ) from error


def _saved(
    config: ModelConfig, image_shape: tuple[int, int, int], classes: tuple[str, ...]
) -> Backbone:
    path, same = _path(config), None
    origin = {"source": str(path)}
    if path.is_dir():
        run = run_directory.open_run(config.model)
        model, same = run.load_model(), tuple(run.result["classes"]) == classes
    else:
        model = _load(path)
    model = _functional(nested.in_precision(model, keras.config.dtype_policy()))
    _check_images(config, model, image_shape)
    features, head = _split(config, model)
    if not (_fits(model, len(classes)) if same is None else same):
        head = []
    name = path.stem if path.suffix == ".keras" else model.name
    backbone = keras.Model(model.input, features, name=re.sub(r"\W", "_", name))
    return Backbone(backbone, origin, True, head)


def _path(config: ModelConfig) -> pathlib.Path:
    path = _absolute(config.model)
    if not path.exists():
        raise UserError(
            f"model {config.model}: no such file or folder; expected a .keras file or the "
            "directory of a finished run"
        )
    return path


def _input_size(path: pathlib.Path) -> tuple[int, int] | None:
    """Returns the height and width of a .keras file's images, without loading it."""
    try:
        with zipfile.ZipFile(path) as file:
            first, *_ = json.loads(file.read("config.json"))["config"]["layers"]
        _, height, width, _ = first["config"]["batch_shape"]
    except (OSError, zipfile.BadZipFile, LookupError, TypeError, ValueError):
        return None  # `_load` says what is wrong.
    return (height, width) if height and width else None


def _load(path: pathlib.Path) -> keras.Model:
    """Loads a .keras file; Keras refuses one that contains code."""
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras, zipfile, json and h5py raise different ones.
        raise UserError(f"model {path}: cannot be loaded ({_first_line(error)})") from error
    if not isinstance(model, keras.Model) or not _is_functional(model):
        raise UserError(f"model {path}: expected a functional or sequential Keras model")
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.input_shape) != 4:
        raise UserError(f"model {path}: expected one input of images and one output")
    return model


def _is_functional(model: keras.Model) -> bool:
    return getattr(model, "inputs", None) is not None and model.outputs is not None


def _check_images(
    config: ModelConfig, model: keras.Model, image_shape: tuple[int, int, int]
) -> None:
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
    for before, layer in reversed(list(itertools.pairwise(model.layers))):
        if isinstance(layer, keras.Model):  # A run of a user's function ends with its network.
            inner, rest = _without_head(_functional(layer))
            if rest:
                part = keras.Model(layer.inputs[0], inner, name=layer.name)
                return part(before.output), rest + head
        if not isinstance(layer, _HEAD_LAYERS) or len(layer.input.shape) > 2:
            break
        tensor, head = layer.input, [layer, *head]
    return tensor, head


def _functional(model: keras.Model) -> keras.Model:
    """Returns a model that is not sequential, which has an input layer."""
    if not isinstance(model, keras.Sequential):
        return model
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _fits(model: keras.Model, num_classes: int) -> bool:
    """Returns whether a model ends with the probabilities of so many classes."""
    units, last = model.output_shape[-1], model.layers[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    expected = {1: "sigmoid"}.get(units, "softmax")
    return activation == expected and units == (1 if num_classes == 2 else num_classes)


def call(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Calls the function that --model names.

    Args:
      config: The flags; `is_function` is true.
      image_shape: Height, width and channels of the images.
      num_classes: The number of classes C.

    Returns:
      Its model, from images to probabilities: shape (B, C), or (B, 1) for two classes.

    Raises:
      UserError: There is no such function, or it fails or returns something else.
    """
    place, _, name = config.model.rpartition(":")
    function = getattr(_module(config, place), name, None)
    if not callable(function):
        raise UserError(f"model {config.model}: {place} has no function {name}")
    try:
        model = function(image_shape, num_classes)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model {config.model}: {name}({image_shape}, {num_classes}) raised "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    if not isinstance(model, keras.Model) or not _is_functional(model):
        raise UserError(
            f"model {config.model}: {name} returned {type(model).__name__}; expected a functional "
            "or sequential keras.Model"
        )
    _check_images(config, model, image_shape)
    units = [num_classes] if num_classes != 2 else [1, 2]
    if tuple(model.output_shape) not in [(None, unit) for unit in units]:
        expected = " or ".join(f"(None, {unit})" for unit in units)
        raise UserError(
            f"model {config.model}: its output has the shape {model.output_shape}; expected "
            f"{expected}, the probabilities of {num_classes} classes"
        )
    noise = np.random.default_rng(0).uniform(0, 255, (2, *image_shape)).astype(np.float32)
    outputs = np.asarray(keras.ops.convert_to_numpy(model(noise, training=False)), np.float32)
    sums = outputs.sum(axis=-1) if outputs.shape[1] > 1 else np.ones(2)
    if outputs.min() < 0 or outputs.max() > 1 or not np.allclose(sums, 1, atol=1e-2):
        raise UserError(
            f"model {config.model}: its outputs are no probabilities; expected a last layer with "
            f"activation={'sigmoid' if outputs.shape[1] == 1 else 'softmax'!r}"
        )
    return model


def import_layers(config: ModelConfig) -> None:
    """Imports the file or module of a user's function, which may register layers of its own.

    Raises:
      UserError: It cannot be imported.
    """
    if is_function(config):
        _module(config, config.model.rpartition(":")[0])


def _module(config: ModelConfig, place: str) -> ModuleType:
    path = pathlib.Path(place).expanduser()
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not path.is_file():
            raise UserError(f"model {config.model}: no file {place}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader  # Its name ends with .py.
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"model {config.model}: {place} cannot be imported ({type(error).__name__}: "
            f"{_first_line(error)})"
        ) from error


def _first_line(error: Any) -> str:
    return re.split(r"\. |\n", str(error))[0]
