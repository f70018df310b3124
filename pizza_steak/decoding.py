"""Decodes one image file: turned upright and resized, with the pixels of Pillow.

TensorFlow is imported only for its own resize methods.
"""

import contextlib
import dataclasses
import errno
import importlib.util
import io
import re
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, TiffImagePlugin

from pizza_steak.errors import MachineError, UserError

INTERPOLATIONS = (
    "bilinear",
    "nearest",
    "bicubic",
    "lanczos3",
    "lanczos5",
    "area",
    "gaussian",
    "mitchellcubic",
)
ASPECT_RATIOS = ("stretch", "crop", "pad")
# By ImageDataGenerator's names.
CHANNELS = {"rgb": 3, "grayscale": 1, "rgba": 4}
EXIF = ("apply", "ignore")
# The formats that `decode_image` reads, by Pillow's names: no other decoder sees the bytes.
KINDS: tuple[str, ...] = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")

# Part of the name of a decoded array: increase it when `decode_image` changes its pixels, or
# refuses other images.
_DECODER_VERSION = 7
# The default limit of an image's pixels, above which Pillow warns of a decompression bomb: more
# than the 61 million of full-frame cameras. Pillow refuses more than twice as many.
MAX_PIXELS = 89_478_485
MOST_PIXELS = 2 * MAX_PIXELS
# The longest side of a JPEG. To shrink a longer one, Pillow needs a table of its length.
MAX_SIDE = 65_535
# Progressive JPEGs have about 10 scans. Each is a pass over all pixels, and takes 100 bytes.
MAX_SCANS = 100
# What else Pillow takes long over: parts of a TIFF, comments in a PPM of text.
_MAX_TIFF_PARTS, _MAX_COMMENTS = 2**18, 100_000
# Images of more pixels are decoded one at a time, because one may take 20 bytes per pixel.
_LARGE = 2**25
_one_large_image = threading.Lock()
# Bytes per pixel, and besides, that any decoder finds if memory is not short.
_BYTES_PER_PIXEL, _SPARE_BYTES = 20, 2**28
# Faults of the machine, not of an image or its path.
_MACHINE_FAULTS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC}
# The smaller sizes at which libjpeg decodes, as divisors.
JPEG_SCALES = (8, 4, 2)
# The filters that Pillow also has; with antialias their pixels are Pillow's.
PILLOW_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos3": Image.Resampling.LANCZOS,
}
# The EXIF orientations (CIPA DC-008, 4.6.5) of images that are mirrored to be upright, after those
# from 5 on were transposed.
MIRRORED_DOWN, MIRRORED_ACROSS = (3, 4, 7, 8), (2, 3, 6, 7)
# A JPEG's markers between its segments and scans, but those without a segment.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
# Bytes 4 to 12 of a HEIC file.
_HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")

Image.init()  # Now, because threads must not do it at the same time.
if importlib.util.find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    KINDS += ("HEIF",)


