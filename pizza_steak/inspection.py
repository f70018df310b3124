"""Inspects a dataset: counts, sizes, formats, duplicates and unreadable images.

An archive is read in one pass, without TensorFlow. No records are written.
"""

import builtins
import collections
import dataclasses
import hashlib
import heapq
import json
import random
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pizza_steak import decoding, figures
from pizza_steak.archive import Archive, ReadingOptions, read_archive
from pizza_steak.atomic import output_file
from pizza_steak.configuration import InspectConfig, TransformConfig
from pizza_steak.errors import UserError
from pizza_steak.tensorflow_import import import_tensorflow
from pizza_steak.text_width import padded, text_width

_SPLITS = ("train", "validation", "test")
# Images in a grid, images in the figure of the augmentation, and versions of each.
_SAMPLE, _AUGMENTED, _VERSIONS = 24, 4, 5
_MOST_LISTED = 10
# What faults are looked for with: they do not depend on the size.
_SMALL = (8, 8)


@dataclasses.dataclass(frozen=True)
class Found:
    """One image.

    Attributes:
      filename: Path below the archive's root.
      split: "train", "validation" or "test".
      label: Class name.
      bytes: Size of the file.
      digest: SHA-256 of the file.
      format: "JPEG", "PNG" and so on, by content; None if it is no image.
      size: Width and height in pixels when upright; None if it is no image.
      turned: Whether its EXIF orientation rotates or mirrors it.
      fault: Why training cannot decode it, or None.
    """

    filename: str
    split: str
    label: str
    bytes: int
    digest: builtins.bytes
    format: str | None
    size: tuple[int, int] | None
    turned: bool
    fault: str | None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The findings about a dataset.

    Attributes:
      name: Name of the dataset.
      left_out: Number of files that are no examples, by kind.
      images: All images, readable or not.
      sample: Readable images, drawn at random, with their pixels for each figure.
    """

    name: str
    left_out: Mapping[str, int]
    images: Sequence[Found]
    sample: Sequence[tuple[Found, Mapping[str, np.ndarray]]]

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of images by split and class, unreadable ones included."""
        found = collections.Counter((image.split, image.label) for image in self.images)
        splits = sorted({split for split, _ in found}, key=_SPLITS.index)
        classes = sorted({label for _, label in found})
        return {split: {label: found[split, label] for label in classes} for split in splits}

    def formats(self) -> dict[str, int]:
        """Returns the number of images of each format, the most frequent first."""
        counts = collections.Counter(image.format or "no image" for image in self.images)
        return dict(counts.most_common())

    def measures(self) -> dict[str, dict[str, float]]:
        """Returns least, median and most of widths, heights, aspect ratios (w / h) and bytes."""
        sizes = [image.size for image in self.images if image.size]
        columns: dict[str, list[float]] = {
            "width": [width for width, _ in sizes],
            "height": [height for _, height in sizes],
            "aspect_ratio": [width / height for width, height in sizes],
            "bytes": [image.bytes for image in self.images],
        }
        return {
            name: {"least": min(values), "median": statistics.median(values), "most": max(values)}
            for name, values in columns.items()
            if values
        }

    def turned(self) -> int:
        """Returns how many images training rotates or mirrors by their EXIF orientation."""
        return sum(image.turned for image in self.images)

    def broken(self) -> dict[str, str]:
        """Returns why images cannot be decoded, by filename."""
        return {image.filename: image.fault for image in self.images if image.fault}

    def duplicates(self) -> list[list[Found]]:
        """Returns groups of images whose files have the same bytes, two or more in each."""
        groups = collections.defaultdict(list)
        for image in self.images:
            groups[image.digest].append(image)
        return [group for group in groups.values() if len(group) > 1]

    def to_json(self) -> dict[str, Any]:
        """Returns all findings except the images themselves."""
        return {
            "name": self.name,
            "images": len(self.images),
            "counts": self.counts(),
            "formats": self.formats(),
            "measures": self.measures(),
            "turned_by_exif": self.turned(),
            "left_out": dict(self.left_out),
            "broken": self.broken(),
            "duplicates": [
                {
                    "files": [image.filename for image in group],
                    "leakage": _leaks(group),
                    "contradiction": _contradicts(group),
                }
                for group in self.duplicates()
            ],
        }

    def summary(self) -> str:
        """Returns all findings as text; what spoils a training comes last."""
        return "\n\n".join([self._count_table(), self._measure_table(), self._findings()])

    def _count_table(self) -> str:
        counts = self.counts()
        classes = next(iter(counts.values()))
        rows = {label: [split[label] for split in counts.values()] for label in classes}
        rows["all classes"] = [sum(split.values()) for split in counts.values()]
        width = max(map(text_width, rows)) + 2
        megabytes = sum(image.bytes for image in self.images) / 1e6
        lines = [
            f"{self.name}: {len(self.images):,} images of {len(classes)} classes, "
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
    return len({image.split for image in group}) > 1


def _contradicts(group: Iterable[Found]) -> bool:
    return len({image.label for image in group}) > 1


def _equal(group: Iterable[Found]) -> str:
    return " = ".join(image.filename for image in group)


def _row(name: str, cells: Iterable[str], width: int) -> str:
    return padded(name, width) + "".join(f"{cell:>12}" for cell in cells)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _listed(texts: Iterable[str]) -> list[str]:
    """Returns one line for each text, but not too many."""
    texts = list(texts)
    more = [f"and {len(texts) - _MOST_LISTED:,} more: see --json"] * (len(texts) > _MOST_LISTED)
    return [f"    {text}" for text in texts[:_MOST_LISTED] + more]


def report(config: InspectConfig) -> str:
    """Inspects an archive or a dataset, and writes the files that are asked for.

    Returns:
      The findings and the figures that were written, as text.

    Raises:
      UserError: The archive, the dataset or the augmentation is wrong, or a file cannot be written.
    """
    source, findings = config.source, config.findings
    if bool(findings.augmented) != (config.transform != TransformConfig()):
        raise UserError(
            "augmented: expected both a file and flags of the augmentation, such as "
            "--augmented=augmented.png --rotation_range=20"
        )
    shrink: dict[str, Callable[[bytes], np.ndarray]] = {}
    if findings.grid:
        shrink["grid"] = lambda file: np.asarray(decoding.upright_image(file, figures.LONGEST))
    if findings.augmented:
        size = (findings.image_size, findings.image_size)
        format = decoding.Format(size, max_pixels=source.max_pixels)
        shrink["augmented"] = lambda file: decoding.decode_image(file, format)
    options: dict[str, Any] = {
        "seed": findings.seed,
        "max_pixels": source.max_pixels,
        "shrink": shrink,
    }
    cautions: list[str] = []
    if source.archive:
        listed = read_archive(source.archive, ReadingOptions.of(source))
        found = inspect(str(listed.path), listed.left_out, _examples(listed), **options)
        cautions = [f"caution     {text}" for text in listed.warnings]
    else:
        assert source.dataset  # The flags require an archive or a dataset.
        found = _inspect_dataset(source.dataset, source.data_dir, options)
    if findings.json:
        with output_file(findings.json) as temporary:
            temporary.write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    lines = [found.summary(), *cautions]
    if findings.grid:
        draw_grid([(image, drawn["grid"]) for image, drawn in found.sample], findings.grid)
        lines.append(f"figure saved to {findings.grid}")
    if findings.augmented:
        images = [drawn["augmented"] for _, drawn in found.sample[:_AUGMENTED]]
        draw_augmented(images, findings.augmented, findings.seed, config.transform)
        lines.append(f"figure saved to {findings.augmented}")
    return "\n".join(lines)


def inspect(
    name: str,
    left_out: Mapping[str, int],
    examples: Iterable[tuple[str, str, str, bytes]],
    *,
    seed: int = 42,
    max_pixels: int = decoding.MAX_PIXELS,
    shrink: Mapping[str, Callable[[bytes], np.ndarray]] | None = None,
) -> Inspection:
    """Inspects every image once; keeps only a sample of them in memory, shrunk.

    Args:
      name: Name of the dataset.
      left_out: Number of files that are no examples, by kind.
      examples: Split, class name, filename and encoded image of each example.
      seed: Seed for drawing the sample.
      max_pixels: Images of more pixels cannot be decoded.
      shrink: Functions that return the pixels for a figure from an image file, by its name.
    """
    images: list[Found] = []
    sample: list[tuple[float, Found, Mapping[str, np.ndarray]]] = []
    format = decoding.Format(_SMALL, max_pixels=max_pixels)
    for split, label, filename, encoded in examples:
        found = _look(split, label, filename, encoded, format)
        images.append(found)
        # The images with the largest random numbers are a fair sample of any number of images.
        number = random.Random(f"{seed} {filename}").random()
        if found.fault is None and (len(sample) < _SAMPLE or number > sample[-1][0]):
            drawn = {figure: of_file(encoded) for figure, of_file in (shrink or {}).items()}
            sample = heapq.nlargest(_SAMPLE, [*sample, (number, found, drawn)], lambda s: s[0])
    return Inspection(name, left_out, images, [entry[1:] for entry in sample])


def _look(split: str, label: str, filename: str, encoded: bytes, small: decoding.Format) -> Found:
    kind, size, turn = None, None, 1

    def decode(encoded: bytes, format: decoding.Format) -> np.ndarray:
        nonlocal kind, size, turn
        with decoding.open_image(encoded) as image:
            kind, size = image.format, image.size
            if kind in ("JPEG", "MPO"):
                pixels = decoding.decode_image(encoded, format)
            else:
                pixels = decoding.decode_opened(image, format)
            turn = decoding.orientation(image)
            size = image.size[::-1] if turn >= 5 else image.size
            return pixels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, (fault,) = decoding.decode_images(1, lambda place: encoded, small, decode)
    return Found(
        filename=filename,
        split=split,
        label=label,
        bytes=len(encoded),
        digest=hashlib.sha256(encoded).digest(),
        format=kind,
        size=size,
        turned=turn > 1,
        fault=fault or None,
    )


def _examples(archive: Archive) -> Iterator[tuple[str, str, str, bytes]]:
    for split in archive.splits:
        for image, encoded in archive.read(split):
            yield split, image.label, image.filename, encoded


def _inspect_dataset(dataset: str, data_dir: str | None, options: Mapping[str, Any]) -> Inspection:
    tf = import_tensorflow()
    from pizza_steak import records

    prepared = records.prepare(dataset, data_dir=data_dir)

    def examples() -> Iterator[tuple[str, str, str, bytes]]:
        for split in prepared.builder.info.splits:
            for row in prepared.rows(split):
                (encoded,) = prepared.read(tf.constant([row])).numpy()
                label = prepared.classes[prepared.labels[row]]
                yield split, label, prepared.filenames[row], encoded

    return inspect(prepared.builder.info.full_name, {}, examples(), **options)


def draw_grid(sample: Sequence[tuple[Found, np.ndarray]], path: str) -> None:
    """Draws images with their classes and sizes.

    Raises:
      UserError: There is no image, or the file cannot be written.
    """
    _check_some(sample)
    captions = []
    for found, _ in sample:
        assert found.size  # It is readable.
        captions.append(f"{found.label}\n{found.size[0]} x {found.size[1]}, {found.split}")
    figures.picture_grid([pixels for _, pixels in sample], captions, path)


def draw_augmented(
    images: Sequence[np.ndarray], path: str, seed: int, transform: TransformConfig
) -> None:
    """Draws images of the same size, a row each, beside augmented versions of them.

    Raises:
      UserError: There is no image, an argument of the augmentation is wrong, or the file cannot be
        written.
    """
    _check_some(images)
    tf = import_tensorflow()
    from pizza_steak import input_pipeline
    from pizza_steak.augmentation import augmentation_layers

    try:
        layers = augmentation_layers(transform)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    originals = tf.stack(images)
    versions = [originals]
    for version in range(_VERSIONS):
        changed, seeds = originals, input_pipeline.example_seeds(seed, version, range(len(images)))
        for layer in layers:
            changed = layer.augment(changed, seeds)
        versions.append(changed)
    rows = np.concatenate(np.stack(versions, axis=1))
    captions = ["original", *(f"version {number + 1}" for number in range(_VERSIONS))]
    figures.picture_grid(rows, captions, path, columns=len(versions))


def _check_some(images: Sequence[Any]) -> None:
    if not images:
        raise UserError("figure: none of the images can be decoded; repair them first")
