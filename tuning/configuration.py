"""The flags of a sweep; like `trainers.configuration`."""

import dataclasses
import functools
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

from pizza_steak.flags import flag, kind_of, limits, same_flag
from trainers.configuration import (
    AugmentationConfig,
    DataConfig,
    DevicesConfig,
    ModelConfig,
    NormalizationConfig,
    OptimisationConfig,
)
from tuning.space import ranges

# What a sweep searches if no flag says otherwise. Wider ranges cost trials: outside of these,
# nothing has won on the photographs of pizza and steak.
SEARCHED: Mapping[str, Any] = {
    "dropout": "0:0.5",
    "optimizer": "adamw",
    "weight_decay": "1e-3:1e-1:log",
    "learning_rate": "3e-4:1e-2:log",
    "learning_rate_schedule": "cosine",
    "label_smoothing": "0,0.05,0.1",
}
# The same, only for networks that are built here. The features of a trained network would have to
# be computed in every epoch with augmentation.
SEARCHED_WITHOUT_BACKBONE: Mapping[str, Any] = {
    "filters": "16,32,48",
    "filter_growth": "1.5,2",
    "blocks": "2:4",
    "convolutions": "1,2",
    "padding": "same",
    "batch_normalization": True,
    "global_pooling": True,
    "dense_layers": "0,1",
    "dense_units": "32:256:log",
    "horizontal_flip": "false,true",
    "zoom_range": "0,0.1,0.2",
    "width_shift_range": "0,0.1",
    "height_shift_range": "0,0.1",
    "rotation_range": "0,10",
    "brightness_range": "none,0.8..1.2",
    "mixup": "none,0.2",
    "ema": "none,0.99",
}
_FALSE_OR_TRUE = ("false,true", "true,false")
_Concern = TypeVar("_Concern", bound=type)


def _with_ranges(concern: type, names: Container[str]) -> Callable[[_Concern], _Concern]:
    """Gives a concern the flags of another one, which take ranges in place of values."""

    def add(cls: _Concern) -> _Concern:
        for field in dataclasses.fields(concern):
            if field.name not in names:
                continue
            known, kind = field.metadata, kind_of(field)
            minimum, maximum = limits(field)
            parse = functools.partial(
                ranges.parse,
                kind=kind,
                minimum=minimum,
                maximum=maximum,
                choices=known["choices"],
                # Without these flags, a network has its own sizes; "none" would be one of them.
                optional=field.default is None
                and concern in (OptimisationConfig, AugmentationConfig)
                and (kind is not str or bool(known["choices"])),
            )
            usual = SEARCHED.get(field.name) or SEARCHED_WITHOUT_BACKBONE.get(field.name)
            metadata = {
                **known,
                "help": known["help"] + (f" In a sweep by default {usual}." if usual else ""),
                "choices": _FALSE_OR_TRUE if kind is bool else (),
                "limits": (None, None),
                "check": functools.partial(_check, parse, known["check"]),
                "parse": parse,
            }
            default = (
                field.default if isinstance(field.default, bool | None) else str(field.default)
            )
            if concern is not DataConfig:
                default = None
            cls.__annotations__[field.name] = bool | str | None if kind is bool else str | None
            setattr(cls, field.name, dataclasses.field(default=default, metadata=metadata))
        return cls

    return add


def _check(
    parse: Callable[[Any], ranges.Range], check: Callable[[Any], Any] | None, text: Any
) -> None:
    if text is not None:
        found = parse(text)
        if check:
            for value in found.values:
                check(found.flag_value(value))
            for end in (found.low, found.high):
                check(end)


def _names(concern: type, *without: str) -> list[str]:
    return [field.name for field in dataclasses.fields(concern) if field.name not in without]


