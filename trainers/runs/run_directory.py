"""The run directory: everything that a run leaves behind, and what `--resume` goes on from.

run.flags             repeats the run: python -m trainers.fit --flagfile=<run_dir>/run.flags
environment.json      versions, devices, precision, and what was trained on
summary.txt           the architecture
model.keras           the best model by validation loss, or without validation the last
metrics.csv           one row an epoch
result.json           the final numbers; there when the run has ended
augmentation.png      training pictures beside their augmented versions, where there are any
curves.png            loss and accuracy by epoch
confusion_matrix.png  what the best model takes for what
tensorboard/          the curves for TensorBoard
evaluation/           what trainers.evaluate says of the best model
backup/               the state that was saved last, while the run is not finished
saved_model/, model.tflite, model.onnx  what trainers.export made of the model
"""

import csv
import dataclasses
import json
import os
import pathlib
import re
import secrets
import time
import zipfile
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from pizza_steak import atomic
from pizza_steak.atomic import atomic_path, remove
from pizza_steak.errors import UserError
from trainers.configuration import FitConfig
from trainers.flags import define_flags, from_flags, to_flags

if TYPE_CHECKING:
    import keras  # Not when run: a run's numbers can be read without TensorFlow.

    from trainers.training.callbacks import Progress, Saved

