"""The stages that the benchmark times, ours and Keras's own, and the images that they work on.

A stage is a function of a `Setting` and of `done`. It calls `done` with the number of images that
it has finished since the last call. The clock starts at the first call, whose images do not count:
before it, pipelines start and files are found. A stage that has nothing to do never calls `done`.
"""

import dataclasses
import inspect
import math
import mmap
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import decoded, input_pipeline, records
from pizza_steak.archive import ReadingOptions
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers import setup
from trainers.configuration import (
    CHAPTERS_AUGMENTATION,
    AugmentationConfig,
    BenchmarkConfig,
    DataConfig,
    executed_steps,
)
from trainers.models import preprocessing
from trainers.models.steps import Steps
from trainers.training import executions, resident

Done = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the stages work on.

    Attributes:
      config: The flags.
      folder: The folder for what the stages write.
      data: The decoded images.
      few: The same with fewer training images, for slow stages.
      class_folders: The files of `few`, in a folder for each class.
      ready: What a training with these flags needs.
      augmentation: The augmentation of the augmented stages: the flags', or else the chapter's.
      vary: Augments a batch as a training step does, from images and random numbers.
      trained: By stage, what its training takes, and the steps that were traced with it.
    """

    config: BenchmarkConfig
    folder: pathlib.Path
    data: run_data.Data
    few: run_data.Data
    class_folders: pathlib.Path
    ready: setup.Setup
    augmentation: preprocessing.Augmentation
    vary: Callable[[tf.Tensor, tuple[tf.Tensor, ...]], tf.Tensor]
    trained: dict[str, tuple[resident.Resident, Steps]] = dataclasses.field(
        default_factory=dict, init=False
    )

    @property
    def model(self) -> keras.Model:
        """The model, compiled for training."""
        return self.ready.model

    @property
    def ranges(self) -> AugmentationConfig:
        """The flags of `augmentation`."""
        return self.config.augmentation if self.ready.augmentation else CHAPTERS_AUGMENTATION

    def batches(self, augment: Callable | None = None) -> tf.data.Dataset:
        """Returns `--passes` epochs of all training images."""
        return self.shuffled(self.data, epochs=self.config.measuring.passes, augment=augment)

    def training(self, data: run_data.Data) -> resident.Resident:
        """Returns what a training on images takes: batches, and what a step makes of them."""
        ready = self.ready
        if self.config.data.data_on_device:
            return resident.move(data, ready.augmentation, ready.chosen.devices)
        in_step = ready.augmentation.in_step if ready.augmentation else None
        return resident.Resident(data, ready.augment, in_step)

    def shuffled(self, data: run_data.Data, **options) -> tf.data.Dataset:
        """Returns batches of training images; `options` are those of `input_pipeline.batches`."""
        seed = self.config.optimisation.seed
        batch_size = run_data.batch_size_of(self.config.data)
        return data.batches("train", batch_size, seed=seed, shuffle=True, **options)


def prepare(config: BenchmarkConfig, folder: pathlib.Path, *, peers: bool) -> Setting:
    """Makes all that the stages work on.

    Args:
      config: The flags.
      folder: An empty folder, for all of it. Only the records of a dataset without an archive,
        which may be a download, are also kept in the data_dir.
      peers: Whether to write the files that the peers read.

    Raises:
      UserError: The user has to change something.
    """

    def load(data: DataConfig) -> run_data.Data:
        _fresh_records(data, folder)
        return _load(dataclasses.replace(data, data_service=None), folder)

    ready = setup.prepare(config, load=load)
    config, data, seed = ready.config, ready.data, ready.config.optimisation.seed
    augmentation = ready.augmentation or preprocessing.augmentation_of(CHAPTERS_AUGMENTATION, seed)
    assert augmentation  # The chapter's is not empty.
    batch_size, count = run_data.batch_size_of(config.data), len(data.rows["train"])
    if count <= batch_size:
        raise UserError(f"batch_size {batch_size}: expected less than all {count} training images")
    most = max(config.measuring.images, 2 * batch_size)
    few = dataclasses.replace(data, rows={"train": data.rows["train"][:most]})
    if peers:
        _write_files(few, folder / "classes")
    return Setting(
        config=config,
        folder=folder,
        data=data,
        few=few,
        class_folders=folder / "classes",
        ready=ready,
        augmentation=augmentation,
        vary=tf.function(
            augmentation.vary, jit_compile=ready.model.jit_compile, reduce_retracing=True
        ),
    )


def _fresh_records(config: DataConfig, data_dir: str | os.PathLike[str]) -> records.Records:
    """Prepares records in a `data_dir` of their own, without decoded images."""
    if config.archive:
        reading = ReadingOptions.of(config)
        return records.prepare(archive=config.archive, data_dir=data_dir, reading=reading)
    kept = records.prepare(config.dataset, data_dir=config.data_dir).folder
    shutil.copytree(
        kept,
        pathlib.Path(data_dir, *kept.parts[-3:]),  # Dataset, configuration, version.
        ignore=shutil.ignore_patterns("decoded-*", "checked-*"),
    )
    return records.prepare(config.dataset, data_dir=data_dir)


def _load(config: DataConfig, data_dir: pathlib.Path) -> run_data.Data:
    # TensorFlow alone decodes some of them, and would fail at an unreadable one.
    return run_data.load(dataclasses.replace(config, data_dir=os.fspath(data_dir)), scored=None)


def _write_files(data: run_data.Data, folder: pathlib.Path) -> None:
    """Writes the training images that TensorFlow can read into a folder for each class."""
    rows = data.rows["train"]
    encoded = data.records.read(tf.constant(rows))
    readable = np.flatnonzero(_is_jpeg_or_png(encoded))
    if not readable.size:
        raise UserError("peers: no image is a JPEG or PNG; pass --nopeers")
    for index in readable:
        # Named by row: two paths may have one file name. The peers read a PNG by any name.
        path = folder / str(data.records.labels[rows[index]]) / f"{rows[index]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[index].numpy())


def _is_jpeg_or_png(encoded: tf.Tensor) -> tf.Tensor:
    """Returns whether TensorFlow can decode it; an animated WebP would end the process."""
    is_png = tf.strings.regex_full_match(tf.strings.substr(encoded, 0, 4), r"\CPNG")
    return tf.logical_or(tf.io.is_jpeg(encoded), is_png)


def _consume(batches: tf.data.Dataset, done: Done) -> None:
    for images, _ in batches:
        done(len(images))


def _archive_to_records(setting: Setting, done: Done) -> None:
    if setting.config.data.archive:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            done(0)
            done(len(_fresh_records(setting.config.data, folder).labels))


def _records_read(setting: Setting, done: Done) -> None:
    for encoded in _encoded(setting):
        done(len(encoded))


def _decode_only(setting: Setting, done: Done) -> None:
    """Decodes with TensorFlow only, and keeps no pixels."""
    sizes = (
        _encoded(setting)
        .unbatch()
        .filter(_is_jpeg_or_png)
        .map(
            lambda encoded: tf.size(tf.io.decode_image(encoded, 3, expand_animations=False)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(setting.config.data.batch_size)
    )
    for batch in sizes:
        done(len(batch))


def _encoded(setting: Setting) -> tf.data.Dataset:
    """Returns the files of all readable images, in the records' order, in batches."""
    prepared = setting.data.records
    rows = np.setdiff1d(np.arange(len(prepared.labels)), list(setting.data.pictures.bad))
    rows = tf.data.Dataset.from_tensor_slices(rows)
    return rows.batch(setting.config.data.batch_size).map(prepared.read)


