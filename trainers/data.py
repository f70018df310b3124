"""The pictures of a run: what the data flags say, opened and split."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from pizza_steak import (
    data_service,
    decoded,
    decoding,
    decoding_in_graph,
    input_pipeline,
    records,
    splits,
)
from pizza_steak.errors import UserError
from trainers.configuration import DataConfig

_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Data:
    """Decoded pictures with their labels, in splits.

    Attributes:
      records: The records they were decoded from.
      pictures: The decoded pictures.
      image_shape: Of each: (height, width, channels).
      classes: The class names, in the labels' order.
      class_mode: "binary", "categorical" or "sparse".
      splits: What the splits are, for people, by what they are for: "train", "validation" where
        there is one, "test".
      rows: Rows of the records by what they are for, without those of bad pictures and of classes
        that are not asked for.
      service: Address of the tf.data service that makes the batches, None to make them here.
    """

    records: records.Records
    pictures: decoded.Pictures
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    class_mode: str
    splits: Mapping[str, str]
    rows: Mapping[str, np.ndarray]
    service: str | None = None

    def labels(self, purpose: str) -> np.ndarray:
        """The class indices of a split, int64, in the order of its rows."""
        return self._all_labels[self.rows[purpose]]

    def counts(self, purpose: str) -> np.ndarray:
        """How many pictures of each class a split has, in the labels' order."""
        return np.bincount(self.labels(purpose), minlength=len(self.classes))

    def shared(self, purpose: str, other: str) -> int:
        """Returns how many images of a split have the bytes of an image of another split."""
        digests, none = self.records.digests, np.arange(0)
        found, others = (digests[self.rows.get(name, none)] for name in (purpose, other))
        return splits.shared(found, others)

    @functools.cached_property
    def overlaps(self) -> dict[str, int]:
        """How many images of a split have the bytes of one of another, such as "test in train"."""
        pairs = (("validation", "train"), ("test", "train"), ("test", "validation"))
        found = {f"{one} in {other}": self.shared(one, other) for one, other in pairs}
        return {pair: count for pair, count in found.items() if count}

    def fingerprint(self, purpose: str) -> str:
        """Returns a hexadecimal digest of the content of a split's images."""
        digests = np.sort(self.records.digests[self.rows[purpose]], axis=0)
        return hashlib.sha256(np.ascontiguousarray(digests)).hexdigest()[:12]

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Class indices in the form of the class mode."""
        return input_pipeline.encode_labels(labels, self.class_mode, len(self.classes))

    def batches(
        self,
        purpose: str,
        batch_size: int,
        *,
        class_weight: Mapping[int, float] | None = None,
        **options: Any,
    ) -> tf.data.Dataset:
        """The batches of a split; `options` as in `input_pipeline.batches`.

        Args:
          purpose: Which split.
          batch_size: Pictures a batch.
          class_weight: What pictures of each class, by its index, count in the loss.
        """
        labels, weights = self._all_labels, None
        if class_weight:
            by_class = [class_weight.get(label, 0) for label in range(len(self.classes))]
            weights = np.array(by_class, np.float32)[labels]
        return input_pipeline.batches(
            self.pictures,
            self.rows[purpose],
            self.encode(labels),
            batch_size,
            weights=weights,
            service=self.service,
            **options,
        )

    @property
    def _all_labels(self) -> np.ndarray:
        """Of all records: an index into `classes`, or 0 for one that is in no split."""
        asked = {name: label for label, name in enumerate(self.classes)}
        return np.array([asked.get(name, 0) for name in self.records.classes])[self.records.labels]


def load(config: DataConfig, split: str | None = None) -> Data:
    """Prepares, splits and decodes what the flags name.

    Args:
      config: The flags.
      split: A TFDS split string to load as "test", and nothing else, in place of the flags' splits.

    Raises:
      UserError: Of the archive, the dataset, a class, a split, the class mode or a picture.
    """
    format = format_of(config)
    prepared, texts, rows = open_splits(config, split)
    classes = _classes(config.classes, prepared.classes)
    class_mode = input_pipeline.choose_class_mode(config.class_mode, len(classes))
    if class_mode == "none":
        raise UserError("class_mode 'none': gives no labels to train on; expected another")
    service, cache = config.data_service, config.decoded_cache
    if service and cache not in (None, "none"):
        raise UserError(
            f"data_service: pictures are decoded there, and not kept; expected no "
            f"--decoded_cache={cache} with it"
        )
    if service and config.data_on_device:
        raise UserError(
            "data_service: makes batches anew in every epoch, and data_on_device keeps their "
            "pictures; expected one of the two"
        )
    pictures = decoded.decode(
        prepared,
        format,
        cache=cache or ("none" if service else "disk"),
        on_bad_image=config.on_bad_image,
    )
    rows = {purpose: found[~np.isin(found, [*pictures.bad])] for purpose, found in rows.items()}
    for purpose, text in texts.items():
        if not rows[purpose].size:
            raise UserError(
                f"split {text!r}: none of its pictures can be decoded and is of the classes "
                f"{', '.join(classes)}"
            )
    if service:
        _check_not_for_pillow(prepared, np.concatenate(list(rows.values())))
        data_service.check(service, prepared)
        pictures = dataclasses.replace(pictures, in_graph=True)
    return Data(prepared, pictures, format.shape, classes, class_mode, texts, rows, service)


def open_splits(
    config: DataConfig, split: str | None = None
) -> tuple[records.Records, dict[str, str], dict[str, np.ndarray]]:
    """Prepares and splits what the flags name, but decodes nothing.

    Args:
      config: The flags.
      split: As of `load`.

    Returns:
      The records, and what the splits are and their rows, by purpose: those of the classes that are
      asked for.

    Raises:
      UserError: Of the archive, the dataset, a class or a split; a wrong split is found before
        anything is prepared.
    """
    names = [field.name for field in dataclasses.fields(splits.Request)]
    request = splits.Request(**{name: getattr(config, name) for name in names})
    where = {"archive": config.archive, "follow_links": config.follow_links}
    name = str(config.archive or config.dataset)

    def plan(counts: Mapping[str, int]) -> splits.Plan:
        if split is None:
            return splits.plan(request, counts, name)
        rows = splits.rows(split, counts, "--split", name)
        return splits.Plan({"test": split}, {"test": rows}, {}, np.arange(0))

    plan(records.split_counts(config.dataset, **where))
    prepared = records.prepare(config.dataset, data_dir=config.data_dir, **where)
    planned = plan(prepared.counts)  # pizza_steak/photos may be from a zip of the user's own.
    rows = planned.rows(prepared.labels, prepared.digests)
    kept = np.isin(np.array(prepared.classes), _classes(config.classes, prepared.classes))
    rows = {purpose: found[kept[prepared.labels[found]]] for purpose, found in rows.items()}
    return prepared, dict(planned.texts), rows


def _check_not_for_pillow(prepared: records.Records, rows: np.ndarray) -> None:
    if found := np.intersect1d(decoding_in_graph.for_pillow(prepared), rows).tolist():
        raise UserError(
            f"data_service: cannot decode {len(found):,} of the pictures, the first is "
            f"{prepared.filenames[found[0]]}; what is neither JPEG nor PNG, CMYK and PNG with less "
            "than 8 bits of grey are decoded in Python: convert them to JPEG or PNG, or pass no "
            "--data_service"
        )


def with_batch_size(config: DataConfig, replicas: int = 1) -> DataConfig:
    """The flags with a `batch_size`, that of all replicas together, whichever way they say it.

    Raises:
      UserError: They say it both ways.
    """
    if config.batch_size_per_replica is None:
        return dataclasses.replace(config, batch_size=config.batch_size or _BATCH_SIZE)
    if config.batch_size is not None:
        raise UserError(
            f"batch_size {config.batch_size} and batch_size_per_replica "
            f"{config.batch_size_per_replica}: expected one of the two; a flagfile may have the "
            "other"
        )
    batch_size = config.batch_size_per_replica * replicas
    return dataclasses.replace(config, batch_size=batch_size, batch_size_per_replica=None)


def format_of(config: DataConfig) -> decoding.Format:
    """The form that the flags ask for.

    Raises:
      UserError: The image size is neither one whole number nor two.
    """
    size = _size(config.image_size)
    return decoding.Format(
        size,
        config.interpolation,
        config.aspect_ratio,
        config.color_mode,
        config.antialias,
        config.exif,
    )


def _size(image_size: float | tuple[float, ...]) -> tuple[int, int]:
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(length, int) for length in size):
        raise UserError(
            f"image_size {','.join(map(str, size))}: expected whole pixels, one number for both "
            "height and width, or two"
        )
    return size


def _classes(asked: tuple[str, ...] | None, there: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that were asked for, in that order; by default those that are there."""
    if asked is None:
        return there
    if unknown := [name for name in asked if name not in there]:
        raise UserError(f"class {unknown[0]!r}: unknown; expected some of {', '.join(there)}")
    if len(set(asked)) < max(len(asked), 2):
        raise UserError(f"classes {','.join(asked)}: expected two or more, each once")
    return asked
