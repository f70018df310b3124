"""Reads the prepared records, encoded images written by TFDS, by row.

TFDS reads records sequentially. Training needs them in the order of a permutation, so this module
makes an index of the position of each image in its file.
"""

import contextlib
import contextvars
import dataclasses
import functools
import logging
import os
import pathlib
import re
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from tensorflow_datasets.core.utils import tqdm_utils

from pizza_steak import contents, index, kept, preparations, reading_ahead, sample, splits
from pizza_steak.archive import Archive, ReadingOptions
from pizza_steak.atomic import make_folder, remove
from pizza_steak.errors import UserError, told
from pizza_steak.pizza_steak_dataset_builder import ArchiveConfig, Builder

_NAME = re.compile(r"\w+-[0-9a-f]{12}")  # Of records of an archive; see `preparations.find`.
_PUBLISHED = {"train": 750, "test": 250}  # Of each of two classes.


@dataclasses.dataclass(frozen=True)
class Records:
    """A prepared dataset, N encoded images; a row is an index from 0 to N - 1.

    Rows number the examples of all splits, split after split by name, in the records' order. TFDS
    shuffled them by a hash of the filenames, so any slice of a split is a fair sample of it.

    Attributes:
      builder: The TFDS builder that wrote the records.
      labels: int64 array of shape (N,), indices into `classes`.
      filenames: Paths below the archive's root, of length N.
      digests: uint64 array of shape (N, 2), 16 bytes of the SHA-256 of each encoded image.
      fingerprint: Hexadecimal digest of the class names and each image's label, filename and
        content.
    """

    builder: tfds.core.DatasetBuilder
    labels: np.ndarray
    filenames: Sequence[str]
    digests: np.ndarray
    fingerprint: str
    _shards: np.ndarray
    _starts: np.ndarray  # Positions of the records in their files.
    _offsets: np.ndarray  # Positions of the images in their files.
    _lengths: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return tuple(self.builder.info.features["label"].names)

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the records and of everything derived from them."""
        return pathlib.Path(self.builder.data_dir)

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each split, by name."""
        return {name: info.num_examples for name, info in self.builder.info.splits.items()}

    def labels_in(self, classes: Sequence[str]) -> np.ndarray:
        """Returns the label of each class of the records in the order of `classes`.

        Returns:
          int64 array of shape (C,), for the C classes of the records; 0 for a class that is not in
          `classes`.
        """
        labels = {name: label for label, name in enumerate(classes)}
        return np.array([labels.get(name, 0) for name in self.classes])

    def rows(self, split: str) -> np.ndarray:
        """Returns the rows of a TFDS split string; see `splits.rows`."""
        return splits.rows(split, self.counts, name=self.builder.info.full_name)

    def read(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the encoded images at rows, a string tensor of the same shape, (B,)."""

        def read(rows: np.ndarray) -> np.ndarray:
            return np.array(self.encoded(rows), object)

        encoded = tf.numpy_function(read, [rows], tf.string, stateful=False)
        return tf.ensure_shape(encoded, rows.shape)

    def read_in_graph(self, rows: tf.Tensor) -> tf.Tensor:
        """Does what `read` does with TensorFlow operations only, for a graph that runs elsewhere.

        It takes five times as long, about 0.1 ms per image. The records must have the same path
        where the graph runs.
        """
        paths = tf.constant([os.path.abspath(path) for path in self._paths])
        places = [index.gather(one, rows) for one in (self._shards, self._starts)]
        feature = {"image": tf.io.FixedLenFeature((), tf.string)}

        def read(place: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            shard, start = place
            # TFRecordDataset takes no offset; its operation does.
            records = tf.raw_ops.TFRecordDatasetV2(
                filenames=tf.gather(paths, shard),
                compression_type="",
                buffer_size=tf.constant(0, tf.int64),
                byte_offsets=start,
            )
            kind = {"output_types": [tf.string], "output_shapes": [()]}
            one = tf.raw_ops.TakeDataset(
                input_dataset=records, count=tf.constant(1, tf.int64), **kind
            )
            (record,) = tf.raw_ops.DatasetToSingleElement(dataset=one, **kind)
            return tf.io.parse_single_example(record, feature)["image"]

        return tf.map_fn(read, tuple(places), fn_output_signature=tf.string)

    def encoded(self, rows: np.ndarray) -> list[bytes]:
        """Returns the encoded images at rows, int64 of shape (B,)."""
        # Not memory-mapped: the pages would count as memory of the process.
        with contextlib.ExitStack() as stack:
            files = {
                shard: stack.enter_context(open(self._paths[shard], "rb", buffering=0))
                for shard in np.unique(self._shards[rows])
            }

            def read(row: int) -> bytes:
                file = files[self._shards[row]]
                file.seek(self._offsets[row])
                return file.read(self._lengths[row])

            return [read(row) for row in rows]

    def read_ahead(self, rows: np.ndarray) -> None:
        """Starts to read the encoded images at rows, int64 of shape (B,); does not wait for it."""
        for first, end in reading_ahead.runs(rows):
            shards = self._shards[first:end]
            for shard in np.unique(shards):
                start, stop = first + np.searchsorted(shards, [shard, shard + 1])
                place = self._offsets[start]
                length = self._offsets[stop - 1] + self._lengths[stop - 1] - place
                with open(self._paths[shard], "rb", buffering=0) as file:
                    reading_ahead.of_file(file.fileno(), int(place), int(length))

    @functools.cached_property
    def _paths(self) -> list[str]:
        return list(_files(self.builder))


def prepare(
    dataset: str = "pizza_steak/photos",
    *,
    archive: str | os.PathLike[str] | Archive | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    reading: ReadingOptions | None = None,
) -> Records:
    """Builds the records if they are missing, and opens them.

    Records of the same images are reused, also if the archive had another name then.

    Args:
      dataset: `pizza_steak/photos` (downloaded), `pizza_steak/sample` (rendered), or the name of
        prepared records, which need no archive any more.
      archive: A zip or folder of class folders to use in place of `dataset`, or its listing.
      data_dir: Folder of TFDS's datasets; by default `~/tensorflow_datasets`.
      reading: How to read the archive.

    Raises:
      UserError: The dataset is unknown, cannot be downloaded, or `data_dir` cannot be written.
      ArchiveError: The archive is refused; nothing was written.
    """
    listed = open_archive(archive, data_dir=data_dir, reading=reading) if archive else None
    if listed:
        for warning in listed.warnings:
            absl_logging.warning("archive %s: %s", listed.path, warning)
    try:
        with _quiet_tfds():
            if listed:
                builder = _prepared_builder(ArchiveConfig.of(listed, data_dir), data_dir)
            elif named := _prepared_as(dataset, data_dir):
                builder = tfds.builder_from_directory(os.fspath(named))
            else:
                builder = _prepared_builder(_config_named(dataset), data_dir)
        preparations.mark_used(pathlib.Path(builder.data_dir))
        folder, classes = pathlib.Path(builder.data_dir), builder.info.features["label"].names
        return Records(builder, **index.columns(folder, _files(builder), classes))
    except OSError as error:
        where = error.filename or data_dir
        raise UserError(f"data_dir: {where}: {told(error)}; pass another --data_dir") from error


@dataclasses.dataclass(frozen=True)
class SplitRecords:
    """Records in splits.

    Attributes:
      records: The records.
      classes: The names of the classes that were asked for, in the order of their labels.
      texts: The text of each split, by purpose: "train", "validation" if there is one, "test".
      rows: The rows of each split, by purpose, without other classes.
    """

    records: Records
    classes: tuple[str, ...]
    texts: Mapping[str, str]
    rows: Mapping[str, np.ndarray]


def prepare_splits(
    dataset: str,
    request: splits.Request | str,
    *,
    archive: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    reading: ReadingOptions | None = None,
) -> SplitRecords:
    """Builds the records if they are missing, and splits them.

    Args:
      dataset: As for `prepare`.
      request: The requested splits; or one split string, for a split "test" and no others.
      archive: As for `prepare`.
      classes: Classes to use, in the order of their labels; by default all, sorted by name.
      data_dir: As for `prepare`.
      reading: As for `prepare`.

    Raises:
      UserError: The archive, the dataset, a class or a split is wrong; a wrong split is found
        before anything is prepared.
    """
    name = os.fspath(archive or dataset)
    listed = open_archive(archive, data_dir=data_dir, reading=reading) if archive else None

    def plan(counts: Mapping[str, int]) -> splits.Plan:
        if isinstance(request, splits.Request):
            return splits.plan(request, counts, name)
        rows = splits.rows(request, counts, "--split", name)
        return splits.Plan({"test": request}, {"test": rows}, {}, np.arange(0))

    plan(split_counts(dataset, archive=listed, data_dir=data_dir))
    prepared = prepare(dataset, archive=listed, data_dir=data_dir)
    planned = plan(prepared.counts)  # pizza_steak/photos may come from the user's own zip.
    rows = planned.rows(prepared.labels, prepared.digests)
    used = _choose_classes(classes, prepared.classes)
    wanted = np.isin(np.array(prepared.classes), used)
    rows = {purpose: found[wanted[prepared.labels[found]]] for purpose, found in rows.items()}
    return SplitRecords(prepared, used, planned.texts, rows)


def _choose_classes(asked: Sequence[str] | None, there: tuple[str, ...]) -> tuple[str, ...]:
    if asked is None:
        return there
    if unknown := [name for name in asked if name not in there]:
        raise UserError(f"class {unknown[0]!r}: unknown; expected some of {', '.join(there)}")
    if len(set(asked)) < max(len(asked), 2):
        raise UserError(f"classes {','.join(asked)}: expected two or more, each once")
    return tuple(asked)


def open_archive(
    archive: str | os.PathLike[str] | Archive,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    reading: ReadingOptions | None = None,
) -> Archive:
    """Returns the listing of an archive; lists none that was prepared and has not changed.

    Raises:
      ArchiveError: The archive is refused.
    """
    if isinstance(archive, Archive):
        return archive
    cache = preparations.home(data_dir) / contents.CACHE
    return contents.open_archive(archive, reading, cache)


def split_counts(
    dataset: str = "pizza_steak/photos",
    *,
    archive: str | os.PathLike[str] | Archive | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    reading: ReadingOptions | None = None,
) -> dict[str, int]:
    """Returns the number of images of each split, by name, without preparing anything.

    For `pizza_steak/photos` these are the published numbers.

    Raises:
      UserError: The dataset is unknown.
      ArchiveError: The archive is refused.
    """
    if archive:
        return dict(open_archive(archive, data_dir=data_dir, reading=reading).counts)
    if named := _prepared_as(dataset, data_dir):
        with _quiet_tfds():
            found = tfds.builder_from_directory(os.fspath(named)).info.splits
        return {name: split.num_examples for name, split in found.items()}
    per_class = sample.PICTURES if _config_named(dataset) == "sample" else _PUBLISHED
    return {split: len(sample.CLASSES) * count for split, count in per_class.items()}


def is_prepared(dataset: str, *, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Returns whether the records are there already."""
    if _prepared_as(dataset, data_dir):
        return True
    return Builder(data_dir=data_dir, config=_config_named(dataset)).is_prepared()


def _prepared_as(dataset: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """Returns the folder of an archive's records by their name, or None if there is none.

    Raises:
      UserError: They are damaged.
    """
    name = dataset.removeprefix(f"{Builder.name}/")
    if not _NAME.fullmatch(name):
        return None
    folder = preparations.home(data_dir) / name / str(Builder.VERSION)
    if kept.is_damaged(folder):
        raise UserError(
            f"dataset {dataset}: its records in {folder} are damaged; prepare them again with the "
            "--archive that they are of"
        )
    return folder if (folder / "dataset_info.json").is_file() else None


def _prepared_builder(
    config: str | ArchiveConfig, data_dir: str | os.PathLike[str] | None
) -> tfds.core.DatasetBuilder:
    name = config if isinstance(config, str) else config.name
    home = preparations.home(data_dir)
    folder = home / name / str(Builder.VERSION)

    def make(temporary: pathlib.Path) -> None:
        # TFDS renames what it has built without waiting for the disk, so it builds elsewhere.
        builder = Builder(data_dir=temporary, config=config)
        # TFDS prints at the beginning and the end.
        builder._log_download_bytes = builder._log_download_done = lambda: None
        with _bars_on_terminals():
            builder.download_and_prepare(download_dir=home.parent / "downloads")
        built = folder.with_name(f".{uuid.uuid4().hex}.{folder.name}")
        os.replace(builder.data_dir, built)
        remove(temporary)
        os.replace(built, temporary)

    def is_sound(folder: pathlib.Path) -> bool:
        try:
            index.check(_files(Builder(data_dir=home.parent, config=config)))
        except Exception:  # TFDS and TensorFlow each raise their own.
            return False
        return True

    with _no_empty_folders(folder):
        make_folder(folder.parent)
        kept.make_once(folder, make, is_sound)
    if isinstance(config, ArchiveConfig) and isinstance(config.archive, Archive):
        # The list of images is not needed any more, and takes 0.5 kB of memory for each.
        archive = dataclasses.replace(config.archive, splits={})
        config = dataclasses.replace(config, archive=archive)
    return Builder(data_dir=home.parent, config=config)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Drops TFDS's warnings about each step, in this thread."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def _wanted(record: logging.LogRecord) -> bool:
    return not _QUIET.get() or record.levelno >= logging.ERROR


_QUIET = contextvars.ContextVar("_QUIET", default=False)
absl_logging.get_absl_logger().addFilter(_wanted)
_BARS = threading.Lock()


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Turns TFDS's progress bars off where no terminal shows them.

    TFDS has one switch for the process, so threads that build records take turns.
    """
    with _BARS:
        shown = tqdm_utils._active
        tqdm_utils.display_progress_bar(shown and sys.stderr.isatty())
        try:
            yield
        finally:
            tqdm_utils.display_progress_bar(shown)


@contextlib.contextmanager
def _no_empty_folders(folder: pathlib.Path) -> Iterator[None]:
    """Removes the empty folders that TFDS leaves when a build fails."""
    try:
        yield
    except BaseException:
        root = folder.parents[2]
        for empty in (*root.glob("downloads/**/*.tmp.*"), folder.parent, folder.parents[1]):
            with contextlib.suppress(OSError):  # It is missing or not empty.
                empty.rmdir()
        raise


def _config_named(dataset: str) -> str:
    name, _, config = dataset.partition("/")
    if name != Builder.name or config not in Builder.builder_configs:
        known = ", ".join(f"{Builder.name}/{config}" for config in Builder.builder_configs)
        raise UserError(
            f"dataset {dataset!r}: unknown; expected one of {known}, your own with --archive, or a "
            "name that python -m pizza_steak.prepared lists"
        )
    return config


def _files(builder: tfds.core.DatasetBuilder) -> dict[str, int]:
    """Returns the record files in the order of the rows, each with its number of examples."""
    splits = builder.info.splits
    return {
        os.fspath(path): count
        for name in sorted(splits)
        for path, count in zip(splits[name].filepaths, splits[name].shard_lengths, strict=True)
    }
