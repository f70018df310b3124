"""Turns an archive of class folders into batches of images.

    import pizza_steak

    data = pizza_steak.load("holiday_photos.zip", image_size=224)
    model.fit(data.train, validation_data=data.validation, epochs=5)

`load` gives training, validation and test images. `flow_from_directory` replaces that of Keras's
ImageDataGenerator. `trainers.train` trains a classifier.

Importing the package registers its dataset: `tfds.load("pizza_steak/sample")` finds it.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from pizza_steak.errors import UserError

if TYPE_CHECKING:
    from pizza_steak.datasets import Datasets, load
    from pizza_steak.image_data_generator import flow_from_directory

__version__ = "0.2.0"

__all__ = ["Datasets", "UserError", "__version__", "flow_from_directory", "load"]

# Modules that import TFDS or TensorFlow, which --help must not wait for.
_MODULES = {
    "ArchiveConfig": "pizza_steak.pizza_steak_dataset_builder",
    "Builder": "pizza_steak.pizza_steak_dataset_builder",
    "Datasets": "pizza_steak.datasets",
    "flow_from_directory": "pizza_steak.image_data_generator",
    "load": "pizza_steak.datasets",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from pizza_steak.tensorflow_import import import_tensorflow

        import_tensorflow()
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


# TFDS 4.9 has no entry point for the datasets of other packages.
@wrapt.when_imported("tensorflow_datasets")
def _register(_: ModuleType) -> None:
    importlib.import_module(_MODULES["Builder"])