@dataclasses.dataclass(frozen=True)
class Format:
    """The format of decoded images: an image's bytes and its format determine its pixels.

    Attributes:
      size: Height and width, in pixels.
      interpolation: One of `INTERPOLATIONS`. "nearest" takes Pillow's pixels, as
        ImageDataGenerator does. With `antialias`, "bilinear", "bicubic" and "lanczos3" are
        Pillow's; all others are methods of `tf.image.resize`.
      aspect_ratio: One of `ASPECT_RATIOS`, how to fit images of another aspect ratio. "crop" keeps
        the largest part of the middle, as ImageDataGenerator's keep_aspect_ratio does; "pad" adds
        black bars on two sides, as pad_to_aspect_ratio of image_dataset_from_directory does.
      color_mode: A key of `CHANNELS`. "grayscale" weights colours as Pillow does (ITU-R 601-2);
        "rgba" is opaque if the image has no alpha; "rgb" and "grayscale" drop alpha.
      antialias: Whether to antialias when downscaling; "area" always does and "nearest" never.
      exif: "apply" turns images upright by their EXIF orientation; "ignore" leaves them as stored.
      max_pixels: Images of more pixels are refused before they are decoded.

    Raises:
      UserError: `max_pixels` is not a whole number from 1 to `MOST_PIXELS`.
    """

    size: tuple[int, int]
    interpolation: str = "bilinear"
    aspect_ratio: str = "stretch"
    color_mode: str = "rgb"
    antialias: bool = True
    exif: str = "apply"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not isinstance(self.max_pixels, int) or not 1 <= self.max_pixels <= MOST_PIXELS:
            raise UserError(
                f"max_pixels {self.max_pixels!r}: expected a whole number from 1 to {MOST_PIXELS}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image."""
        return *self.size, CHANNELS[self.color_mode]

    @property
    def name(self) -> str:
        """Part of a file's name, different for every format."""
        height, width = self.size
        parts = [f"{height}x{width}", self.interpolation, self.aspect_ratio, self.color_mode]
        parts += ["antialias"] * self.antialias + ["stored"] * (self.exif == "ignore")
        # Another limit refuses other images.
        return "-".join((*parts, f"{self.max_pixels}px", f"v{_DECODER_VERSION}"))

    @property
    def resized_by_pillow(self) -> bool:
        """Whether the filter is Pillow's antialiased one."""
        return self.antialias and self.interpolation in PILLOW_FILTERS


def size_of(image_size: float | Sequence[float]) -> tuple[int, int]:
    """Returns the height and width of an image size: one number for both, or two.

    Raises:
      UserError: It is neither one whole number of pixels nor two.
    """
    single = isinstance(image_size, float | int)
    size = [image_size] * 2 if single else list(image_size)  # type: ignore[arg-type]
    whole = [length for length in size if isinstance(length, int) and length > 0]
    if not len(size) == len(whole) == 2:
        raise UserError(
            f"image_size {','.join(map(str, size))}: expected whole pixels, one number for both "
            "height and width, or two"
        )
    return whole[0], whole[1]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The part of an image that is kept, and its place in the result; in pixels, y before x.

    Attributes:
      corner: Upper left corner of the part.
      box: Height and width of the part.
      inner: Height and width of the resized part.
      margin: Upper left corner of the resized part in the result.
    """

    corner: tuple[int, int]
    box: tuple[int, int]
    inner: tuple[int, int]
    margin: tuple[int, int]


def place(height: Any, width: Any, format: Format, xp: Any = np) -> Placement:
    """Places an upright image of a height and width in the result.

    Args:
      height: In pixels: a number, or a scalar int32 tensor if `xp` is TensorFlow's.
      width: Like `height`.
      format: The format; its size and aspect_ratio are used.
      xp: The functions to compute with: `numpy`, or `tensorflow.experimental.numpy` in a graph.
    """
    target_height, target_width = format.size
    corner, margin, box, inner = (0, 0), (0, 0), (height, width), format.size
    if format.aspect_ratio == "crop":
        # The largest box in the middle with the aspect ratio of the size.
        box_height = xp.minimum(height, width * target_height // target_width)
        box_width = xp.minimum(width, height * target_width // target_height)
        corner = (height - box_height) // 2, (width - box_width) // 2
        box = xp.maximum(box_height, 1), xp.maximum(box_width, 1)
    elif format.aspect_ratio == "pad":
        # As tf.image.resize_with_pad: in float32, rounded down.
        def quotient(dividend: Any, divisor: Any) -> Any:
            # In float64, because a graph may multiply by the inverse of a constant instead.
            dividend, divisor = (xp.asarray(n, xp.float64) for n in (dividend, divisor))
            return xp.asarray(dividend / divisor, xp.float32)

        def whole(length: Any) -> Any:
            return xp.maximum(xp.asarray(length, xp.int32), 1)

        def half(length: Any) -> Any:
            return xp.asarray(length / 2, xp.int32)

        ratio = xp.maximum(quotient(height, target_height), quotient(width, target_width))
        inner_height, inner_width = quotient(height, ratio), quotient(width, ratio)
        inner = whole(inner_height), whole(inner_width)
        margin = half(target_height - inner_height), half(target_width - inner_width)
    return Placement(corner, box, inner, margin)


def scale_fits(scale: int, placed: Placement) -> Any:
    """Returns whether a JPEG may be decoded at 1 / scale of its size before an antialiased resize.

    libjpeg's smaller sizes are means of blocks: cheaper to decode and to resize, but slightly
    different. With these limits, the mean difference from a full decode is at most 1.5 of 255 for
    photographs. A scale that gives the final size is refused: no filter would follow, and the image
    would be sharper than others.

    Args:
      scale: 2, 4 or 8.
      placed: The placement; in a graph, of scalar tensors.
    """
    least = {2: 6, 4: 8, 8: 10}[scale]  # Sevenths of the final size that must remain.
    (box_height, box_width), (height, width) = placed.box, placed.inner
    height, width = height * scale, width * scale
    large_enough = (box_height * 7 >= height * least) & (box_width * 7 >= width * least)
    filtered = (abs(box_height - height) * 50 >= height) | (abs(box_width - width) * 50 >= width)
    return large_enough & filtered


def halving_suffices(scale: Any, placed: Placement, format: Format) -> Any:
    """Returns whether a JPEG decoded at half its size hardly needs to be antialiased further.

    Then OpenCV's bilinear resize without antialias, which takes a third of the time, also stays
    within the bound of `scale_fits`.

    Args:
      scale: Scale of the decoded image; in a graph, a scalar tensor.
      placed: The placement; in a graph, of scalar tensors.
      format: The format. Cropped images are refused: the edges of the crop lie between pixels.
    """
    if format.aspect_ratio == "crop":
        return False
    (box_height, box_width), (height, width) = placed.box, placed.inner
    return (scale == 2) & (box_height * 3 <= height * 8) & (box_width * 3 <= width * 8)


def decode_image(encoded: bytes, format: Format) -> np.ndarray:
    """Decodes one image into a format.

    It takes the first frame of an animation, and the upper 8 of 16 bits of a channel. Whether it
    refuses an image depends on its bytes and on `format.max_pixels`, not on the rest of the format.

    Args:
      encoded: The bytes of a file of one of `KINDS`.
      format: The format of the result.

    Returns:
      uint8 array of shape `format.shape`, values 0 to 255.

    Raises:
      MemoryError: There is too little memory.
      Exception: The bytes are not an image, incomplete, or have too many pixels or scans; each of
        Pillow's decoders raises its own kind.
    """
    pixels = _decode_jpeg(encoded, format)
    if pixels is not None:
        return pixels
    with open_image(encoded) as image:
        return decode_opened(image, format)


def decode_images(
    count: int,
    read: Callable[[int], bytes],
    format: Format,
    decode: Callable[[bytes, Format], np.ndarray] = decode_image,
) -> tuple[np.ndarray, list[str]]:
    """Decodes a batch of images.

    Args:
      count: Number of images.
      read: Returns the bytes of an image, by its index in the batch.
      format: The format of the result.
      decode: Decodes one of them.

    Returns:
      uint8 array of shape (count, height, width, channels), zeros for images that cannot be read or
      decoded; and for each image the reason why not, or "".

    Raises:
      MachineError: Memory is short or a disk fails, whatever the image.
    """
    faults = [""] * count
    try:
        images = np.zeros((count, *format.shape), np.uint8)
        for place in range(count):
            encoded = b""
            try:
                encoded = read(place)
                images[place] = decode(encoded, format)
            except (MemoryError, MachineError):
                raise
            except Exception as error:  # From the file, the zip or one of Pillow's decoders.
                if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
                    raise MachineError(f"images: cannot be read: {error.strerror}") from error
                _check_memory(encoded, format)
                faults[place] = _reason(error, encoded)
    except MemoryError as error:
        raise MachineError(
            "memory: too little to decode images; free memory, or pass a smaller --max_pixels than "
            f"{format.max_pixels}"
        ) from error
    return images, faults


def _check_memory(encoded: bytes, format: Format) -> None:
    """Checks that memory was not short when an image was not decoded.

    Pillow then says of progressive JPEG, WebP, AVIF and HEIC files that they are broken.

    Raises:
      MemoryError: It is short.
    """
    pixels = 0
    try:
        with open_image(encoded) as image:
            pixels = image.width * image.height
    except MemoryError:
        raise
    except Exception:
        pass  # The header is broken.
    needed = _BYTES_PER_PIXEL * pixels if pixels <= format.max_pixels else 0
    np.empty(_SPARE_BYTES + needed, np.uint8)


def open_image(encoded: bytes) -> Image.Image:
    """Opens an image of one of `KINDS`, without decoding its pixels.

    Raises:
      OSError: The format is unknown; the image has more than `MOST_PIXELS`, or too many scans or
        other parts; or a PNG has no end, which Pillow would accept.
    """
    if encoded[:2] in (b"II", b"MM") and (parts := _tiff_parts(encoded)) > _MAX_TIFF_PARTS:
        raise OSError(f"{parts:,} strips or tiles, expected at most {_MAX_TIFF_PARTS:,}")
    if encoded[:2] in (b"P1", b"P2", b"P3") and encoded.count(b"#") > _MAX_COMMENTS:
        raise OSError(f"more than {_MAX_COMMENTS:,} comments")
    try:
        image = Image.open(io.BytesIO(encoded), formats=KINDS)
    except Image.DecompressionBombError as error:
        raise OSError(f"more than {MOST_PIXELS:,} pixels; shrink it") from error
    _check_scans(encoded)
    if image.format == "PNG" and b"IEND" not in encoded:
        raise OSError("image file is truncated")
    return image


def _check_pixels(width: int, height: int, format: Format) -> None:
    """Checks the size in the header of an image, before the image is decoded.

    Raises:
      OSError: It has too many pixels, or a side is too long.
    """
    if max(width, height) > MAX_SIDE:
        raise OSError(
            f"{width:,} x {height:,} pixels, expected at most {MAX_SIDE:,} on each side; cut it up"
        )
    if width * height > format.max_pixels:
        raise OSError(
            f"{width:,} x {height:,} are {width * height:,} pixels, expected at most "
            f"{format.max_pixels:,}; shrink it, or pass a larger --max_pixels"
        )


def _check_scans(encoded: bytes) -> None:
    """Checks the number of scans of an image, before it is decoded.

    Raises:
      OSError: It is a JPEG with too many.
    """
    # Counting all is fast, but some may be behind the end of the JPEG, or in its thumbnail.
    values = np.frombuffer(encoded, np.uint8)
    most = np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA))
    if most > MAX_SCANS and (scans := _scans(encoded)) > MAX_SCANS:
        raise OSError(f"{scans:,} scans, expected at most {MAX_SCANS}; save it as a new JPEG")


def _tiff_parts(encoded: bytes) -> int:
    """Returns the number of strips and tiles of a TIFF's first image, 0 if it is none."""
    file = io.BytesIO(encoded)
    try:
        head = file.read(16 if 43 in encoded[2:4] else 8)  # BigTIFF has a longer one.
        directory = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(directory.next)
        directory.load(file)
        offsets = (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS)
        return sum(np.size(directory.get(tag, ())) for tag in offsets)
    except MemoryError:
        raise
    except Exception:  # `Image.open` says why.
        return 0


def _scans(encoded: bytes) -> int:
    """Returns the number of scans in a JPEG, 0 for other files."""
    scans, start = 0, 2
    if not encoded.startswith(b"\xff\xd8"):
        return 0
    while (found := _MARKER.search(encoded, start)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        start = found.end() + int.from_bytes(encoded[found.end() : found.end() + 2], "big")
    return scans


def _alone_if_large(pixels: int) -> contextlib.AbstractContextManager[Any]:
    return _one_large_image if pixels > _LARGE else contextlib.nullcontext()


def upright_image(encoded: bytes, longest: int) -> Image.Image:
    """Decodes an image upright and in its own aspect ratio, as RGB.

    Args:
      encoded: The bytes of a file that `decode_image` decodes.
      longest: The pixels of the longer side; larger images are downscaled, smaller ones are not
        enlarged.

    Raises:
      Exception: As for `decode_image`.
    """
    with open_image(encoded) as image, _alone_if_large(image.width * image.height):
        turn = orientation(image)
        image.draft(None, (longest, longest))  # JPEGs need not be decoded at their full size.
        upright = _converted(image, "rgb")
        upright.thumbnail((longest, longest))
    return _turned_image(upright, turn)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation to apply, 1 (upright) to 8.

    Raises:
      Exception: A PNG or TIFF cannot be decoded.
    """
    # Pillow turns a TIFF when it loads it. It looks for EXIF data at a PNG's end, and loads it
    # before: that must not fail here unseen, because Pillow then gives what it has of the image.
    if image.format in ("PNG", "TIFF"):
        image.load()
    try:
        found: Any = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # Damaged EXIF data is no reason to refuse the image.
        return 1
    return found if found in range(1, 9) else 1


def decode_opened(image: Image.Image, format: Format) -> np.ndarray:
    """Does what `decode_image` does with an image of `open_image`, for JPEGs at full size."""
    _check_pixels(image.width, image.height, format)
    with _alone_if_large(image.width * image.height):
        turn = orientation(image) if format.exif == "apply" else 1
        upright = _turned_image(_converted(image, format.color_mode), turn)
        return _fitted(upright, place(upright.height, upright.width, format), 1, format)


def _decode_jpeg(encoded: bytes, format: Format) -> np.ndarray | None:
    """Returns a JPEG decoded into a format, or None if unsure.

    simplejpeg calls the same libjpeg as Pillow and gives the same pixels in two thirds of the time.
    """
    try:
        stored_height, stored_width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:  # simplejpeg is stricter than Pillow.
        return None
    if colors in ("CMYK", "YCCK"):
        return None
    _check_pixels(stored_width, stored_height, format)
    _check_scans(encoded)
    turn = 1
    if format.exif == "apply" and not _is_upright(encoded):
        try:
            with open_image(encoded) as image:
                turn = orientation(image)
        except OSError:  # Pillow is stricter than simplejpeg.
            turn = 1
    upright = (stored_width, stored_height) if turn >= 5 else (stored_height, stored_width)
    placed = place(*upright, format)
    # The limits of `scale_fits` were measured for bilinear.
    scales = JPEG_SCALES if format.antialias and format.interpolation == "bilinear" else ()
    scale = next((scale for scale in scales if scale_fits(scale, placed)), 1)
    height, width = -(-stored_height // scale), -(-stored_width // scale)
    with _alone_if_large(height * width):
        try:
            pixels = simplejpeg.decode_jpeg(encoded, min_height=height, min_width=width)
        except ValueError:
            return None
        if pixels.shape != (height, width, 3):
            return None
        if format.color_mode != "rgb":
            pixels = _pixels(_converted(Image.fromarray(pixels), format.color_mode))
        return _fitted(_turned(pixels, turn), placed, scale, format)


def _is_upright(encoded: bytes) -> bool:
    """Returns whether a JPEG's `orientation` is surely 1, in a tenth of Pillow's time.

    It is tag 0x0112 of the first directory of the TIFF structure in segment APP1: CIPA DC-008, 4.5
    and 4.7.
    """
    try:
        start, segments = 2, []
        while (marker := encoded[start : start + 2]) != b"\xff\xda":  # The pixels follow.
            (length,) = struct.unpack_from(">H", encoded, start + 2)
            if marker == b"\xff\xe1":
                segments.append(encoded[start + 4 : start + 2 + length])
            start += 2 + length
        if not segments:
            return True
        (exif,) = segments  # Another segment may be XMP, which may also have an orientation.
        order = {b"Exif\0\0II*\0": "<", b"Exif\0\0MM\0*": ">"}[exif[:10]]
        directory = 6 + struct.unpack_from(order + "L", exif, 10)[0]
        (count,) = struct.unpack_from(order + "H", exif, directory)
        places = range(directory + 2, directory + 2 + 12 * count, 12)
        entries = [struct.unpack_from(order + "HHLH", exif, place) for place in places]
    except (struct.error, KeyError, ValueError):
        return False
    return all(
        (kind, values) == (3, 1) and turn not in range(2, 9)  # One number of 16 bits.
        for tag, kind, values, turn in entries
        if tag == ExifTags.Base.Orientation
    )


def _converted(image: Image.Image, color_mode: str) -> Image.Image:
    image.load()
    if image.mode == "P" and image.palette is None:  # `convert` has no answer but to some modes.
        raise OSError("the palette is missing")
    if image.mode.startswith("I;16"):  # `convert` would clip it at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGBA" if color_mode == "rgba" else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    return image.convert("L") if color_mode == "grayscale" else image


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Turns pixels upright by their orientation: transposed from 5 on, then mirrored."""
    if turn == 1:
        return pixels
    pixels = pixels.transpose(1, 0, 2) if turn >= 5 else pixels
    pixels = pixels[::-1] if turn in MIRRORED_DOWN else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if turn in MIRRORED_ACROSS else pixels)


def _turned_image(image: Image.Image, turn: int) -> Image.Image:
    """Does what `_turned` does, in less memory."""
    image = image.transpose(Image.Transpose.TRANSPOSE) if turn >= 5 else image
    image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if turn in MIRRORED_DOWN else image
    across = turn in MIRRORED_ACROSS
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if across else image


def _fitted(
    image: np.ndarray | Image.Image, placed: Placement, scale: int, format: Format
) -> np.ndarray:
    """Resizes and pads an upright image, which was decoded at 1 / scale of its size."""
    pixels = _resized(image, placed, scale, format)
    if pixels.shape == format.shape:
        return pixels
    padded = np.zeros(format.shape, np.uint8)
    (top, left), (height, width) = placed.margin, placed.inner
    padded[top : top + height, left : left + width] = pixels
    return padded


def _resized(
    image: np.ndarray | Image.Image, placed: Placement, scale: int, format: Format
) -> np.ndarray:
    (top, left), (box_height, box_width), (height, width) = placed.corner, placed.box, placed.inner
    if halving_suffices(scale, placed, format):
        assert isinstance(image, np.ndarray)  # Other scales than 1 are of JPEGs.
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        return resized.reshape(height, width, -1)
    if not format.resized_by_pillow and format.interpolation != "nearest":
        pixels = _pixels(image) if isinstance(image, Image.Image) else image
        part = pixels[top : top + box_height, left : left + box_width]
        return resize_by_tensorflow(part, (height, width), format).numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    if format.interpolation == "nearest":
        region = left, top, left + box_width, top + box_height
        return _pixels(image.resize((width, height), Image.Resampling.NEAREST, region))
    resample = PILLOW_FILTERS[format.interpolation]
    image = image.convert("RGBa") if image.mode == "RGBA" else image
    # One axis at a time: Pillow 13 takes the axes in another order, and rounds differently.
    box = left / scale, 0.0, (left + box_width) / scale, float(image.height)
    image = image.resize((width, image.height), resample, box)
    box = 0.0, top / scale, float(width), (top + box_height) / scale
    image = image.resize((width, height), resample, box)
    return _pixels(image.convert("RGBA") if image.mode == "RGBa" else image)


def resize_by_tensorflow(pixels: Any, size: Any, format: Format) -> Any:
    """Resizes an image, uint8 of shape (H, W, C), by `tf.image.resize`; returns uint8."""
    import tensorflow as tf

    antialias = format.antialias and format.interpolation != "area"
    resized = tf.image.resize(pixels, size, method=format.interpolation, antialias=antialias)
    if format.interpolation in ("bilinear", "area"):  # Means of pixels stay between 0 and 255.
        return tf.cast(resized + 0.5, tf.uint8)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def _reason(error: Exception, encoded: bytes) -> str:
    if encoded[4:12] in _HEIF_BRANDS and "HEIF" not in KINDS:
        return "HEIC: pip install pillow-heif reads it"
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return " ".join(text.split(" <_io.")[0].split())
