"""The folder of a sweep: created, locked, and resumed.

sweep.flags   the flags that the sweep was started with
oracle/       Keras Tuner's state
trials/       a run directory for each trial, and a file with what came of it
finals/       the same for finals, which are validated on other folds of the training images
trials.csv    a row for each trial
best.flags    the best settings for trainers.fit, on all training images
members/      with --final_models or --average_flips: the runs that best/ averages
best/         the run directory of the best model, which is tested
sweep.html    the results on one page, written anew while trials run
"""

import dataclasses
import pathlib

import filelock

from pizza_steak import atomic
from pizza_steak.errors import UserError, told
from trainers.runs import identity
from tuning.configuration import SweepConfig
from tuning.trials import engine

# The flags come last: until all parts are removed, the folder still counts as a sweep.
_PARTS = (
    *("oracle", "trials", "finals", "trials.csv", "best.flags", "members", "best"),
    *("sweep.html", "sweep.flags"),
)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The folder of a sweep.

    Attributes:
      config: The flags of the sweep.
      fingerprint: The fingerprint of its images.
    """

    config: SweepConfig
    fingerprint: str

    @property
    def path(self) -> pathlib.Path:
        """The absolute path of the folder."""
        return pathlib.Path(self.config.final.sweep_dir).expanduser().absolute()

    @property
    def flags(self) -> pathlib.Path:
        """The file with the flags."""
        return self.path / "sweep.flags"

    @property
    def ended(self) -> bool:
        """Whether the sweep has its final model, and no process works on it."""
        if not (self.path / "best" / "result.json").exists():
            return False
        try:
            with atomic.lock(self.path).acquire(timeout=0):
                return True
        except filelock.Timeout:
            return False

    def lock(self) -> filelock.AcquireReturnProxy:
        """Keeps other sweeps out of the folder, within a block.

        Raises:
          UserError: Another sweep is running there, or the folder cannot be written.
        """
        try:
            return atomic.lock(self.path).acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"sweep_dir {self.path}: another sweep is running there; wait for it, or pass "
                "another --sweep_dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"sweep_dir {self.path}: {told(error)}; pass another --sweep_dir"
            ) from error

    def start(self) -> None:
        """Creates the folder, or checks that the sweep in it can be resumed.

        A job that is queued again runs the same command again, with --overwrite if that was in it:
        an unfinished sweep with the same flags is never removed.

        Raises:
          UserError: The folder holds another sweep, or other files, or cannot be written.
        """
        try:
            self._start()
        except OSError as error:
            raise UserError(
                f"sweep_dir {self.path}: {told(error)}; pass another --sweep_dir"
            ) from error

    def _start(self) -> None:
        there = self.flags.exists()
        if there and self.config.final.overwrite:
            finished = (self.path / "best" / "result.json").exists()
            if finished or self._differences():
                self._check_no_trial_runs()
                for part in _PARTS:
                    atomic.remove(self.path / part)
                there = False
        if there:
            self.check_same()
            # Workers may still write in trials/. In the other folders only this process does.
            for folder in (self.path, *self.path.glob("oracle"), *self.path.glob("oracle/trial_*")):
                atomic.remove_temporary(folder)
            return
        if not atomic.holds_only(self.path, _PARTS):
            raise UserError(
                f"sweep_dir {self.path}: has files that do not belong to a sweep; pass another "
                "--sweep_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_path(self.flags) as temporary:
            temporary.write_text(
                f"{identity.to_flagfile(self.config)}"
                f"# The fingerprint of the images:\n# {self.fingerprint}\n",
                encoding="utf-8",
            )

    def check_same(self) -> None:
        """Checks that the sweep in the folder has the flags and the images of this one.

        Raises:
          UserError: It has not.
        """
        if differences := self._differences():
            raise UserError(
                f"sweep_dir {self.path}: {differences}; pass --overwrite to replace that sweep, or "
                "another --sweep_dir"
            )

    def _differences(self) -> str:
        if changed := identity.changes(identity.read(SweepConfig, self.flags), self.config):
            return f"was started with other flags ({changed})"
        if self.flags.read_text(encoding="utf-8").splitlines()[-1] != f"# {self.fingerprint}":
            return "the images have changed since the sweep was started"
        return ""

    def _check_no_trial_runs(self) -> None:
        for flags in sorted(self.path.glob("*/*/run.flags")):
            try:
                with atomic.lock(flags.parent).acquire(timeout=0):
                    pass
            except filelock.Timeout:
                raise UserError(
                    f"sweep_dir {self.path}: a worker still trains {flags.parent.name}; end it "
                    "before that sweep is replaced"
                ) from None

    def open_oracle(self, oracle: engine.Durable) -> None:
        """Lets an oracle keep its state in the folder, and restores the state that is there.

        Raises:
          UserError: The files of the state are damaged.
        """
        oracle._set_project_dir(self.path, "oracle")
        if not (self.path / "oracle" / "oracle.json").exists():
            return
        try:
            oracle.reload()
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise UserError(
                f"sweep_dir {self.path}: oracle/ is damaged ({error}); remove the folder to start "
                "the sweep again"
            ) from error
