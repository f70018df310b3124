"""The errors that are a user's to mend: shown as one line, without a traceback."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend: the message names the thing, what was expected, what to do."""


class ArchiveError(UserError):
    """An archive that cannot be read as class folders of pictures."""


class BadImageError(UserError):
    """Pictures that cannot be decoded.

    Attributes:
      failures: A (filename, reason) pair for each of them.
    """

    def __init__(self, failures: Sequence[tuple[str, str]]):
        self.failures = tuple(failures)
        named = "; ".join(f"{name} ({reason})" for name, reason in self.failures)
        noun = "picture" if len(self.failures) == 1 else "pictures"
        super().__init__(
            f"{len(self.failures)} {noun} cannot be decoded: {named}; "
            "mend or remove them, or pass --on_bad_image=skip"
        )
