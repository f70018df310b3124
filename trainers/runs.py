"""The run directory: everything that a run leaves behind, and what `--resume` goes on from.

run.flags             repeats the run: python -m trainers.fit --flagfile=<run_dir>/run.flags
environment.json      versions, devices, precision, and what was trained on
summary.txt           the architecture
model.keras           the best model by validation loss
metrics.csv           one row an epoch
result.json           the final numbers; there when the run has ended
curves.png            loss and accuracy by epoch
confusion_matrix.png  what the best model takes for what
tensorboard/          the curves for TensorBoard
backup/               weights and optimizer after the last epoch, while the run is not finished
"""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import time
from typing import Any

from pizza_steak.atomic import atomic_path
from pizza_steak.errors import UserError
from trainers.config import FitConfig, to_flags


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, by its parts.

    Attributes:
      path: The directory.
      flags: The text of its run.flags.
      resumed: Whether it goes on with what is there.
    """

    path: pathlib.Path
    flags: str
    resumed: bool

    @property
    def finished(self) -> bool:
        """Whether the run has ended, and `result` can be read."""
        return self.resumed and (self.path / "result.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        """What result.json says."""
        return json.loads((self.path / "result.json").read_text())

    @property
    def first_epoch(self) -> int:
        """How many epochs have been finished before."""
        metadata = self.path / "backup" / "training_metadata.json"  # By Keras's BackupAndRestore.
        return json.loads(metadata.read_text())["epoch"] if metadata.exists() else 0

    @property
    def history(self) -> dict[str, list[float]]:
        """The columns of metrics.csv by their names in Keras's history."""
        rows = self._rows()
        return {name: [float(row[name]) for row in rows] for name in rows[0] if name != "epoch"}

    def create(self, summary: str, environment: dict[str, Any]) -> None:
        """Makes the directory, in place of the run that may be there.

        Raises:
          UserError: It cannot be written.
        """
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            (self.path / "run.flags").write_text(self.flags)
            (self.path / "summary.txt").write_text(summary + "\n")
            self._write_json("environment.json", environment)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the result; with it the run is finished and needs no backup any more."""
        self._write_json("result.json", result)
        shutil.rmtree(self.path / "backup")

    def best(self, metric: str) -> float | None:
        """The least value of a metric so far, None before the first epoch."""
        return min(self.history[metric]) if self.first_epoch else None

    def forget_after(self, epoch: int) -> None:
        """Drops the rows of epochs that the backup does not hold: they will be trained again."""
        metrics = self.path / "metrics.csv"
        if not metrics.exists():
            return
        lines = metrics.read_text().splitlines(keepends=True)
        with atomic_path(metrics) as temporary:
            temporary.write_text("".join(lines[: epoch + 1]))

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")

    def _rows(self) -> list[dict[str, str]]:
        with (self.path / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def plan(config: FitConfig) -> Run:
    """The run that the flags ask for; nothing is written yet.

    Raises:
      UserError: The directory cannot be written, holds another run, or something that is no run;
        or there is nothing to resume, or what is there was started with other flags.
    """
    asked = config.run
    name = f"{config.model.model}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = pathlib.Path(asked.run_dir or pathlib.Path("runs", name)).expanduser().absolute()
    run = Run(path, to_flags(_repeatable(config)), asked.resume)
    try:
        if asked.resume:
            _check_same_flags(run)
        else:
            _check_free(path, asked.overwrite)
    except OSError as error:
        raise _unwritable(path, error) from error
    return run


def _check_free(path: pathlib.Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"run_dir {path}: is a file; pass another --run_dir")
    if path.exists() and any(path.iterdir()):
        if not (path / "run.flags").exists():
            raise UserError(f"run_dir {path}: holds files that are no run; pass another --run_dir")
        if not overwrite:
            raise UserError(
                f"run_dir {path}: already holds a run; pass --resume to go on with it, --overwrite "
                "to replace it, or another --run_dir"
            )
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"run_dir {path}: {folder} cannot be written; pass another --run_dir")


def _repeatable(config: FitConfig) -> FitConfig:
    """The flags that make a run what it is: without where it is, with paths from the root."""
    data = config.data
    paths = {
        name: str(pathlib.Path(value).expanduser().absolute())
        for name in ("archive", "data_dir")
        if (value := getattr(data, name))
    }
    run = dataclasses.replace(config.run, run_dir=None, overwrite=False, resume=False)
    return dataclasses.replace(config, data=dataclasses.replace(data, **paths), run=run)


def _check_same_flags(run: Run) -> None:
    flags = run.path / "run.flags"
    if not flags.exists():
        raise UserError(f"run_dir {run.path}: no run to resume; pass its --run_dir, or no --resume")
    before, now = flags.read_text().splitlines(), run.flags.splitlines()
    if changed := sorted(set(before) ^ set(now)):
        raise UserError(
            f"run_dir {run.path}: was started with other flags (differing: {' '.join(changed)}); "
            f"to go on with it, take its own: --flagfile={flags}"
        )


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"run_dir {path}: {error.strerror}; pass another --run_dir")
