"""Makes a folder of one's own photographs out of an archive: what a stranger has on a disk.

python tests/own_photographs.py food4.zip my_photographs

It takes 60 images of each of the first three classes and writes them as phones and computers do: in
class folders alone, most as JPEG, some as PNG and WebP, one as HEIC (with the extra `heif`), 18 of
them turned by their EXIF orientation.
"""

import io
import pathlib
import sys

from images import turned
from PIL import Image, ImageOps

from pizza_steak import decoding
from pizza_steak.archive import read_archive

_PER_CLASS, _TURNED_PER_CLASS = 60, 6
# Which orientation undoes how an image is stored.
_STORED = {
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
    3: Image.Transpose.ROTATE_180,
}


def make(source: str, folder: pathlib.Path) -> None:
    """Writes the folder, which must not exist."""
    archive = read_archive(source)
    counts = dict.fromkeys(archive.classes[:3], 0)
    for name in counts:
        (folder / name).mkdir(parents=True)
    for picture, encoded in archive.read("train"):
        number = counts.get(picture.label, _PER_CLASS)
        if number < _PER_CLASS:
            counts[picture.label] += 1
            _write(folder / picture.label / f"IMG_{number:04}", number, encoded, archive.classes[0])


def _write(path: pathlib.Path, number: int, encoded: bytes, first: str) -> None:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    if number < _TURNED_PER_CLASS:
        orientation = list(_STORED)[number % len(_STORED)]
        stored = image.transpose(_STORED[orientation])
        stored.save(path.with_suffix(".jpg"), quality=90, exif=turned(orientation))
    elif number < 10:
        image.save(path.with_suffix(".png"))
    elif number < 14:
        image.save(path.with_suffix(".webp"))
    elif number == 14 and path.parent.name == first and "HEIF" in decoding.KINDS:
        image.save(path.with_suffix(".heic"))
    else:
        path.with_suffix(".jpg").write_bytes(encoded)


if __name__ == "__main__":
    make(sys.argv[1], pathlib.Path(sys.argv[2]))
