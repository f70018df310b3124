"""The plan of a search: what its flags ask for, checked before anything is written."""

import dataclasses

from keras_tuner.engine.trial import Trial

from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers import setup
from trainers.configuration import ModelConfig
from trainers.models import optimizers
from trainers.training import descriptions
from tuning.configuration import SweepConfig
from tuning.search import final_data, oracles
from tuning.search.folder import Folder
from tuning.search.trials import Execution
from tuning.space import ranges
from tuning.space.search_space import SearchSpace


@dataclasses.dataclass(frozen=True)
class Plan:
    """A search that can be started or resumed.

    Attributes:
      config: The flags.
      folder: The folder of the search.
      space: The search space, with the images.
    """

    config: SweepConfig
    folder: Folder
    space: SearchSpace

    @classmethod
    def make(cls, config: SweepConfig) -> "Plan":
        """Loads the images and checks the flags; writes decoded images only.

        Raises:
          UserError: The user has to change something.
        """
        if config.data.validation_split == "none":
            raise UserError("validation_split 'none': models are chosen by their validation")
        for name in ranges.parse(config.space.optimizer, str).values:
            optimizers.optimizer_class(name)
        config = _with_image_size(config)
        data = run_data.load(config.data)
        final_data.check_same_test(config, data)
        return cls(config, Folder(config, data.records.fingerprint), SearchSpace(config, data))

    @property
    def minimized(self) -> bool:
        """Whether a lower objective is better."""
        return self.config.search.objective.endswith("loss")

    def executions(self, trial: Trial) -> list[Execution]:
        """Returns the trainings of a trial."""
        values = trial.hyperparameters.values
        # Hyperband sets the epochs of a trial, and the trial that it continues.
        epochs = int(values.get("tuner/epochs", self.config.trial.max_epochs))
        earlier = values.get("tuner/trial_id")
        settings = self.space.settings(values)
        runs = self.folder.path / "trials"
        made = []
        for number in range(self.config.trial.executions_per_trial):
            end = f"-{number + 1}" if number else ""
            run_dir = str(runs / f"{trial.trial_id}{end}")
            config = self.space.fit_config(values, run_dir=run_dir, resume="auto")
            optimisation = config.optimisation
            optimisation = dataclasses.replace(optimisation, seed=optimisation.seed + number)
            made.append(
                Execution(
                    config=dataclasses.replace(config, optimisation=optimisation),
                    epochs=epochs,
                    earlier=runs / f"{earlier}{end}" if earlier else None,
                    settings=settings if self.config.search.tensorboard else None,
                    keep_backup=self.config.search.tuner == "hyperband",
                )
            )
        return made

    def table(self, oracle: oracles.Durable) -> str:
        """Returns the table that is printed before the search."""
        asked, trial, data = self.config.search, self.config.trial, self.space.data
        fixed = [name for name, values in self.space.ranges.items() if len(values.values) == 1]
        limits = [f"{trial.max_epochs} epochs a trial"]
        if oracle.max_trials:
            limits.append(f"{oracle.max_trials} trials")
        if asked.time_budget is not None:
            limits.append(f"{asked.time_budget / 60:.0f} min")
        images = [
            f"{purpose}: {data.splits[purpose]}, {len(data.rows[purpose]):,} images"
            for purpose in ("train", "validation")
        ]
        ended = len(oracle.ended_after)
        rows = [
            ("images", "; ".join(images)),
            ("dataset", data.records.builder.info.full_name),
            *(("caution", text) for text in descriptions.split_cautions(data)),
            ("searched", ", ".join(name for name in self.space.ranges if name not in fixed)),
            ("tuner", f"{asked.tuner}, {asked.objective}, at most {', '.join(limits)}"),
            ("workers", f"{asked.workers}" if asked.workers > 1 else ""),
            ("sweep", f"{self.folder.path}" + (f", after {ended} trials" if ended else "")),
        ]
        return "\n".join(f"{name:<12}{text}" for name, text in rows if text)


def _with_image_size(config: SweepConfig) -> SweepConfig:
    """Returns the flags with the image size that all networks want, unless one is given."""
    sizes = {
        name: setup.image_size(config.data, ModelConfig(model=name))
        for name in ranges.parse(config.space.model, str).values
    }
    if len(set(sizes.values())) > 1:
        texts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(
            f"model: the networks want images of different sizes ({texts}); pass --image_size"
        )
    size = next(iter(sizes.values()))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=size))
