"""The images of a run: opened and split as the data flags say."""

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Mapping
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
from pizza_steak.archive import ReadingOptions
from pizza_steak.errors import UserError
from trainers.configuration import DataConfig

_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Data:
    """Decoded images with their labels, in splits.

    Attributes:
      records: The records that the images come from.
      pictures: The decoded images.
      image_shape: Height, width and channels of each image.
      classes: The class names, in the labels' order.
      splits: The text of each split, by its purpose: "train", "validation" if there is one, "test".
      rows: Rows of the records by purpose, without unreadable images and the classes that were not
        asked for.
      service: Address of the tf.data service that makes the batches; None to make them here.
      shuffle_block: The argument of `input_pipeline.batches`.
    """

    records: records.Records
    pictures: decoded.Pictures
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    splits: Mapping[str, str]
    rows: Mapping[str, np.ndarray]
    service: str | None = None
    shuffle_block: int | None = None

    def labels(self, purpose: str) -> np.ndarray:
        """Returns the class indices of a split, int64, in the order of its rows."""
        return self._labels_of_classes[self.records.labels[self.rows[purpose]]]

    def counts(self, purpose: str) -> np.ndarray:
        """Returns the number of images of each class in a split, in the labels' order."""
        return np.bincount(self.labels(purpose), minlength=len(self.classes))

    def shared(self, purpose: str, other: str) -> int:
        """Returns how many images of a split have the bytes of an image of another split."""
        digests, none = self.records.digests, np.arange(0)
        found, others = (digests[self.rows.get(name, none)] for name in (purpose, other))
        return splits.shared(found, others)

    @property
    def left_out(self) -> Mapping[int, str]:
        """Why images have been left out of batches so far in this process, by row."""
        pictures = self.pictures
        return pictures.left_out if isinstance(pictures, decoded.StreamedPictures) else {}

    @functools.cached_property
    def overlaps(self) -> dict[str, int]:
        """The number of images that two splits share, by a text such as "test in train"."""
        pairs = (("validation", "train"), ("test", "train"), ("test", "validation"))
        found = {f"{one} in {other}": self.shared(one, other) for one, other in pairs}
        return {pair: count for pair, count in found.items() if count}

    def fingerprint(self, purpose: str) -> str:
        """Returns a hexadecimal digest of the content of a split's images."""
        digests = np.sort(self.records.digests[self.rows[purpose]], axis=0)
        return hashlib.sha256(digests.tobytes()).hexdigest()[:12]

    def class_weight(self, kind: str | None) -> dict[int, float] | None:
        """Returns what images of each class, by its index, count in the loss.

        Args:
          kind: "balanced" gives n / (C * n_c) for each class c of the training images, as
            scikit-learn does (King and Zeng, 2001); None gives None.
        """
        if kind is None:
            return None
        counts = self.counts("train")
        return {c: counts.sum() / (len(counts) * n) for c, n in enumerate(counts) if n}

    def batches(
        self,
        purpose: str,
        batch_size: int,
        *,
        class_weight: Mapping[int, float] | None = None,
        **options: Any,
    ) -> tf.data.Dataset:
        """Returns the batches of a split; `options` are those of `input_pipeline.batches`.

        Args:
          purpose: The split.
          batch_size: Images per batch.
          class_weight: What images of each class, by its index, count in the loss.
        """
        labels, weights = self._labels_of_classes, None
        if class_weight:
            weights = np.array([class_weight.get(label, 0) for label in labels], np.float32)
        return input_pipeline.batches(
            self.pictures,
            self.rows[purpose],
            self.records.labels,
            batch_size,
            encode=lambda indices: tf.gather(labels.astype(np.float32), indices),
            weights=weights,
            shuffle_block=self.shuffle_block,
            service=self.service,
            **options,
        )

    @property
    def _labels_of_classes(self) -> np.ndarray:
        """The label of each class of the records; 0 for a class that was not asked for."""
        return self.records.labels_in(self.classes)


