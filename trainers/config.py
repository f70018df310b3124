"""What a run can be told: one frozen dataclass a concern, and the flags made from them.

Each field stands once, with its default and its help; `define_flags` makes an absl flag of it and
`from_flags` reads it back. Nothing here imports TensorFlow, so that --help answers at once.
"""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags


def _flag(
    default: Any, help: str, choices: Sequence[str] = (), *, minimum: float | None = None
) -> Any:
    metadata = {"help": help, "choices": choices, "minimum": minimum}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which pictures, and how they become batches."""

    dataset: str = _flag(
        "pizza_steak/photos",
        "pizza_steak/photos (downloaded) or pizza_steak/sample (rendered, needs no network).",
    )
    archive: str | None = _flag(
        None, "Zip file or folder of class folders to use in place of --dataset."
    )
    data_dir: str | None = _flag(
        None, "Where records and decoded pictures are kept; by default ~/tensorflow_datasets."
    )
    train_split: str = _flag("train", "TFDS split string to train on, such as 'train[:80%]'.")
    validation_split: str = _flag("test", "TFDS split string to validate on after every epoch.")
    test_split: str | None = _flag(
        None,
        "TFDS split string that the best model is tested on at the end; by default 'test' where "
        "there is one, else the validation split.",
    )
    image_size: int = _flag(
        224, "Height and width that pictures are resized to, in pixels.", minimum=1
    )
    interpolation: str = _flag(
        "bilinear",
        "How they are resized.",
        ("bilinear", "nearest", "bicubic", "lanczos3", "lanczos5", "area", "gaussian",
         "mitchellcubic"),
    )  # fmt: skip
    class_mode: str | None = _flag(
        None,
        "Form of the labels; by default binary for two classes, else sparse.",
        ("binary", "categorical", "sparse", "none"),
    )
    batch_size: int = _flag(32, "Pictures a step.", minimum=1)
    decoded_cache: str = _flag(
        "disk",
        "Where decoded pictures are kept: on the disk for every later run, in this run's memory, "
        "or nowhere.",
        ("disk", "memory", "none"),
    )
    on_bad_image: str = _flag(
        "fail",
        "What a picture that cannot be decoded does: end the run, or be left out with a warning.",
        ("fail", "skip"),
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    model: str = _flag("tinyvgg", "Name of a builder in trainers/models.py.")
    filters: int = _flag(10, "Filters of a convolution.", minimum=1)
    blocks: int = _flag(2, "Blocks of convolutions, each ended by a pooling.", minimum=1)
    convolutions: int = _flag(2, "Convolutions a block.", minimum=1)
    kernel_size: int = _flag(3, "Height and width of a convolution's kernel.", minimum=1)
    pool_size: int = _flag(2, "Height and width that a pooling takes the maximum of.", minimum=1)


@dataclasses.dataclass(frozen=True)
class OptimisationConfig:
    """How it is trained."""

    epochs: int = _flag(5, "Passes over the training pictures.", minimum=1)
    optimizer: str = _flag("adam", "Name of a Keras optimizer.")
    learning_rate: float = _flag(0.001, "Learning rate.", minimum=0.0)
    class_weight: str | None = _flag(
        None, "'balanced' weighs each class by the inverse of its share of pictures.", ("balanced",)
    )
    early_stopping_patience: int | None = _flag(
        None,
        "Stop after so many epochs without a better validation loss, counted anew after --resume.",
        minimum=0,
    )
    reduce_lr_patience: int | None = _flag(
        None,
        "Divide the learning rate by ten after so many epochs without a better one, "
        "counted anew after --resume.",
        minimum=0,
    )
    seed: int = _flag(42, "Draws the weights and the order of the pictures.", minimum=0)


@dataclasses.dataclass(frozen=True)
class DevicesConfig:
    """What it is computed with."""

    precision: str = _flag(
        "float32", "Keras dtype policy: float32, mixed_float16 or mixed_bfloat16."
    )
    jit_compile: str = _flag(
        "auto", "XLA; auto: on a GPU, and not on a CPU, where it is slower.", ("auto", "on", "off")
    )
    onednn: str = _flag(
        "on",
        "oneDNN's kernels on a CPU; TensorFlow leaves them off on some processors, where they are "
        "three times as fast. The variable TF_ENABLE_ONEDNN_OPTS, where it is set, comes first.",
        ("on", "off"),
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What it leaves behind."""

    run_dir: str | None = _flag(
        None, "Folder for all that the run leaves; by default runs/<model>-<time>."
    )
    overwrite: bool = _flag(False, "Replace the run in --run_dir.")
    resume: bool = _flag(False, "Go on with the run in --run_dir after its last finished epoch.")
    tensorboard: bool = _flag(True, "Write curves for TensorBoard.")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """All that `trainers.fit` takes."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    devices: DevicesConfig = DevicesConfig()
    run: RunConfig = RunConfig()


@dataclasses.dataclass(frozen=True)
class MeasuringConfig:
    """What is measured, and how often."""

    repeats: int = _flag(3, "How often each stage is timed, in turns.", minimum=1)
    passes: int = _flag(10, "Passes over the training pictures when batches are timed.", minimum=1)
    json: str | None = _flag(None, "File for the figures, as JSON.")


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """All that `trainers.benchmark` takes."""

    data: DataConfig = DataConfig()
    devices: DevicesConfig = DevicesConfig()
    measuring: MeasuringConfig = MeasuringConfig()


def fields(config: type) -> Iterator[tuple[str, dataclasses.Field]]:
    """The (concern, field) pairs of a configuration made of concerns, such as `FitConfig`."""
    for concern in dataclasses.fields(config):
        for field in dataclasses.fields(concern.type):
            yield concern.name, field


def define_flags(config: type, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for each field of a configuration made of concerns."""
    for _, field in fields(config):
        define, options = flags.DEFINE_string, {}
        if choices := field.metadata["choices"]:
            define, options = flags.DEFINE_enum, {"enum_values": choices}
        elif _plain(field.type) is bool:
            define = flags.DEFINE_bool
        elif (number := _plain(field.type)) in (int, float):
            define = flags.DEFINE_integer if number is int else flags.DEFINE_float
            options = {"lower_bound": field.metadata["minimum"]}
        define(
            field.name,
            field.default,
            help=field.metadata["help"],
            flag_values=flag_values,
            **options,
        )


def from_flags(config: type, flag_values: flags.FlagValues = flags.FLAGS) -> Any:
    """The configuration that the parsed flags say."""
    values = {concern.name: {} for concern in dataclasses.fields(config)}
    for concern, field in fields(config):
        values[concern][field.name] = flag_values[field.name].value
    return config(**{c.name: c.type(**values[c.name]) for c in dataclasses.fields(config)})


def to_flags(config: Any) -> str:
    """A flagfile that says the same as `config`; flags that are None are left out."""
    lines = []
    for concern in dataclasses.fields(config):
        values = getattr(config, concern.name)
        lines.append(f"# {type(values).__doc__}")
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if isinstance(value, bool):
                lines.append(f"--{'' if value else 'no'}{field.name}")
            elif value is not None:
                lines.append(f"--{field.name}={value}")
        lines.append("")
    return "\n".join(lines)


def _plain(annotation: Any) -> type:
    """int of `int | None`."""
    return next((t for t in typing.get_args(annotation) if t is not type(None)), annotation)
