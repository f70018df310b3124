"""Errors that the user can fix: shown as one line, without a traceback."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a disk or the system does to a program that is right.
_OF_THE_MACHINE = (
    *_FULL,
    *(errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EACCES, errno.EPERM),
)


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


class MachineError(UserError):
    """Memory is short, or a disk fails: no image is at fault."""


def told(error: OSError) -> str:
    """Returns what an OSError says; of a full disk also how much is free."""
    text = error.strerror or str(error)
    if error.errno in _FULL and error.filename:
        with contextlib.suppress(OSError):
            folder = os.path.dirname(os.path.abspath(os.fsdecode(error.filename)))
            text += f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB free)"
    return text


def fault_of_the_machine(error: BaseException | None) -> str | None:
    """Returns a line about a full or failing disk, too many open files and the like, or None.

    Other libraries raise errors of their own for them: they are known by the system's text.
    """
    while error is not None:
        if isinstance(error, MachineError):
            return str(error)
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            return f"{error.filename}: {told(error)}" if error.filename else told(error)
        for number in _OF_THE_MACHINE:
            # TensorFlow says "<path>; No space left on device".
            pattern = rf"(?:(\S+); )?({os.strerror(number)})"
            if not isinstance(error, UserError) and (found := re.search(pattern, str(error))):
                return ": ".join(filter(None, found.groups()))
        error = error.__cause__ or error.__context__
    return None


def quoted(error: Exception) -> UserError | None:
    """Returns the `UserError` in the text of an error of TensorFlow's, or None.

    TensorFlow quotes what a function raises that it calls by `tf.numpy_function`.
    """
    found = re.search(r"^pizza_steak\.errors\.\w+: (.+)$", str(error), re.MULTILINE)
    return UserError(found[1]) if found else None


@contextlib.contextmanager
def raising_quoted() -> Iterator[None]:
    """Within this block, a `UserError` is raised in place of an error of TensorFlow's with it."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, UserError) and (user_error := quoted(error)):
            raise user_error from error
        raise


def first_line(error: Exception) -> str:
    """Returns the first line or sentence of another library's error, to quote it in one line."""
    return re.split(r"\. |\n", str(error))[0]
