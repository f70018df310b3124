"""The run directory: all files of a run, from its flags to its result.

run.flags             repeats the run: python -m trainers.fit --flagfile=<run_dir>/run.flags
environment.json      versions, devices, precision, and what was trained on
summary.txt           the architecture
model.keras           the best model by validation loss; without validation the last
metrics.csv           one row per epoch, by Keras's CSVLogger, which counts epochs from 0
result.json           the final numbers, written when the run ends
augmentation.png      training images beside augmented versions of them, with augmentation
curves.png            loss and accuracy by epoch
confusion_matrix.png  true and predicted classes of the best model on the test images
tensorboard/          the curves for TensorBoard
evaluation/           the results of trainers.evaluate
backup/               the state that --resume starts from (`checkpoint`), until the run ends
saved_model/, model.tflite, model.onnx  the exports of trainers.export
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import filelock
from absl import logging

from pizza_steak import atomic
from pizza_steak.atomic import atomic_path, remove
from pizza_steak.errors import UserError, told
from pizza_steak.text_width import printable
from trainers.configuration import FitConfig
from trainers.runs import checkpoint, identity, run_files
from trainers.runs.checkpoint import Progress, Saved

LATEST = "latest"
# All that a run and its exports write, and all that --overwrite may remove.
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


# What every result.json has.
_ALWAYS = (
    *("classes", "parameters", "test_accuracy", "test_loss", "start_seconds", "fit_seconds"),
    *("fit_cpu_seconds", "train_images_per_second", "epoch_end_seconds"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory; `Run(path)` is a run that is there.

    Attributes:
      path: The directory.
      flags: The text that `create` writes to run.flags.
      resumed: Whether the run uses the files that are there.
      other_flags: Flags that are not in run.flags, and that the run is resumed with too.
    """

    path: pathlib.Path
    flags: str = ""
    resumed: bool = True
    other_flags: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run has ended and `result` can be read."""
        return self.resumed and (self.path / "result.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json.

        Raises:
          UserError: The file is damaged.
        """
        return run_files.read_json(self.path / "result.json", run_files.RESULT, _ALWAYS)

    @property
    def config(self) -> FitConfig:
        """The flags of run.flags.

        Raises:
          UserError: The file cannot be read, or has a flag that does not exist.
        """
        return identity.read(FitConfig, self.path / "run.flags")

    def as_measured(self, config: FitConfig) -> FitConfig:
        """Returns flags to resume it with: --precision=fastest is what it was when it started."""
        if not self.resumed or config.devices.precision != "fastest":
            return config
        return in_precision(config, self.config.devices.precision)

    @property
    def progress(self) -> Progress:
        """How far the run had come at its last backup."""
        return self.saved().progress

    def saved(self) -> Saved:
        """Returns the state that the run is resumed from."""
        return checkpoint.read(self.backup)

    @property
    def is_damaged(self) -> bool:
        """Whether the state that it would be resumed from cannot be read."""
        try:
            self.saved()
        except UserError:
            return True
        return False

    @property
    def backup(self) -> pathlib.Path:
        """The folder of the backups that `checkpoint` writes and reads."""
        return self.path / "backup"

    @property
    def best_head(self) -> pathlib.Path:
        """The weights of the best head, while it is trained on kept features."""
        return self.backup / "head.npz"

    @property
    def metrics_csv(self) -> pathlib.Path:
        """The file with Keras's logs of each epoch."""
        return self.path / "metrics.csv"

    @property
    def logs(self) -> list[dict[str, float]]:
        """The rows of metrics.csv: Keras's logs of each epoch.

        Raises:
          UserError: The file is damaged.
        """
        return run_files.read_metrics(self.metrics_csv) if self.metrics_csv.exists() else []

    @property
    def history(self) -> dict[str, list[float]]:
        """The columns of metrics.csv by their names in Keras's history."""
        logs = self.logs
        return {name: [row[name] for row in logs] for name in logs[0]}

    @property
    def command_to_resume(self) -> str:
        """The shell command that resumes the run."""
        flags = (f"--flagfile={self.path / 'run.flags'}", *self.other_flags)
        return command_line("fit", *flags, f"--run_dir={self.path}", "--resume")

    @property
    def has_progress(self) -> bool:
        """Whether there is anything that the run can be resumed from, or a result."""
        return checkpoint.exists(self.backup) or (self.path / "result.json").exists()

    def create(self, summary: str, environment: dict[str, Any]) -> None:
        """Makes the directory, and removes a run that is there.

        Raises:
          UserError: The directory cannot be written.
        """
        try:
            atomic.make_folder(self.path)
            self._remove_parts()
            self._remove_half_written()
            (self.path / "summary.txt").write_text(summary + "\n", encoding="utf-8")
            atomic.sync(self.path)
            self._write_json("environment.json", environment)
            # Last, because a folder with this file is a run that can be resumed.
            with atomic_path(self.path / "run.flags") as temporary:
                temporary.write_text(self.flags, encoding="utf-8")
        except OSError as error:
            with contextlib.suppress(OSError):
                self.remove()
            raise _unwritable(self.path, error) from error

    def finish(self, result: dict[str, Any], *, keep_backup: bool = False) -> None:
        """Writes the result, which makes the run a finished one, and removes the backup."""
        atomic.sync(self.path)
        self._write_json("result.json", result)
        if not keep_backup:
            remove(self.backup)

    def remove(self) -> None:
        """Removes the files of the run, and its directory if it holds nothing else."""
        self._remove_parts()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _remove_half_written(self) -> None:
        for folder in (self.path, self.backup):
            atomic.remove_temporary(folder)

    def _remove_parts(self) -> None:
        for part in _PARTS:
            remove(self.path / part)

    @property
    def environment(self) -> dict[str, Any]:
        """The content of environment.json.

        Raises:
          UserError: The file is damaged.
        """
        path, needed = self.path / "environment.json", ("dataset", "fingerprint")
        return run_files.read_json(path, run_files.ENVIRONMENT, needed)

    def check_same_batches(self, fingerprint: str, batch_size: int, images: int) -> None:
        """Checks that a run is resumed with the batches that it was started with.

        Args:
          fingerprint: The fingerprint of the records.
          batch_size: The batch size, summed over all replicas.
          images: The number of training images.

        Raises:
          UserError: The images or the batch size have changed.
        """
        if not self.resumed:
            return
        before = self.environment
        if (size := before.get("batch_size", batch_size)) != batch_size:
            raise UserError(
                f"run_dir {self.path}: was started with a batch size of {size}, but "
                f"--batch_size_per_replica now gives {batch_size}; use as many replicas as "
                "before, or pass --overwrite to start the run anew"
            )
        if before["fingerprint"] != fingerprint:
            raise UserError(
                f"run_dir {self.path}: the images of {before['dataset']} have changed since the "
                "run was started; pass --overwrite to start it anew"
            )

        started_with = before.get("splits", {}).get("train", {}).get("images", images)
        if started_with != images:
            raise UserError(
                f"run_dir {self.path}: was started with {started_with} training images, now "
                f"{images}: without --data_service, --decoded_cache=none leaves unreadable images "
                "out when their batch comes, else they are left out before; resume the run with "
                "or without --data_service, as it was started"
            )

    def warn_of_other_images(self, fingerprint: str) -> None:
        """Warns if the run's own images, with this fingerprint now, have changed since."""
        before = self.environment
        if before["fingerprint"] != fingerprint:
            logging.warning(
                "the images of %s have changed since %s was trained", before["dataset"], self.path
            )

    def check_same_backbone(self, digest: str | None) -> None:
        """Checks that a run is resumed with the layers and weights before the head as before.

        Args:
          digest: Their digest; None if the network has no head of its own.

        Raises:
          UserError: They have changed.
        """
        if not self.resumed or digest is None:
            return
        if (self.environment.get("backbone") or {}).get("digest") != digest:
            raise UserError(
                f"run_dir {self.path}: the weights of --model have changed since the run was "
                "started; pass --overwrite to start it anew"
            )

    def best(self, metric: str) -> float | None:
        """Returns the least value of a metric so far; None before the first epoch."""
        return min((row[metric] for row in self.logs if metric in row), default=None)

    def go_back(self) -> None:
        """Removes what is newer than the backup: rows of later epochs, half-written files."""
        self._remove_half_written()
        with atomic_path(self.metrics_csv) as temporary:
            temporary.write_text(self.saved().metrics_csv, newline="")

    def set_on_bad_image(self, how: str) -> None:
        """Changes --on_bad_image in the run.flags of a resumed run."""
        if self.config.data.on_bad_image != how:
            path = self.path / "run.flags"
            text = path.read_text(encoding="utf-8")
            with atomic_path(path) as temporary:
                temporary.write_text(f"{text}--on_bad_image={how}\n", encoding="utf-8")

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def in_precision(config: FitConfig, precision: str) -> FitConfig:
    """Returns flags with another --precision."""
    return dataclasses.replace(
        config, devices=dataclasses.replace(config.devices, precision=precision)
    )


