"""Writes images with their predictions below them."""

import collections
import csv
import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tqdm
from PIL import Image, ImageDraw, ImageFont

from pizza_steak import atomic, decoding, fonts
from pizza_steak.errors import UserError, told
from pizza_steak.text_width import printable, spreadsheet_cell
from trainers.finished.sources import Source

# It names the images of a folder, so that the folder is known again.
LISTING = "predictions.csv"
# Pixels of the longer side: larger images are downscaled, smaller ones enlarged.
_LONGEST, _SHORTEST = 1024, 320
_LEAST_TEXT = 10  # Pixels.


def check_folder(path: str) -> None:
    """Checks that a folder can be written, and is missing or empty or was made by `write`.

    Raises:
      UserError: It cannot be written, holds other files, or is a file.
    """
    folder = pathlib.Path(path).expanduser()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"annotate {folder}: {there} cannot be written; pass another --annotate")
    try:
        ours = atomic.holds_only(folder, (LISTING, *_listed(folder)))
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not ours:
        raise UserError(
            f"annotate {folder}: holds other files; pass another --annotate, a new folder"
        )


def write(path: str, labels: Mapping[Source, Sequence[tuple[str, float]]]) -> None:
    """Writes each image with its classes and probabilities below it, and a list of them.

    Images of an earlier call are removed.

    Args:
      path: The folder.
      labels: For each image, one or more class names and their probabilities.

    Raises:
      UserError: The folder holds other files or cannot be written, or an image cannot be read.
    """
    check_folder(path)
    folder = pathlib.Path(path).expanduser()
    names = distinct_names([source.path for source in labels])
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "path", "class", "probability"])
    for source, found in labels.items():
        name, probability = found[0]
        cells = map(spreadsheet_cell, (names[source.path], source.path, name))
        writer.writerow([*cells, probability])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _listed(folder) - set(names.values()):
            atomic.remove(folder / name)
        with atomic.atomic_path(folder / LISTING) as temporary:
            temporary.write_text(table.getvalue(), encoding="utf-8")
        for source, found in tqdm.tqdm(labels.items(), "annotating", unit=" images", disable=None):
            lines = [f"{printable(name)} {100 * probability:.0f} %" for name, probability in found]
            image = annotated(_read(source), lines)
            with atomic.atomic_path(folder / names[source.path]) as temporary:
                image.save(temporary, "JPEG", quality=90)
    except OSError as error:
        raise _unwritable(folder, error) from error


def annotated(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Returns an RGB image with lines of text below it, in letters that fit its width."""
    file = fonts.file_for(lines)
    index = getattr(file, "face_index", 0)  # Matplotlib 3.10 has none.
    margin = max(4, image.width // 50)
    size = max(_LEAST_TEXT, image.width // 20)
    font = ImageFont.truetype(file, size, index)
    if (width := max(map(font.getlength, lines))) > (room := image.width - 2 * margin):
        font = ImageFont.truetype(file, max(_LEAST_TEXT, int(size * room / width)), index)
    line_height = sum(font.getmetrics())
    height = image.height + 2 * margin + line_height * len(lines)
    result = Image.new("RGB", (image.width, height), "white")
    result.paste(image)
    draw = ImageDraw.Draw(result)
    for number, line in enumerate(lines):
        draw.text((margin, image.height + margin + number * line_height), line, "black", font)
    return result


def distinct_names(paths: Sequence[str]) -> dict[str, str]:
    """Returns the name of a JPEG for each path: its end, as far as it tells it from other paths.

    Of `a/1.png`, `b/1.png` and `2.jpg`: `a_1.jpg`, `b_1.jpg` and `2.jpg`.
    """
    parts = {
        path: [part for part in pure.parts if part not in (pure.anchor, "..")]
        for path in paths
        for pure in [pathlib.PurePath(path)]
    }
    lengths = dict.fromkeys(parts, 1)

    def name(path: str) -> str:
        return pathlib.PurePath("_".join(parts[path][-lengths[path] :])).stem

    def alike() -> Iterator[str]:
        # Some file systems do not tell capitals from small letters.
        counts = collections.Counter(name(path).casefold() for path in parts)
        return (path for path in parts if counts[name(path).casefold()] > 1)

    while longer := [path for path in alike() if lengths[path] < len(parts[path])]:
        for path in longer:
            lengths[path] += 1
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in parts:  # Those that are still alike differ in their suffixes alone, or in capitals.
        numbered = itertools.chain([name(path)], (f"{name(path)}-{n}" for n in itertools.count(2)))
        names[path] = next(text for text in numbered if text.casefold() not in taken)
        taken.add(names[path].casefold())
    return {path: f"{text}.jpg" for path, text in names.items()}


def _listed(folder: pathlib.Path) -> set[str]:
    """Returns the names of the images that `write` has listed in a folder, and that are there."""
    listing = folder / LISTING
    if not listing.is_file():
        return set()
    with listing.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            named = {row.get("file") for row in csv.DictReader(file)}
        except csv.Error:  # Not a list of ours.
            return set()
    return {name for name in os.listdir(folder) if spreadsheet_cell(name) in named}


def _read(source: Source) -> Image.Image:
    try:
        image = decoding.upright_image(source.read(), _LONGEST)
    except Exception as error:  # From the file, the zip or one of Pillow's decoders.
        raise UserError(f"image {source.path}: {' '.join(str(error).split())}") from error
    scale = _SHORTEST / max(image.size)
    if scale <= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)))


def _unwritable(folder: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"annotate {folder}: {told(error)}; pass another --annotate")