def _decode_and_resize(setting: Setting, done: Done) -> None:
    """Decodes each batch when it is used, as --decoded_cache=none does."""
    format = run_data.format_of(setting.config.data)
    pictures = decoded.StreamedPictures(setting.data.records, format, setting.data.pictures.bad)
    _consume(setting.shuffled(dataclasses.replace(setting.data, pictures=pictures)), done)


def _through_service(setting: Setting, done: Done) -> None:
    """Does the same in the workers of --data_service."""
    if setting.config.data.data_service:
        _consume(setting.shuffled(_load(setting.config.data, setting.folder)), done)


def _array_made(setting: Setting, done: Done) -> None:
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        fresh = _fresh_records(setting.config.data, folder)
        format = run_data.format_of(setting.config.data)
        done(0)
        pictures = decoded.decode(fresh, format, on_bad_image="skip")
        done(len(fresh.labels) - len(pictures.bad))


def _warm(setting: Setting, done: Done) -> None:
    _consume(setting.batches(), done)


def _cold_pages(setting: Setting, done: Done) -> None:
    """Reads the decoded array from the disk, in one pass."""
    if drop_pages(getattr(setting.data.pictures, "array", None)):
        _consume(setting.shuffled(setting.data), done)


def drop_pages(array: Any) -> bool:
    """Drops the pages of a memory-mapped file from memory; returns whether the system did it.

    Args:
      array: A view of an array of `np.load`; others, and None, have no such file.
    """
    mapped = array
    while mapped is not None and not hasattr(mapped, "filename"):  # A np.memmap has it.
        mapped = getattr(mapped, "base", None)
    if mapped is None or not hasattr(os, "posix_fadvise"):  # Not on macOS.
        return False
    mapped.base.madvise(mmap.MADV_DONTNEED)  # The system keeps pages that are mapped,
    with open(mapped.filename, "rb") as file:
        os.fsync(file.fileno())  # and pages that are not on the disk yet.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(file.fileno(), [bytearray(1)], mapped.nbytes // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:  # The file system cannot tell.
            pass
    return False


