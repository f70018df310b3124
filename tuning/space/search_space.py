"""The search space: turns hyperparameters into the flags of `trainers.fit`, and into a model."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_tuner

from pizza_steak.errors import UserError
from pizza_steak.flags import Numbers, as_argument
from trainers import data as run_data
from trainers import setup, user_code
from trainers.configuration import (
    AugmentationConfig,
    DataConfig,
    FitConfig,
    ModelConfig,
    NormalizationConfig,
    OptimisationConfig,
    RunConfig,
)
from trainers.models import backbones, networks
from tuning.configuration import SEARCHED, SEARCHED_WITHOUT_BACKBONE, SpaceConfig, SweepConfig
from tuning.space.ranges import Range


def _with_defaults(config: SweepConfig) -> SweepConfig:
    """Returns the flags with the ranges that are searched by default.

    Raises:
      UserError: The networks want images of different sizes, and no flag says which.
    """
    given = {name: text for name, text in vars(config.space).items() if text is not None}
    given["model"] = _absolute("model", given.get("model", ModelConfig().model))
    if "weights" in given:
        given["weights"] = _absolute("weights", given["weights"])
    models = [ModelConfig(model=name) for name in given["model"].split(",")]
    usual = dict(SEARCHED)
    if any(networks.is_built_here(model) for model in models):
        usual |= SEARCHED_WITHOUT_BACKBONE
    space = SpaceConfig(**usual | given)
    data = config.data
    if data.image_size is None:
        sizes = {model.model: setup.image_size(data, model) for model in models}
        if len(set(sizes.values())) > 1:
            texts = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise UserError(
                f"model: the networks want images of different sizes ({texts}); pass --image_size"
            )
        size: Any = _as_range(next(iter(sizes.values())))  # A text in the flags of a sweep.
        data = dataclasses.replace(data, image_size=size)
    return dataclasses.replace(config, data=data, space=space)


class SearchSpace(keras_tuner.HyperModel):
    """The hyperparameters that a sweep tries; each point is a run of `trainers.fit`.

    Attributes:
      config: The flags of the sweep, with the ranges that are searched by default.
      ranges: The range of each setting, by its name.

    Args:
      config: The flags of the sweep.
    """

    def __init__(self, config: SweepConfig):
        super().__init__()
        self.config = _with_defaults(config)
        self.ranges: dict[str, Range] = {
            field.name: field.metadata["parse"](text)
            for concern in (self.config.space, self.config.data)
            for field in dataclasses.fields(concern)
            if "parse" in field.metadata
            and (text := getattr(concern, field.name)) is not None
            and text != _fits_default(field.name)
        }

    @functools.cached_property
    def hyperparameters(self) -> keras_tuner.HyperParameters:
        """All hyperparameters, as Keras Tuner has them."""
        hp = keras_tuner.HyperParameters()
        self.declare_hyperparameters(hp)
        return hp

    @property
    def searched(self) -> list[str]:
        """The names of the settings with more than one value, without those of no meaning."""
        known = {hp.name for hp in self.hyperparameters.space}
        return [
            name for name, found in self.ranges.items() if name in known and len(found.values) != 1
        ]

    @property
    def default(self) -> dict[str, Any]:
        """The hyperparameters of a point: the first value of each range."""
        return dict(self.hyperparameters.values)

    def examples(self) -> Iterator[dict[str, Any]]:
        """Yields a point with each value of each range, and the first values of the others."""
        conditions = self._conditions()
        first = {name: f.values[0] if f.values else f.low for name, f in self.ranges.items()}
        for name, found in self.ranges.items():
            asked, child = dict(first), name
            while child in conditions:
                parent, values = conditions[child]
                asked[parent], child = next(iter(values), None), parent
            for value in found.values or (found.low, found.high):
                point = self._active((asked | {name: value}).__getitem__)
                if name in point:
                    yield point

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
        conditions: dict[str, tuple[str, list[Any]]] = {}
        convolutional = ("filters", "convolutions", "kernel_size", "padding", "pool_size")
        models = {name: ModelConfig(model=name) for name in self.ranges["model"].values}
        built_here = [name for name, model in models.items() if networks.is_built_here(model)]
        with_head = [
            name for name, model in models.items() if not user_code.is_function(model.model)
        ]
        if len(built_here) < len(models):
            own = ("blocks", *convolutional, "filter_growth", "global_pooling")
            conditions |= dict.fromkeys(own, ("model", built_here))
        trained = [name for name in with_head if name not in built_here]
        if len(trained) < len(models):
            of_trained = ("weights", "features", "trainable", "head_epochs", "fine_tuning_rate")
            conditions |= dict.fromkeys(of_trained, ("model", trained))
        if len(with_head) < len(models):
            of_head = ("dense_layers", "dense_units", "dropout", "batch_normalization")
            conditions |= dict.fromkeys(of_head, ("model", with_head))
        if "blocks" in self.ranges:
            blocks = _whole_numbers(self.ranges["blocks"])
            some, several = ([count for count in blocks if count >= least] for least in (1, 2))
            if 0 in blocks:
                of_blocks = (*convolutional, "global_pooling")
                conditions |= dict.fromkeys(of_blocks, ("blocks", some))
            if blocks != several:
                conditions["filter_growth"] = ("blocks", several)
        if "dense_layers" in self.ranges and self.ranges["dense_layers"].least == 0:
            dense = [count for count in _whole_numbers(self.ranges["dense_layers"]) if count]
            conditions["dense_units"] = ("dense_layers", dense)
        if "trainable" in self.ranges and "head" in self.ranges["trainable"].values:
            more = [layers for layers in self.ranges["trainable"].values if layers != "head"]
            conditions["head_epochs"] = ("trainable", more)
        if "head_epochs" in self.ranges and self.ranges["head_epochs"].least == 0:
            some = [count for count in _whole_numbers(self.ranges["head_epochs"]) if count]
            conditions["fine_tuning_rate"] = ("head_epochs", some)
        if "optimizer" in self.ranges:
            optimizers = self.ranges["optimizer"].values
            decaying = [name for name in optimizers if name.lower() == "adamw"]
            if decaying and len(decaying) < len(optimizers):
                # Only AdamW has one: Keras's Adam with weight decay is its AdamW.
                conditions["weight_decay"] = ("optimizer", decaying)
        return {name: found for name, found in conditions.items() if name in self.ranges}

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
        """Returns the active hyperparameters, as values of their ranges."""
        return {
            name: value if isinstance(value, str) else found.flag_value(value)
            for name, found in self.ranges.items()
            if (value := values.get(name)) is not None
        }

    def fit_config(self, values: Mapping[str, Any], **run: Any) -> FitConfig:
        """Returns the flags of `trainers.fit` for one point of the space.

        Args:
          values: The active hyperparameters, by name.
          **run: Fields of `RunConfig`.
        """
        config, trial = self.config, self.config.trial
        flags = {
            name: self.ranges[name].flag_value(value)
            for name, value in self.settings(values).items()
        }
        # In the data flags of a sweep, these are texts.
        data = {
            field.name: getattr(config.data, field.name)
            for field in dataclasses.fields(DataConfig)
            if field.name not in _FORMAT
        }
        made = FitConfig(
            data=DataConfig(**data, **_only(DataConfig, flags)),
            augmentation=AugmentationConfig(
                **_only(AugmentationConfig, flags),
                augment_on=trial.augment_on,
                augmentation_cycle=trial.augmentation_cycle,
            ),
            normalization=NormalizationConfig(**_only(NormalizationConfig, flags)),
            model=ModelConfig(**_only(ModelConfig, flags)),
            optimisation=OptimisationConfig(
                **_only(OptimisationConfig, flags),
                epochs=trial.max_epochs,
                class_weight=trial.class_weight,
                early_stopping_patience=trial.early_stopping_patience,
                seed=trial.seed,
            ),
            devices=config.devices,
            run=RunConfig(**run),
        )
        return setup.resolved(made)

    def point(self, config: FitConfig) -> dict[str, Any]:
        """Returns the hyperparameters for flags of `trainers.fit`: the inverse of `fit_config`.

        What the sweep fixes of the images' format and the batch size, the flags do not change.

        Raises:
          ValueError: A flag is outside its range.
        """
        concerns = (config.data, config.augmentation, config.normalization, config.optimisation)
        flags = {name: value for concern in concerns for name, value in vars(concern).items()}
        flags |= vars(networks.sizes_of(setup.resolved(config).model))  # Paths are absolute.

        def value(name: str) -> Any:
            known = self.ranges[name]
            if name in _FORMAT and len(known.values) == 1:
                return known.values[0]
            try:
                return known.value_of(flags[name])
            except ValueError as error:
                raise ValueError(f"{as_argument(name, flags[name])}: {error}") from error

        value("model")  # What is wrong with it explains what else is.
        return self._active(value)

    def point_of_row(self, row: Mapping[str, str]) -> dict[str, Any]:
        """Returns the hyperparameters for a row of trials.csv.

        Raises:
          ValueError: A setting is outside its range, or missing.
        """

        def value(name: str) -> Any:
            known, text = self.ranges[name], row.get(name)
            if not text:
                if len(known.values) == 1:
                    return known.values[0]
                raise ValueError(f"no {name}")
            try:
                return known.value_of(
                    known.flag_value(text.lower() if known.kind is bool else text)
                )
            except ValueError as error:
                raise ValueError(f"{name} {text}: {error}") from error

        return self._active(value)

    def _active(self, value: Callable[[str], Any]) -> dict[str, Any]:
        """Returns the values of the hyperparameters that mean something beside each other."""
        point = keras_tuner.HyperParameters()
        for hp in self.hyperparameters.space:
            point.merge([hp])
            if point.is_active(hp):
                found = value(hp.name)
                # Keras Tuner has 0 and 1 for false and true.
                listed = getattr(hp, "values", ())
                point.values[hp.name] = next((v for v in listed if v == found), found)
        return point.values

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Returns whether the images are large enough for the network of a point."""
        config = self.fit_config(values)
        if not networks.is_built_here(config.model):
            return True
        return networks.fits(networks.sizes_of(config.model), run_data.format_of(config.data).shape)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Builds the compiled model of a point, for Keras Tuner's own tuners.

        Raises:
          UserError: The images are too small for the network, or there is no such optimizer.
        """
        self.declare_hyperparameters(hp)
        return setup.prepare(self.fit_config(hp.values)).model


# Flags of the images that may be ranges.
_FORMAT = [
    field.name for field in dataclasses.fields(SweepConfig().data) if "parse" in field.metadata
]


def _fits_default(name: str) -> Any:
    """Returns the default of a format flag, which is not worth a column of the table."""
    return getattr(DataConfig(), name, None)


def _absolute(flag: str, texts: str) -> str:
    """Returns the values of --model or --weights with absolute paths."""
    found = []
    for text in texts.split(","):
        asked: dict[str, Any] = {"model": "resnet50", flag: text}
        model = ModelConfig(**asked)
        if not networks.is_built_here(model):
            text = getattr(backbones.with_absolute_paths(model), flag)
        found.append(text)
    return ",".join(found)


def _as_range(size: Numbers) -> str:
    return "..".join(map(str, size)) if isinstance(size, Sequence) else str(size)


def _whole_numbers(values: Range) -> list[int]:
    return list(values.values or range(values.low, values.high + 1, values.step or 1))


def _only(concern: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(concern)}
    return {name: value for name, value in values.items() if name in names}
