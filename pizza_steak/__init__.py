"""From an archive of class folders to batches of pictures.

Importing the package registers its dataset, so that `tfds.load("pizza_steak/sample")` finds it.
"""

from typing import TYPE_CHECKING, Any

from pizza_steak.pizza_steak_dataset_builder import ArchiveConfig, Builder

if TYPE_CHECKING:
    from pizza_steak.directory import flow_from_directory

__all__ = ["ArchiveConfig", "Builder", "flow_from_directory"]


def __getattr__(name: str) -> Any:
    # When it is first asked for: TensorFlow, which it needs, takes seconds to import.
    if name == "flow_from_directory":
        from pizza_steak.directory import flow_from_directory

        return flow_from_directory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
