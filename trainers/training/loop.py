"""A run from flags to a run directory: plan, training, test, figures."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import atomic, decoded, input_pipeline
from pizza_steak.errors import UserError, quoted, raising_quoted
from pizza_steak.text_width import printable
from trainers import data as run_data
from trainers import setup, user_code
from trainers.configuration import FitConfig
from trainers.finished import loading, testing
from trainers.hardware import clusters, devices, preemption
from trainers.models import preprocessing
from trainers.pages import plots
from trainers.runs import run_directory, scores
from trainers.runs.run_directory import Run, plan
from trainers.training import callbacks, descriptions, own_callbacks, progress, results
from trainers.training.training import Training


def fit(config: FitConfig, cluster: clusters.Cluster | None = None) -> results.FitResult:
    """Trains the model that `config` describes, tests it, and writes a run directory.

    The kept and tested model is the best by validation loss, or without validation the last.

    Args:
      config: The flags.
      cluster: The processes that train together; each of them calls this function.

    Raises:
      UserError: The user has to change something. A run that fails before its first backup leaves
        no directory; one that fails later keeps its finished epochs.
      PreemptedError: SIGTERM came during training; the run is saved and can be resumed.
      KeyboardInterrupt: Ctrl-C; the message says how to go on, and where nothing can be resumed
        there is no run directory.
    """
    config = setup.resolved(config)
    chosen = devices.choose(config.devices, cluster)
    with chosen.ending_together(), raising_quoted(), contextlib.ExitStack() as held:
        user_code.import_all(config.run.code)
        run, result, precision = chosen.from_chief(lambda: _plan(config, held))
        if precision != config.devices.precision:
            config = run_directory.in_precision(config, precision)
            chosen = dataclasses.replace(
                chosen, precision=precision, precision_reason="as when the run was started"
            )
        if result is None:
            functions = own_callbacks.load(config.run.callback) if chosen.is_chief else {}
            training = Training.prepare(config, run, chosen)
            own = own_callbacks.make(functions)
            chosen.from_chief(lambda: None)  # Nothing is written before all processes are ready.
            chosen.from_chief(lambda: _start(training))
            again = (
                "start all processes again, with --resume=auto"
                if cluster
                else f"run again with --resume: {run.command_to_resume}"
            )
            with _ending_well(training):
                with preemption.Notice(again) as notice:
                    if chosen.is_chief:
                        _train_and_log(training, own, notice)
                    else:
                        training.train(lambda stage: [], notice=notice)
                    (stop,) = clusters.Agreement(cluster).reached(notice.given, now=True)
                    if stop:
                        notice.obey()
                left_out = training.left_out()
                result = chosen.from_chief(lambda: _finish(training, left_out))
    own_network = [config.model.model] if user_code.is_function(config.model.model) else []
    return results.FitResult(
        run.path,
        result,
        cluster.name(0) if cluster and not chosen.is_chief else None,
        data_dir=config.data.data_dir,
        code=(*config.run.code, *own_network),
    )


def _plan(config: FitConfig, held: contextlib.ExitStack) -> tuple[Run, dict[str, Any] | None, str]:
    """Returns the run, its result if it has ended, and --precision."""
    if config.run.run_dir:  # Else its name is new.
        path = pathlib.Path(config.run.run_dir).expanduser().absolute()
        held.enter_context(run_directory.only_process(path))
    run = plan(config)
    result = run.result if run.finished else None
    if result and "members" in result:
        raise UserError(f"run_dir {run.path}: is an average of runs; it cannot be trained")
    if result:
        with contextlib.suppress(OSError):
            atomic.remove(run.backup)  # The run was killed before it did so.
    return run, result, run.as_measured(config).devices.precision


def _start(training: Training) -> None:
    table = descriptions.plan_table(training.ready, training.run)
    print(printable(table, keep="\n"), flush=True)
    training.start()


@contextlib.contextmanager
def _ending_well(training: Training) -> Iterator[None]:
    """Removes a run that ends before there is anything to resume; Ctrl-C then says how to go on."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        run, chosen = training.run, training.ready.chosen
        if not chosen.is_chief:
            raise
        if not run.path.exists():
            raise UserError(f"run_dir {run.path}: was removed during the training") from error
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = os.fspath(run.path)  # As of a write to a full disk.
        kept = run.resumed or run.has_progress
        if not kept:
            with contextlib.suppress(OSError):  # It may fail for the same reason.
                run.remove()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(_how_to_go_on(training, kept)) from error
        user_error = quoted(error)
        if kept and user_error:
            how = _how_to_go_on(training, kept)
            raise UserError(f"{user_error}; the run is saved {how}") from error
        raise


