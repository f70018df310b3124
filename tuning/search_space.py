"""The search space: from hyperparameters to the flags of `trainers.fit`, and to a model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import keras_tuner

from trainers import data as run_data
from trainers.configuration import (
    CHAPTERS_AUGMENTATION,
    AugmentationConfig,
    DataConfig,
    FitConfig,
    ModelConfig,
    OptimisationConfig,
    RunConfig,
)
from trainers.hardware import devices
from trainers.models import networks, preprocessing
from trainers.training import loop
from tuning.configuration import SpaceConfig, SweepConfig
from tuning.ranges import Range

_AUGMENTATIONS = {
    "none": AugmentationConfig(),
    "flip": AugmentationConfig(horizontal_flip=True),
    "chapter": CHAPTERS_AUGMENTATION,
}


class SearchSpace(keras_tuner.HyperModel):
    """What the flags say may be tried; each point of it is a run of `trainers.fit`.

    Args:
      config: The flags of the search.
      data: Its pictures.
    """

    def __init__(self, config: SweepConfig, data: run_data.Data):
        super().__init__()
        self._config = config
        self.data = data
        self.ranges: dict[str, Range] = {
            field.name: field.metadata["parse"](getattr(config.space, field.name))
            for field in dataclasses.fields(SpaceConfig)
        }

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Registers all of the space with `hp`, parents before what depends on them."""
        conditions = self._conditions()
        for name in (*dict.fromkeys(parent for parent, _ in conditions.values()), *self.ranges):
            if name not in conditions:
                self._register(hp, name)
        for name, (parent, values) in conditions.items():
            if values:  # Else it never means anything.
                with hp.conditional_scope(parent, values):
                    self._register(hp, name)

    def _conditions(self) -> dict[str, tuple[str, list[Any]]]:
        """Of settings that mean nothing for some values of another: those for which they do."""
        blocks, dense_layers = _whole_numbers(self.ranges["blocks"]), self.ranges["dense_layers"]
        some, several = ([count for count in blocks if count >= least] for least in (1, 2))
        convolutional = ("filters", "convolutions", "kernel_size", "padding", "pool_size")
        conditions = {}
        if 0 in blocks:
            conditions |= dict.fromkeys((*convolutional, "global_pooling"), ("blocks", some))
        if blocks != several:
            conditions["filter_growth"] = ("blocks", several)
        if dense_layers.least == 0:
            dense = [count for count in _whole_numbers(dense_layers) if count]
            conditions["dense_units"] = ("dense_layers", dense)
        optimizers = self.ranges["optimizer"].values
        decaying = [name for name in optimizers if name.lower() == "adamw"]
        if decaying and len(decaying) < len(optimizers):
            # Keras's Adam with a weight decay is its AdamW.
            conditions["weight_decay"] = ("optimizer", decaying)
        return conditions

    def _register(self, hp: keras_tuner.HyperParameters, name: str) -> None:
        values = self.ranges[name]
        if len(values.values) == 1:
            hp.Fixed(name, values.values[0])
        elif values.values:
            hp.Choice(name, list(values.values))
        else:
            register = hp.Int if isinstance(values.low, int) else hp.Float
            sampling = "log" if values.log else "linear"
            register(name, values.low, values.high, step=values.step, sampling=sampling)

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Hyperparameters as the flags have them, those that are active and no others."""
        return {name: self._plain(name, values[name]) for name in self.ranges if name in values}

    def fit_config(self, values: Mapping[str, Any], **run: Any) -> FitConfig:
        """The flags of `trainers.fit` for one point of the space.

        Args:
          values: The hyperparameters that are active, by name.
          **run: Fields of `RunConfig`.
        """
        values, trial = self.settings(values), self._config.trial
        augmentation = _AUGMENTATIONS[values["augmentation"]]
        return FitConfig(
            data=DataConfig(**vars(self._config.data)),
            augmentation=dataclasses.replace(augmentation, augment_on=trial.augment_on),
            normalization=self._config.normalization,
            model=ModelConfig(**_only(ModelConfig, values)),
            optimisation=OptimisationConfig(
                **_only(OptimisationConfig, values),
                epochs=trial.max_epochs,
                class_weight=trial.class_weight,
                early_stopping_patience=trial.early_stopping_patience,
                seed=trial.seed,
            ),
            devices=self._config.devices,
            run=RunConfig(**run),
        )

    def _plain(self, name: str, value: Any) -> Any:
        """As the flag has it, whatever Keras Tuner makes of it on its way between processes."""
        if any(isinstance(known, bool) for known in self.ranges[name].values):
            return bool(value)
        # Nobody wants more digits of a number that was drawn.
        return float(f"{value:.6g}") if isinstance(value, float) else value

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Whether the network of a point leaves anything of the pictures."""
        sizes = networks.sizes_of(self.fit_config(values).model)
        return networks.fits(sizes, self.data.image_shape)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The compiled model of a point, for a tuner of Keras Tuner's own.

        Raises:
          UserError: Its network does not fit the pictures, or there is no such optimizer.
        """
        self.declare_hyperparameters(hp)
        config = self.fit_config(hp.values)
        chosen, seed = devices.choose(config.devices), config.optimisation.seed
        pictures = run_data.with_batch_size(config.data, chosen.replicas)
        config = dataclasses.replace(config, data=pictures)
        with chosen.scope():
            augmentation = preprocessing.augmentation_of(config.augmentation, seed)
        return loop.compiled_model(config, self.data, chosen, augmentation)


def _whole_numbers(values: Range) -> list[int]:
    return list(values.values or range(values.low, values.high + 1, values.step or 1))


def _only(concern: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(concern)}
    return {name: value for name, value in values.items() if name in names}
