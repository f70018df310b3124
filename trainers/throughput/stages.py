"""The stages that the benchmark times, ours and Keras's own, and the pictures that they work on.

A stage is a function of a `Setting` and of `done`, which it calls with a number of pictures each
time that it is done with so many. The clock runs from the first call on, and the pictures of that
call do not count: until then pipelines start and files are found, once a run. A stage that has
nothing to do calls nothing.
"""

import dataclasses
import inspect
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import decoded, records
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import (
    CHAPTERS_AUGMENTATION,
    AugmentationConfig,
    BenchmarkConfig,
    DataConfig,
)
from trainers.hardware import devices
from trainers.models import preprocessing
from trainers.training import loop

Done = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the stages work on.

    Attributes:
      config: The flags.
      folder: For what the stages write.
      data: The training pictures, decoded.
      few: The same, but no more of them than slow stages take.
      class_folders: The files of `few`, in a folder for each class.
      asked: The augmentation that the flags ask for, or None.
      augmentation: That of the augmented stages: what the flags ask for, else the chapter's.
      in_model: What the augmentation does to a batch as the first layers of a model.
      model: The network, compiled as for training.
    """

    config: BenchmarkConfig
    folder: pathlib.Path
    data: run_data.Data
    few: run_data.Data
    class_folders: pathlib.Path
    asked: preprocessing.Augmentation | None
    augmentation: preprocessing.Augmentation
    in_model: Callable[[tf.Tensor], tf.Tensor]
    model: keras.Model

    @property
    def ranges(self) -> AugmentationConfig:
        """The flags of `augmentation`."""
        return self.config.augmentation if self.asked else CHAPTERS_AUGMENTATION

    def batches(self, augment: Callable | None = None) -> tf.data.Dataset:
        """`--passes` epochs of all training pictures."""
        return self.shuffled(self.data, epochs=self.config.measuring.passes, augment=augment)

    def batches_of_few(self) -> tf.data.Dataset:
        """One epoch of `few`, augmented as the flags ask for."""
        return self.shuffled(self.few, augment=self.asked.on_batches if self.asked else None)

    def shuffled(self, data: run_data.Data, **options) -> tf.data.Dataset:
        """Batches of training pictures; `options` as in `input_pipeline.batches`."""
        seed = self.config.optimisation.seed
        batch_size = self.config.data.batch_size
        return data.batches("train", batch_size, seed=seed, shuffle=True, **options)


def prepare(config: BenchmarkConfig, folder: pathlib.Path, *, peers: bool) -> Setting:
    """Makes all that the stages work on.

    Args:
      config: The flags.
      folder: An empty one, for all of it. Only the records of a dataset that is no archive, which
        may be a download, are kept in the data_dir too, as by every command.
      peers: Whether to write the files that the peers read.

    Raises:
      UserError: For anything that the user can mend.
    """
    chosen, seed = devices.choose(config.devices), config.optimisation.seed
    config = dataclasses.replace(
        config, data=run_data.with_batch_size(config.data, chosen.replicas)
    )
    loop.check(config)
    keras.utils.set_random_seed(seed)
    chosen.set_precision()
    with chosen.scope():
        asked = preprocessing.augmentation_of(config.augmentation, seed)
    augmentation = asked or preprocessing.augmentation_of(CHAPTERS_AUGMENTATION, seed)
    _fresh_records(config.data, folder)
    data = _load(dataclasses.replace(config.data, data_service=None), folder)
    batch_size, count = config.data.batch_size, len(data.rows["train"])
    if count <= batch_size:
        raise UserError(
            f"batch_size {batch_size}: expected less than all {count} training pictures"
        )
    most = max(config.measuring.pictures, 2 * batch_size)
    few = dataclasses.replace(data, rows={"train": data.rows["train"][:most]})
    if peers:
        _write_files(few, folder / "classes")
    first_layers = dataclasses.replace(augmentation, on_host=False).layers
    first_layers = keras.Sequential([keras.Input(data.image_shape), *first_layers])
    return Setting(
        config=config,
        folder=folder,
        data=data,
        few=few,
        class_folders=folder / "classes",
        asked=asked,
        augmentation=augmentation,
        in_model=tf.function(
            lambda images: first_layers(images, training=True),
            jit_compile=chosen.jit_compile,
            reduce_retracing=True,
        ),
        model=loop.compiled_model(config, data, chosen, asked),
    )


def _fresh_records(config: DataConfig, data_dir: str | os.PathLike[str]) -> records.Records:
    """The records in a `data_dir` of their own, with nothing decoded beside them."""
    if config.archive:
        return records.prepare(
            archive=config.archive, data_dir=data_dir, follow_links=config.follow_links
        )
    kept = records.prepare(config.dataset, data_dir=config.data_dir).folder
    shutil.copytree(
        kept,
        pathlib.Path(data_dir, *kept.parts[-3:]),  # Dataset, configuration, version.
        ignore=shutil.ignore_patterns("decoded-*", "checked-*"),
    )
    return records.prepare(config.dataset, data_dir=data_dir)


def _load(config: DataConfig, data_dir: pathlib.Path) -> run_data.Data:
    return run_data.load(dataclasses.replace(config, data_dir=os.fspath(data_dir)))


def _write_files(data: run_data.Data, folder: pathlib.Path) -> None:
    """Writes the training pictures into a folder for each class, all that TensorFlow can read."""
    rows = data.rows["train"]
    encoded = data.records.read(tf.constant(rows))
    readable = np.flatnonzero(_is_jpeg_or_png(encoded))
    if not readable.size:
        raise UserError("peers: none of the pictures is a JPEG or PNG; pass --nopeers")
    for index in readable:
        # Named by row, as two paths may differ in their folders alone. No peer minds a PNG.
        path = folder / str(data.records.labels[rows[index]]) / f"{rows[index]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[index].numpy())


def _is_jpeg_or_png(encoded: tf.Tensor) -> tf.Tensor:
    """Whether TensorFlow's own decoder may have it: an animated WebP ends the process."""
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
    """TensorFlow's decoder as fast as it goes: of a picture nothing is kept but its size."""
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
    """The files of all pictures that can be decoded, in the records' order, in batches."""
    prepared = setting.data.records
    rows = np.setdiff1d(np.arange(len(prepared.labels)), list(setting.data.pictures.bad))
    rows = tf.data.Dataset.from_tensor_slices(rows)
    return rows.batch(setting.config.data.batch_size).map(prepared.read)


