"""Loads functions of the user's, which flags name as FILE.py:FUNCTION or MODULE:FUNCTION.

Only flags that the user types name code: none of it is imported because of a file of a run.
"""

import importlib
import importlib.util
import pathlib
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from pizza_steak.errors import UserError, first_line


def is_function(text: str) -> bool:
    """Returns whether a text has the form FILE.py:FUNCTION or MODULE:FUNCTION."""
    return re.fullmatch(r".+:[A-Za-z_]\w*", text) is not None


def load(flag: str, text: str) -> Callable[..., Any]:
    """Imports a function of the user's.

    Args:
      flag: The name of the flag, for messages.
      text: Its value; `is_function` is true.

    Raises:
      UserError: There is no such file, module or function, or the import fails.
    """
    place, _, name = text.rpartition(":")
    function = getattr(_import(flag, text, place), name, None)
    if not callable(function):
        raise UserError(f"{flag} {text}: {place} has no function {name}")
    return function


def call(flag: str, text: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function that `load` returned.

    Raises:
      UserError: The function raises an exception.
    """
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        name = text.rpartition(":")[2]
        raise UserError(
            f"{flag} {text}: {name}({', '.join(map(str, arguments))}) raised "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def import_all(texts: Sequence[str]) -> None:
    """Imports the files and modules that the values of --code name, with or without a function.

    Raises:
      UserError: There is no such file or module, or an import fails.
    """
    for text in texts:
        _import("code", text, text.rpartition(":")[0] if is_function(text) else text)


def _import(flag: str, text: str, place: str) -> ModuleType:
    path = pathlib.Path(place).expanduser()
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not path.is_file():
            raise UserError(f"{flag} {text}: no file {place}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader  # Its name ends with .py.
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{flag} {text}: {place} cannot be imported ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