@dataclasses.dataclass(frozen=True)
@_with_ranges(
    DataConfig,
    (
        "image_size",
        "aspect_ratio",
        "color_mode",
        "interpolation",
        "antialias",
        "exif",
        "batch_size",
    ),
)
class SearchDataConfig(DataConfig):
    """Which images to use, and how to batch them; image formats and batch sizes may be ranges."""

    validation_split: str | None = same_flag(
        DataConfig,
        "validation_split",
        help="Images that score the trials: a TFDS split string or a fraction of train; by "
        "default the split validation, or --validation_fraction of train if there is no such "
        "split. The best model is then trained on them too.",
    )
    test_split: str | None = same_flag(
        DataConfig,
        "test_split",
        help="Images to test the best model on, once, at the end: a TFDS split string or a "
        "fraction of train; by default the split test, or --test_fraction of train if there "
        "is no such split.",
    )


@dataclasses.dataclass(frozen=True)
@_with_ranges(NormalizationConfig, _names(NormalizationConfig))
@_with_ranges(AugmentationConfig, _names(AugmentationConfig, "augment_on", "augmentation_cycle"))
@_with_ranges(
    OptimisationConfig,
    _names(OptimisationConfig, "epochs", "early_stopping_patience", "class_weight", "seed"),
)
@_with_ranges(ModelConfig, _names(ModelConfig))
class SpaceConfig:
    """What to search: values after commas, or low:high, low:high:step or low:high:log."""


