"""Makes one model of several: it averages their probabilities, and those of mirrored images."""

import contextlib
import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import keras

from pizza_steak import atomic
from pizza_steak.errors import UserError, told
from trainers import data as run_data
from trainers import user_code
from trainers.configuration import AveragingConfig, FitConfig
from trainers.finished import loading, testing
from trainers.pages import plots
from trainers.runs import identity, run_directory
from trainers.runs.run_directory import Run

_DURATIONS = ("start_seconds", "fit_seconds", "fit_cpu_seconds")


# What the flags of two members may differ in: none of it changes the images.
_FREE = (
    *("batch_size", "batch_size_per_replica", "data_dir", "decoded_cache", "data_on_device"),
    "data_service",
)


def average(asked: AveragingConfig) -> tuple[pathlib.Path, dict[str, Any]]:
    """Averages finished runs, tests the average, and writes a run directory for it.

    The directory is one of a finished run, with the flags of the first of them. It has no curves.

    Returns:
      The run directory and the content of its result.json.

    Raises:
      UserError: A run does not exist, is not finished, or has other classes, images or outputs than
        the first; or the directory cannot be written.
    """
    user_code.import_all(asked.code)
    if not asked.run_dir:
        raise UserError("run_dir: missing; expected the folder for the average")
    if not asked.runs or (len(asked.runs) == 1 and not asked.average_flips):
        raise UserError(
            "runs: expected two run directories or more, separated by commas, or one with "
            "--average_flips"
        )
    runs = [run_directory.open_run(run_dir) for run_dir in asked.runs]
    first = runs[0]
    config = first.config
    there = dataclasses.replace(
        config.run, run_dir=asked.run_dir, overwrite=asked.overwrite, resume=False
    )
    planned = run_directory.plan(dataclasses.replace(config, run=there))
    for run in runs:
        if run.path.resolve() == planned.path.resolve():
            raise UserError(f"run_dir {run.path}: is one of --runs; pass another --run_dir")
        _check_like(first, run)
    models = [loading.load_model(run) for run in runs]
    for run, model in zip(runs, models, strict=True):
        if model.output_shape != models[0].output_shape:
            raise UserError(
                f"runs: {run.path} has outputs of shape {model.output_shape}, and {first.path} of "
                f"shape {models[0].output_shape}; expected the same"
            )
    model = average_model(models, flips=asked.average_flips)
    data_config = run_data.with_batch_size(
        dataclasses.replace(config.data, data_dir=asked.data_dir)
    )
    data = run_data.load(data_config, scored=["test"])
    runs[0].warn_of_other_images(data.records.fingerprint)
    tested = testing.test(model, data, "test", run_data.batch_size_of(data_config))
    results = [run.result for run in runs]
    result = {
        "model": model.name,
        "members": [str(run.path) for run in runs],
        "flips": asked.average_flips,
        "classes": list(data.classes),
        "parameters": model.count_params(),
        **{name: round(sum(result[name] for result in results), 3) for name in _DURATIONS},
        "train_images_per_second": round(
            statistics.fmean(result["train_images_per_second"] for result in results), 1
        ),
        "epoch_end_seconds": [],
        **testing.result(tested, data),
    }
    chose = any(result.get("test_images_chose_the_model") for result in results)
    result["test_images_chose_the_model"] |= chose
    flags = (
        f"# The average of {', '.join(result['members'])}; these are the flags of the first.\n"
        f"{planned.flags}"
    )
    made = dataclasses.replace(planned, flags=flags)
    try:
        _write(made, first, model, tested, result)
    except OSError as error:
        with contextlib.suppress(OSError):
            made.remove()
        raise UserError(f"run_dir {made.path}: {told(error)}; pass another --run_dir") from error
    return made.path, result


def average_model(models: Sequence[keras.Model], *, flips: bool) -> keras.Model:
    """Returns a model of the mean of the models' outputs.

    Args:
      models: Models from images of one shape, (B, H, W, C), to probabilities of one shape.
      flips: Whether to average the outputs for an image and for its mirror image, left to right.
    """
    placeholder = models[0].input
    images = keras.Input(placeholder.shape[1:], dtype=placeholder.dtype, name="images")
    inputs = [images, keras.ops.flip(images, axis=2)] if flips else [images]
    outputs = []
    for number, model in enumerate(models, 1):
        # No two layers may have the same name.
        member = keras.Model(model.input, model.output, name=f"{model.name}_{number}")
        outputs += [member(one) for one in inputs]
    mean = keras.layers.Average(name="probabilities")(outputs)
    return keras.Model(images, mean, name=f"average_{models[0].name}")


def _check_like(first: Run, run: Run) -> None:
    classes, others = first.result["classes"], run.result["classes"]
    if classes != others:
        raise UserError(
            f"runs: {run.path} has the classes {', '.join(others)}, and {first.path} "
            f"{', '.join(classes)}; expected the same"
        )
    free = {name: getattr(first.config.data, name) for name in _FREE}
    one, other = (
        FitConfig(data=dataclasses.replace(each.config.data, **free)) for each in (first, run)
    )
    if changed := identity.changes(one, other):
        raise UserError(
            f"runs: {run.path} and {first.path} have other images ({changed}); expected the same"
        )


def _write(
    run: Run, first: Run, model: keras.Model, tested: testing.Tested, result: dict[str, Any]
) -> None:
    lines: list[str] = []
    model.summary(print_fn=lines.append, line_length=80)
    run.create("\n".join(lines), first.environment)
    with atomic.atomic_path(run.path / "model.keras") as temporary:
        model.save(temporary)
    plots.confusion_matrix(
        tested.confusion_matrix, result["classes"], run.path / "confusion_matrix.png"
    )
    run.finish(result)
