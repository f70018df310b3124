"""Tells what is in an archive of class folders, or in a dataset, before it is trained on.

python -m pizza_steak.inspect --archive=food4.zip --grid=grid.png
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from pizza_steak.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    arguments = vars(parser().parse_args(argv))
    from pizza_steak import inspection  # Imports Matplotlib, which --help must not wait for.

    print(inspection.report(**arguments))


def parser() -> argparse.ArgumentParser:
    """What `inspection.report` takes, by the names that trainers.fit has for it."""
    made = Parser(
        prog="python -m pizza_steak.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", metavar="PATH", help="zip file or folder of class folders")
    source.add_argument(
        "--dataset", metavar="NAME", help="pizza_steak/photos (downloaded) or pizza_steak/sample"
    )
    add = made.add_argument
    add("--data_dir", metavar="FOLDER", help="where the dataset's records are kept")
    add("--follow_links", action="store_true", help="follow links to folders in an archive")
    add("--json", dest="json_file", metavar="FILE", help="what was found, with all filenames")
    add("--grid", dest="grid_file", metavar="FILE", help="figure of random pictures")
    add(
        "--augmented",
        dest="augmented_file",
        metavar="FILE",
        help="figure of random pictures beside augmented versions of each",
    )
    add("--seed", type=int, default=42, help="draws the pictures, and the versions; 42")
    add("--image_size", type=_pixels, default=224, help="pixels, of those that are augmented; 224")

    group = made.add_argument_group(
        "flags of the augmentation, as of trainers.fit", argument_default=argparse.SUPPRESS
    )
    for name in ("rotation_range", "shear_range", "channel_shift_range", "cval"):
        group.add_argument(f"--{name}", type=float, metavar="NUMBER")
    for name in ("width_shift_range", "height_shift_range", "zoom_range", "brightness_range"):
        group.add_argument(f"--{name}", type=_numbers, metavar="NUMBER[,NUMBER]")
    for name in ("horizontal_flip", "vertical_flip"):
        group.add_argument(f"--{name}", action="store_true")
    group.add_argument("--fill_mode", choices=("constant", "nearest", "reflect", "wrap"))
    return made


class Parser(argparse.ArgumentParser):
    """Ends a command with one line and status 2 for wrong flags."""

    def error(self, message):
        self.exit(2, f"error: {message}; --help lists the flags\n")


def _pixels(text: str) -> int:
    if (pixels := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected no number below 1")
    return pixels


def _numbers(text: str) -> float | tuple[float, ...]:
    """A number without a point is an int: pixels, where a fraction would be a share."""
    values = tuple(float(n) if "." in n or "e" in n else int(n) for n in text.split(","))
    return values if len(values) > 1 else values[0]


def run(main: Callable[[], None]) -> None:
    """Calls a command; tells a user's mistake in one line, with exit status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    run(main)
