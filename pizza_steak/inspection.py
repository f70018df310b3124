"""What is in a dataset: counts, sizes, formats, duplicates and broken pictures.

An archive is looked through in one pass, without TensorFlow and without a record written.
"""

import collections
import dataclasses
import hashlib
import heapq
import json
import random
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ImageOps, UnidentifiedImageError

from pizza_steak import decoding, figures
from pizza_steak.archive import Archive, read_archive
from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError
from pizza_steak.tensorflow_import import import_tensorflow

_SPLITS = ("train", "validation", "test")
_INTENSITY = ("brightness_range", "channel_shift_range")
# Pictures of a grid; those of them that are augmented; versions of each.
_SAMPLE, _AUGMENTED, _VERSIONS = 24, 4, 5
_MOST_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Found:
    """One picture, as it was found.

    Attributes:
      filename: Its path below the archive's root.
      split: "train", "validation" or "test".
      label: The name of its class.
      bytes: The length of its file.
      digest: The same for the same bytes.
      format: "JPEG", "PNG" and so on, by its content; None where it is no picture.
      size: Width and height in pixels, once upright; None where it is no picture.
      turned: Whether its EXIF orientation turns or mirrors it.
      fault: Why it cannot be decoded; None where it can.
    """

    filename: str
    split: str
    label: str
    bytes: int
    digest: bytes
    format: str | None
    size: tuple[int, int] | None
    turned: bool
    fault: str | None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found in a dataset.

    Attributes:
      name: Of the dataset.
      left_out: How many files are no examples, by kind.
      pictures: Everything that is one, broken or not.
      sample: Some of those that are not broken, drawn at random, with their files' bytes.
    """

    name: str
    left_out: Mapping[str, int]
    pictures: Sequence[Found]
    sample: Sequence[tuple[Found, bytes]]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many pictures, by split and class, broken ones too."""
        found = collections.Counter((picture.split, picture.label) for picture in self.pictures)
        splits = sorted({split for split, _ in found}, key=_SPLITS.index)
        classes = sorted({label for _, label in found})
        return {split: {label: found[split, label] for label in classes} for split in splits}

    def formats(self) -> dict[str, int]:
        """How many pictures are of each format, the most first."""
        counts = collections.Counter(picture.format or "no picture" for picture in self.pictures)
        return dict(counts.most_common())

    def measures(self) -> dict[str, dict[str, float]]:
        """The least, median and most of widths, heights, aspect ratios (w / h) and bytes."""
        sizes = [picture.size for picture in self.pictures if picture.size]
        columns = {
            "width": [width for width, _ in sizes],
            "height": [height for _, height in sizes],
            "aspect_ratio": [width / height for width, height in sizes],
            "bytes": [picture.bytes for picture in self.pictures],
        }
        return {
            name: {"least": min(values), "median": statistics.median(values), "most": max(values)}
            for name, values in columns.items()
            if values
        }

    def turned(self) -> int:
        """How many images training turns upright by their EXIF orientation."""
        return sum(picture.turned for picture in self.pictures)

    def broken(self) -> dict[str, str]:
        """Why pictures cannot be decoded, by filename."""
        return {picture.filename: picture.fault for picture in self.pictures if picture.fault}

    def duplicates(self) -> list[list[Found]]:
        """The pictures whose files are the same, byte for byte: two or more in each list."""
        groups = collections.defaultdict(list)
        for picture in self.pictures:
            groups[picture.digest].append(picture)
        return [group for group in groups.values() if len(group) > 1]

    def to_json(self) -> dict[str, Any]:
        """All of it but the pictures themselves."""
        return {
            "name": self.name,
            "pictures": len(self.pictures),
            "counts": self.counts(),
            "formats": self.formats(),
            "measures": self.measures(),
            "turned_by_exif": self.turned(),
            "left_out": dict(self.left_out),
            "broken": self.broken(),
            "duplicates": [
                {
                    "files": [picture.filename for picture in group],
                    "leakage": _leaks(group),
                    "contradiction": _contradicts(group),
                }
                for group in self.duplicates()
            ],
        }

    def summary(self) -> str:
        """All of it for people; what spoils a training stands last."""
        return "\n\n".join([self._count_table(), self._measure_table(), self._findings()])

    def _count_table(self) -> str:
        counts = self.counts()
        classes = next(iter(counts.values()))
        rows = {label: [split[label] for split in counts.values()] for label in classes}
        rows["all classes"] = [sum(split.values()) for split in counts.values()]
        width = max(map(len, rows)) + 2
        megabytes = sum(picture.bytes for picture in self.pictures) / 1e6
        lines = [
            f"{self.name}: {len(self.pictures):,} pictures of {len(classes)} classes, "
            f"{megabytes:,.1f} MB",
            "",
            _row("", [*counts, "all"], width),
        ]
        for name, row in rows.items():
            lines.append(_row(name, [f"{n:,}" for n in (*row, sum(row))], width))
        balance = [max(split.values()) / max(1, min(split.values())) for split in counts.values()]
        lines.append(_row("most / least", [f"{ratio:.2f}" for ratio in balance], width))
        return "\n".join(lines)

    def _measure_table(self) -> str:
        lines = [_row("", ["least", "median", "most"], 14)]
        for name, values in self.measures().items():
            form = ".2f" if name == "aspect_ratio" else ",.0f"
            cells = [f"{value:{form}}" for value in values.values()]
            lines.append(_row(name.replace("_", " "), cells, 14))
        return "\n".join(lines)

    def _findings(self) -> str:
        groups = self.duplicates()
        leaks = [group for group in groups if _leaks(group)]
        contradictions = [group for group in groups if _contradicts(group)]
        others = [group for group in groups if not _leaks(group) and not _contradicts(group)]
        turned = self.turned()
        faults = [f"{name} ({fault})" for name, fault in self.broken().items()]
        lines = [
            f"formats     {_counted(self.formats())}",
            f"turned      {f'{turned:,} by EXIF orientation' if turned else 'none'}",
            f"left out    {_counted(self.left_out)}",
            f"broken      {len(faults) or 'none'}",
            *_listed(faults),
            f"duplicates  {len(groups) or 'none'}",
            *_listed(_equal(group) for group in others),
        ]
        for found, what in (
            (contradictions, "CONTRADICTION: the same bytes are in more than one class"),
            (
                leaks,
                "LEAKAGE: the same bytes are in more than one split; tests on them prove nothing",
            ),
        ):
            if found:
                lines += ["", f"{what} ({len(found):,}):"]
                lines += _listed(_equal(group) for group in found)
        return "\n".join(lines)