def _augmented_on_host(setting: Setting, done: Done) -> None:
    if augment := dataclasses.replace(setting.augmentation, on_host=True).in_pipeline:
        _consume(setting.batches(augment), done)


def _augmented_on_device(setting: Setting, done: Done) -> None:
    if augment := dataclasses.replace(setting.augmentation, on_host=False).in_pipeline:
        for (images, drawn), _ in setting.batches(augment):
            done(len(setting.vary(images, drawn)))


def _training_input(setting: Setting, done: Done) -> None:
    """Takes the batches of a training, and does nothing with them."""
    passes = setting.config.measuring.passes
    count, batch_size = len(setting.data.rows["train"]), setting.ready.config.data.batch_size
    taken = setting.training(setting.data)

    def batches(shares: input_pipeline.Shares) -> tf.data.Dataset:
        return setting.shuffled(taken.data, epochs=passes, augment=taken.augment, shares=shares)

    for step, _ in zip(
        range(passes * setting.ready.steps("train")),
        iter(setting.ready.chosen.dealt(batches)),
        strict=False,
    ):
        first = step % setting.ready.steps("train") * batch_size
        done(min(batch_size, count - first))


def _training_step(setting: Setting, done: Done) -> None:
    """Trains on images in the memory of the device, without augmentation."""
    devices = setting.ready.chosen.devices
    _fit(setting, STEP, lambda: resident.move(setting.few, None, devices), done)


def _end_to_end(setting: Setting, done: Done) -> None:
    _fit(setting, END_TO_END, lambda: setting.training(setting.few), done)


def _fit(setting: Setting, name: str, take: Callable[[], resident.Resident], done: Done) -> None:
    """Runs Keras's fit for an epoch, as `training.Training` does, but without its callbacks."""
    ready, model = setting.ready, setting.model
    if name not in setting.trained:
        setting.trained[name] = take(), Steps(model, model.train_step)
    taken, training = setting.trained[name]
    model.gather = taken.gather  # The first call traces the steps with it.
    count, batch_size = len(setting.few.rows["train"]), ready.config.data.batch_size
    finished = 0

    def count_images(step: int, logs: Any) -> None:
        nonlocal finished
        now = min((step + 1) * batch_size, count)
        done(now - finished)
        finished = now

    def batches(shares: input_pipeline.Shares) -> tf.data.Dataset:
        return setting.shuffled(taken.data, augment=taken.augment, shares=shares)

    steps = math.ceil(count / batch_size)
    model.fit(
        ready.chosen.dealt(batches),
        steps_per_epoch=steps,
        callbacks=executions.Executions(
            [keras.callbacks.LambdaCallback(on_train_batch_end=count_images)],
            model,
            training=training,
            steps=(steps, 0),
            smaller=(count % batch_size != 0, False),
            at_once=executed_steps(ready.config.devices.steps_per_execution),
            epochs=1,
        ),
        shuffle=False,
        verbose=0,
    )


