"""Turns an archive of class folders into batches of images.

Importing the package registers its dataset: `tfds.load("pizza_steak/sample")` finds it.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from pizza_steak.image_data_generator import flow_from_directory
    from pizza_steak.pizza_steak_dataset_builder import ArchiveConfig, Builder

__version__ = "0.1.0"

__all__ = ["ArchiveConfig", "Builder", "flow_from_directory"]

# Modules that import TFDS or TensorFlow, which --help must not wait for.
_MODULES = {
    "ArchiveConfig": "pizza_steak.pizza_steak_dataset_builder",
    "Builder": "pizza_steak.pizza_steak_dataset_builder",
    "flow_from_directory": "pizza_steak.image_data_generator",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# TFDS 4.9 has no entry point for the datasets of other packages.
@wrapt.when_imported("tensorflow_datasets")
def _register(_: ModuleType) -> None:
    importlib.import_module(_MODULES["Builder"])
