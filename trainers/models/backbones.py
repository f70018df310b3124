"""The networks that --model names but that are not built here.

A backbone turns images, values 0 to 255, into features of shape (B, F); a head of a few layers
turns these into probabilities. Backbones come from keras.applications, from finished runs and from
.keras files. A function of the user's returns a whole network.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.utils import naming

from pizza_steak.errors import UserError
from pizza_steak.flags import Numbers
from trainers import user_code
from trainers.configuration import ModelConfig
from trainers.models import applications, saved_networks


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


def is_application(config: ModelConfig) -> bool:
    """Returns whether the flags name a network of keras.applications."""
    return config.model.lower() in applications.functions()


def is_saved(config: ModelConfig) -> bool:
    """Returns whether the flags name the directory of a run, or a file."""
    text = config.model
    return "/" in text or text.endswith(".keras") or os.path.exists(os.path.expanduser(text))


def with_absolute_paths(config: ModelConfig) -> ModelConfig:
    """Returns the flags with absolute paths of files and runs; the network is not built here."""
    model, weights = config.model, config.weights
    if user_code.is_function(model):
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
        return applications.image_size(config)
    if user_code.is_function(config.model) or not is_saved(config):
        return None
    return saved_networks.image_size(config)


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
            f"weights {config.weights!r}: only networks of keras.applications take it; "
            f"{config.model} has its own weights"
        )
    determining = ModelConfig(config.model, weights=config.weights, features=config.features)
    # A backup finds variables by names that Keras numbers, so these must not depend on whether the
    # backbone was built or cached: those before it are a part of the key, and those after it start
    # anew. The same holds for the seeds that layers draw.
    names = global_state.get_global_attribute("object_name_uids", {})
    kinds = (
        *(keras.config.dtype_policy().name, tf.distribute.get_strategy()),
        tuple(sorted(names.items())),
    )
    seeds = random.getstate()
    found = _built(determining, image_shape, classes, kinds, _modified_ns(config))
    random.setstate(seeds)
    naming.reset_uids()  # Keras has no public name for it.
    if found.head or not found.pretrained:
        forget()  # A kept head is trained, and random weights depend on the seed.
    return found


@functools.lru_cache(maxsize=2)
def _built(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    classes: tuple[str, ...],
    kinds: tuple[Any, ...],
    modified_ns: int,
) -> Backbone:
    """Builds or loads a backbone; later trainings of this process use it again while it is frozen.

    Args:
      config: The flags.
      image_shape: Height, width and channels of the images.
      classes: The class names.
      kinds: The dtype policy and the strategy that the variables are made in, and Keras's names.
      modified_ns: What `_modified_ns` returns.
    """
    if is_application(config):
        model, origin = applications.build(config, image_shape)
        return Backbone(model, origin, origin["weights"] != "none")
    model, head = saved_networks.build(config, image_shape, classes)
    return Backbone(model, {"source": str(saved_networks.path_of(config))}, True, head)


def forget() -> None:
    """Empties the cache, because a cached backbone is about to be trained."""
    _built.cache_clear()


def _modified_ns(config: ModelConfig) -> int:
    """Returns when the file of the network or its weights was changed last, in nanoseconds."""
    if is_application(config):
        path = pathlib.Path(config.weights or "").expanduser()
    else:
        path = saved_networks.path_of(config)
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
