"""Errors that the user can fix: shown as one line, without a traceback."""

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence


class UserError(Exception):
    """The user can fix this: the message says what is wrong, what was expected, what to do."""


class FlagError(UserError):
    """The value of a flag is wrong, whatever the other flags are."""


def check_choice(argument: str, value: str | None, choices: Collection[str | None]) -> None:
    """Raises a `UserError` if the value of an argument is not one of the choices."""
    if value not in choices:
        raise UserError(f"{argument}={value!r}: expected one of {', '.join(map(repr, choices))}")


@contextlib.contextmanager
def naming_arguments() -> Iterator[None]:
    """Within this block, errors name arguments of Python, such as `seed=1`, not flags, `--seed=1`.

    A command to type, from "python -m" on, stays as it is.
    """
    try:
        yield
    except UserError as error:
        text, *command = re.split("(?=python -m )", str(error), maxsplit=1)
        text = re.sub(r"(?<![\w/-])--(\w+)=([a-z]\w*)", r"\1='\2'", text)
        text = re.sub(r"(?<![\w/-])--(?=\w)", "", text)
        error.args = ("".join([text, *command]),)
        raise


class ArchiveError(UserError):
    """An archive cannot be read as class folders of images."""


class BadImageError(UserError):
    """Images cannot be decoded.

    Attributes:
      failures: A (filename, reason) pair for each image.
    """

    def __init__(self, failures: Sequence[tuple[str, str]]):
        self.failures = tuple(failures)
        named = "; ".join(f"{name} ({reason})" for name, reason in self.failures)
        noun = "image" if len(self.failures) == 1 else "images"
        super().__init__(
            f"{len(self.failures)} {noun} cannot be decoded: {named}; "
            "repair or remove them, or pass --on_bad_image=skip"
        )


def first_line(error: Exception) -> str:
    """Returns the first line or sentence of another library's error, to quote it in one line."""
    return re.split(r"\. |\n", str(error))[0]
