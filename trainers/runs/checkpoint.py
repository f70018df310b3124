"""The backup of a run: one .npz file with all that the run needs to be resumed.

variables/<path>  an array for each variable of the model and its optimizer, by its path in Keras
metrics           the metrics within an epoch, of shape (replicas, values); not there after an epoch
progress          a `Progress` as JSON
precision         the dtype policy of the model
metrics_csv       the content of metrics.csv

A .npz file is a zip, with a CRC-32 of each array. The backup before the last is kept too, for the
case that the last is damaged.
"""

import dataclasses
import io
import json
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from pizza_steak.atomic import atomic_path, make_folder, sync
from pizza_steak.errors import UserError
from trainers.runs import run_files

if TYPE_CHECKING:
    import keras  # Not at run time: the progress can be read without TensorFlow.

LATEST, PREVIOUS = "latest.npz", "previous.npz"
_VARIABLES = "variables/"
_OLDER = "latest.h5"  # The name of the backup in older versions.
# LossScaleOptimizer's own variables: the optimizer has them in mixed_float16 and not in others.
_LOSS_SCALE = "loss_scale_optimizer/"
# What zipfile and NumPy raise for damaged bytes.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, OSError),
    *(LookupError, TypeError, ValueError, OverflowError),
)
_MOST_NAMES = 3
_START_ANEW = "pass --overwrite to start the run anew"


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
      epochs: The number of finished epochs.
      step: The number of finished steps of the next epoch; all of them during its validation.
      stopped: Whether a callback ended the training.
    """

    epochs: int = 0
    step: int = 0
    stopped: bool = False


@dataclasses.dataclass(frozen=True)
class Saved:
    """The state that a run is resumed from.

    Attributes:
      progress: How far the run has come.
      metrics_csv: The content of metrics.csv: Keras's logs of each finished epoch.
      content: The bytes of the backup; empty if there is none.
    """

    progress: Progress = Progress()
    metrics_csv: str = ""
    content: bytes = b""

    @property
    def logs(self) -> list[dict[str, float]]:
        """Keras's logs of each finished epoch."""
        return run_files.logs_of(self.metrics_csv)


def write(
    folder: pathlib.Path,
    progress: Progress,
    metrics_csv: str,
    precision: str,
    variables: "Iterable[keras.Variable]",
    metrics: np.ndarray | None,
) -> None:
    """Writes a backup; the last one is kept as the one before.

    Args:
      folder: The folder of the backups.
      progress: How far the run has come.
      metrics_csv: The content of metrics.csv.
      precision: The dtype policy of the model.
      variables: Those of the model and its optimizer, without those of the metrics.
      metrics: The metrics within an epoch, of shape (replicas, values).
    """
    arrays = {_VARIABLES + name: v.numpy() for name, v in _by_path(variables).items()}
    arrays |= {} if metrics is None else {"metrics": metrics}
    arrays |= {
        "progress": np.array(json.dumps(dataclasses.asdict(progress))),
        "precision": np.array(precision),
        "metrics_csv": np.array(metrics_csv),
    }
    make_folder(folder)
    with atomic_path(folder / LATEST) as temporary:
        _save(temporary, arrays)
        sync(temporary)
        if (folder / LATEST).exists():
            os.replace(folder / LATEST, folder / PREVIOUS)


def exists(folder: pathlib.Path) -> bool:
    """Returns whether there is a backup in a folder."""
    return any((folder / name).exists() for name in (LATEST, PREVIOUS, _OLDER))


def read(folder: pathlib.Path) -> Saved:
    """Returns the last backup in a folder; the start of a run if there is none.

    A damaged one is replaced by the one before, with a warning.

    Raises:
      UserError: There is no backup that is not damaged.
    """
    latest, previous = folder / LATEST, folder / PREVIOUS
    if not exists(folder):
        return Saved()
    if (folder / _OLDER).exists():
        raise UserError(
            f"backup {folder / _OLDER}: written by an older version; finish the run with that "
            f"version, or {_START_ANEW}"
        )
    if not latest.exists():  # A process was killed between two renames.
        return _read(previous)
    try:
        return _read(latest)
    except UserError:
        if not previous.exists():
            raise
        saved = _read(previous)
        logging.warning("%s: damaged; going on from the backup before", latest)
        os.replace(previous, latest)
        return saved