def load(
    config: DataConfig,
    split: str | None = None,
    *,
    scored: Collection[str] | None = ("validation", "test"),
) -> Data:
    """Prepares, splits and decodes the images that the flags name.

    Args:
      config: The flags.
      split: A TFDS split string, which becomes the split "test" in place of the flags' splits.
      scored: As for `decoded.decode_splits`; None also for a use that needs to know all unreadable
        images before.

    Raises:
      UserError: The archive, the dataset, a class, a split or an image is wrong.
    """
    format = format_of(config)
    found = open_splits(config, split)
    service, cache = config.data_service, config.decoded_cache
    if service and cache not in (None, "none"):
        raise UserError(
            "data_service: decodes images and does not keep them; expected no "
            f"--decoded_cache={cache} with it"
        )
    if service and config.data_on_device:
        raise UserError(
            "data_service and data_on_device: expected one of the two; the first makes all batches "
            "again in every epoch, the second keeps their images"
        )
    if service or config.data_on_device:
        # The first decodes all images anyway to find those for Pillow, the second to copy them.
        scored = None
    pictures, rows = decoded.decode_splits(
        found,
        format,
        cache=cache or ("none" if service else "disk"),
        on_bad_image=config.on_bad_image,
        scored=scored,
    )
    if service:
        _check_not_for_pillow(found.records, format, np.concatenate(list(rows.values())))
        data_service.check(service, found.records)
        assert isinstance(pictures, decoded.StreamedPictures)  # Nothing is kept.
        pictures = dataclasses.replace(pictures, in_graph=True)
    return Data(
        found.records,
        pictures,
        format.shape,
        found.classes,
        found.texts,
        rows,
        service,
        config.shuffle_block,
    )


def open_splits(config: DataConfig, split: str | None = None) -> records.SplitRecords:
    """Prepares and splits the images that the flags name, but decodes nothing.

    Args:
      config: The flags.
      split: As for `load`.

    Raises:
      UserError: The archive, the dataset, a class or a split is wrong; a wrong split is found
        before anything is prepared.
    """
    names = [field.name for field in dataclasses.fields(splits.Request)]
    request = splits.Request(**{name: getattr(config, name) for name in names})
    return records.prepare_splits(
        config.dataset,
        request if split is None else split,
        archive=config.archive,
        classes=config.classes,
        data_dir=config.data_dir,
        reading=ReadingOptions.of(config),
    )


def _check_not_for_pillow(
    prepared: records.Records, format: decoding.Format, rows: np.ndarray
) -> None:
    if found := np.intersect1d(decoding_in_graph.for_pillow(prepared, format), rows).tolist():
        raise UserError(
            f"data_service: cannot decode {len(found):,} images, the first is "
            f"{prepared.filenames[found[0]]}; it decodes JPEG and PNG, but not all in CMYK, with "
            "alpha and less than 8 bits, or damaged: convert these images, or pass no "
            "--data_service"
        )


def with_batch_size(config: DataConfig, replicas: int = 1) -> DataConfig:
    """Returns the flags with a `batch_size`, summed over all replicas.

    Raises:
      UserError: Both flags of the batch size are given.
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


def batch_size_of(config: DataConfig) -> int:
    """Returns the batch size of flags from `with_batch_size`."""
    assert config.batch_size is not None
    return config.batch_size


def format_of(config: DataConfig) -> decoding.Format:
    """Returns the format that images are decoded to.

    Raises:
      UserError: The image size is missing, or is neither one whole number nor two.
    """
    if config.image_size is None:  # `setup.resolved` has replaced it, but for a damaged run.flags.
        raise UserError("image_size: missing; a run.flags without it is damaged")
    return decoding.Format(
        decoding.size_of(config.image_size),
        config.interpolation,
        config.aspect_ratio,
        config.color_mode,
        config.antialias,
        config.exif,
        config.max_pixels,
    )