def _leaks(group: Iterable[Found]) -> bool:
    return len({picture.split for picture in group}) > 1


def _contradicts(group: Iterable[Found]) -> bool:
    return len({picture.label for picture in group}) > 1


def _equal(group: Iterable[Found]) -> str:
    return " = ".join(picture.filename for picture in group)


def _row(name: str, cells: Iterable[str], width: int) -> str:
    return f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _listed(texts: Iterable[str]) -> list[str]:
    """A line of each, but not too many."""
    texts = list(texts)
    more = [f"and {len(texts) - _MOST_LISTED:,} more: see --json"] * (len(texts) > _MOST_LISTED)
    return [f"    {text}" for text in texts[:_MOST_LISTED] + more]


def report(
    *,
    archive: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    follow_links: bool = False,
    seed: int = 42,
    json_file: str | None = None,
    grid_file: str | None = None,
    augmented_file: str | None = None,
    image_size: int = 224,
    **augmentation: Any,
) -> str:
    """Inspects an archive or a dataset, and writes the files that are asked for.

    Args:
      archive: Zip file or folder of class folders.
      dataset: In place of an archive: `pizza_steak/photos` or `pizza_steak/sample`.
      data_dir: Where the dataset's records are kept; see `records.prepare`.
      follow_links: Whether links to folders in an archive are followed.
      seed: Draws the pictures of the figures, and how they are augmented.
      json_file: The file for `Inspection.to_json`.
      grid_file: The file for `draw_grid`.
      augmented_file: The file for `draw_augmented`.
      image_size: Height and width that pictures are resized to before they are augmented.
      **augmentation: Arguments of `RandomAffine` and `RandomIntensity`.

    Returns:
      What was found, for people.

    Raises:
      UserError: Of the archive, the dataset, the augmentation, or a file that cannot be written.
    """
    if bool(augmented_file) != bool(augmentation):
        raise UserError(
            "augmented: expected both, a file and flags of the augmentation: "
            "--augmented=augmented.png --rotation_range=20"
        )
    if archive:
        listed = read_archive(archive, follow_links=follow_links)
        found = inspect(str(listed.path), listed.left_out, _examples(listed), seed)
    else:
        found = _inspect_dataset(dataset, data_dir, seed)
    if json_file:
        with output_file(json_file) as temporary:
            temporary.write_text(json.dumps(found.to_json(), indent=2) + "\n")
    if grid_file:
        draw_grid(found.sample, grid_file)
    if augmented_file:
        draw_augmented(found.sample[:_AUGMENTED], augmented_file, image_size, seed, **augmentation)
    return found.summary()


