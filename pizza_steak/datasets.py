"""`load`: the training, validation and test images of an archive, as Datasets."""

import dataclasses
import math
import os
import textwrap
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from pizza_steak import decoded, decoding, figures, input_pipeline, records, splits
from pizza_steak.archive import ReadingOptions
from pizza_steak.errors import UserError, check_choice, naming_arguments


@dataclasses.dataclass(frozen=True, repr=False)
class Datasets:
    """The images of an archive, in splits; what `load` returns.

    Each Dataset gives batches (images, labels): images uint8 of shape (B, height, width, channels)
    with values 0 to 255, labels int32 of shape (B,), indices into `class_names`. One iteration
    over a Dataset visits each image once. Each iteration over `train` has a new order.

    Attributes:
      train: Dataset of the training images.
      validation: Dataset of the validation images; None with `validation_split="none"`.
      test: Dataset of the test images.
      class_names: The class names, in the order of the labels.
      image_shape: Height, width and channels of an image.
      sizes: The number of images in each split, by its name.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    test: tf.data.Dataset
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    sizes: Mapping[str, int]
    _name: str
    _batches: Mapping[str, tf.data.Dataset]  # Of the first epoch, by split.

    def show_batch(self, split: str = "train", count: int = 12) -> Figure:
        """Draws the first images of a split's first batch, each under its class name.

        It does not count as an iteration over the Dataset.

        Args:
          split: "train", "validation" or "test".
          count: The largest number of images, 1 or more.

        Returns:
          A Matplotlib figure. A notebook shows it if the call is the last line of a cell; a
          program writes it with `figure.savefig("batch.png")`.

        Raises:
          UserError: There is no such split.
        """
        check_choice("split", split, self._batches)
        images, labels = next(self._batches[split].as_numpy_iterator())
        names = [self.class_names[label] for label in labels[:count]]
        return figures.draw_grid(images[:count], names)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        names = textwrap.shorten(", ".join(self.class_names), 60, placeholder=" …")
        lines = [
            f"{self._name}: {len(self.class_names)} classes ({names})",
            f"images {shape}, uint8, 0 to 255; labels int32",
        ]
        for split, size in self.sizes.items():
            batches = len(self._batches[split])
            lines.append(f"{split:<10} {size:7,} images in {batches:,} batches")
        return "\n".join(lines)


def load(
    archive: str | os.PathLike[str] | None = None,
    image_size: int | tuple[int, int] = 224,
    *,
    dataset: str = "pizza_steak/photos",
    batch_size: int = 32,
    seed: int = 42,
    shuffle_block: int | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.15,
    classes: Sequence[str] | None = None,
    aspect_ratio: str = "stretch",
    color_mode: str = "rgb",
    interpolation: str = "bilinear",
    antialias: bool = True,
    exif: str = "apply",
    max_pixels: int = decoding.MAX_PIXELS,
    on_bad_image: str = "fail",
    follow_links: bool = False,
    zip_encoding: str | None = None,
    max_unpacked_gb: float | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    decoded_cache: str = "disk",
) -> Datasets:
    """Returns the training, validation and test images of a zip or folder of class folders.

    >>> data = pizza_steak.load(dataset="pizza_steak/sample", image_size=32)
    >>> data
    pizza_steak/sample: 2 classes (pizza, steak)
    images 32 x 32 x 3, uint8, 0 to 255; labels int32
    train          204 images in 7 batches
    validation      36 images in 2 batches
    test            80 images in 3 batches
    >>> model = keras.Sequential([
    ...     keras.Input(data.image_shape),
    ...     keras.layers.Rescaling(1 / 255),
    ...     keras.layers.Flatten(),
    ...     keras.layers.Dense(len(data.class_names), activation="softmax"),
    ... ])
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> history = model.fit(data.train, validation_data=data.validation, epochs=2, verbose=0)

    `fit` with `epochs=5` makes five passes over the training images, each in an order of its own.
    Pixels are 0 to 255: rescale them in the model. Images are decoded once, into a memory-mapped
    array in `data_dir`, which later calls and processes reuse.

    The arguments are the flags of `python -m trainers.fit` with these names; with the same values,
    that command trains on these batches.

    Args:
      archive: Path of a zip or folder of class folders, with or without train/ and test/ around
        them, or a pattern of several that are one data set, such as "part-*.zip"; by default the
        images are those of `dataset`.
      image_size: Height and width in pixels: one number for both, or two.
      dataset: "pizza_steak/photos" (downloaded), "pizza_steak/sample" (rendered) or the name of
        prepared images, if there is no `archive`.
      batch_size: Number of images in a batch; the last batch of a pass may hold fewer.
      seed: Seed of the order of the training images.
      shuffle_block: Number of neighboring images in a block, to mix 16 blocks at a time; by default
        all images are mixed.
      train_split: A TFDS split string such as "train[:80%]", or a fraction of train as text; by
        default the part of train that is neither validation nor test.
      validation_split: A split string, a fraction as text, or "none"; by default the split
        validation, or `validation_fraction` of train if there is no such split.
      test_split: A split string or a fraction as text; by default the split test, or
        `test_fraction` of train if there is no such split.
      validation_fraction: Above 0 and below 1.
      test_fraction: Above 0 and below 1.
      classes: Names of the classes to use, in the order of their labels; by default all, sorted.
      aspect_ratio: "stretch", "crop" or "pad": what to do with images of another aspect ratio.
      color_mode: "rgb", "grayscale" or "rgba".
      interpolation: "bilinear", "nearest" or another of `decoding.INTERPOLATIONS`.
      antialias: Whether to antialias when downscaling.
      exif: "apply" turns images upright by their EXIF orientation; "ignore" leaves them as stored.
      max_pixels: Pixels of the largest image, at most 178,956,970; larger ones are not decoded.
      on_bad_image: "fail", or "skip" to leave out images that cannot be decoded, with a warning.
        With `decoded_cache="none"`, a bad image is found when a batch needs it; with "skip", those
        of validation and test are found before.
      follow_links: Whether to follow links to folders, and to files elsewhere, in a folder.
      zip_encoding: Encoding of the names in a zip that does not say it, such as "cp932".
      max_unpacked_gb: Most gigabytes that a zip may unpack to; by default 1, or 100 times its size
        if that is more.
      data_dir: Folder of records and decoded images; by default `~/tensorflow_datasets`.
      decoded_cache: "disk", "memory" or "none"; see `decoded.decode`.

    Raises:
      UserError: An argument, the archive, a class or a split is wrong, images cannot be decoded
        (`errors.BadImageError`), or Keras is set to channels_first.
    """
    for name, value, choices in (
        ("aspect_ratio", aspect_ratio, decoding.ASPECT_RATIOS),
        ("color_mode", color_mode, decoding.CHANNELS),
        ("interpolation", interpolation, decoding.INTERPOLATIONS),
        ("exif", exif, decoding.EXIF),
        ("on_bad_image", on_bad_image, ("fail", "skip")),
        ("decoded_cache", decoded_cache, decoded.CACHES),
    ):
        check_choice(name, value, choices)
    for name, number in (
        ("batch_size", batch_size),
        ("shuffle_block", 1 if shuffle_block is None else shuffle_block),
    ):
        if not isinstance(number, int) or number < 1:
            raise UserError(f"{name}={number!r}: expected a whole number from 1 on")
    format = decoding.Format(
        decoding.size_of(image_size),
        interpolation,
        aspect_ratio,
        color_mode,
        antialias,
        exif,
        max_pixels,
    )
    if keras.config.image_data_format() != "channels_last":
        raise UserError(
            "image_data_format: keras.json says channels_first, and images are channels_last; "
            "Keras's layers would make another network of them: call "
            "keras.config.set_image_data_format('channels_last')"
        )
    with naming_arguments():
        found = records.prepare_splits(
            dataset,
            splits.Request(
                train_split, validation_split, test_split, validation_fraction, test_fraction
            ),
            archive=archive,
            classes=classes,
            data_dir=data_dir,
            reading=ReadingOptions(follow_links, zip_encoding, max_unpacked_gb),
        )
        pictures, rows = decoded.decode_splits(
            found, format, cache=decoded_cache, on_bad_image=on_bad_image
        )
    labels_of_classes = found.records.labels_in(found.classes).astype(np.int32)

    def batches(split: str, epoch: int | tf.Tensor = 0) -> tf.data.Dataset:
        return input_pipeline.batches(
            pictures,
            rows[split],
            found.records.labels,
            batch_size,
            encode=lambda labels: tf.gather(labels_of_classes, labels),
            seed=seed,
            shuffle=split == "train",
            shuffle_block=shuffle_block,
            first_epoch=epoch,
            epochs=epoch + 1,
        )

    described = {}
    for split in rows:
        steps = math.ceil(len(rows[split]) / batch_size)
        passes = batches(split)
        if split == "train":
            passes = input_pipeline.an_epoch_each_pass(
                lambda epoch: batches("train", epoch), steps=steps
            )
        images = f"{' x '.join(map(str, format.shape))} uint8, 0 to 255"
        text = f"<{split}: {steps:,} batches of {batch_size} images, {images}, and int32 labels>"
        described[split] = input_pipeline.Described(passes, text)
    return Datasets(
        train=described["train"],
        validation=described.get("validation"),
        test=described["test"],
        class_names=found.classes,
        image_shape=format.shape,
        sizes={split: len(rows[split]) for split in rows},
        _name=os.fspath(archive or dataset),
        _batches={split: batches(split) for split in rows},
    )
