"""A training that can be resumed at any backup: the head alone, then more of the network."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import input_pipeline
from pizza_steak.atomic import atomic_path, make_folder
from pizza_steak.errors import UserError, quoted
from pizza_steak.flags import as_argument
from trainers import data as run_data
from trainers import setup
from trainers.configuration import (
    DataConfig,
    FitConfig,
    OptimisationConfig,
    checkpoint_interval,
    executed_steps,
)
from trainers.hardware import devices, preemption
from trainers.models import networks
from trainers.models.trained_model import TrainedModel
from trainers.runs import checkpoint, identity, run_directory
from trainers.runs.checkpoint import Progress, Saved
from trainers.runs.run_directory import Run
from trainers.training import callbacks, descriptions, executions, kept_features, resident


@dataclasses.dataclass(frozen=True)
class Training:
    """A run that can be trained.

    Attributes:
      ready: The flags, the hardware, the images and the model.
      run: The run directory.
      features: What batches come from while the head is trained on kept features, else None.
      on_device: What other batches come from with --data_on_device, else None.
      clock: Started before the setup.
    """

    ready: setup.Setup
    run: Run
    features: kept_features.KeptFeatures | None
    on_device: resident.Resident | None
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
            scored = None if _may_keep_features(config) else ("validation", "test")
            data = run_data.load(data_config, scored=scored)
            fingerprint = data.records.fingerprint
            _check_same_everywhere(chosen, config, data)
            batch_size, images = run_data.batch_size_of(data_config), len(data.rows["train"])
            chosen.from_chief(lambda: run.check_same_batches(fingerprint, batch_size, images))
            return data

        ready = setup.prepare(config, chosen, load)
        if config.devices.precision == "fastest":
            measured = run_directory.in_precision(config, ready.chosen.precision)
            run = dataclasses.replace(run, flags=identity.to_flagfile(measured))
        chosen.from_chief(lambda: run.check_same_backbone(ready.network.digest))
        fixed = [ready.has_fixed_features(stage) for stage in ready.stages]
        kept = kept_features.keep(ready) if any(fixed) else None
        on_device = None
        if config.data.data_on_device:
            if all(fixed):
                raise UserError(
                    "data_on_device: has no meaning while the head alone is trained, from kept "
                    "features; leave it out, or pass --trainable"
                )
            on_device = resident.move(ready.data, ready.augmentation, chosen.devices)
        return cls(ready, run, kept, on_device, clock)

    def start(self) -> None:
        """Creates the run directory, or takes a resumed run back to its last backup.

        Raises:
          UserError: It cannot be written.
        """
        if self.run.resumed:
            self.run.go_back()
            self.run.set_on_bad_image(self.ready.config.data.on_bad_image)
            return
        architecture: list[str] = []
        self.ready.model.summary(print_fn=architecture.append, line_length=80)
        self.run.create("\n".join(architecture), descriptions.environment(self.ready))

    def train(
        self,
        logging: Callable[[setup.Stage], Sequence[keras.callbacks.Callback]],
        *,
        epochs: int | None = None,
        notice: preemption.Notice | None = None,
        step_by_step: bool = False,
    ) -> None:
        """Trains from the last backup on, and makes a backup after each epoch or more often.

        Args:
          logging: Returns callbacks that read the logs of a stage and change nothing.
          epochs: The epoch to stop after, by default the last. It does not change the schedule of
            the learning rate.
          notice: Ends the training when it is given.
          step_by_step: Whether --steps_per_execution=auto is 1.

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
                self._train_stage(stage, end, saved, logging, notice, step_by_step)
            before = stage

    def _take_over(self, before: setup.Stage, saved: Saved) -> Saved:
        """Restores the weights of a finished stage, and saves its best head."""
        head_only = self.uses_features(before)
        if head_only and self.ready.chosen.is_chief:
            self.save_best_head(before)
        model = self.ready.compiled(before, head_only=head_only)
        checkpoint.restore(
            saved.content, self.ready.chosen.precision, model.variables, all_of_them=False
        )
        return dataclasses.replace(saved, content=b"")

    def uses_features(self, stage: setup.Stage) -> bool:
        """Returns whether a stage trains the head on kept features."""
        return self.features is not None and self.ready.has_fixed_features(stage)

    def save_best_head(self, stage: setup.Stage) -> None:
        """Writes model.keras: the network with the best head that a stage trained on features."""
        head = self.ready.network.head
        if head and self.run.best_head.exists():
            checkpoint.read_weights(self.run.best_head, head.variables)
            self._save_network(self.ready.compiled(stage))

    def save(self, stage: setup.Stage, model: TrainedModel) -> None:
        """Saves the model of a stage: to model.keras, or to `Run.best_head` if it is the head."""
        if self.uses_features(stage):
            # To write the whole network takes longer than to train its head for an epoch.
            make_folder(self.run.backup)
            with model.averaged(True):
                checkpoint.write_weights(self.run.best_head, model.variables)
        else:
            self._save_network(model)

    def _save_network(self, model: TrainedModel) -> None:
        with atomic_path(self.run.path / "model.keras") as temporary:
            model.save(temporary)

    def _train_stage(
        self,
        stage: setup.Stage,
        epochs: int,
        saved: Saved,
        logging: Callable[[setup.Stage], Sequence[keras.callbacks.Callback]],
        notice: preemption.Notice | None,
        step_by_step: bool,
    ) -> None:
        ready, start = self.ready, saved.progress
        config, optimisation, chosen = ready.config, ready.config.optimisation, ready.chosen
        batch_size = config.data.batch_size
        every_steps, every_seconds = checkpoint_interval(config.run.checkpoint_every)
        if self.uses_features(stage):
            assert self.features
            model = ready.compiled(stage, head_only=True)
            data, augment = self.features
        else:
            # A model that was compiled for another stage cannot be trained any more.
            model = ready.model if len(ready.stages) == 1 else ready.compiled(stage)
            data, augment = ready.data, ready.augment
            if self.on_device:
                data, augment, model.gather = self.on_device
        is_last = stage is ready.stages[-1]
        patient = _patient_callbacks(optimisation) if is_last else []
        logs_rate = []
        if not is_last and optimisation.reduce_lr_patience is not None:
            # It changes nothing. Without it, metrics.csv would have no column for the learning rate
            # that the last stage logs.
            logs_rate = [keras.callbacks.ReduceLROnPlateau(patience=sys.maxsize)]
        backup = callbacks.Backup(
            self.run if chosen.is_chief else None,
            saved,
            saved.logs[stage.first :],
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
            # Keras counts the steps that are left out, and so expects more batches.
            return batches.repeat() if start.step else batches

        def validation(shares: input_pipeline.Shares) -> tf.data.Dataset:
            return data.batches("validation", batch_size, shares=shares)

        # In a cluster the calls of all processes have to be the same.
        one = step_by_step or chosen.cluster is not None
        executed = executed_steps(config.devices.steps_per_execution) or (1 if one else None)
        steps = ready.steps("train"), ready.steps("validation")
        try:
            model.fit(
                chosen.dealt(train),
                epochs=epochs,
                initial_epoch=start.epochs,
                steps_per_epoch=steps[0],
                validation_data=chosen.dealt(validation) if "validation" in data.rows else None,
                validation_steps=steps[1] or None,
                # Callbacks that read the logs come after those that add to them, and the backup
                # after all that have a state.
                callbacks=executions.Executions(
                    [
                        callbacks.StopOnNaN(),
                        *patient,
                        *logs_rate,
                        *logging(stage),
                        backup,
                        self.clock,
                    ],
                    model,
                    steps=steps,
                    smaller=(ready.last_is_smaller("train"), ready.last_is_smaller("validation")),
                    at_once=executed,
                    every_steps=every_steps,
                    start=(start.epochs, start.step),
                    epochs=epochs,
                ),
                shuffle=False,  # The batches come shuffled.
                verbose=0,
            )
        except tf.errors.OpError as error:
            if quoted(error):  # An image cannot be decoded or read; the model is sound.
                backup.after_failure()
            raise

    def left_out(self) -> int:
        """Returns how many training images were left out of batches because they are unreadable.

        In a cluster every process has to call it.
        """
        rows, cluster = np.array([*self.ready.data.left_out], np.int64), self.ready.chosen.cluster
        return len(rows) if cluster is None else len(cluster.union(rows))

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


def _may_keep_features(config: FitConfig) -> bool:
    """Returns whether features of all images may be kept, which decodes all of them before."""
    built_here = networks.is_built_here(config.model)
    head_alone = config.optimisation.head_epochs or config.model.trainable in (None, "head")
    return not built_here and bool(head_alone)


def _check_same_everywhere(chosen: devices.Devices, config: FitConfig, data: run_data.Data) -> None:
    """Checks that this process trains as the chief does.

    Raises:
      UserError: Its flags, its images, its precision or its use of XLA are others.
    """
    counts = ", ".join(f"{purpose} {len(rows)}" for purpose, rows in data.rows.items())
    own = {
        "images (their fingerprint)": data.records.fingerprint,
        # Where images are unreadable, it depends on --decoded_cache.
        "images of each split": counts,
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


def _patient_callbacks(config: OptimisationConfig) -> list[keras.callbacks.Callback]:
    made = []
    if (patience := config.reduce_lr_patience) is not None:
        made.append(keras.callbacks.ReduceLROnPlateau(patience=patience))
    if (patience := config.early_stopping_patience) is not None:
        made.append(keras.callbacks.EarlyStopping(patience=patience))
    return made
