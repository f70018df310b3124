"""Lists the prepared datasets, with their records and decoded images, and removes some.

python -m pizza_steak.prepared --unused_for=30d
"""

import argparse
import re
from collections.abc import Sequence

from pizza_steak import preparations
from pizza_steak.inspect import Parser, run


def main(argv: Sequence[str] | None = None) -> None:
    print(preparations.report(**vars(parser().parse_args(argv))))


def parser() -> argparse.ArgumentParser:
    """Returns the parser of what `preparations.report` takes."""
    made = Parser(
        prog="python -m pizza_steak.prepared",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--data_dir", metavar="FOLDER", help="where they are; by default ~/tensorflow_datasets")
    add("--remove", metavar="NAME", action="append", default=[], help="remove it; may be repeated")
    add("--unused_for", metavar="TIME", type=_seconds, help="remove what was not used: 30d or 12h")
    return made


def _seconds(text: str) -> int:
    if not (match := re.fullmatch(r"([0-9]+)([dh])", text)):
        raise argparse.ArgumentTypeError(f"{text}: expected days or hours, such as 30d or 12h")
    return int(match[1]) * {"d": 86400, "h": 3600}[match[2]]


if __name__ == "__main__":
    run(main)
