"""The plan of a sweep: what its flags ask for, checked before anything is written."""

import csv
import dataclasses
import functools
import io
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from keras_tuner.engine.trial import Trial

from pizza_steak import flagfile, regular_file
from pizza_steak.errors import UserError, told
from trainers import data as run_data
from trainers import setup
from trainers.configuration import FitConfig
from trainers.models import networks, preprocessing
from trainers.runs import identity
from trainers.training import descriptions
from tuning.configuration import SweepConfig
from tuning.space.search_space import SearchSpace
from tuning.trials import engine, images
from tuning.trials.execution import Execution, Pruning
from tuning.trials.folder import Folder

_TRIALS_OF_A_TABLE = 10
_MOST_BYTES_OF_A_TABLE = 2**25


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep that can be started or resumed.

    Attributes:
      config: The flags, with all that they come to.
      folder: The folder of the sweep.
      space: The search space.
      data: The images of the trials.
      first: The hyperparameters to try first.
    """

    config: SweepConfig
    folder: Folder
    space: SearchSpace
    data: run_data.Data
    first: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def make(cls, config: SweepConfig) -> "Plan":
        """Loads the images and checks the flags; writes decoded images only.

        Raises:
          UserError: The user has to change something.
        """
        _check_flags(config)
        space = SearchSpace(_with_absolute_paths(config))
        config = space.config
        _check_values(space)
        first = [
            point for path in config.search.first_trials or () for point in _points(space, path)
        ]
        flags = space.fit_config(space.default).data
        data = run_data.load(flags)
        images.check(flags, data)
        folder = Folder(config, data.records.fingerprint)
        return cls(config, folder, space, data, first)

    @property
    def minimized(self) -> bool:
        """Whether a lower objective is better."""
        return self.config.search.objective.endswith("loss")

    @property
    def command(self) -> str:
        """The shell command that resumes the sweep."""
        other = identity.other_flags(self.config, ("overwrite", "sweep_dir"))
        where = (f"--flagfile={self.folder.flags}", *other, f"--sweep_dir={self.folder.path}")
        return shlex.join(["python", "-m", "tuning.sweep", *where])

    @functools.cached_property
    def finals(self) -> engine.Finals:
        """How the best trials compete."""
        final, most = self.config.final, self.config.trial.max_epochs
        return engine.Finals(
            count=final.finalists,
            images=images.folds(self.space.fit_config(self.space.default).data, self.data),
            epochs=final.final_epochs or most,
            reuse=final.final_epochs in (None, most),
        )

    def make_oracle(self, *, remote: bool) -> engine.Durable:
        """Returns the oracle at the start of the sweep.

        Args:
          remote: Whether workers may outlive this process and keep their trials.
        """
        return engine.make(
            self.config, self.space, remote=remote, first=self.first, finals=self.finals
        )

    def executions(self, trial: Trial, pruning: Pruning | None = None) -> list[Execution]:
        """Returns the trainings of a trial.

        Args:
          trial: The trial.
          pruning: When to stop it early.
        """
        values, asked = trial.hyperparameters.values, self.config
        epochs = int(values.get("tuner/epochs", asked.trial.max_epochs))
        settings = self.space.settings(values)
        is_final = engine.is_final(trial)
        runs = self.folder.path / ("finals" if is_final else "trials")
        made = []
        for number in range(asked.trial.executions_per_trial):
            end = f"-{number + 1}" if number else ""
            run_dir = str(runs / f"{engine.run_of(trial)}{end}")
            config = self.space.fit_config(values, run_dir=run_dir, resume="auto")
            optimisation = config.optimisation
            optimisation = dataclasses.replace(optimisation, seed=optimisation.seed + number)
            if is_final:
                optimisation = dataclasses.replace(optimisation, epochs=epochs)
            fold = engine.fold_of(trial)
            data = images.fold_flags(config.data, fold, len(self.finals.images))
            made.append(
                Execution(
                    config=dataclasses.replace(config, optimisation=optimisation, data=data),
                    name=f"{trial.trial_id}{end}",
                    epochs=epochs,
                    settings=settings if asked.final.tensorboard else None,
                    keep_model=asked.final.keep > 0 and not is_final,
                    pruning=pruning,
                )
            )
        return made

    def table(self, oracle: engine.Durable) -> str:
        """Returns the table that is printed before the sweep."""
        asked, trial, final = self.config.search, self.config.trial, self.config.final
        data = self.data
        limits = [f"{trial.max_epochs} epochs a trial"]
        if oracle.most_trials:
            limits.append(f"{oracle.most_trials} trials")
        if asked.time_budget is not None:
            limits.append(f"{asked.time_budget / 60:.0f} min")
        described = [
            f"{purpose}: {data.splits[purpose]}, {len(data.rows[purpose]):,} images"
            for purpose in ("train", "validation")
        ]
        ended = len(oracle.ended_after)
        folds = len(self.finals.images)
        finalists = f"{final.finalists}, on {folds} folds" if final.finalists > 1 < folds else ""
        rows = [
            ("images", "; ".join(described)),
            ("dataset", data.records.builder.info.full_name),
            *(("caution", text) for text in descriptions.split_cautions(data)),
            ("searched", ", ".join(self.space.searched)),
            ("tuner", f"{asked.tuner}, {asked.objective}, at most {', '.join(limits)}"),
            ("finalists", finalists),
            ("workers", f"{asked.workers}" if asked.workers > 1 else ""),
            ("sweep", f"{self.folder.path}" + (f", after {ended} trials" if ended else "")),
        ]
        return "\n".join(f"{name:<12}{text}" for name, text in rows if text)


def _check_flags(config: SweepConfig) -> None:
    search, trial = config.search, config.trial
    if config.data.validation_split == "none":
        raise UserError("validation_split 'none': models are chosen by their validation")
    if config.data.validation_fold:
        raise UserError(
            f"validation_fold {config.data.validation_fold}: a sweep chooses the folds of its "
            "finalists itself; leave it out"
        )
    if config.devices.precision == "fastest":
        raise UserError(
            "precision fastest: is measured for one network, and trials compare several; expected "
            "another --precision"
        )
    if search.tuner == "grid" and search.first_trials:
        raise UserError("first_trials: a grid has an order of its own; pass another --tuner")
    if search.tuner == "hyperband" and search.prune != "none":
        raise UserError(
            f"prune {search.prune}: hyperband stops trials itself; pass another --tuner"
        )
    if trial.min_epochs > trial.max_epochs:
        raise UserError(
            f"min_epochs {trial.min_epochs}: expected at most --max_epochs={trial.max_epochs}"
        )


def _with_absolute_paths(config: SweepConfig) -> SweepConfig:
    """Returns the flags with absolute paths in --first_trials."""
    if not (given := config.search.first_trials):
        return config
    paths = [pathlib.Path(path).expanduser() for path in given]
    absolute = tuple(
        str(path.absolute()) if path.exists() else name
        for path, name in zip(paths, given, strict=True)
    )
    return dataclasses.replace(
        config, search=dataclasses.replace(config.search, first_trials=absolute)
    )


def _check_values(space: SearchSpace) -> None:
    """Checks each value of each range in a training of its own, before trials fail of it.

    Raises:
      UserError: A value is wrong, or does not fit to the others.
    """
    for point in space.examples():
        config = space.fit_config(point)
        setup.check_training(config)
        preprocessing.augmentation_of(config.augmentation, config.optimisation.seed)
        setup.image_size(dataclasses.replace(config.data, image_size=None), config.model)
        if space.fits(point):
            networks.check(config.model, run_data.format_of(config.data).shape)


def _points(space: SearchSpace, path: str) -> list[dict[str, Any]]:
    """Returns the points that a flagfile or a table names.

    Raises:
      UserError: There is no such file, or a point is outside the space.
    """
    try:
        if path.endswith(".csv"):
            return [space.point_of_row(row) for row in _best_rows(path)]
        return [space.point(identity.read(FitConfig, flagfile.find(path, FitConfig)))]
    except OSError as error:
        raise UserError(
            f"first_trials {path}: {told(error)}; expected the trials.csv of a sweep"
        ) from error
    except LookupError as error:
        raise UserError(
            f"first_trials {path}: has no column {error}; expected the trials.csv of a sweep"
        ) from error
    except flagfile.FlagfileError as error:
        raise UserError(f"first_trials {error}") from error
    except ValueError as error:
        raise UserError(
            f"first_trials {path}: outside the search space: {error}; extend that flag of the sweep"
        ) from error


def _best_rows(path: str) -> list[dict[str, str]]:
    """Returns the rows of the best trials of another sweep's table, the best first."""
    content = regular_file.read(pathlib.Path(path).expanduser(), _MOST_BYTES_OF_A_TABLE).decode()
    try:
        table = list(csv.DictReader(io.StringIO(content, newline="")))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    rows = [row for row in table if row["status"] == "completed"]
    objective = "val_accuracy" if rows and "val_accuracy" in rows[0] else "val_loss"
    rows = [row for row in rows if not row.get("finalist")]
    rows.sort(key=lambda row: float(row[objective]), reverse=objective == "val_accuracy")
    return rows[:_TRIALS_OF_A_TABLE]
