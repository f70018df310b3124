"""Image files that tests make: noise, of which no two neighbouring pixels are alike."""

import io

import numpy as np
from PIL import Image


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of a mode of Pillow's; its alpha is noise too."""
    rng = np.random.default_rng([seed, width, height])
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
    return image


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    """The file that Pillow writes; `options` are those of `Image.save`."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def turned(orientation: int, big_endian: bool = False) -> bytes:
    """EXIF data with an orientation, for `encode(..., exif=...)`."""
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    exif[0x010F] = "camera"  # One entry before it, whose value lies elsewhere.
    exif[0x0112] = orientation
    return exif.tobytes()