def inspect(
    name: str,
    left_out: Mapping[str, int],
    examples: Iterable[tuple[str, str, str, bytes]],
    seed: int = 42,
) -> Inspection:
    """Looks at every picture once, and keeps no more of them than a sample.

    Args:
      name: Of the dataset.
      left_out: How many files are no examples, by kind.
      examples: Split, class, filename and encoded picture of each.
      seed: Draws the sample.
    """
    pictures, sample = [], []
    for split, label, filename, encoded in examples:
        found = _look(split, label, filename, encoded)
        pictures.append(found)
        if found.fault is None:
            # Those with the largest random numbers are a fair sample, however many there will be.
            number = random.Random(f"{seed} {filename}").random()
            sample = heapq.nlargest(_SAMPLE, [*sample, (number, found, encoded)], lambda s: s[0])
    return Inspection(name, left_out, pictures, [entry[1:] for entry in sample])


def _look(split: str, label: str, filename: str, encoded: bytes) -> Found:
    format, size, orientation, fault = None, None, 1, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with decoding.open_image(encoded) as image:
                orientation = decoding.orientation(image)
                format = image.format
                size = image.size[::-1] if orientation >= 5 else image.size
                image.draft(None, (1, 1))  # A JPEG's faults show in an eighth of its size as well.
                image.load()
    except UnidentifiedImageError:
        fault = "no picture"
    except Exception as error:  # Each of Pillow's decoders has its own.
        fault = " ".join(str(error).split())
    digest = hashlib.sha256(encoded).digest()
    return Found(filename, split, label, len(encoded), digest, format, size, orientation > 1, fault)


def _examples(archive: Archive) -> Iterator[tuple[str, str, str, bytes]]:
    for split in archive.splits:
        for picture, encoded in archive.read(split):
            yield split, picture.label, picture.filename, encoded


def _inspect_dataset(dataset: str | None, data_dir: str | None, seed: int) -> Inspection:
    tf = import_tensorflow()
    from pizza_steak import records

    prepared = records.prepare(dataset, data_dir=data_dir)

    def examples() -> Iterator[tuple[str, str, str, bytes]]:
        for split in prepared.builder.info.splits:
            for row in prepared.rows(split):
                (encoded,) = prepared.read(tf.constant([row])).numpy()
                label = prepared.classes[prepared.labels[row]]
                yield split, label, str(prepared.filenames[row]), encoded

    return inspect(prepared.builder.info.full_name, {}, examples(), seed)


def draw_grid(sample: Sequence[tuple[Found, bytes]], path: str) -> None:
    """Draws pictures with their classes and sizes.

    Raises:
      UserError: There is no picture, or the file cannot be written.
    """
    _check_some(sample)
    images = []
    for _, encoded in sample:
        with decoding.open_image(encoded) as image:
            images.append(np.asarray(ImageOps.exif_transpose(image).convert("RGBA").convert("RGB")))
    captions = [
        f"{found.label}\n{found.size[0]} x {found.size[1]}, {found.split}" for found, _ in sample
    ]
    figures.picture_grid(images, captions, path)


def draw_augmented(
    sample: Sequence[tuple[Found, bytes]],
    path: str,
    image_size: int,
    seed: int,
    **augmentation: Any,
) -> None:
    """Draws pictures, a row each, beside augmented versions of them.

    Raises:
      UserError: There is no picture, the augmentation makes no sense, or the file cannot be
        written.
    """
    _check_some(sample)
    tf = import_tensorflow()
    from pizza_steak import input_pipeline
    from pizza_steak.augmentation import RandomAffine, RandomIntensity

    intensity = {name: augmentation.pop(name) for name in _INTENSITY if name in augmentation}
    try:
        layers = RandomAffine(**augmentation), RandomIntensity(**intensity)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    format = decoding.Format((image_size, image_size))
    originals = tf.stack([decoding.decode_image(encoded, format) for _, encoded in sample])
    versions = [originals]
    for version in range(_VERSIONS):
        images, seeds = originals, input_pipeline.example_seeds(seed, version, range(len(sample)))
        for layer in layers:
            images = layer.augment(images, seeds)
        versions.append(images)
    images = np.concatenate(np.stack(versions, axis=1))  # Row after row of the figure.
    captions = ["original", *(f"version {number + 1}" for number in range(_VERSIONS))]
    figures.picture_grid(images, captions, path, columns=len(versions))


def _check_some(sample: Sequence[tuple[Found, bytes]]) -> None:
    if not sample:
        raise UserError("figure: none of the pictures can be decoded; mend them first")