def write_weights(path: pathlib.Path, variables: "Iterable[keras.Variable]") -> None:
    """Writes the values of variables to a .npz file."""
    with atomic_path(path) as temporary:
        _save(temporary, {name: v.numpy() for name, v in _by_path(variables).items()})


def read_weights(path: pathlib.Path, variables: "Iterable[keras.Variable]") -> None:
    """Assigns what `write_weights` wrote to variables with the same paths."""
    with np.load(path) as saved:
        for name, variable in _by_path(variables).items():
            variable.assign(saved[name])


def _save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Does what np.savez does, which copies each array."""
    with zipfile.ZipFile(path, "w", strict_timestamps=False) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = np.lib.format.header_data_from_array_1_0(array)
                np.lib.format.write_array_header_1_0(member, header)
                member.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _read(path: pathlib.Path) -> Saved:
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            if damaged := members.testzip():
                raise ValueError(f"the CRC-32 of {damaged} is wrong")
        with np.load(io.BytesIO(content)) as file:
            progress = Progress(**json.loads(str(file["progress"])))
            return Saved(progress, str(file["metrics_csv"]), content)
    except _DAMAGED as error:
        raise UserError(f"backup {path}: damaged ({error}); {_START_ANEW}") from error


def restore(
    content: bytes,
    precision: str,
    variables: "Iterable[keras.Variable]",
    *,
    all_of_them: bool = True,
) -> tuple[str, np.ndarray | None]:
    """Assigns the values of a backup to the variables with the same paths.

    In another precision every variable keeps its value as far as its dtype allows, and the loss
    scale of mixed_float16 starts at Keras's default.

    Args:
      content: The bytes of the backup.
      precision: The dtype policy of the model.
      variables: Those of the model and its optimizer, without those of the metrics.
      all_of_them: Whether the backup may have no other variables.

    Returns:
      The precision that the backup was written in, and its metrics, of shape (replicas, values);
      None after an epoch.

    Raises:
      UserError: The backup lacks a variable, has one too many, or one of another shape.
    """
    variables = _by_path(variables)
    with np.load(io.BytesIO(content)) as file:
        saved = {
            name.removeprefix(_VARIABLES): file[name]
            for name in file.files
            if name.startswith(_VARIABLES)
        }
        before = str(file["precision"])
        metrics = file.get("metrics")
    if before != precision:
        variables, saved = _without_loss_scale(variables), _without_loss_scale(saved)
    if not all_of_them:
        saved = {path: value for path, value in saved.items() if path in variables}
    _check_same(saved, variables)
    for path, variable in variables.items():
        variable.assign(saved[path])
    return before, metrics


def _by_path(variables: "Iterable[keras.Variable]") -> "dict[str, keras.Variable]":
    """Returns variables by path; layers of a backbone and its head may have the same names."""
    found: dict[str, Any] = {}
    for variable in variables:
        path, number = variable.path, 1
        while path in found:
            number += 1
            path = f"{variable.path}#{number}"
        found[path] = variable
    return found


def _without_loss_scale(by_path: Mapping[str, Any]) -> dict[str, Any]:
    return {path: item for path, item in by_path.items() if not path.startswith(_LOSS_SCALE)}


def _check_same(saved: Mapping[str, np.ndarray], variables: "Mapping[str, keras.Variable]") -> None:
    faults = {
        "lacks": [path for path in variables if path not in saved],
        "has in surplus": [path for path in saved if path not in variables],
        "has in another shape": [
            f"{path} {saved[path].shape}, expected {tuple(variables[path].shape)}"
            for path in saved.keys() & variables.keys()
            if saved[path].shape != tuple(variables[path].shape)
        ],
    }
    texts = [f"{fault} {_listed(paths)}" for fault, paths in faults.items() if paths]
    if texts:
        raise UserError(
            f"backup/{LATEST}: is of another model: it {'; it '.join(texts)}; resume the run with "
            f"the version that started it, or {_START_ANEW}"
        )


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else ""
    return ", ".join(sorted(paths)[:_MOST_NAMES]) + more