def _decode_and_resize(setting: Setting, done: Done) -> None:
    """Batches decoded as they are used, as with --decoded_cache=none."""
    format = run_data.format_of(setting.config.data)
    pictures = decoded.StreamedPictures(setting.data.records, format, setting.data.pictures.bad)
    _consume(setting.shuffled(dataclasses.replace(setting.data, pictures=pictures)), done)


def _through_service(setting: Setting, done: Done) -> None:
    """The same made by the workers of --data_service."""
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


def _augmented_on_host(setting: Setting, done: Done) -> None:
    if augment := dataclasses.replace(setting.augmentation, on_host=True).on_batches:
        _consume(setting.batches(augment), done)


def _augmented_in_model(setting: Setting, done: Done) -> None:
    for images, _ in setting.batches():
        done(len(setting.in_model(images)))


def _training_step(setting: Setting, done: Done) -> None:
    """As many steps as end to end, but all on one batch that is in memory."""
    images, labels = next(iter(setting.batches_of_few()))
    sizes = [len(images)] * len(setting.batches_of_few())
    resident = tf.data.Dataset.from_tensors((images, labels)).repeat(len(sizes))
    _fit(setting.model, resident, sizes, done)


def _end_to_end(setting: Setting, done: Done) -> None:
    count, batch_size = len(setting.few.rows["train"]), setting.config.data.batch_size
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    _fit(setting.model, setting.batches_of_few(), sizes, done)


def _fit(model: keras.Model, batches: tf.data.Dataset, sizes: Sequence[int], done: Done) -> None:
    """Keras's own loop over batches of these sizes."""
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: done(sizes[step]))
    model.fit(batches, callbacks=[clock], shuffle=False, verbose=0)


def _image_data_generator(setting: Setting, done: Done, **augmentation) -> None:
    """As it comes: one batch after the other, on one core, pixels of the nearest neighbour."""
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
    """The augmentation of `Setting.ranges`, but for what it has no argument for."""
    known = inspect.signature(tf.keras.preprocessing.image.ImageDataGenerator).parameters
    ranges = {name: value for name, value in vars(setting.ranges).items() if name in known}
    _image_data_generator(setting, done, **ranges)


def _image_dataset(setting: Setting, done: Done) -> None:
    _consume(_image_dataset_from_directory(setting), done)


def _image_dataset_with_layers(setting: Setting, done: Done) -> None:
    """With a layer for each part of the chapter's augmentation, whatever the flags ask for."""
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

# By their names in the report, which are those that --only and the ratios mean.
COLD = "decode + resize (cold)"
SERVICE = "decode + resize (data service)"
WARM = "warm"
ON_HOST = "warm + augmentation on the host"
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
    ON_HOST: _augmented_on_host,
    "warm + augmentation in the model": _augmented_in_model,
    STEP: _training_step,
    END_TO_END: _end_to_end,
}
PEERS: dict[str, Stage] = {
    "ImageDataGenerator": _image_data_generator,
    "ImageDataGenerator + augmentation": _image_data_generator_augmented,
    "image_dataset_from_directory": _image_dataset,
    "image_dataset_from_directory + layers": _image_dataset_with_layers,
}
