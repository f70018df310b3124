"""The TFDS builder: writes an archive of class folders as records of encoded images."""

import contextlib
import dataclasses
import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets.public_api as tfds
from tensorflow_datasets.core import example_serializer, shuffle, writer
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.utils import shard_utils, tqdm_utils
from tensorflow_datasets.proto import tf_example_pb2

from pizza_steak import contents, preparations, sample
from pizza_steak.archive import Archive, Picture, read_archive
from pizza_steak.errors import ArchiveError, UserError
from pizza_steak.members import ReadingOptions

# The archives of the course that the chapter follows and of the chapter, with their sizes in bytes.
# The first file's SHA-256 is in checksums.tsv, its size from a public pointer to it. Of the second
# no checksum was published: its size, from the chapter's download log, must do, so it comes last.
_URLS = {
    "https://storage.googleapis.com/ztm_tf_course/food_vision/pizza_steak.zip": 109_540_975,
    "https://infoslack.pro/pizza_steak.zip": 109_497_985,
}
_RETRIES = threading.Lock()
_SHUFFLED_AT_ONCE = 64 * 2**20  # Bytes.
# Files that Beam's workers read, while records are built.
_PARTS = "images."
# Images that a worker of Beam reads one after another.
_READ_AT_ONCE = 1000
_PUBLISHED_CLASSES = ("pizza", "steak")


@dataclasses.dataclass(eq=False)
class ArchiveConfig(tfds.core.BuilderConfig):
    """The configuration of a user's archive.

    Attributes:
      name: By default, that of the file and its fingerprint.
      archive: The archive's path, or its listing; None for the configurations of `Builder`.
      reading: Arguments of `ReadingOptions`, for a path.
    """

    name: str = ""
    archive: str | os.PathLike[str] | Archive | None = None
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, archive: Archive, data_dir: str | os.PathLike[str] | None = None
    ) -> "ArchiveConfig":
        """Returns the configuration of an archive, named by its file and its fingerprint.

        If `data_dir` holds the same images under another name, the configuration has that name.
        """
        home = preparations.home(data_dir)
        digits = contents.fingerprint(archive, home / contents.CACHE)[:12]
        name = preparations.find(home, archive.stem, digits)
        return cls(name=name, description="Class folders of an archive.", archive=archive)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Class folders of images; by default photographs of pizza and steak from Food-101."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "pizza_steak/photos is downloaded, unless pizza_steak.zip lies in the manual_dir."
    )
    BUILDER_CONFIGS = [
        ArchiveConfig(name="photos", description="Photographs of pizza and steak from Food-101."),
        ArchiveConfig(
            name="sample", description="Rendered images of pizza and steak; needs no network."
        ),
    ]

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        config: str | tfds.core.BuilderConfig | None = None,
        **arguments: Any,
    ):
        """See the base class; a `config` may name an archive by its path, as from `tfds build`."""
        if isinstance(config, ArchiveConfig) and not isinstance(config.archive, Archive | None):
            cache = preparations.home(data_dir) / contents.CACHE
            reading = ReadingOptions(**config.reading)
            archive = contents.open_archive(config.archive, reading, cache)
            config = ArchiveConfig.of(archive, data_dir)
        self._with_beam = False
        super().__init__(data_dir=data_dir, config=config, **arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        archive = self.builder_config.archive
        classes = archive.classes if archive else _PUBLISHED_CLASSES
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(classes)),
                    "filename": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        if self.builder_config.name == "sample":
            return {split: self._generate_samples(split) for split in sample.PICTURES}
        archive = self.builder_config.archive or _published(dl_manager)
        return {split: self._generate_examples(archive, split) for split in archive.splits}

    def _generate_examples(self, archive: Archive, split: str):
        if self._with_beam:
            return _read_with_beam(archive, split, self.data_path / f"{_PARTS}{split}")
        return _read(archive, split)

    def _generate_samples(self, split: str) -> Iterator[tuple[str, dict]]:
        for filename, label, encoded in sample.pictures(split):
            yield filename, _example(filename, label, encoded)

    def _generate_splits(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> Sequence[tfds.core.SplitInfo]:
        self._with_beam = bool(download_config.beam_runner or download_config.beam_options)
        others = download_config.max_examples_per_split, download_config.nondeterministic_order
        if self._with_beam or any(others):
            infos = super()._generate_splits(dl_manager, download_config)
            for parts in self.data_path.glob(f"{_PARTS}*"):
                parts.unlink()
            return infos
        shard_config = download_config.get_shard_config()
        return [
            self._write_split(split, examples, shard_config)
            for split, examples in self._split_generators(dl_manager).items()
        ]

    def _write_split(
        self,
        split: str,
        examples: Iterable[tuple[str, dict]],
        shard_config: shard_utils.ShardConfig,
    ) -> tfds.core.SplitInfo:
        """Writes the same records as TFDS's own loop, which takes three times as long for each."""
        template = self._get_filename_template(split_name=split)
        split_writer = writer.Writer(
            serializer=_Serializer(self.info.features),
            filename_template=template,
            hash_salt=split,
            disable_shuffling=False,
            example_writer=self._example_writer(),
            shard_config=shard_config,
        )
        if archive := self.builder_config.archive:
            size = sum(image.stamp[0] for image in archive.splits[split])
            split_writer._shuffler = _Shuffler(template.data_dir, split, size)
        bar = {"desc": f"Generating {split} examples...", "unit": " examples", "leave": False}
        for filename, example in tqdm_utils.tqdm(examples, **bar, mininterval=1.0):
            split_writer.write(filename, example)
        lengths, size = split_writer.finalize()
        return tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
        )


