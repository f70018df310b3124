"""The flags of a search; like `trainers.configuration`."""

import dataclasses
import functools
from typing import Any

from pizza_steak.flags import flag, same_flag
from trainers.configuration import (
    AugmentationConfig,
    DataConfig,
    DevicesConfig,
    ModelConfig,
    NormalizationConfig,
    OptimisationConfig,
)
from tuning.space import ranges


@dataclasses.dataclass(frozen=True)
class SearchDataConfig(DataConfig):
    """Which images to use, and how to batch them."""

    validation_split: str | None = same_flag(
        DataConfig,
        "validation_split",
        help="Images that choose the best model, which is then trained on them too: a TFDS split "
        "string or a fraction of train; by default the split validation, or "
        "--validation_fraction of train if there is no such split.",
    )
    test_split: str | None = same_flag(
        DataConfig,
        "test_split",
        help="Images to test the best model on, once, at the end: a TFDS split string or a "
        "fraction of train; by default the split test, or --test_fraction of train if there "
        "is no such split.",
    )


def _searched(
    default: str,
    help: str,
    kind: type,
    *,
    common: bool = False,
    aliases: str = "",
    **limits: Any,
) -> Any:
    check = functools.partial(ranges.parse, kind=kind, **limits)
    field = flag(default, help, check=check, common=common, aliases=aliases)
    return dataclasses.field(default=default, metadata={**field.metadata, "parse": check})


@dataclasses.dataclass(frozen=True)
class SpaceConfig:
    """What to search: values separated by commas, or low:high, low:high:step or low:high:log."""

    model: str = _searched(
        "tinyvgg",
        "Networks: names, runs, files or functions as for trainers.fit. Of networks that are not "
        "built here, only the last layers are searched; their features are computed once with "
        "--augmentation=none or an --augmentation_cycle.",
        str,
        common=True,
        aliases="arch architecture backbone network",
    )
    filters: str = _searched(
        "8:64:log", "Filters of each convolution in the first block.", int, minimum=1
    )
    filter_growth: str = _searched(
        "1,2",
        "Factor by which the number of filters grows from block to block.",
        float,
        minimum=0.0,
    )
    blocks: str = _searched("1:4", "Blocks of convolutions.", int, minimum=0)
    convolutions: str = _searched("1:3", "Convolutions per block.", int, minimum=1)
    kernel_size: str = _searched("3,5", "Height and width of convolution kernels.", int, minimum=1)
    padding: str = _searched("same", "Padding of convolutions.", str, choices=("valid", "same"))
    pool_size: str = _searched(
        "2,3", "Height and width of max pooling windows; 1 for no pooling.", int, minimum=1
    )
    global_pooling: str = _searched(
        "false,true", "Average each filter, instead of flattening the filters.", bool
    )
    dense_layers: str = _searched("0,1", "Dense layers before the output layer.", int, minimum=0)
    dense_units: str = _searched(
        "16:256:log", "Units of each of these dense layers.", int, minimum=1
    )
    batch_normalization: str = _searched("false,true", "Batch normalization.", bool)
    dropout: str = _searched(
        "0:0.5", "Fraction of values to drop.", float, minimum=0.0, maximum=1.0
    )
    optimizer: str = _searched(
        "adam,adamw",
        "Names of Keras optimizers.",
        str,
        aliases="opt optim optimiser",
    )
    weight_decay: str = _searched(
        "1e-4:1e-1:log",
        "Weight decay; of adamw only if other optimizers are searched too.",
        float,
        minimum=0.0,
        aliases="l2 wd",
    )
    learning_rate: str = _searched(
        "1e-4:1e-2:log",
        "Learning rate.",
        float,
        minimum=0.0,
        common=True,
        aliases="lr lr0",
    )
    learning_rate_schedule: str = _searched(
        "constant,cosine",
        "Learning rate schedule over --max_epochs.",
        str,
        choices=("constant", "cosine"),
        aliases="lr_scheduler schedule scheduler",
    )
    label_smoothing: str = _searched(
        "0,0.05,0.1", "Label smoothing.", float, minimum=0.0, maximum=1.0
    )
    augmentation: str = _searched(
        "none,flip,chapter",
        "How to augment training images: not at all, by mirroring left to right, or as in "
        "tinyvgg_augmented.flags.",
        str,
        choices=("none", "flip", "chapter"),
        common=True,
        aliases="augment",
    )


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
    executions_per_trial: int = flag(
        1,
        "How often to train each trial, every time with another seed; the mean counts.",
        minimum=1,
    )
    early_stopping_patience: int | None = same_flag(OptimisationConfig, "early_stopping_patience")
    class_weight: str | None = same_flag(OptimisationConfig, "class_weight")
    augment_on: str = same_flag(AugmentationConfig, "augment_on")
    augmentation_cycle: int | None = same_flag(AugmentationConfig, "augmentation_cycle")
    seed: int = flag(
        42,
        "Seed of the search, the weights, the order of the images and the augmentation.",
        minimum=0,
        common=True,
        aliases="random_seed random_state",
    )


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How to search, and where to write the results."""

    sweep_dir: str = flag(
        "runs/sweep",
        "Folder of the search; an existing search with the same flags is resumed.",
        identity=False,
        common=True,
        aliases="out_dir output output_dir run_dir",
    )
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
        "Metric that chooses the best trial: the highest accuracy or the lowest loss of its best "
        "epoch.",
        ("val_accuracy", "val_loss"),
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
        "Seconds of search after which no trial starts.",
        minimum=0.0,
        identity=False,
        common=True,
        aliases="hours timeout time",
    )
    workers: int = flag(
        1,
        "Number of processes on this machine that run trials.",
        minimum=1,
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
    final_epochs: int | None = flag(
        None,
        "Epochs of the final training of the best model; by default --max_epochs, or with early "
        "stopping the best epoch of its trial.",
        minimum=1,
        identity=False,
    )
    tensorboard: bool = flag(
        True, "Write settings and results for TensorBoard's HParams.", identity=False
    )
    overwrite: bool = flag(
        False, "Replace the search in --sweep_dir.", identity=False, aliases="force"
    )


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """All flags of `tuning.sweep`."""

    data: SearchDataConfig = SearchDataConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    space: SpaceConfig = SpaceConfig()
    trial: TrialConfig = TrialConfig()
    devices: DevicesConfig = DevicesConfig()
    search: SearchConfig = SearchConfig()


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
        common=True,
    )
    plot: str = flag(
        "learning_rate.png",
        "File for the figure: .png, .pdf or .svg.",
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
