"""What a search can be told; as `trainers.configuration`, which see."""

import dataclasses
import functools
from typing import Any

from trainers.configuration import (
    AugmentationConfig,
    DataConfig,
    DevicesConfig,
    ModelConfig,
    NormalizationConfig,
    OptimisationConfig,
)
from trainers.flags import flag, same_flag
from tuning import ranges


@dataclasses.dataclass(frozen=True)
class SearchDataConfig(DataConfig):
    """Which pictures, and how they become batches."""

    validation_split: str | None = same_flag(
        DataConfig,
        "validation_split",
        help="Images that models are chosen by, and that the best of them is trained on as well "
        "once it has been chosen: a TFDS split string or a fraction of train; by default the split "
        "validation, or without one --validation_fraction of train.",
    )
    test_split: str | None = same_flag(
        DataConfig,
        "test_split",
        help="Images that the best model is tested on, once, at the end: a TFDS split string or a "
        "fraction of train; by default the split test, or without one --test_fraction of train.",
    )


def _searched(default: str, help: str, kind: type, **limits: Any) -> Any:
    check = functools.partial(ranges.parse, kind=kind, **limits)
    field = flag(default, help, check=check)
    return dataclasses.field(default=default, metadata={**field.metadata, "parse": check})


@dataclasses.dataclass(frozen=True)
class SpaceConfig:
    """What is searched: values after commas, or low:high, low:high:step or low:high:log."""

    filters: str = _searched(
        "8:64:log", "Filters of a convolution of the first block.", int, minimum=1
    )
    filter_growth: str = _searched(
        "1,2", "Filters of a block, as a multiple of those before.", float, minimum=0.0
    )
    blocks: str = _searched("1:4", "Blocks of convolutions.", int, minimum=0)
    convolutions: str = _searched("1:3", "Convolutions a block.", int, minimum=1)
    kernel_size: str = _searched("3,5", "Size of a convolution's kernel.", int, minimum=1)
    padding: str = _searched("same", "Padding of convolutions.", str, choices=("valid", "same"))
    pool_size: str = _searched("2,3", "Size of a pooling; 1 for none.", int, minimum=1)
    global_pooling: str = _searched("false,true", "Mean of each filter in place of all.", bool)
    dense_layers: str = _searched("0,1", "Dense layers before the last.", int, minimum=0)
    dense_units: str = _searched("16:256:log", "Units of each of them.", int, minimum=1)
    batch_normalization: str = _searched("false,true", "Batch normalisation.", bool)
    dropout: str = _searched("0:0.5", "Share of values dropped.", float, minimum=0.0, maximum=1.0)
    optimizer: str = _searched("adam,adamw", "Names of Keras optimizers.", str)
    weight_decay: str = _searched(
        "1e-4:1e-1:log",
        "Weight decay; of adamw alone, where others are searched.",
        float,
        minimum=0.0,
    )
    learning_rate: str = _searched("1e-4:1e-2:log", "Learning rate.", float, minimum=0.0)
    learning_rate_schedule: str = _searched(
        "constant,cosine", "Its schedule over --max_epochs.", str, choices=("constant", "cosine")
    )
    label_smoothing: str = _searched(
        "0,0.05,0.1", "Label smoothing.", float, minimum=0.0, maximum=1.0
    )
    augmentation: str = _searched(
        "none,flip,chapter",
        "How pictures are varied: not, mirrored left to right, or as in tinyvgg_augmented.flags.",
        str,
        choices=("none", "flip", "chapter"),
    )


@dataclasses.dataclass(frozen=True)
class TrialConfig:
    """What all trials have in common."""

    max_epochs: int = flag(20, "Epochs of a trial, at most.", minimum=1)
    executions_per_trial: int = flag(
        1, "How often a trial is trained, each with another seed; their mean counts.", minimum=1
    )
    early_stopping_patience: int | None = same_flag(OptimisationConfig, "early_stopping_patience")
    class_weight: str | None = same_flag(OptimisationConfig, "class_weight")
    augment_on: str = same_flag(AugmentationConfig, "augment_on")
    seed: int = flag(
        42, "Draws what is tried, the weights and the order of the pictures.", minimum=0
    )


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How it is searched, and what that leaves behind."""

    sweep_dir: str = flag(
        "runs/sweep",
        "Folder for all of it; a search that is there goes on with the same flags.",
        identity=False,
    )
    tuner: str = flag(
        "random",
        "What chooses the next trial, by Keras Tuner: chance, a Gaussian process, chance that "
        "gives more epochs to the better ones, or all in order.",
        ("random", "bayesian", "hyperband", "grid"),
    )
    objective: str = flag(
        "val_accuracy",
        "What the best model has the most of, or of a loss the least: of its best epoch.",
        ("val_accuracy", "val_loss"),
    )
    max_trials: int | None = flag(
        None,
        "Trials, at most; by default 30, or all that there are with hyperband and grid.",
        minimum=1,
        identity=False,
    )
    time_budget: float | None = flag(
        None, "Seconds of searching after which no trial is begun.", minimum=0.0, identity=False
    )
    workers: int = flag(1, "Processes on this machine that run trials.", minimum=1, identity=False)
    worker_timeout: float = flag(
        60.0,
        "Seconds without a word from a worker after which another gets its trial.",
        minimum=1,
        identity=False,
    )
    final_epochs: int | None = flag(
        None,
        "Epochs of the best model, on all training pictures; by default --max_epochs, or with "
        "early stopping those after which the trial was best.",
        minimum=1,
        identity=False,
    )
    tensorboard: bool = flag(
        True, "Write settings and results for TensorBoard's HParams.", identity=False
    )
    overwrite: bool = flag(False, "Replace the search in --sweep_dir.", identity=False)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """All that `tuning.sweep` takes."""

    data: SearchDataConfig = SearchDataConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    space: SpaceConfig = SpaceConfig()
    trial: TrialConfig = TrialConfig()
    devices: DevicesConfig = DevicesConfig()
    search: SearchConfig = SearchConfig()


@dataclasses.dataclass(frozen=True)
class RangeTestConfig:
    """Which learning rates are tried, and where the outcome goes."""

    lowest: float = flag(1e-5, "The learning rate of the first step.", minimum=0.0)
    highest: float = flag(1.0, "That of the last.", minimum=0.0)
    steps: int = flag(
        200, "Steps, each on another batch and at a rate higher by a constant factor.", minimum=10
    )
    plot: str = flag("learning_rate.png", "File for the figure: .png, .pdf or .svg.")


@dataclasses.dataclass(frozen=True)
class LearningRateConfig:
    """All that `tuning.learning_rate` takes; rate, schedule and epochs among it are not used."""

    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    model: ModelConfig = ModelConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    devices: DevicesConfig = DevicesConfig()
    range_test: RangeTestConfig = RangeTestConfig()