class _Shuffler(shuffle.Shuffler):
    """Does what TFDS's does, but holds 64 MB in memory where that one holds 1 GB.

    Args:
      folder: The folder for files of about 64 MB each.
      salt: As for TFDS's.
      size: Number of bytes to shuffle, about.
    """

    def __init__(self, folder: tfds.core.Path, salt: str, size: int):
        super().__init__(folder, salt)
        files = -(-size // _SHUFFLED_AT_ONCE)
        if files > 1:
            self._in_memory = False
            del self._buckets[files:]

    def _add_to_bucket(self, hkey: int, data: bytes) -> None:
        self._buckets[shuffle.get_bucket_number(hkey, len(self._buckets))].add(hkey, data)


class _Serializer(example_serializer.Serializer):
    """Makes records of examples whose image is encoded and whose label is a name."""

    def __init__(self, features: tfds.features.FeaturesDict):
        super().__init__(features.get_serialized_info())
        self._labels = {name: label for label, name in enumerate(features["label"].names)}

    def serialize_example(self, example: Mapping[str, Any]) -> bytes:
        record = tf_example_pb2.Example()
        feature = record.features.feature
        feature["image"].bytes_list.value.append(example["image"])
        feature["label"].int64_list.value.append(self._labels[example["label"]])
        feature["filename"].bytes_list.value.append(example["filename"].encode())
        return record.SerializeToString(deterministic=True)


def _example(filename: str, label: str, encoded: bytes) -> dict:
    return {"image": encoded, "label": label, "filename": filename}


def _read(archive: Archive, split: str) -> Iterator[tuple[str, dict]]:
    for image, encoded in archive.read(split):
        yield image.filename, _example(image.filename, image.label, encoded)


def _read_with_beam(archive: Archive, split: str, parts: tfds.core.Path) -> Any:
    """Returns the PTransform of Apache Beam that reads a split, in as many workers as there are.

    Args:
      archive: The archive, which all workers find at the same path.
      split: Name of the split.
      parts: File to write; a line lists the images that a worker reads at once.
    """
    beam = tfds.core.lazy_imports.apache_beam
    images, starts = iter(archive.splits[split]), []
    with parts.open("wb") as file:
        while part := list(itertools.islice(images, _READ_AT_ONCE)):
            starts.append(file.tell())
            file.write(json.dumps(part).encode() + b"\n")
    bare = dataclasses.replace(archive, splits={})
    return beam.Create(starts) | beam.FlatMap(_read_part, archive=bare, parts=os.fspath(parts))


def _read_part(start: int, archive: Archive, parts: str) -> Iterator[tuple[str, dict]]:
    with tfds.core.Path(parts).open("rb") as file:
        file.seek(start)
        listed = json.loads(file.readline())
    images = [
        Picture(filename, label, member, tuple(stamp), *rest)
        for filename, label, member, stamp, *rest in listed
    ]
    return _read(dataclasses.replace(archive, splits={"part": tuple(images)}), "part")


def _published(dl_manager: tfds.download.DownloadManager) -> Archive:
    """Returns the published archive, from the manual_dir or the first address that answers."""
    archive = read_archive(_manual(dl_manager) or _download(dl_manager))
    if archive.classes != _PUBLISHED_CLASSES:
        raise ArchiveError(
            f"archive {archive.path}: classes {', '.join(archive.classes)}; pizza_steak/photos is "
            f"{' and '.join(_PUBLISHED_CLASSES)}: pass your own archive with --archive"
        )
    return archive


def _manual(dl_manager: tfds.download.DownloadManager):
    try:
        path = dl_manager.manual_dir / "pizza_steak.zip"
    except AssertionError:  # TFDS raises it if there is no manual_dir or it is empty.
        return None
    return path if path.exists() else None


def _download(dl_manager: tfds.download.DownloadManager):
    failures = []
    for url, size in _URLS.items():
        try:
            with _fewer_retries():
                path = dl_manager.download(url)
        except Exception as error:  # requests, urllib3 and TFDS each raise their own.
            failures.append(f"{url} ({type(error).__name__})")
            continue
        if (found := path.stat().length) == size:
            return path
        failures.append(f"{url} ({found:,} bytes, expected {size:,})")
    raise UserError(
        f"pizza_steak/photos cannot be downloaded from {' or '.join(failures)}; pass your own with "
        "--archive=<zip or folder>, or --dataset=pizza_steak/sample, which needs no network"
    )


@contextlib.contextmanager
def _fewer_retries() -> Iterator[None]:
    """Limits TFDS to three tries an address: ten take three minutes without a network.

    TFDS has no argument for it, so threads take turns.
    """
    with _RETRIES:
        tries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 3
        try:
            yield
        finally:
            downloader.MAX_RETRIES = tries