@dataclasses.dataclass(frozen=True)
class TrialConfig:
    """What all trials have in common."""

    max_epochs: int = flag(
        20,
        "Most epochs of a trial.",
        minimum=1,
        common=True,
        aliases="epoch epochs",
    )
    min_epochs: int = flag(
        1,
        "Least epochs of a trial with --tuner=hyperband, or before --prune. One epoch favors "
        "networks without regularization.",
        minimum=1,
    )
    executions_per_trial: int = flag(
        1,
        "How often to train each trial, every time with another seed; the mean counts.",
        minimum=1,
        maximum=1000,
    )
    early_stopping_patience: int | None = same_flag(OptimisationConfig, "early_stopping_patience")
    class_weight: str | None = same_flag(OptimisationConfig, "class_weight")
    augment_on: str = same_flag(AugmentationConfig, "augment_on")
    augmentation_cycle: int | None = same_flag(AugmentationConfig, "augmentation_cycle")
    seed: int = flag(
        42,
        "Seed of the sweep, the weights, the order of the images and the augmentation.",
        minimum=0,
        common=True,
        aliases="random_seed random_state",
    )


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How to search."""

    tuner: str = flag(
        "random",
        "How Keras Tuner chooses the next trial. random: at random; bayesian: by a Gaussian "
        "process; hyperband: at random, with more epochs for the better trials; grid: all "
        "combinations in order.",
        ("random", "bayesian", "hyperband", "grid"),
        common=True,
    )
    objective: str = flag(
        "val_accuracy",
        "Metric that scores a trial: the mean of its last three epochs. The highest accuracy or "
        "the lowest loss is the best; label smoothing is not part of the loss.",
        ("val_accuracy", "val_loss"),
    )
    first_trials: tuple[str, ...] | None = flag(
        None,
        "Settings to try first: flagfiles such as tuned.flags, and tables trials.csv of other "
        "sweeps, of which the best ten are tried.",
        aliases="initial_points points_to_evaluate warm_start",
    )
    prune: str = flag(
        "none",
        "Which trials to stop early. median: those whose score after an epoch is below the median "
        "of the finished trials after the same epoch (not with hyperband, which stops trials "
        "itself).",
        ("none", "median"),
        aliases="pruner pruning",
    )
    max_trials: int | None = flag(
        None,
        "Most trials; by default 30, or with hyperband and grid all that there are.",
        minimum=1,
        identity=False,
        common=True,
        aliases="trials n_trials",
    )
    time_budget: float | None = flag(
        None,
        "Seconds after which no trial starts; finalists and the final training come after it.",
        minimum=0.0,
        identity=False,
        common=True,
        aliases="hours timeout time",
    )
    trial_timeout: float | None = flag(
        None,
        "Seconds after which a training of a trial counts as failed; by default --time_budget.",
        minimum=1.0,
        identity=False,
    )
    workers: int = flag(
        1,
        "Number of processes on this machine that run trials.",
        minimum=1,
        maximum=1000,
        identity=False,
        common=True,
        aliases="jobs n_jobs",
    )
    worker_timeout: float = flag(
        60.0,
        "Seconds of silence after which a worker's trial goes to another worker.",
        minimum=1,
        identity=False,
    )


@dataclasses.dataclass(frozen=True)
class FinalConfig:
    """How to choose among the best trials, and what to train and keep in the end."""

    finalists: int = flag(
        3,
        "Number of the best trials that are trained again on other parts of the training images, "
        "so that each of these images validates them once; the best on all parts is the best "
        "model. 1: the best trial wins as it is.",
        minimum=1,
        maximum=1000,
        identity=False,
        common=True,
    )
    final_epochs: int | None = flag(
        None,
        "Epochs of the finalists and of the final training; by default --max_epochs, or with "
        "early stopping as many as the best finalist took.",
        minimum=1,
        identity=False,
    )
    final_models: int = flag(
        1,
        "Number of models to train in the end, each with another seed; with several the result is "
        "one model that averages their probabilities.",
        minimum=1,
        maximum=1000,
        identity=False,
        common=True,
        aliases="ensemble",
    )
    average_flips: bool = flag(
        False,
        "Let the final model average its probabilities for an image and its mirror image.",
        identity=False,
        aliases="tta",
    )
    keep: int = flag(
        0,
        "Number of the best trials whose models are kept; the final model is always kept.",
        minimum=0,
        identity=False,
        aliases="keep_best top_k",
    )
    sweep_dir: str = flag(
        "runs/sweep",
        "Folder of the sweep; a sweep there with the same flags is resumed.",
        identity=False,
        typed=True,
        common=True,
        aliases="out_dir output output_dir run_dir",
    )
    tensorboard: bool = flag(
        True, "Write settings and results for TensorBoard's HParams.", identity=False
    )
    overwrite: bool = flag(
        False,
        "Replace a finished sweep in --sweep_dir, or one with other flags; an unfinished one with "
        "the same flags is resumed.",
        identity=False,
        typed=True,
        aliases="force",
    )


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """All flags of `tuning.sweep`."""

    data: SearchDataConfig = SearchDataConfig()
    space: SpaceConfig = SpaceConfig()
    trial: TrialConfig = TrialConfig()
    devices: DevicesConfig = DevicesConfig()
    search: SearchConfig = SearchConfig()
    final: FinalConfig = FinalConfig()


@dataclasses.dataclass(frozen=True)
class RangeTestConfig:
    """Which learning rates to try, and where to draw the result."""

    lowest: float = flag(
        1e-5,
        "Learning rate of the first step.",
        minimum=0.0,
        common=True,
        aliases="min minimum",
    )
    highest: float = flag(
        1.0,
        "Learning rate of the last step.",
        minimum=0.0,
        common=True,
        aliases="max maximum",
    )
    steps: int = flag(
        200,
        "Number of steps; each takes another batch, at a learning rate higher by a constant "
        "factor.",
        minimum=10,
        maximum=1_000_000,
        common=True,
    )
    plot: str = flag(
        "learning_rate.png",
        "File for the figure: .png, .pdf or .svg.",
        typed=True,
        common=True,
        aliases="output",
    )


@dataclasses.dataclass(frozen=True)
class LearningRateConfig:
    """All flags of `tuning.learning_rate`, which ignores learning rate, schedule and epochs."""

    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    model: ModelConfig = ModelConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    devices: DevicesConfig = DevicesConfig()
    range_test: RangeTestConfig = RangeTestConfig()
