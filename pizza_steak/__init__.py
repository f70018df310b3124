"""From an archive of class folders to batches of pictures.

Importing the package registers its dataset, so that `tfds.load("pizza_steak/sample")` finds it.
"""

from pizza_steak.pizza_steak_dataset_builder import ArchiveConfig, Builder

__all__ = ["ArchiveConfig", "Builder"]
