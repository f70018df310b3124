"""The flags of this package's commands: one frozen dataclass for each concern."""

import dataclasses
import re
from typing import Any

from pizza_steak.flags import Numbers, flag

# 100 million pixels an image.
MOST_PIXELS_A_SIDE = 10_000


def check_one_or_two(value: Any) -> None:
    """Raises a ValueError if a flag has more than two numbers."""
    if isinstance(value, tuple) and len(value) > 2:
        raise ValueError("expected one number or two")


def check_pair(value: Any) -> None:
    """Raises a ValueError if a flag is given and has not two numbers."""
    if value is not None and not (isinstance(value, tuple) and len(value) == 2):
        raise ValueError("expected two numbers")


def check_size(value: Any) -> None:
    """Raises a ValueError if a flag is given and is no number of pixels, and no two of them."""
    check_one_or_two(value)
    if any(
        isinstance(number, float) for number in (value if isinstance(value, tuple) else [value])
    ):
        raise ValueError("expected whole pixels, one number for both height and width, or two")


@dataclasses.dataclass(frozen=True)
class TransformConfig:
    """How to augment images, by ImageDataGenerator's arguments."""

    rotation_range: float = flag(
        0.0,
        "Degrees to rotate by, to either side.",
        common=True,
        aliases="rotate rotation degrees",
    )
    width_shift_range: Numbers = flag(
        0.0,
        "Like --height_shift_range, of the width; as in ImageDataGenerator it shifts vertically.",
        aliases="translate",
    )
    height_shift_range: Numbers = flag(
        0.0,
        "Fraction of the height (below 1), or pixels, to shift by to either side; of several "
        "numbers one is drawn. As in ImageDataGenerator it shifts horizontally (keras issue "
        "17398).",
    )
    shear_range: float = flag(0.0, "Degrees to shear by, to either side.")
    zoom_range: Numbers = flag(
        0.0,
        "Zoom by factors from 1 - z to 1 + z, or from the first to the second of two numbers.",
        check=check_one_or_two,
        common=True,
        aliases="zoom",
    )
    horizontal_flip: bool = flag(
        False,
        "Mirror half of the images left to right.",
        common=True,
        aliases="fliplr hflip mirror",
    )
    vertical_flip: bool = flag(
        False,
        "Mirror half of the images top to bottom.",
        aliases="flipud vflip",
    )
    fill_mode: str = flag(
        "nearest",
        "How to fill points beyond the edges.",
        ("constant", "nearest", "reflect", "wrap"),
    )
    cval: float = flag(0.0, "Value beyond the edges with --fill_mode=constant, 0 to 255.")
    interpolation_order: int = flag(
        1, "How to resample images: 1 is bilinear, 0 nearest.", minimum=0, maximum=1
    )
    brightness_range: Numbers | None = flag(
        None,
        "The smallest and the largest factor of the pixels, such as 0.8,1.2.",
        check=check_pair,
    )
    channel_shift_range: float = flag(
        0.0, "Largest value to add to all channels, to either side, of 255."
    )


def check_encoding(text: str | None) -> None:
    """Raises a ValueError if the text is not the name of an encoding."""
    try:
        b"a".decode(text or "utf-8")
    except (LookupError, UnicodeError) as error:
        raise ValueError(f"{text!r}: expected an encoding such as cp932") from error


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which images to inspect."""

    archive: str | None = flag(
        None,
        "Zip file or folder of class folders; or 'part-*.zip'. All that match a pattern are one "
        "data set.",
        one_of="source",
        common=True,
        aliases="data folder input path zip",
    )
    dataset: str | None = flag(
        None,
        "pizza_steak/photos (downloaded), pizza_steak/sample, or the name of prepared images.",
        one_of="source",
        common=True,
    )
    data_dir: str | None = flag(
        None, "Folder of the dataset's records; by default ~/tensorflow_datasets."
    )
    follow_links: bool = flag(
        False, "Follow links to folders, and to files elsewhere, in an --archive that is a folder."
    )
    zip_encoding: str | None = flag(
        None,
        "Encoding of the names in a zip that does not say it, such as cp932 for Japanese Windows.",
        check=check_encoding,
    )
    max_unpacked_gb: float | None = flag(
        None,
        "Most gigabytes that a zip, or all zips of a pattern, may unpack to; by default 1, or 100 "
        "times their size if that is more.",
        minimum=0.0,
    )
    max_pixels: int = flag(
        89_478_485,
        "Pixels of the largest image; larger ones count as unreadable, and are not decoded.",
        minimum=1,
        maximum=178_956_970,
    )


@dataclasses.dataclass(frozen=True)
class FindingsConfig:
    """Which files to write."""

    json: str | None = flag(
        None, "File for the findings, with all filenames, as JSON.", common=True
    )
    grid: str | None = flag(
        None, "File for a figure of random images.", common=True, aliases="plot"
    )
    augmented: str | None = flag(
        None,
        "File for a figure of random images, each beside augmented versions of it.",
        common=True,
    )
    seed: int = flag(42, "Seed for drawing the images and the versions.", minimum=0)
    image_size: int = flag(
        224,
        "Height and width of the augmented images, in pixels.",
        minimum=1,
        maximum=2048,
    )


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """All flags of `pizza_steak.inspect`."""

    source: SourceConfig = SourceConfig()
    findings: FindingsConfig = FindingsConfig()
    transform: TransformConfig = TransformConfig()


def seconds(text: str | None) -> int | None:
    """Returns the seconds of a duration such as 30d or 12h, or None for None.

    Raises:
      ValueError: The text is not such a duration.
    """
    if text is None:
        return None
    if not (match := re.fullmatch(r"([0-9]+)([dh])", text)):
        raise ValueError(f"{text!r}: expected days or hours, such as 30d or 12h")
    return int(match[1]) * {"d": 86400, "h": 3600}[match[2]]


def parse_fold(text: str | None) -> tuple[int, int] | None:
    """Returns the number of a part and the number of parts, such as (1, 4) of "1/4".

    Raises:
      ValueError: The text is not such a fraction.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"{text!r}: expected a part such as 1/4, and up to 4/4")
    return number, count


@dataclasses.dataclass(frozen=True)
class RemovalConfig:
    """Which prepared datasets to list or remove."""

    data_dir: str | None = flag(None, "Folder of the datasets; by default ~/tensorflow_datasets.")
    remove: tuple[str, ...] = flag((), "Name of a dataset to remove.", repeated=True)
    unused_for: str | None = flag(
        None, "Remove the datasets not used for this long: 30d or 12h.", check=seconds
    )
    verify: bool = flag(
        False, "Read everything that is prepared, and compare it with its checksums."
    )


@dataclasses.dataclass(frozen=True)
class PreparedConfig:
    """All flags of `pizza_steak.prepared`."""

    removal: RemovalConfig = RemovalConfig()
