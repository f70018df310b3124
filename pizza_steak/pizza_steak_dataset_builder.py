"""The TFDS builder: writes an archive of class folders as records of encoded images."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator

import tensorflow_datasets.public_api as tfds
from tensorflow_datasets.core.download import downloader

from pizza_steak import contents, preparations, sample
from pizza_steak.archive import Archive, read_archive
from pizza_steak.errors import ArchiveError, UserError

# The archives of the course that the chapter follows and of the chapter, with their sizes in bytes.
# The first file's SHA-256 is in checksums.tsv, its size from a public pointer to it. Of the second
# no checksum was published: its size, from the chapter's download log, must do, so it comes last.
_URLS = {
    "https://storage.googleapis.com/ztm_tf_course/food_vision/pizza_steak.zip": 109_540_975,
    "https://infoslack.pro/pizza_steak.zip": 109_497_985,
}
_RETRIES = threading.Lock()
_PUBLISHED_CLASSES = ("pizza", "steak")


@dataclasses.dataclass(eq=False)
class ArchiveConfig(tfds.core.BuilderConfig):
    """The configuration of a user's archive.

    Attributes:
      archive: The listing of the archive.
    """

    archive: Archive | None = None

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
        tfds.core.BuilderConfig(
            name="photos", description="Photographs of pizza and steak from Food-101."
        ),
        tfds.core.BuilderConfig(
            name="sample", description="Rendered images of pizza and steak; needs no network."
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        archive = getattr(self.builder_config, "archive", None)
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
        archive = getattr(self.builder_config, "archive", None) or _published(dl_manager)
        return {split: self._generate_examples(archive, split) for split in archive.splits}

    def _generate_examples(self, archive: Archive, split: str) -> Iterator[tuple[str, dict]]:
        for image, encoded in archive.read(split):
            yield image.filename, _example(image.filename, image.label, encoded)

    def _generate_samples(self, split: str) -> Iterator[tuple[str, dict]]:
        for filename, label, encoded in sample.pictures(split):
            yield filename, _example(filename, label, encoded)


def _example(filename: str, label: str, encoded: bytes) -> dict:
    return {"image": encoded, "label": label, "filename": filename}


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
