"""The search space: turns hyperparameters into the flags of `trainers.fit`, and into a model."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import keras_tuner

from trainers import data as run_data
from trainers import setup, user_code
from trainers.configuration import (
    CHAPTERS_AUGMENTATION,
    AugmentationConfig,
    DataConfig,
    FitConfig,
    ModelConfig,
    OptimisationConfig,
    RunConfig,
)
from trainers.models import networks
from tuning.configuration import SpaceConfig, SweepConfig
from tuning.space.ranges import Range

_AUGMENTATIONS = {
    "none": AugmentationConfig(),
    "flip": AugmentationConfig(horizontal_flip=True),
    "chapter": CHAPTERS_AUGMENTATION,
}


class SearchSpace(keras_tuner.HyperModel):
    """The hyperparameters that a search tries; each point is a run of `trainers.fit`.

    Args:
      config: The flags of the search.
      data: The images of the search.
    """

    def __init__(self, config: SweepConfig, data: run_data.Data):
        super().__init__()
        self._config = config
        self.data = data
        self.ranges: dict[str, Range] = {
            field.name: field.metadata["parse"](getattr(config.space, field.name))
            for field in dataclasses.fields(SpaceConfig)
        }

    @property
    def has_heads_only(self) -> bool:
        """Whether no point of the space trains more than the head of a network."""
        models = (ModelConfig(model=name) for name in self.ranges["model"].values)
        return not any(networks.is_built_here(m) or user_code.is_function(m.model) for m in models)

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Registers all hyperparameters with `hp`, each after its parent."""
        conditions = self._conditions()
        parents = (parent for parent, _ in conditions.values())
        for name in dict.fromkeys((*parents, *self.ranges, *conditions)):
            if name not in conditions:
                self._register(hp, name)
        for name in conditions:
            self._register_within(hp, name, conditions)

    def _register_within(
        self,
        hp: keras_tuner.HyperParameters,
        name: str,
        conditions: dict[str, tuple[str, list[Any]]],
    ) -> None:
        """Registers a conditional setting, after its parents and within their scopes."""
        scopes: list[tuple[str, list[Any]]] = []
        outermost = name
        while outermost in conditions:
            scopes.insert(0, conditions[outermost])
            outermost = scopes[0][0]
        for parent, _ in scopes[1:]:
            self._register_within(hp, parent, conditions)
        if all(values for _, values in scopes):  # Else it never has a meaning.
            with contextlib.ExitStack() as stack:
                for parent, values in scopes:
                    stack.enter_context(hp.conditional_scope(parent, values))
                self._register(hp, name)

    def _conditions(self) -> dict[str, tuple[str, list[Any]]]:
        """Returns the parent of each conditional setting, and the parent's values that need it."""
        blocks, dense_layers = _whole_numbers(self.ranges["blocks"]), self.ranges["dense_layers"]
        some, several = ([count for count in blocks if count >= least] for least in (1, 2))
        convolutional = ("filters", "convolutions", "kernel_size", "padding", "pool_size")
        conditions: dict[str, tuple[str, list[Any]]] = {}
        models = {name: ModelConfig(model=name) for name in self.ranges["model"].values}
        built_here = [name for name, model in models.items() if networks.is_built_here(model)]
        with_head = [
            name for name, model in models.items() if not user_code.is_function(model.model)
        ]
        if len(built_here) < len(models):
            own = ("blocks", *convolutional, "filter_growth", "global_pooling")
            conditions |= dict.fromkeys(own, ("model", built_here))
        if len(with_head) < len(models):
            of_head = ("dense_layers", "dense_units", "dropout", "batch_normalization")
            conditions |= dict.fromkeys(of_head, ("model", with_head))
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
            # Only AdamW has one: Keras's Adam with weight decay is its AdamW.
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
        """Returns the active hyperparameters, as values of flags."""
        return {name: self._plain(name, values[name]) for name in self.ranges if name in values}

    def fit_config(self, values: Mapping[str, Any], **run: Any) -> FitConfig:
        """Returns the flags of `trainers.fit` for one point of the space.

        Args:
          values: The active hyperparameters, by name.
          **run: Fields of `RunConfig`.
        """
        values, trial = self.settings(values), self._config.trial
        augmentation = _AUGMENTATIONS[values["augmentation"]]
        config = FitConfig(
            data=DataConfig(**vars(self._config.data)),
            augmentation=dataclasses.replace(
                augmentation,
                augment_on=trial.augment_on,
                augmentation_cycle=trial.augmentation_cycle,
            ),
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
        return setup.resolved(config)

    def _plain(self, name: str, value: Any) -> Any:
        """Returns a hyperparameter as its flag has it; Keras Tuner may change its type."""
        if any(isinstance(known, bool) for known in self.ranges[name].values):
            return bool(value)
        # Six digits of a random number are enough.
        return float(f"{value:.6g}") if isinstance(value, float) else value

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Returns whether the images are large enough for the network of a point."""
        model = self.fit_config(values).model
        if not networks.is_built_here(model):
            return True
        return networks.fits(networks.sizes_of(model), self.data.image_shape)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Builds the compiled model of a point, for Keras Tuner's own tuners.

        Raises:
          UserError: The images are too small for the network, or there is no such optimizer.
        """
        self.declare_hyperparameters(hp)
        config = self.fit_config(hp.values)
        return setup.prepare(config, load=lambda _: self.data).model


def _whole_numbers(values: Range) -> list[int]:
    return list(values.values or range(values.low, values.high + 1, values.step or 1))


def _only(concern: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(concern)}
    return {name: value for name, value in values.items() if name in names}