# Flags that do not make a run what it is, and so may be others when it is resumed.
FREE = ("run_dir", "overwrite", "resume", "checkpoint_every", "cluster_timeout")
# All that a run and its exports write, and so all that --overwrite may remove.
_PARTS = (
    "run.flags",
    "environment.json",
    "summary.txt",
    "model.keras",
    "metrics.csv",
    "result.json",
    "augmentation.png",
    "curves.png",
    "confusion_matrix.png",
    "tensorboard",
    "evaluation",
    "backup",
    "saved_model",
    "model.tflite",
    "model.onnx",
)


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
    def config(self) -> FitConfig:
        """What its run.flags say.

        Raises:
          UserError: They cannot be read.
        """
        path, values = self.path / "run.flags", absl_flags.FlagValues()
        define_flags(FitConfig, values)
        try:
            # Runs of older versions may have --class_mode; their models show it by their outputs.
            values(["fit", "--undefok=class_mode", f"--flagfile={path}"])
        except absl_flags.Error as error:
            raise UserError(f"run_dir {self.path}: run.flags cannot be read ({error})") from error
        return from_flags(FitConfig, values)

    def load_model(self) -> "keras.Model":
        """Its model.keras, not compiled.

        Raises:
          UserError: There is none, or it is no model, or one that brings code of its own.
        """
        import keras

        from pizza_steak import augmentation, normalization  # noqa: F401  Keras loads their layers.

        path = self.path / "model.keras"
        if not zipfile.is_zipfile(path):
            raise UserError(f"model {path}: missing, or no Keras model; train the run again")
        try:
            return keras.models.load_model(path, compile=False)
        except Exception as error:  # Keras, zipfile, json and h5py: each has its own.
            reason = re.split(r"\. |\n", str(error))[0]
            raise UserError(
                f"model {path}: cannot be loaded ({reason}); train the run again"
            ) from error

    @property
    def progress(self) -> "Progress":
        """How far it had come when it was last saved."""
        from trainers.training.callbacks import saved_progress  # Imports Keras.

        return saved_progress(self.backup)

    def saved(self) -> "Saved":
        """What it goes on from."""
        from trainers.training.callbacks import Saved  # Imports Keras.

        content = self.backup.read_bytes() if self.backup.exists() else b""
        return Saved(self.progress, tuple(self.logs), content)

    @property
    def backup(self) -> pathlib.Path:
        """The file of `callbacks.Backup`."""
        return self.path / "backup" / "latest.h5"

    @property
    def logs(self) -> list[dict[str, float]]:
        """The rows of metrics.csv: what Keras logged of each epoch."""
        metrics = self.path / "metrics.csv"
        if not metrics.exists():
            return []
        with metrics.open(newline="") as file:
            rows = list(csv.DictReader(file))
        # CSVLogger has columns for validation without validation, too.
        return [
            {name: float(row[name]) for name in row if name != "epoch" and row[name] != "NA"}
            for row in rows
        ]

    @property
    def history(self) -> dict[str, list[float]]:
        """The columns of metrics.csv, by their names in Keras's history."""
        logs = self.logs
        return {name: [row[name] for row in logs] for name in logs[0]}

    @property
    def command_to_resume(self) -> str:
        """What goes on with it, for a shell."""
        return (
            f"python -m trainers.fit --flagfile={self.path / 'run.flags'} --run_dir={self.path} "
            "--resume"
        )

    def create(self, summary: str, environment: dict[str, Any]) -> None:
        """Makes the directory, in place of the run that may be there.

        Raises:
          UserError: It cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for part in _PARTS:
                remove(self.path / part)
            (self.path / "summary.txt").write_text(summary + "\n")
            self._write_json("environment.json", environment)
            # Last: with it the folder is a run that can be resumed.
            with atomic_path(self.path / "run.flags") as temporary:
                temporary.write_text(self.flags)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def finish(self, result: dict[str, Any], *, keep_backup: bool = False) -> None:
        """Writes the result; with it the run is finished and needs no backup any more."""
        self._write_json("result.json", result)
        if not keep_backup:
            remove(self.path / "backup")

    def check_same_batches(self, fingerprint: str, batch_size: int) -> None:
        """Checks that a run is resumed with the batches that it was started with.

        Raises:
          UserError: They are of other pictures, or of another size.
        """
        if not self.resumed:
            return
        before = json.loads((self.path / "environment.json").read_text())
        if (size := before.get("batch_size", batch_size)) != batch_size:
            raise UserError(
                f"run_dir {self.path}: was started with batches of {size} pictures, and "
                f"--batch_size_per_replica now makes them {batch_size}; pass it for as many "
                "replicas as before, or --overwrite to start the run anew"
            )
        if before["fingerprint"] != fingerprint:
            raise UserError(
                f"run_dir {self.path}: was started with other pictures of {before['dataset']} than "
                "are there now; pass --overwrite to start it anew"
            )

    def best(self, metric: str) -> float | None:
        """The least value of a metric so far, None before the first epoch."""
        return min((row[metric] for row in self.logs), default=None)

    def go_back(self) -> None:
        """Drops what the backup does not hold: rows of later epochs, and files half written."""
        for folder in (self.path, self.backup.parent):
            for left in folder.glob(f".{'?' * 32}.*"):
                remove(left)
        metrics = self.path / "metrics.csv"
        if not metrics.exists():
            return
        lines = metrics.read_bytes().splitlines(keepends=True)
        with atomic_path(metrics) as temporary:
            temporary.write_bytes(b"".join(lines[: self.progress.epochs + 1]))

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")


def kept_epoch(history: Mapping[str, Sequence[float]]) -> int:
    """The epoch, counted from 0, whose model is kept: the best by validation loss, or the last.

    Args:
      history: Of one epoch or more, a number for each, by Keras's names.
    """
    if losses := history.get("val_loss"):
        return losses.index(min(losses))
    return len(history["loss"]) - 1


def plan(config: FitConfig) -> Run:
    """The run that the flags ask for; nothing is written yet.

    Raises:
      UserError: The directory cannot be written, holds another run, or something that is no run;
        or there is nothing to resume, or what is there was started with other flags; or it is to be
        resumed if it is there, and no directory is given.
    """
    asked = config.run
    # The random end tells runs apart that start within one second.
    name = f"{config.model.model}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path = pathlib.Path(asked.run_dir or pathlib.Path("runs", name)).expanduser().absolute()
    flags = flags_to_repeat(config, without=FREE)
    if asked.resume == "auto" and not asked.run_dir:
        raise UserError("run_dir: missing; expected the directory that --resume=auto looks into")
    try:
        there = (path / "run.flags").exists()
        run = Run(path, flags, resumed=there if asked.resume == "auto" else asked.resume)
        if run.resumed:
            _check_same_flags(run)
        else:
            _check_free(path, asked.overwrite)
    except OSError as error:
        raise _unwritable(path, error) from error
    return run


def open_run(run_dir: str | None) -> Run:
    """A finished run, to be used.

    Raises:
      UserError: There is no run in that directory, or it is not finished.
    """
    if run_dir is None:
        raise UserError("run_dir: missing; expected the directory of a finished run")
    path = pathlib.Path(run_dir).expanduser().absolute()
    flags = path / "run.flags"
    if not flags.is_file():
        raise UserError(f"run_dir {path}: no run there; expected what trainers.fit left behind")
    run = Run(path, flags.read_text(), resumed=True)
    if not run.finished:
        raise UserError(
            f"run_dir {path}: the run is not finished; go on with it: {run.command_to_resume}"
        )
    return run


def _check_free(path: pathlib.Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"run_dir {path}: is a file; pass another --run_dir")
    if (path / "run.flags").exists():
        if not overwrite:
            raise UserError(
                f"run_dir {path}: already holds a run; pass --resume to go on with it, --overwrite "
                "to replace it, or another --run_dir"
            )
    elif not atomic.holds_only(path, _PARTS):
        raise UserError(f"run_dir {path}: holds files that are no run; pass another --run_dir")
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"run_dir {path}: {folder} cannot be written; pass another --run_dir")


def flags_to_repeat(config: Any, without: Container[str]) -> str:
    """The flags that make a run what it is: without where it is, with paths from the root.

    A data service makes it faster, not another one, and is left out as well.

    Args:
      config: Made of concerns, of which one is `data`.
      without: Names of flags.
    """
    data = config.data
    paths = {
        name: str(pathlib.Path(value).expanduser().absolute())
        for name in ("archive", "data_dir")
        if (value := getattr(data, name))
    }
    config = dataclasses.replace(config, data=dataclasses.replace(data, **paths))
    return to_flags(config, (*without, "data_service"))


def _check_same_flags(run: Run) -> None:
    flags = run.path / "run.flags"
    if not flags.exists():
        raise UserError(f"run_dir {run.path}: no run to resume; pass its --run_dir, or no --resume")
    if changed := differing_lines(flags.read_text(), run.flags):
        raise UserError(
            f"run_dir {run.path}: was started with other flags (differing: {changed}); "
            f"to go on with it, take its own: --flagfile={flags}"
        )


def differing_lines(before: str, now: str) -> str:
    """The lines that only one of two texts has."""
    return " ".join(sorted(set(before.splitlines()) ^ set(now.splitlines())))


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"run_dir {path}: {error.strerror or error}; pass another --run_dir")