def kept_epoch(history: Mapping[str, Sequence[float]]) -> int:
    """Returns the epoch whose model is kept, from 0: the best by validation loss, or the last.

    Args:
      history: The values of each metric by epoch, with Keras's names.
    """
    if losses := history.get("val_loss"):
        return losses.index(min(losses))
    return len(history["loss"]) - 1


def plan(config: FitConfig) -> Run:
    """Returns the run that the flags ask for, and writes nothing.

    Raises:
      UserError: The directory cannot be written or holds other files; it holds a run that is
        neither to be resumed nor replaced; there is no run to resume, or its identity is another;
        or --resume=auto has no --run_dir.
    """
    asked = config.run
    if asked.run_dir == LATEST:
        raise UserError(
            "run_dir latest: means the newest finished run, for commands that use one; expected a "
            "folder with another name"
        )
    # The random end distinguishes runs that start within the same second.
    network = pathlib.PurePath(config.model.model).stem
    name = f"{network}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path = pathlib.Path(asked.run_dir or pathlib.Path("runs", name)).expanduser().absolute()
    if asked.resume == "auto" and not asked.run_dir:
        raise UserError("run_dir: missing; expected the directory to look into for --resume=auto")
    try:
        there = (path / "run.flags").exists()
        resumed = there if asked.resume == "auto" else bool(asked.resume)
        other_flags = identity.other_flags(config, ("run_dir", "overwrite", "resume"))
        run = Run(path, identity.to_flagfile(config), resumed, other_flags)
        if run.resumed:
            _check_same_identity(run, config)
        else:
            _check_free(path, asked.overwrite)
    except OSError as error:
        raise _unwritable(path, error) from error
    return run


