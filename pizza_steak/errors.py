"""Errors that the user can fix: shown as one line, without a traceback."""

import re
from collections.abc import Sequence


class UserError(Exception):
    """The user can fix this: the message says what is wrong, what was expected, what to do."""


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
