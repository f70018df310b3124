"""`flow_from_directory`, which replaces that of Keras's ImageDataGenerator."""

import dataclasses
import functools
import itertools
import math
import numbers
import os
import pathlib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from pizza_steak import augmentation, decoded, decoding, input_pipeline, normalization, records
from pizza_steak.archive import Archive, Picture, ReadingOptions, find_parts, read_archive
from pizza_steak.configuration import TransformConfig
from pizza_steak.errors import UserError, check_choice, naming_arguments, raising_quoted, told

# TensorFlow's names of methods, by Pillow's names.
_INTERPOLATIONS = {"box": "area", "lanczos": "lanczos3"}


def flow_from_directory(
    directory: str | os.PathLike[str],
    target_size: tuple[int, int] = (256, 256),
    color_mode: str = "rgb",
    classes: Sequence[str] | None = None,
    class_mode: str | None = "categorical",
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int | None = None,
    save_to_dir: str | os.PathLike[str] | None = None,
    save_prefix: str = "",
    save_format: str = "png",
    follow_links: bool = False,
    subset: str | None = None,
    interpolation: str = "nearest",
    keep_aspect_ratio: bool = False,
    *,
    featurewise_center: bool = False,
    samplewise_center: bool = False,
    featurewise_std_normalization: bool = False,
    samplewise_std_normalization: bool = False,
    zca_whitening: bool = False,
    zca_epsilon: float = 1e-6,
    rotation_range: float = 0,
    width_shift_range: float | Sequence[float] = 0.0,
    height_shift_range: float | Sequence[float] = 0.0,
    brightness_range: Sequence[float] | None = None,
    shear_range: float = 0.0,
    zoom_range: float | Sequence[float] = 0.0,
    channel_shift_range: float = 0.0,
    fill_mode: str = "nearest",
    cval: float = 0.0,
    horizontal_flip: bool = False,
    vertical_flip: bool = False,
    rescale: float | None = None,
    preprocessing_function: Callable[[np.ndarray], np.ndarray] | None = None,
    data_format: str | None = None,
    validation_split: float = 0.0,
    interpolation_order: int = 1,
    dtype: str | None = None,
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
    antialias: bool = False,
    exif: str = "ignore",
    zip_encoding: str | None = None,
    max_unpacked_gb: float | None = None,
    max_pixels: int = decoding.MAX_PIXELS,
    data_dir: str | os.PathLike[str] | None = None,
    decoded_cache: str = "disk",
    on_bad_image: str = "fail",
) -> tf.data.Dataset:
    """Returns the batches of `ImageDataGenerator(**arguments).flow_from_directory(...)`, fast.

    The arguments have the same names, order and defaults; those of ImageDataGenerator itself are
    passed by name.

    >>> train = pizza_steak.flow_from_directory("food/train", (224, 224), rescale=1 / 255)
    >>> test = pizza_steak.flow_from_directory("food/test", (224, 224), rescale=1 / 255)
    >>> model.fit(train, epochs=5, validation_data=test)

    One iteration over the Dataset is one epoch; `next(iter(train))` is a batch. Each iteration
    begins a new epoch, counted from 0, with its own order and augmentation. That is the same in
    `fit`, with or without `steps_per_epoch=len(train)`. The pixels of an example are a function of
    the seed, the epoch and the example.

    Images are decoded once, into an array beside the records in `data_dir`; later calls and
    processes reuse it.

    Args:
      directory: A folder of class folders, or a zip of them; "food.zip/train" if the zip holds
        train/ and test/.
      target_size: Height and width of the images, in pixels.
      color_mode: "rgb", "grayscale" or "rgba".
      classes: Names of class folders to use, in the order of their labels; by default all, sorted.
      class_mode: "categorical" for one-hot labels, "binary" or "sparse" for indices, "input" for
        the images themselves, None for images without labels.
      batch_size: Number of images in a batch; the last batch of an epoch may hold fewer.
      shuffle: Whether each epoch has its own order; else the order is that of `filenames`.
      seed: Integer, seed of order and augmentation; None for a seed from NumPy's global generator.
      save_to_dir: Folder to write every resulting image to, as a preview.
      save_prefix: Prefix of the names of these files.
      save_format: Suffix of these files, such as "png" or "jpeg".
      follow_links: Whether to follow links to folders, and to files elsewhere; else they are
        refused.
      subset: "training" or "validation", the part of each class defined by `validation_split`.
      interpolation: How to resize images: "nearest" gives Pillow's pixels; "bilinear", "bicubic",
        "box" (also "area"), "lanczos" (also "lanczos3"), "lanczos5", "gaussian" and "mitchellcubic"
        give those of `tf.image.resize`.
      keep_aspect_ratio: Whether to crop images to the aspect ratio of `target_size`.
      featurewise_center: Subtract the mean of the directory's images, by channel. There is no `fit`
        to call: the mean is measured here, on the training subset if there is a `validation_split`.
        To use another directory's statistics, normalise in the model, which saves them; see
        `normalization.normalization_layers`.
      samplewise_center: Subtract each image's mean.
      featurewise_std_normalization: Center, then divide by the measured standard deviation.
      samplewise_std_normalization: Center, then divide each image by its standard deviation.
      zca_whitening: Center, then multiply by the measured ZCA matrix.
      zca_epsilon: Value added to its singular values.
      rotation_range: Degrees. For this and the following, see `augmentation.RandomAffine`.
      width_shift_range: A fraction, pixels or a list.
      height_shift_range: A fraction, pixels or a list.
      brightness_range: A pair of factors; see `augmentation.RandomIntensity`.
      shear_range: Degrees.
      zoom_range: A number or a pair of factors.
      channel_shift_range: Largest shift, of 255.
      fill_mode: "constant", "nearest", "reflect" or "wrap".
      cval: Value for "constant", 0 to 255.
      horizontal_flip: Whether to mirror half of the images left to right.
      vertical_flip: Whether to mirror half of the images top to bottom.
      rescale: Factor of the pixels, which are 0 to 255; None for 1.
      preprocessing_function: Called with one augmented image, a float32 array of `image_shape`,
        not yet rescaled; returns such an array.
      data_format: "channels_last" or "channels_first"; by default Keras's setting.
      validation_split: Fraction of each class, its first images, to use for validation.
      interpolation_order: How augmentation resamples: 1 is bilinear, 0 nearest.
      dtype: Dtype of the images and the labels; by default Keras's floatx.
      crop_to_aspect_ratio: image_dataset_from_directory's name for `keep_aspect_ratio`.
      pad_to_aspect_ratio: Whether to pad images with black to the aspect ratio of `target_size`.
      antialias: Whether to antialias when downscaling; "bilinear", "bicubic" and "lanczos" are then
        Pillow's, as in ImageDataGenerator. By default they are those of
        image_dataset_from_directory.
      exif: "apply" turns images upright by their EXIF orientation; "ignore" leaves them as stored,
        as ImageDataGenerator does.
      zip_encoding: Encoding of the names in a zip that does not say it, such as "cp932".
      max_unpacked_gb: Most gigabytes that a zip may unpack to; by default 1, or 100 times its size
        if that is more.
      max_pixels: Pixels of the largest image, at most 178,956,970; larger ones are not decoded.
      data_dir: Folder of records and decoded images; by default `~/tensorflow_datasets`.
      decoded_cache: "disk", "memory" or "none"; see `decoded.decode`.
      on_bad_image: "fail", or "skip" to leave out images that cannot be decoded, with a warning.
        With `decoded_cache="none"`, a bad image is found when a batch needs it; with "skip" it is
        left out of that batch, but counts in `samples` and is in `filenames`. With
        `shuffle=False` and "skip" all are found before, as with the other caches.

    Returns:
      Dataset of (images, labels), or of images, of dtype `dtype`. Images have shape
      (B, *image_shape), labels (B, classes) or (B,). Its length is the number of steps per epoch.
      It has the attributes of a DirectoryIterator: `class_indices`, `num_classes`, `samples`, `n`,
      `filenames`, `filepaths`, `classes` and `labels` (the index of each file's class, int32),
      `batch_size`, `target_size`, `image_shape`. Datasets made from it, such as by `map`, do not.

    Raises:
      UserError: An argument, the directory or an image is wrong. The message is one line; a flag in
        it means the argument of that name.
      ValueError: An argument of the augmentation is wrong.
    """
    check_choice("color_mode", color_mode, decoding.CHANNELS)
    check_choice("class_mode", class_mode, ("categorical", "binary", "sparse", "input", None))
    check_choice("subset", subset, ("training", "validation", None))
    check_choice("decoded_cache", decoded_cache, decoded.CACHES)
    check_choice("on_bad_image", on_bad_image, ("fail", "skip"))
    check_choice("exif", exif, decoding.EXIF)
    data_format = data_format or keras.config.image_data_format()
    check_choice("data_format", data_format, ("channels_last", "channels_first"))
    seed = _whole("seed", np.random.randint(2**31 - 1) if seed is None else seed, least=0)
    batch_size = _whole("batch_size", batch_size, least=1)
    label_type = _dtype(dtype or keras.config.floatx())
    image_format = decoding.Format(
        _size(target_size),
        _interpolation(interpolation),
        _aspect_ratio(keep_aspect_ratio or crop_to_aspect_ratio, pad_to_aspect_ratio),
        color_mode,
        antialias,
        exif,
        max_pixels,
    )
    image_shape = image_format.shape
    if data_format == "channels_first":
        image_shape = image_shape[-1:] + image_shape[:-1]
    augmenting = augmentation.augmentation_layers(
        TransformConfig(
            rotation_range=rotation_range,
            width_shift_range=width_shift_range,
            height_shift_range=height_shift_range,
            brightness_range=brightness_range,
            shear_range=shear_range,
            zoom_range=zoom_range,
            channel_shift_range=channel_shift_range,
            fill_mode=fill_mode,
            cval=cval,
            horizontal_flip=horizontal_flip,
            vertical_flip=vertical_flip,
            interpolation_order=interpolation_order,
        )
    )
    if augmenting and subset == "validation":
        raise UserError(
            "subset='validation': validation images are not augmented; leave out the ranges and "
            "flips, which are for subset='training'"
        )

    reading = ReadingOptions(follow_links, zip_encoding, max_unpacked_gb)
    with naming_arguments():
        listing = _list_files(directory, classes, reading, data_dir)
    num_classes = len(listing.class_indices)
    labels, encode = None, tf.identity
    if class_mode not in ("input", None):
        labels = listing.labels
        encode = functools.partial(
            input_pipeline.encode_labels,
            class_mode=input_pipeline.choose_class_mode(class_mode, num_classes),
            num_classes=num_classes,
            dtype=label_type,
        )
    rows, measured_rows = _cut(listing.rows_by_class, validation_split, subset)
    # Without shuffling, predictions are matched with `filenames`.
    checked = [] if shuffle or on_bad_image == "fail" else [rows]
    pictures = decoded.decode(
        listing.records,
        image_format,
        cache=decoded_cache,
        on_bad_image=on_bad_image,
        checked=checked,
    )
    rows, measured_rows = (
        part[~np.isin(part, list(pictures.bad))] for part in (rows, measured_rows)
    )
    if not rows.size:
        raise UserError(f"directory {directory}: no images for subset={subset!r}")

    with raising_quoted():
        example, _ = decoded.gather_readable(pictures, tf.constant(rows[:1]), rows)
        preprocess = _by_image(preprocessing_function, example.numpy(), data_format)
        normalizing = normalization.normalization_layers(
            input_pipeline.batches(pictures, measured_rows, None, batch_size).map(preprocess),
            rescale=rescale or None,
            samplewise_center=samplewise_center,
            samplewise_std_normalization=samplewise_std_normalization,
            featurewise_center=featurewise_center,
            featurewise_std_normalization=featurewise_std_normalization,
            zca_whitening=zca_whitening,
            zca_epsilon=zca_epsilon,
        )
    preview = _preview(rows, save_to_dir, save_prefix, save_format, data_format)

    def process(images, seeds):
        images = tf.cast(images, tf.float32)
        for layer in augmenting:
            images = layer.augment(images, seeds)
        images = preprocess(images)
        for layer in normalizing:
            images = layer(images)
        if data_format == "channels_first":
            images = tf.transpose(images, (0, 3, 1, 2))
        return preview(tf.cast(images, label_type), seeds[:, 1])

    dataset = input_pipeline.an_epoch_each_pass(
        lambda epoch: input_pipeline.batches(
            pictures,
            rows,
            labels,
            batch_size,
            encode=encode,
            seed=seed,
            shuffle=shuffle,
            first_epoch=epoch,
            epochs=epoch + 1,
            augment=process,
        ),
        steps=math.ceil(len(rows) / batch_size),
    )
    if class_mode == "input":
        dataset = dataset.map(lambda images: (images, images))
    dataset = input_pipeline.Described(
        dataset,
        f"<{len(rows):,} images of {num_classes} classes in {len(dataset):,} batches, "
        f"{dataset.element_spec}>",
    )
    for name, value in {
        "class_indices": dict(listing.class_indices),
        "num_classes": num_classes,
        "samples": len(rows),
        "n": len(rows),
        "filenames": [listing.filenames[row] for row in rows],
        "filepaths": [listing.filepaths[row] for row in rows],
        "classes": listing.labels[rows],
        "labels": listing.labels[rows],
        "batch_size": batch_size,
        "target_size": image_format.size,
        "image_shape": image_shape,
    }.items():
        setattr(dataset, name, value)
    print(f"Found {len(rows)} images belonging to {num_classes} classes{listing.left_out}.")
    return dataset


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The files of a directory, as flow_from_directory lists them.

    Attributes:
      records: N images, also those of other classes and folders.
      class_indices: The label of each requested class.
      labels: int32 array of shape (N,); 0 for images that are not requested.
      filenames: Paths of all N images, below the directory.
      filepaths: Full paths of all N images.
      rows_by_class: The rows of each requested class, in the order of its files.
      left_out: How many files are not images, as text.
    """

    records: records.Records
    class_indices: Mapping[str, int]
    labels: np.ndarray
    filenames: Sequence[str]
    filepaths: Sequence[str]
    rows_by_class: Sequence[np.ndarray]
    left_out: str


def _list_files(
    directory: str | os.PathLike[str],
    classes: Sequence[str] | None,
    reading: ReadingOptions,
    data_dir: str | os.PathLike[str] | None,
) -> _Listing:
    archive, top = _located(directory, reading)
    class_indices = _class_indices(classes, archive.classes)
    prepared = records.prepare(archive=archive, data_dir=data_dir)
    names = list(prepared.filenames)
    paths = {
        image.filename: os.path.join(archive.parts[image.part], image.member)
        for image in _pictures(archive)
    }
    rows_by_class: list[list[int]] = [[] for _ in class_indices]
    labels = np.zeros(len(names), np.int32)
    # The order of os.walk: a folder's own files come before those of its subfolders.
    for row in sorted(range(len(names)), key=lambda row: posixpath.split(names[row])):
        label = class_indices.get(prepared.classes[prepared.labels[row]])
        if label is not None and names[row].startswith(top):
            labels[row] = label
            rows_by_class[label].append(row)
    left_out = ", ".join(f"{count} {kind}" for kind, count in archive.left_out.items())
    return _Listing(
        records=prepared,
        class_indices=class_indices,
        labels=labels,
        filenames=[name.removeprefix(top) for name in names],
        filepaths=[paths[name] for name in names],
        rows_by_class=[np.array(rows, np.int64) for rows in rows_by_class],
        left_out=f" (left out: {left_out})" if left_out else "",
    )


def _located(directory: str | os.PathLike[str], reading: ReadingOptions) -> tuple[Archive, str]:
    """Returns the archive that contains a directory, and the prefix of its files' names there."""
    path = pathlib.Path(directory).expanduser()
    around = (parent for parent in path.parents if find_parts(parent)[0].is_file())
    root = next(around, path)
    archive = read_archive(root, reading)
    pictures = list(_pictures(archive))
    tops = {
        image.filename.split("/")[0] + "/"
        for image in pictures
        if not image.filename.startswith(f"{image.label}/")
    } or {""}
    if root.is_dir():  # Folders around everything are part of the path, but not in a zip.
        places = {}
        for top in tops:
            image = next(image for image in pictures if image.filename.startswith(top))
            depth = image.filename.removeprefix(top).count("/")
            places[root / pathlib.PurePath(image.member).parents[depth]] = top
    else:
        places = {root / top: top for top in tops}
    if not root.is_dir() and len(places) == 1:
        places[root] = next(iter(tops))
    if path not in places:
        expected = " or ".join(sorted(map(str, places)))
        raise UserError(f"directory {directory}: no class folders there; expected {expected}")
    return archive, places[path]


