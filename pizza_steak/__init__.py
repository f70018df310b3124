"""Turns an archive of class folders into batches of images.

Importing the package registers its dataset: `tfds.load("pizza_steak/sample")` finds it.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pizza_steak.image_data_generator import flow_from_directory
    from pizza_steak.pizza_steak_dataset_builder import ArchiveConfig, Builder

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


class _Registration(importlib.abc.MetaPathFinder):
    """Registers the dataset as soon as TFDS is imported.

    TFDS 4.9 has no entry point for the datasets of other packages.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow_datasets":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(_MODULES["Builder"])

            # Only this loader is changed; importlib has no hook for after an import.
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "tensorflow_datasets" in sys.modules:
    importlib.import_module(_MODULES["Builder"])
else:
    sys.meta_path.insert(0, _Registration())