@contextlib.contextmanager
def only_process(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a run directory, within this block.

    Raises:
      UserError: Another process trains there.
    """
    with contextlib.ExitStack() as held:
        if not path.parent.exists():
            held.callback(_remove_empty, path.parent)
        with contextlib.suppress(OSError):  # Where nothing can be written, `create` says so.
            lock = atomic.lock(path)
            try:
                held.enter_context(lock.acquire(timeout=0))
            except filelock.Timeout:
                raise UserError(
                    f"run_dir {path}: {atomic.holder(lock)} trains there; wait for its end, or "
                    "pass another --run_dir"
                ) from None
            held.callback(pathlib.Path(lock.lock_file).unlink, missing_ok=True)
        yield


def _remove_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # It is not empty.
        folder.rmdir()


def command_line(command: str, *arguments: str) -> str:
    """Returns a command of this package with its arguments, quoted for a shell."""
    return shlex.join(["python", "-m", f"trainers.{command}", *arguments])


def named_run(run_dir: str | None) -> Run:
    """Returns the finished run that --run_dir names: a directory, or "latest".

    It prints to stderr which run is the latest.

    Raises:
      UserError: There is no such run, or it is not finished.
    """
    if run_dir != LATEST:
        return open_run(run_dir)
    results = pathlib.Path("runs").absolute().glob("*/result.json")
    newest = max(results, key=lambda result: result.stat().st_mtime_ns, default=None)
    if newest is None:
        raise UserError(
            f"run_dir latest: no finished run in {pathlib.Path('runs').absolute()}; expected a "
            "run that trainers.fit made there, or the --run_dir of another"
        )
    print(printable(f"run_dir latest: {newest.parent}"), file=sys.stderr)
    return open_run(str(newest.parent))


def open_run(run_dir: str | None) -> Run:
    """Returns the finished run in a directory.

    Raises:
      UserError: There is no run in the directory, or it is not finished.
    """
    if run_dir is None:
        raise UserError("run_dir: missing; expected the directory of a finished run")
    path = pathlib.Path(run_dir).expanduser().absolute()
    if not (path / "run.flags").is_file():
        raise UserError(
            f"run_dir {path}: no run there; expected a directory that trainers.fit made"
        )
    run = Run(path)
    if not run.finished:
        raise UserError(
            f"run_dir {path}: the run is not finished; to resume it: {run.command_to_resume}"
        )
    return run


def _check_free(path: pathlib.Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"run_dir {path}: is a file; pass another --run_dir")
    if (path / "run.flags").exists():
        if not overwrite:
            raise UserError(
                f"run_dir {path}: already holds a run; pass --resume to resume it, --overwrite "
                "to replace it, or another --run_dir"
            )
    elif not atomic.holds_only(path, _PARTS):
        raise UserError(f"run_dir {path}: holds files that are not a run; pass another --run_dir")
    folder = next(parent for parent in (path, *path.parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"run_dir {path}: {folder} cannot be written; pass another --run_dir")


def _check_same_identity(run: Run, config: FitConfig) -> None:
    flags = run.path / "run.flags"
    if not flags.exists():
        raise UserError(
            f"run_dir {run.path}: no run to resume; pass the --run_dir of a run, or no --resume"
        )
    if changed := identity.changes(run.config, run.as_measured(config)):
        raise UserError(
            f"run_dir {run.path}: was started with other flags ({changed}); to resume it, pass "
            f"its own: {shlex.quote(f'--flagfile={flags}')}"
        )


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"run_dir {path}: {told(error)}; pass another --run_dir")
