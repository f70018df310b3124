"""Reads the files of a run, which may be another person's: checks sizes, types and ranges."""

import csv
import io
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from pizza_steak import regular_file
from pizza_steak.errors import UserError

_MOST_BYTES = 2**26
_MOST_LETTERS = 4096  # Of a text, such as the name of a class.
_LARGEST = 1e39  # No float32 is larger. Python writes 1e308 with 309 digits.

# A text without control characters, which archives refuse in names of classes, and without halves
# of surrogate pairs, which no file can hold.
_NAME = "name"
_UNNAMED = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")

# The types of what is read. A list has one type of items, and a dict with the key `str` one type of
# values; other dicts have the types of these keys, and may have more keys.
RESULT: dict[Any, Any] = {
    "bad_train_images": int,
    "classes": [_NAME],
    "epoch_end_seconds": [float],
    "fit_cpu_seconds": float,
    "fit_seconds": float,
    "flips": bool,
    "history": {str: [float]},
    "largest_class": _NAME,
    "largest_class_share": float,
    "members": [str],
    "model": str,
    "parameters": int,
    "start_seconds": float,
    "test_accuracy": float,
    "test_accuracy_interval": [float],
    "test_by_class": {str: {"images": int, "accuracy": (float, None)}},
    "test_images": int,
    "test_images_chose_the_model": bool,
    "test_loss": float,
    "train_images_per_second": float,
}
ENVIRONMENT: dict[Any, Any] = {
    "backbone": ({"digest": str}, None),
    "batch_size": int,
    "dataset": _NAME,
    "fingerprint": _NAME,
    "names": [_NAME],
    "precision": _NAME,
    "splits": {str: {"fingerprint": str}},
}

# What a sweep keeps of a trial.
OUTCOME: dict[Any, Any] = {
    "cpu_seconds": float,
    "failure": str,
    "history": {str: [float]},
    "parameters": int,
    "predict_cpu_ms": (float, None),
    "pruned": bool,
    "seconds": float,
}


def read_json(
    path: pathlib.Path, types: dict[Any, Any], needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the content of a JSON file.

    Args:
      path: The file.
      types: The types of its values, as `RESULT`.
      needed: The names of the values that may not be missing.

    Raises:
      UserError: The file cannot be read, is not JSON, or has a value of another type.
    """
    try:
        values = json.loads(regular_file.read(path, _MOST_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if wrong := _wrong(values, types):
        raise UserError(f"{path}: damaged ({wrong})")
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{path}: damaged (has no {missing[0]})")
    return values


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics.csv, without the epoch and what is not available.

    Raises:
      UserError: The file cannot be read, or has something else than numbers.
    """
    try:
        rows = logs_of(regular_file.read(path, _MOST_BYTES).decode())
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise damaged(path, error) from error
    if any(_LARGEST < abs(value) < math.inf for row in rows for value in row.values()):
        raise UserError(f"{path}: damaged (a number is out of range)")
    return rows


def logs_of(metrics_csv: str) -> list[dict[str, float]]:
    """Returns Keras's logs of each epoch from the content of a metrics.csv."""
    # CSVLogger writes the columns of validation even without validation.
    return [
        {name: float(row[name]) for name in row if name != "epoch" and row[name] != "NA"}
        for row in csv.DictReader(io.StringIO(metrics_csv, newline=""))
    ]


def damaged(path: pathlib.Path, error: Exception) -> UserError:
    """Returns the error for a file that cannot be used, with the reason in one line."""
    reason = " ".join(str(error).split())
    return UserError(f"{path}: damaged ({type(error).__name__}: {reason})")


def _wrong(value: Any, kind: Any, name: str = "") -> str:
    """Returns what is wrong with a value, or "" if it has a type."""
    if isinstance(kind, tuple):  # One of several types.
        return "" if value is None and None in kind else _wrong(value, kind[0], name)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{name}: expected a list"
        return next(filter(None, (_wrong(one, kind[0], name) for one in value)), "")
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return f"{name}: expected an object" if name else "expected an object"
        if str in kind and (wrong := _wrong(list(value), [_NAME], name)):
            return wrong
        wanted = {key: kind.get(str, kind.get(key)) for key in value if str in kind or key in kind}
        names = {key: name or str(key) for key in wanted}  # Of the outermost object.
        found = (_wrong(value[key], wanted[key], names[key]) for key in wanted)
        return next(filter(None, found), "")
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and not _LARGEST < abs(value) < math.inf
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    elif kind in (str, _NAME):
        fits = isinstance(value, str) and len(value) <= _MOST_LETTERS
        fits = fits and not (kind == _NAME and _UNNAMED.search(value))
    else:
        fits = isinstance(value, kind)
    expected = {
        float: "a number",
        int: "a whole number",
        str: "a text",
        bool: "true or false",
        _NAME: "a name",
    }
    return "" if fits else f"{name}: expected {expected[kind]}"