def _pictures(archive: Archive) -> Iterator[Picture]:
    return itertools.chain.from_iterable(archive.splits.values())


def _cut(
    rows_by_class: Sequence[np.ndarray], validation_split: float, subset: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of a subset, and the rows to measure: never those of validation."""
    if not 0 <= validation_split < 1:
        raise UserError(f"validation_split={validation_split}: expected 0 or a fraction below 1")
    if subset == "validation" and not validation_split:
        raise UserError("subset='validation': expected a validation_split above 0 with it")

    def part(first: float, last: float) -> np.ndarray:
        return np.concatenate(
            [rows[int(first * len(rows)) : int(last * len(rows))] for rows in rows_by_class]
        )

    training = part(validation_split if subset else 0, 1)
    return part(0, validation_split) if subset == "validation" else training, training


def _by_image(
    function: Callable[[np.ndarray], np.ndarray] | None, example: np.ndarray, data_format: str
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Turns a preprocessing_function into one for batches, channels last, float32 to float32.

    Raises:
      UserError: It changes the shape of the image in `example`, a batch of one.
    """
    if function is None:
        return lambda images: tf.cast(images, tf.float32)

    def call(images: np.ndarray) -> np.ndarray:
        if data_format == "channels_first":
            images = np.moveaxis(images, -1, 1)
        # Copies, because the function may write to its argument, which is TensorFlow's memory.
        results = np.stack([function(image.copy()) for image in images]).astype(np.float32)
        if results.shape != images.shape:
            raise UserError(
                f"preprocessing_function: returned shape {results.shape[1:]} for an image of "
                f"{images.shape[1:]}; expected the same shape"
            )
        return np.moveaxis(results, 1, -1) if data_format == "channels_first" else results

    def preprocess(images: tf.Tensor) -> tf.Tensor:
        images = tf.cast(images, tf.float32)
        return tf.ensure_shape(tf.numpy_function(call, [images], tf.float32), images.shape)

    call(example.astype(np.float32))  # An error is raised here, not in training.
    return preprocess


def _preview(
    rows: np.ndarray,
    folder: str | os.PathLike[str] | None,
    prefix: str,
    file_format: str,
    data_format: str,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function that returns batches unchanged, and writes their images to the folder."""
    if folder is None:
        return lambda images, rows_of_batch: images
    if f".{file_format}".lower() not in Image.registered_extensions():
        raise UserError(f"save_format={file_format!r}: expected a suffix such as 'png' or 'jpeg'")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"save_to_dir {folder}: {told(error)}; expected a folder") from error
    index_of = {row: index for index, row in enumerate(rows.tolist())}
    random = np.random.default_rng()

    def write(images: np.ndarray, rows_of_batch: np.ndarray) -> np.ndarray:
        for image, row in zip(images, rows_of_batch.tolist(), strict=True):
            name = f"{prefix}_{index_of[row]}_{random.integers(10**7)}.{file_format}"
            keras.utils.save_img(os.path.join(folder, name), image, data_format)
        return images

    def preview(images: tf.Tensor, rows_of_batch: tf.Tensor) -> tf.Tensor:
        written = tf.numpy_function(write, [images, rows_of_batch], images.dtype)
        return tf.ensure_shape(written, images.shape)

    return preview


def _class_indices(asked: Sequence[str] | None, there: Sequence[str]) -> dict[str, int]:
    asked = list(asked or there)
    if unknown := [name for name in asked if name not in there]:
        raise UserError(f"class {unknown[0]!r}: unknown; expected some of {', '.join(there)}")
    if len(set(asked)) < len(asked):
        raise UserError(f"classes {', '.join(asked)}: expected each once")
    return {name: index for index, name in enumerate(asked)}


def _size(target_size: Sequence[int]) -> tuple[int, int]:
    if np.shape(target_size) != (2,):
        raise UserError(f"target_size={target_size}: expected a height and a width")
    height, width = (_whole("target_size", length, least=1) for length in target_size)
    return height, width


def _interpolation(name: str) -> str:
    if name == "hamming":
        raise UserError(
            "interpolation='hamming': TensorFlow has no such method; the nearest to it is 'bicubic'"
        )
    name = _INTERPOLATIONS.get(name, name)
    check_choice("interpolation", name, (*decoding.INTERPOLATIONS, *_INTERPOLATIONS))
    return name


def _aspect_ratio(crop: bool, pad: bool) -> str:
    if crop and pad:
        raise UserError("pad_to_aspect_ratio: expected without cropping to the aspect ratio")
    return "crop" if crop else "pad" if pad else "stretch"


def _dtype(name: str) -> tf.DType:
    try:
        dtype = tf.as_dtype(name)
    except TypeError:
        dtype = tf.string
    if not (dtype.is_floating or dtype.is_integer):
        raise UserError(f"dtype={name!r}: expected a number type, such as 'float32'")
    return dtype


def _whole(argument: str, value: int, *, least: int) -> int:
    if not isinstance(value, numbers.Integral) or not least <= value < 2**31:
        raise UserError(f"{argument}={value!r}: expected a whole number from {least} to 2**31 - 1")
    return int(value)
