"""The backup of a run: one HDF5 file with all that the run needs to be resumed.

variables/<path>  a dataset for each variable of the model and its optimizer, by its path in Keras
metrics           the metrics within an epoch, of shape (replicas, values); not there after an epoch
progress          attribute: a `Progress` as JSON
precision         attribute: the dtype policy of the model
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from pizza_steak.atomic import atomic_path
from pizza_steak.errors import UserError

if TYPE_CHECKING:
    import keras  # Not at run time: the progress can be read without TensorFlow.

# LossScaleOptimizer's own variables: the optimizer has them in mixed_float16 and not in others.
_LOSS_SCALE = "loss_scale_optimizer/"
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
      logs: Keras's logs of each finished epoch.
      content: The bytes of the backup; empty if there is none.
    """

    progress: Progress = Progress()
    logs: tuple[Mapping[str, float], ...] = ()
    content: bytes = b""


def write(
    path: pathlib.Path,
    progress: Progress,
    precision: str,
    variables: "Iterable[keras.Variable]",
    metrics: np.ndarray | None,
) -> None:
    """Writes a backup, in place of the one that is there.

    Args:
      path: The file.
      progress: How far the run has come.
      precision: The dtype policy of the model.
      variables: Those of the model and its optimizer, without those of the metrics.
      metrics: The metrics within an epoch, of shape (replicas, values).
    """
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["progress"] = json.dumps(dataclasses.asdict(progress))
        file.attrs["precision"] = precision
        for name, variable in _by_path(variables).items():
            file[f"variables/{name}"] = variable.numpy()
        if metrics is not None:
            file["metrics"] = metrics


def read_progress(path: pathlib.Path) -> Progress:
    """Returns how far a run had come when its backup was written; the start if there is none.

    Raises:
      UserError: The file is damaged.
    """
    if not path.exists():
        return Progress()
    try:
        with h5py.File(path) as file:
            progress = Progress(**json.loads(file.attrs["progress"]))
            if "precision" not in file.attrs:
                raise UserError(
                    f"backup {path}: written by an older version; finish the run with that "
                    f"version, or {_START_ANEW}"
                )
            return progress
    except (OSError, KeyError, TypeError, ValueError) as error:
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
    with h5py.File(io.BytesIO(content)) as file:
        saved = {}

        def note(path: str, item: h5py.Dataset | h5py.Group) -> None:
            if isinstance(item, h5py.Dataset):
                saved[path] = item

        file["variables"].visititems(note)
        before = file.attrs["precision"]
        if before != precision:
            variables, saved = _without_loss_scale(variables), _without_loss_scale(saved)
        if not all_of_them:
            saved = {path: item for path, item in saved.items() if path in variables}
        _check_same(saved, variables)
        for path, variable in variables.items():
            variable.assign(saved[path][()])
        return before, file["metrics"][()] if "metrics" in file else None


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


def _check_same(
    saved: Mapping[str, h5py.Dataset], variables: "Mapping[str, keras.Variable]"
) -> None:
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
            f"backup/latest.h5: is of another model: it {'; it '.join(texts)}; resume the run with "
            f"the version that started it, or {_START_ANEW}"
        )


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else ""
    return ", ".join(sorted(paths)[:_MOST_NAMES]) + more