def _image_data_generator(setting: Setting, done: Done, **augmentation) -> None:
    """Loads batches with Keras's defaults: on one core, nearest-neighbour pixels."""
    generator = tf.keras.preprocessing.image.ImageDataGenerator(rescale=1 / 255, **augmentation)
    batches = generator.flow_from_directory(
        setting.class_folders,
        target_size=setting.data.image_shape[:2],
        color_mode=setting.config.data.color_mode,
        batch_size=setting.config.data.batch_size,
    )
    for step in range(len(batches)):
        images, _ = batches[step]
        done(len(images))


def _image_data_generator_augmented(setting: Setting, done: Done) -> None:
    """Augments as `Setting.ranges` says, as far as ImageDataGenerator has arguments for it."""
    known = inspect.signature(tf.keras.preprocessing.image.ImageDataGenerator).parameters
    ranges = {name: value for name, value in vars(setting.ranges).items() if name in known}
    _image_data_generator(setting, done, **ranges)


def _image_dataset(setting: Setting, done: Done) -> None:
    _consume(_image_dataset_from_directory(setting), done)


def _image_dataset_with_layers(setting: Setting, done: Done) -> None:
    """Adds a Keras layer for each part of the chapter's augmentation, whatever the flags say."""
    layers = keras.Sequential(
        [
            keras.layers.RandomRotation(20 / 360),
            keras.layers.RandomTranslation(0.2, 0.2),
            keras.layers.RandomShear(0.2, 0.2),
            keras.layers.RandomZoom(0.2, 0.2),
            keras.layers.RandomFlip("horizontal"),
        ]
    )
    _consume(
        _image_dataset_from_directory(setting)
        .map(
            lambda images, labels: (layers(images, training=True), labels),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .prefetch(tf.data.AUTOTUNE),
        done,
    )


def _image_dataset_from_directory(setting: Setting) -> tf.data.Dataset:
    return keras.utils.image_dataset_from_directory(
        setting.class_folders,
        image_size=setting.data.image_shape[:2],
        color_mode=setting.config.data.color_mode,
        batch_size=setting.config.data.batch_size,
        verbose=False,
    )


Stage = Callable[[Setting, Done], None]

# The stages by their names in the report, which --only and the ratios use.
COLD = "decode + resize (cold)"
SERVICE = "decode + resize (data service)"
WARM = "warm"
COLD_PAGES = "cold pages"
ON_HOST = "warm + augmentation on the host"
INPUT = "training input"
STEP = "training step"
END_TO_END = "training end to end"
OURS: dict[str, Stage] = {
    "archive to records": _archive_to_records,
    "records read": _records_read,
    "decode only": _decode_only,
    COLD: _decode_and_resize,
    SERVICE: _through_service,
    "decoded array made": _array_made,
    WARM: _warm,
    COLD_PAGES: _cold_pages,
    ON_HOST: _augmented_on_host,
    "warm + augmentation on the device": _augmented_on_device,
    INPUT: _training_input,
    STEP: _training_step,
    END_TO_END: _end_to_end,
}
PEERS: dict[str, Stage] = {
    "ImageDataGenerator": _image_data_generator,
    "ImageDataGenerator + augmentation": _image_data_generator_augmented,
    "image_dataset_from_directory": _image_dataset,
    "image_dataset_from_directory + layers": _image_dataset_with_layers,
}
