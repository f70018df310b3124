"""The pictures of a run: what the data flags say, opened and split."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from pizza_steak import decoded, input_pipeline, records
from pizza_steak.errors import UserError
from trainers.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Data:
    """Decoded pictures with their labels, in splits.

    Attributes:
      records: The records they were decoded from.
      pictures: The decoded pictures.
      class_mode: "binary", "categorical" or "sparse".
      splits: Split strings by what they are for: "train", "validation" and "test".
      rows: Rows of the records by what they are for, without those of bad pictures.
    """

    records: records.Records
    pictures: decoded.Pictures
    class_mode: str
    splits: Mapping[str, str]
    rows: Mapping[str, np.ndarray]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the labels' order."""
        return self.records.classes

    def labels(self, purpose: str) -> np.ndarray:
        """The class indices of a split, int64, in the order of its rows."""
        return self.records.labels[self.rows[purpose]]

    def counts(self, purpose: str) -> np.ndarray:
        """How many pictures of each class a split has, in the labels' order."""
        return np.bincount(self.labels(purpose), minlength=len(self.classes))

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Class indices in the form of the class mode."""
        return input_pipeline.encode_labels(labels, self.class_mode, len(self.classes))

    def batches(self, purpose: str, batch_size: int, **order) -> tf.data.Dataset:
        """The batches of a split; `order` as in `input_pipeline.batches`."""
        labels = self.encode(self.records.labels)
        return input_pipeline.batches(
            self.pictures, self.rows[purpose], labels, batch_size, **order
        )


def load(config: DataConfig) -> Data:
    """Prepares, splits and decodes what the flags name.

    Raises:
      UserError: Of the archive, the dataset, a split, the class mode or a picture.
    """
    prepared = records.prepare(config.dataset, archive=config.archive, data_dir=config.data_dir)
    class_mode = input_pipeline.choose_class_mode(config.class_mode, len(prepared.classes))
    if class_mode == "none":
        raise UserError("class_mode 'none': gives no labels to train on; expected another")
    has_test = "test" in prepared.builder.info.splits
    splits = {
        "train": config.train_split,
        "validation": config.validation_split,
        "test": config.test_split or ("test" if has_test else config.validation_split),
    }
    rows = {purpose: prepared.rows(split) for purpose, split in splits.items()}
    pictures = decoded.decode(
        prepared,
        config.image_size,
        interpolation=config.interpolation,
        cache=config.decoded_cache,
        on_bad_image=config.on_bad_image,
    )
    bad = list(pictures.bad)
    rows = {purpose: split[~np.isin(split, bad)] for purpose, split in rows.items()}
    for purpose, split in splits.items():
        if not rows[purpose].size:
            raise UserError(f"split {split!r}: none of its pictures can be decoded")
    return Data(prepared, pictures, class_mode, splits, rows)
