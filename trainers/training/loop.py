"""The training loop: from flags to a run directory."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import input_pipeline
from pizza_steak.atomic import atomic_path
from pizza_steak.errors import UserError
from pizza_steak.flags import as_argument
from trainers import data as run_data
from trainers import setup
from trainers.configuration import DataConfig, FitConfig, OptimisationConfig, checkpoint_interval
from trainers.finished import loading, testing
from trainers.hardware import clusters, devices, preemption
from trainers.models import preprocessing
from trainers.pages import plots
from trainers.runs import checkpoint, identity, scores
from trainers.runs.checkpoint import Progress, Saved
from trainers.runs.run_directory import Run, kept_epoch, plan
from trainers.training import callbacks, descriptions, kept_features, resident


@dataclasses.dataclass(frozen=True)
class FitResult:
    """A finished run.

    Attributes:
      run_dir: The run directory.
      values: The content of its result.json.
      chief: The process that has the run directory; None if it is this one.
    """

    run_dir: pathlib.Path
    values: dict[str, Any]
    chief: str | None = None

    def summary(self) -> str:
        """Returns the main numbers and the run directory, as text."""
        values = self.values
        if self.chief:
            return f"trained with {self.chief}, which saved the results to {self.run_dir}"
        history = values["history"]
        kept = kept_epoch(history)
        metrics = [name for name in ("val_accuracy", "val_loss") if name in history]
        said = ", ".join(f"{name} {history[name][kept]:.4f}" for name in metrics or ["accuracy"])
        return "\n".join(
            [
                f"{'best' if metrics else 'last'} epoch {kept + 1} of {len(history['loss'])}: "
                + said,
                f"test accuracy {scores.test_accuracy_text(values)}, "
                f"loss {values['test_loss']:.4f}",
                *scores.test_cautions(values),
                f"{values['fit_seconds']:.1f} s, "
                f"{values['train_images_per_second']:.0f} training images per second",
                f"results saved to {self.run_dir}",
            ]
        )


def fit(config: FitConfig, cluster: clusters.Cluster | None = None) -> FitResult:
    """Trains the model that `config` describes, tests it, and writes a run directory.

    The kept and tested model is the best by validation loss, or without validation the last.

    Args:
      config: The flags.
      cluster: The processes that train together; each of them calls this function.

    Raises:
      UserError: The user has to change something. There is no run directory then, unless the loss
        became NaN or a process died: these leave the epochs before.
      PreemptedError: SIGTERM came during training; the run is saved and can be resumed.
    """
    config = setup.resolved(config)
    chosen = devices.choose(config.devices, cluster)
    with chosen.ending_together():
        run, result = chosen.from_chief(lambda: _plan(config))
        if result is None:
            training = Training.prepare(config, run, chosen)
            chosen.from_chief(lambda: None)  # Nothing is written before all processes are ready.
            chosen.from_chief(lambda: _start(training))
            again = (
                "start all processes again, with --resume=auto"
                if cluster
                else f"run again with --resume: {run.command_to_resume}"
            )
            with preemption.Notice(again) as notice:
                if chosen.is_chief:
                    verbose = 1 if sys.stdout.isatty() else 2
                    training.train(
                        lambda stage: _logging_callbacks(training, stage),
                        verbose=verbose,
                        notice=notice,
                    )
                else:
                    training.train(lambda stage: [], notice=notice)
                (stop,) = clusters.Agreement(cluster).reached(notice.given, now=True)
                if stop:
                    notice.obey()
            result = chosen.from_chief(lambda: _finish(training))
    return FitResult(run.path, result, cluster.name(0) if cluster and not chosen.is_chief else None)


def _plan(config: FitConfig) -> tuple[Run, dict[str, Any] | None]:
    run = plan(config)
    return run, run.result if run.finished else None


def _start(training: "Training") -> None:
    print(descriptions.plan_table(training.ready, training.run), flush=True)
    training.start()


def _finish(training: "Training") -> dict[str, Any]:
    """Tests and draws the kept model, and writes the result."""
    run, config, data = training.run, training.ready.config, training.ready.data
    if training.ready.augmentation:
        _draw_augmentation(config, data, run)
    tested = _tested(training)
    plots.confusion_matrix(tested.confusion_matrix, data.classes, run.path / "confusion_matrix.png")
    result = training.result(
        test_images=len(tested.labels),
        test_accuracy=tested.accuracy,
        test_accuracy_interval=tested.accuracy_interval,
        test_loss=tested.loss,
        test_pictures_chose_the_model=data.shared("test", "validation") > 0,
        **scores.largest_class(tested.labels, data.classes),
    )
    plots.curves(result["history"], run.path / "curves.png")
    run.finish(result)
    return result


def _tested(training: "Training") -> testing.Tested:
    """Tests the model of model.keras; its head alone if the features of the images are kept."""
    ready = training.ready
    batch_size = run_data.batch_size_of(ready.config.data)
    last = ready.stages[-1]
    if not training.is_kept(last):
        return testing.test(loading.load_model(training.run), ready.data, "test", batch_size)
    training.save_kept_head(last)
    assert training.kept and ready.network.head
    return testing.test(ready.network.head, training.kept.data, "test", batch_size)


@dataclasses.dataclass(frozen=True)
class Training:
    """A run that can be trained.

    Attributes:
      ready: The flags, the hardware, the images and the model.
      run: The run directory.
      kept: What batches come from while the head is trained on kept features, else None.
      moved: What other batches come from with --data_on_device, else None.
      clock: Started before the setup.
    """

    ready: setup.Setup
    run: Run
    kept: kept_features.KeptFeatures | None
    moved: resident.Resident | None
    clock: callbacks.Clock

    @classmethod
    def prepare(cls, config: FitConfig, run: Run, chosen: devices.Devices) -> "Training":
        """Loads the images and builds the model; writes decoded images only.

        Raises:
          UserError: The user has to change something.
        """
        clock = callbacks.Clock()
        _check_schedule(config)

        def load(data_config: DataConfig) -> run_data.Data:
            data = run_data.load(data_config)
            fingerprint = data.records.fingerprint
            _check_same_everywhere(chosen, config, fingerprint)
            batch_size = run_data.batch_size_of(data_config)
            chosen.from_chief(lambda: run.check_same_batches(fingerprint, batch_size))
            return data

        ready = setup.prepare(config, chosen, load)
        chosen.from_chief(lambda: run.check_same_backbone(ready.network.digest))
        fixed = [ready.has_fixed_features(stage) for stage in ready.stages]
        kept = kept_features.keep(ready) if any(fixed) else None
        moved = None
        if config.data.data_on_device:
            if all(fixed):
                raise UserError(
                    "data_on_device: has no meaning while the head alone is trained, from kept "
                    "features; leave it out, or pass --trainable"
                )
            moved = resident.move(ready.data, ready.augmentation, chosen.devices)
        return cls(ready, run, kept, moved, clock)

    def start(self) -> None:
        """Creates the run directory, or takes a resumed run back to its last backup.

        Raises:
          UserError: It cannot be written.
        """
        if self.run.resumed:
            self.run.go_back()
            return
        architecture: list[str] = []
        self.ready.model.summary(print_fn=architecture.append, line_length=80)
        self.run.create("\n".join(architecture), descriptions.environment(self.ready))

    def train(
        self,
        logging: Callable[[setup.Stage], Sequence[keras.callbacks.Callback]],
        *,
        epochs: int | None = None,
        verbose: int = 0,
        notice: preemption.Notice | None = None,
    ) -> None:
        """Trains from the last backup on, and makes a backup after each epoch or more often.

        Args:
          logging: Returns callbacks that read the logs of a stage and change nothing.
          epochs: The epoch to stop after, by default the last. It does not change the schedule of
            the learning rate.
          verbose: The argument of Keras's fit.
          notice: Ends the training when it is given.

        Raises:
          UserError: The loss became NaN.
          PreemptedError: The notice was given; the run is saved.
        """
        ready, before = self.ready, None
        for stage in ready.stages:
            saved = ready.chosen.from_chief(self.run.saved)
            end = min(stage.end, epochs or stage.end)
            if not saved.progress.stopped and stage.first <= saved.progress.epochs < end:
                if saved.progress == Progress(stage.first) and before:
                    # The optimizer starts anew, as it does without an interruption.
                    saved = self._take_over(before, saved)
                self._train_stage(stage, end, saved, logging, verbose, notice)
            before = stage

    def _take_over(self, before: setup.Stage, saved: Saved) -> Saved:
        """Restores the weights of a finished stage, and saves its best head."""
        is_kept = self.is_kept(before)
        if is_kept and self.ready.chosen.is_chief:
            self.save_kept_head(before)
        model = self.ready.compiled(before, head_only=is_kept)
        checkpoint.restore(
            saved.content, self.ready.chosen.precision, model.variables, all_of_them=False
        )
        return dataclasses.replace(saved, content=b"")

    def is_kept(self, stage: setup.Stage) -> bool:
        """Returns whether a stage trains the head on kept features."""
        return self.kept is not None and self.ready.has_fixed_features(stage)

    def save_kept_head(self, stage: setup.Stage) -> None:
        """Writes model.keras: the network with the best head that a stage trained on features."""
        head = self.ready.network.head
        if head and self.run.best_head.exists():
            head.load_weights(self.run.best_head)
            with atomic_path(self.run.path / "model.keras") as temporary:
                self.ready.compiled(stage).save(temporary)

    def _train_stage(
        self,
        stage: setup.Stage,
        epochs: int,
        saved: Saved,
        logging: Callable[[setup.Stage], Sequence[keras.callbacks.Callback]],
        verbose: int,
        notice: preemption.Notice | None,
    ) -> None:
        ready, start = self.ready, saved.progress
        config, optimisation, chosen = ready.config, ready.config.optimisation, ready.chosen
        batch_size = config.data.batch_size
        every_steps, every_seconds = checkpoint_interval(config.run.checkpoint_every)
        if self.is_kept(stage):
            assert self.kept
            # A step of a head takes less time than Keras takes between two steps.
            whole_epochs = math.inf == every_steps == every_seconds and not start.step
            alone = whole_epochs and chosen.strategy == "none"
            model = ready.compiled(
                stage, head_only=True, steps_at_once=ready.steps("train") if alone else 1
            )
            data, augment = self.kept
        else:
            # A model that was compiled for another stage cannot be trained any more.
            model = ready.model if len(ready.stages) == 1 else ready.compiled(stage)
            data, augment, model.gather = self.moved or (ready.data, ready.augment, None)
        is_last = stage is ready.stages[-1]
        patient = _patient_callbacks(optimisation, verbose) if is_last else []
        backup = callbacks.Backup(
            self.run.backup if chosen.is_chief else None,
            dataclasses.replace(saved, logs=saved.logs[stage.first :]),
            patient,
            every_steps=every_steps,
            every_seconds=every_seconds,
            notice=notice,
            cluster=chosen.cluster,
        )
        self.clock.seen_before += min(start.step * batch_size, len(data.rows["train"]))

        def train(shares: input_pipeline.Shares) -> tf.data.Dataset:
            batches = data.batches(
                "train",
                batch_size,
                class_weight=data.class_weight(optimisation.class_weight),
                seed=optimisation.seed,
                shuffle=True,
                first_epoch=start.epochs,
                first_step=start.step,
                epochs=epochs,
                augment=augment,
                shares=shares,
            )
            # Keras counts the steps that `Backup` skips, and so expects more batches.
            return batches.repeat() if start.step else batches

        def validation(shares: input_pipeline.Shares) -> tf.data.Dataset:
            return data.batches("validation", batch_size, shares=shares)

        # Keras cannot count the batches of a distributed dataset.
        ends = {} if chosen.strategy == "none" else {"validation_steps": ready.steps("validation")}
        model.fit(
            chosen.dealt(train),
            epochs=epochs,
            initial_epoch=start.epochs,
            steps_per_epoch=ready.steps("train"),
            validation_data=chosen.dealt(validation) if "validation" in data.rows else None,
            **ends,
            # Callbacks that read the logs come after those that add to them, and the backup after
            # all that have a state.
            callbacks=[callbacks.StopOnNaN(), *patient, *logging(stage), backup, self.clock],
            shuffle=False,  # The batches come shuffled.
            verbose=verbose,
        )

    def result(self, **test: Any) -> dict[str, Any]:
        """Returns the content of result.json, with the numbers of a test."""
        ready = self.ready
        return {
            "model": ready.network.model.name,
            "classes": list(ready.data.classes),
            "parameters": ready.network.model.count_params(),
            **self.clock.numbers(len(ready.data.rows["train"])),
            **test,
            "history": self.run.history,
        }


def _check_same_everywhere(chosen: devices.Devices, config: FitConfig, fingerprint: str) -> None:
    """Checks that this process trains as the chief does.

    Raises:
      UserError: Its flags, its images, its precision or its use of XLA are others.
    """
    own = {
        "images (their fingerprint)": fingerprint,
        "precision": chosen.precision,
        "jit_compile": chosen.jit_compile,
    }
    chiefs_config, chiefs = chosen.from_chief(lambda: (config, own))
    differing = {"flags": identity.differences_from_chief(chiefs_config, config)} | {
        name: f"{chiefs[name]}, here {value}"
        for name, value in own.items()
        if value != chiefs[name]
    }
    for name, values in differing.items():
        if values:
            raise UserError(
                f"{name}: differ from the chief's ({values}); expected the same command and "
                "images in every process, or --strategy=none for separate runs"
            )


def _check_schedule(config: FitConfig) -> None:
    optimisation = config.optimisation
    patience = {
        name: getattr(optimisation, name)
        for name in ("early_stopping_patience", "reduce_lr_patience")
    }
    asked = [name for name, epochs in patience.items() if epochs is not None]
    if asked and config.data.validation_split == "none":
        raise UserError(f"{asked[0]}: watches the validation loss; expected a --validation_split")
    setting = [
        as_argument(name, getattr(optimisation, name))
        for name in ("learning_rate_schedule", "warmup_epochs")
        if getattr(optimisation, name) not in ("constant", 0)
    ]
    if "reduce_lr_patience" in asked and setting:
        raise UserError(
            f"reduce_lr_patience: changes the learning rate, which {setting[0]} sets at every "
            "step; expected one of the two"
        )


def _patient_callbacks(config: OptimisationConfig, verbose: int) -> list[keras.callbacks.Callback]:
    made = []
    if (patience := config.reduce_lr_patience) is not None:
        made.append(keras.callbacks.ReduceLROnPlateau(patience=patience, verbose=verbose))
    if (patience := config.early_stopping_patience) is not None:
        made.append(keras.callbacks.EarlyStopping(patience=patience, verbose=verbose))
    return made


def _logging_callbacks(training: Training, stage: setup.Stage) -> list[keras.callbacks.Callback]:
    run, validated = training.run, "validation" in training.ready.data.rows
    kept = training.is_kept(stage)
    made = [
        keras.callbacks.CSVLogger(run.path / "metrics.csv", append=True),
        keras.callbacks.ModelCheckpoint(
            # To write the whole network takes longer than to train its head for an epoch.
            run.best_head if kept else run.path / "model.keras",
            monitor="val_loss",
            save_best_only=validated,
            save_weights_only=kept,
            initial_value_threshold=run.best("val_loss") if validated else None,
        ),
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
    rows = tf.constant(data.rows["train"][:4])
    images = data.pictures.gather(rows)
    versions = [
        augmentation.examples(images, input_pipeline.example_seeds(seed, epoch, rows))
        for epoch in range(5)
    ]
    plots.augmentation(images.numpy(), np.stack(versions, axis=1), run.path / "augmentation.png")