def _how_to_go_on(training: Training, kept: bool) -> str:
    run, done = training.run, training.run.progress
    if not kept:
        return "before the first epoch was saved; the same command starts anew"
    place = f"after epoch {done.epochs}" if done.epochs else "in epoch 1"
    if done.step:
        place = f"in epoch {done.epochs + 1}, saved after step {done.step}"
    if training.ready.config.run.resume == "auto":
        return f"{place}; the same command goes on"
    return f"{place}; go on with {run.command_to_resume}"


def _train_and_log(
    training: Training, own: Sequence[keras.callbacks.Callback], notice: preemption.Notice
) -> None:
    """Trains, writes metrics and models, and prints a line after each epoch."""
    lines = progress.EpochLines(
        training.ready.config.optimisation.epochs,
        starts_within=training.run.progress.step > 0,
    )
    with contextlib.closing(lines):
        training.train(
            # The user's come after those that write: what they do to the logs is not written.
            lambda stage: [lines, *_logging_callbacks(training, stage), *own],
            notice=notice,
            step_by_step=own_callbacks.act_on_steps(own),
        )


def _finish(training: Training, left_out: int) -> dict[str, Any]:
    """Tests and draws the kept model, and writes the result."""
    run, config, data = training.run, training.ready.config, training.ready.data
    if training.ready.augmentation:
        _draw_augmentation(config, data, run)
    tested = _tested(training)
    plots.confusion_matrix(tested.confusion_matrix, data.classes, run.path / "confusion_matrix.png")
    result = training.result(**testing.result(tested, data))
    if left_out:
        result["bad_train_images"] = left_out
    largest = None
    if "validation" in data.rows:
        largest = scores.largest_class(data.labels("validation"), data.classes)
    plots.curves(result["history"], run.path / "curves.png", largest)
    run.finish(result)
    return result


def _tested(training: Training) -> testing.Tested:
    """Tests the model of model.keras; its head alone if the features of the images are kept."""
    ready = training.ready
    batch_size = run_data.batch_size_of(ready.config.data)
    last = ready.stages[-1]
    if not training.uses_features(last):
        return testing.test(loading.load_model(training.run), ready.data, "test", batch_size)
    training.save_best_head(last)
    assert training.features and ready.network.head
    return testing.test(ready.network.head, training.features.data, "test", batch_size)


def _logging_callbacks(training: Training, stage: setup.Stage) -> list[keras.callbacks.Callback]:
    run = training.run
    made = [
        keras.callbacks.CSVLogger(run.metrics_csv, append=True),
        callbacks.KeepBest(functools.partial(training.save, stage), run.best("val_loss")),
    ]
    if training.ready.config.run.tensorboard:
        made.append(keras.callbacks.TensorBoard(run.path / "tensorboard", write_graph=False))
    return made


def _draw_augmentation(config: FitConfig, data: run_data.Data, run: Run) -> None:
    """Draws some training images, original and as augmented in the first epochs."""
    # New layers: drawing advances the random generators of Keras's layers.
    seed = config.optimisation.seed
    augmentation = preprocessing.augmentation_of(config.augmentation, seed)
    assert augmentation  # Else there is nothing to draw.
    rows = data.rows["train"]
    images, rows = decoded.gather_readable(data.pictures, tf.constant(rows[:4]), rows)
    versions = [
        augmentation.examples(images, input_pipeline.example_seeds(seed, epoch, rows))
        for epoch in range(5)
    ]
    plots.augmentation(images.numpy(), np.stack(versions, axis=1), run.path / "augmentation.png")
