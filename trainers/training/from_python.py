"""Trains a classifier from Python, with the words of the flags: `trainers.train`."""

import dataclasses
import functools
import inspect
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from pizza_steak import cores, flagfile, help
from pizza_steak.archive import ReadingOptions
from pizza_steak.errors import UserError, naming_arguments
from pizza_steak.flags import as_argument, define_flags, fields, from_flags
from pizza_steak.tensorflow_import import import_tensorflow
from trainers.configuration import DevicesConfig, FitConfig
from trainers.hardware import devices
from trainers.runs import run_directory

if TYPE_CHECKING:  # Importing `trainers` must not wait for TensorFlow.
    import keras

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedRun:
    """A finished run; what `train` and `open_run` return.

    Attributes:
      run_dir: The run directory.
      result: The content of its result.json, such as "test_accuracy" and "test_loss".
    """

    run_dir: pathlib.Path
    result: Mapping[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return tuple(self.result["classes"])

    @property
    def history(self) -> dict[str, list[float]]:
        """The values of each metric by epoch, with the names of Keras's history."""
        return self.result.get("history", {})

    @functools.cached_property
    def model(self) -> "keras.Model":
        """The kept model, the best by validation loss or without validation the last.

        It takes images of shape (B, height, width, channels) with values 0 to 255. For two classes
        its output is the probability of the second one, of shape (B, 1), else of shape (B, C). The
        network of a function of yours may have shape (B, 2).
        """
        from trainers.finished import loading

        return loading.load_model(run_directory.open_run(str(self.run_dir)))

    def predict(
        self,
        images: Paths,
        *,
        follow_links: bool = False,
        zip_encoding: str | None = None,
        max_unpacked_gb: float | None = None,
    ) -> list[dict[str, Any]]:
        """Predicts the classes of images, decoded as for the training.

        Args:
          images: A path or several: image files, folders, zips and patterns, as for
            `python -m trainers.predict`.
          follow_links: As for `pizza_steak.load`, of folders among the images.
          zip_encoding: As for `pizza_steak.load`.
          max_unpacked_gb: As for `pizza_steak.load`, of each zip.

        Returns:
          A dict for each image: "path"; "class", the name of the most probable class;
          "probability", of that class; and "probabilities", of each class by its name. A path
          without an image, or an image that cannot be decoded, has "path" and "error".

        """
        from trainers.finished import prediction

        paths = [images] if isinstance(images, str | os.PathLike) else images
        run = run_directory.open_run(str(self.run_dir))
        reading = ReadingOptions(follow_links, zip_encoding, max_unpacked_gb)
        with naming_arguments():
            predictions = prediction.predict(
                run, [os.fspath(path) for path in paths], reading=reading
            )
            return list(predictions.rows())

    def __repr__(self) -> str:
        from trainers.training import results

        return results.FitResult(self.run_dir, dict(self.result)).summary()


def train(archive: str | os.PathLike[str] | None = None, **flags: Any) -> TrainedRun:
    """Trains a classifier as `python -m trainers.fit` does, with the flags as arguments.

    >>> run = trainers.train(
    ...     dataset="pizza_steak/sample", image_size=32, epochs=2, run_dir="runs/sample"
    ... )
    >>> run.class_names
    ('pizza', 'steak')
    >>> len(run.history["val_accuracy"])
    2
    >>> run.model.input_shape
    (None, 32, 32, 3)

    The same values give the same weights as the command, and the same files in `run.run_dir`. The
    training uses the random seeds and the settings of Keras that the command uses, and gives yours
    back at its end; threads that train take turns. The first call of a process imports TensorFlow
    as the command does, if nothing else has imported it before.

    Args:
      archive: Path of a zip or folder of class folders, or a pattern of several; by default the
        images are those of the argument `dataset`.
      **flags: Any flag of `python -m trainers.fit --helpfull`, without its dashes: numbers, text,
        paths, True and False; a list or tuple for a flag that takes several values; None for the
        default. `flagfile="tinyvgg.flags"` sets the flags in a file, unless they are given here.

    Raises:
      UserError: An argument or a value is wrong, or training fails for a reason that the user can
        fix.
      PreemptedError: SIGTERM came during training; the run is saved and can be resumed.
    """
    with naming_arguments():
        config = _configuration({"archive": archive, **flags})
        _prepare(config.devices)
        # They import TensorFlow.
        from trainers.hardware import clusters
        from trainers.training import loop, surroundings

        with surroundings.kept(), cores.held_to(config.devices.threads):
            result = loop.fit(config, clusters.from_environment(config))
    return TrainedRun(result.run_dir, result.values)


def _signature() -> inspect.Signature:
    defaults = {field.name: field.default for _, field in fields(FitConfig)}
    archive = inspect.Parameter(
        "archive", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=defaults.pop("archive")
    )
    others = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in [("flagfile", None), *defaults.items()]
    ]
    return inspect.Signature([archive, *others], return_annotation=TrainedRun)


# Notebooks and editors then complete the names of the flags.
train.__signature__ = _signature()  # type: ignore[attr-defined]


def open_run(run_dir: str | os.PathLike[str]) -> TrainedRun:
    """Returns a finished run, to predict with its model.

    >>> run = trainers.open_run("runs/sample")
    >>> run.class_names
    ('pizza', 'steak')

    Raises:
      UserError: There is no run in the directory, or it is not finished.
    """
    run = run_directory.open_run(os.fspath(run_dir))
    _prepare(devices.one_device(run.config.devices))
    return TrainedRun(run.path, run.result)


def _configuration(words: Mapping[str, Any]) -> FitConfig:
    """Returns the configuration of flags given as arguments.

    Raises:
      UserError: A flag does not exist, or its parser refuses its value.
    """
    values = absl_flags.FlagValues()
    define_flags(FitConfig, values)
    known = {"flagfile": None} | {field.name: field for _, field in fields(FitConfig)}
    arguments = []
    for name, value in words.items():
        if name not in known:
            meant = " or ".join(flag.lstrip("-") for flag in help.suggestions(FitConfig, name))
            advice = f"did you mean {meant}?" if meant else "it takes the flags of trainers.fit"
            raise UserError(f"train has no argument {name}; {advice}")
        if value is None:
            continue
        field = known[name]
        repeated = field is not None and field.metadata["repeated"]
        given = value if repeated and not isinstance(value, str) else [value]
        arguments += [_argument(name, one) for one in given]
    # A flag that is given twice has its last value: those of the file come first.
    arguments.sort(key=lambda argument: not argument.startswith("--flagfile="))
    try:
        # The first one is the name of a command.
        values(["train", *flagfile.expand(arguments, FitConfig)])
    except flagfile.FlagfileError as error:
        raise UserError(f"flagfile={error}") from error
    except absl_flags.Error as error:
        raise UserError(" ".join(str(error).split()).removeprefix("flag ")) from error
    return from_flags(FitConfig, values)


def _argument(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}={str(value).lower()}"
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return as_argument(name, tuple(value) if several else value)


def _prepare(config: DevicesConfig) -> None:
    """Imports TensorFlow as a command does, unless it is imported already.

    Raises:
      UserError: Keras computes with another backend.
    """
    if "tensorflow" not in sys.modules:
        devices.prepare(config)
    import_tensorflow()
