"""The folder of a search: created, locked, and resumed.

sweep.flags   the flags that the search was started with
oracle/       Keras Tuner's state
trials/       a run directory for each trial, without a model
trials.csv    a row for each trial
best.flags    the best settings for trainers.fit, on all training images
best/         the run directory of the best model, which is tested
sweep.html    the results on one page
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import filelock

from pizza_steak import atomic
from pizza_steak.errors import UserError
from trainers.runs import identity
from tuning.configuration import SweepConfig
from tuning.search import oracles

# The flags come last: until all parts are removed, the folder still counts as a search.
_PARTS = ("oracle", "trials", "trials.csv", "best.flags", "best", "sweep.html", "sweep.flags")


@dataclasses.dataclass(frozen=True)
class Folder:
    """The folder of a search.

    Attributes:
      config: The flags of the search.
      fingerprint: The fingerprint of its images.
    """

    config: SweepConfig
    fingerprint: str

    @property
    def path(self) -> pathlib.Path:
        """The absolute path of the folder."""
        return pathlib.Path(self.config.search.sweep_dir).expanduser().absolute()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other searches out of the folder within the block.

        Raises:
          UserError: Another search is running there, or the folder cannot be written.
        """
        try:
            with atomic.lock(self.path).acquire(timeout=0):
                yield
        except filelock.Timeout:
            raise UserError(
                f"sweep_dir {self.path}: another search is running there; wait for it, or pass "
                "another --sweep_dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"sweep_dir {self.path}: {error.strerror or error}; pass another --sweep_dir"
            ) from error

    def start(self) -> None:
        """Creates the folder, or checks that the search in it can be resumed.

        Raises:
          UserError: The folder holds another search, or other files.
        """
        there = self.path / "sweep.flags"
        if self.config.search.overwrite and there.exists():
            for part in _PARTS:
                atomic.remove(self.path / part)
        if there.exists():
            if changed := identity.changes(identity.read(SweepConfig, there), self.config):
                raise UserError(
                    f"sweep_dir {self.path}: was started with other flags ({changed}); pass "
                    "--overwrite to replace that search, or another --sweep_dir"
                )
            if there.read_text().splitlines()[-1] != f"# {self.fingerprint}":
                raise UserError(
                    f"sweep_dir {self.path}: the images have changed since the search was started; "
                    "pass --overwrite to replace that search, or another --sweep_dir"
                )
            return
        if not atomic.holds_only(self.path, _PARTS):
            raise UserError(
                f"sweep_dir {self.path}: has files that do not belong to a search; pass another "
                "--sweep_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_path(there) as temporary:
            temporary.write_text(
                f"{identity.to_flagfile(self.config)}"
                f"# The fingerprint of the images:\n# {self.fingerprint}\n"
            )

    def open_oracle(self, oracle: oracles.Durable) -> None:
        """Lets an oracle keep its state in the folder, and restores the state that is there.

        Raises:
          UserError: The files of the state are damaged.
        """
        oracle._set_project_dir(self.path, "oracle")
        if not (self.path / "oracle" / "oracle.json").exists():
            return
        try:
            oracle.reload()
        except (OSError, ValueError, LookupError) as error:
            raise UserError(
                f"sweep_dir {self.path}: oracle/ is damaged ({error}); pass --overwrite to start "
                "the search again"
            ) from error
