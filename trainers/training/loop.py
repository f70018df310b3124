"""Training: from flags to a run directory."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import input_pipeline
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import (
    BenchmarkConfig,
    FitConfig,
    OptimisationConfig,
    checkpoint_interval,
)
from trainers.finished import prediction
from trainers.hardware import clusters, devices, preemption
from trainers.models import networks, preprocessing, trained_model
from trainers.pages import plots
from trainers.runs import descriptions, identity, scores
from trainers.runs.run_directory import Run, kept_epoch, plan
from trainers.training import callbacks, resident


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Where a finished run is, and its numbers.

    Attributes:
      run_dir: The run directory.
      values: What its result.json says.
      chief: The process that has the run directory, where that is another one.
    """

    run_dir: pathlib.Path
    values: dict[str, Any]
    chief: str | None = None

    def summary(self) -> str:
        """The numbers for people, and where everything is."""
        values = self.values
        if self.chief:
            return f"trained with {self.chief}, which has all of it in {self.run_dir}"
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
                f"{values['train_images_per_second']:.0f} training images a second",
                f"all of it in {self.run_dir}",
            ]
        )


def fit(config: FitConfig, cluster: clusters.Cluster | None = None) -> FitResult:
    """Trains the model that `config` describes and leaves a run directory.

    The weights are those of the last epoch during training; what is kept, tested and drawn is the
    best model by validation loss, or without validation the last.

    Args:
      config: The flags.
      cluster: The processes that train together, each of which is to call this.

    Raises:
      UserError: For anything that the user can mend; then no run directory was made, unless the
        loss became NaN, which leaves the epochs before it, as does the loss of a process.
      PreemptedError: SIGTERM has come during training; all is saved, to be resumed.
    """
    chosen = devices.choose(config.devices, cluster)
    with chosen.ending_together():
        run, result = chosen.from_chief(lambda: _plan(config))
        if result is None:
            training = Training.prepare(config, run, chosen)
            chosen.from_chief(lambda: None)  # All are ready; now something is written.
            chosen.from_chief(lambda: _start(training))
            again = (
                "start all processes again, with --resume=auto"
                if cluster
                else f"run again with --resume: {run.command_to_resume}"
            )
            with preemption.Notice(again) as notice:
                if chosen.is_chief:
                    verbose = 1 if sys.stdout.isatty() else 2
                    training.train(_logging_callbacks(training), verbose=verbose, notice=notice)
                else:
                    training.train([], notice=notice)
                (stop,) = clusters.Agreement(cluster).reached(notice.given, now=True)
                if stop:
                    notice.obey()
            result = chosen.from_chief(lambda: _finish(training))
    return FitResult(run.path, result, None if chosen.is_chief else cluster.name(0))


def _plan(config: FitConfig) -> tuple[Run, dict[str, Any] | None]:
    run = plan(config)
    return run, run.result if run.finished else None


def _start(training: "Training") -> None:
    print(descriptions.plan_table(training), flush=True)
    training.start()


def _finish(training: "Training") -> dict[str, Any]:
    """Tests and draws what was trained; the result."""
    run = training.run
    if training.augmentation:
        _draw_augmentation(training.config, training.data, run)
    model = prediction.load_model(run)
    result = training.result(**_test(training.data, model, training.config.data.batch_size, run))
    plots.curves(result["history"], run.path / "curves.png")
    run.finish(result)
    return result


@dataclasses.dataclass(frozen=True)
class Training:
    """All that a run is trained with.

    Attributes:
      config: The flags, with the batch size that they come to.
      run: Its directory.
      chosen: What it is computed with.
      data: Its pictures.
      augmentation: How they are varied, None for not at all.
      model: The network, compiled.
      resident: What it is trained on, with --data_on_device.
      clock: Started when all this was begun.
    """

    config: FitConfig
    run: Run
    chosen: devices.Devices
    data: run_data.Data
    augmentation: preprocessing.Augmentation | None
    model: keras.Model
    resident: resident.Resident | None
    clock: callbacks.Clock

    @classmethod
    def prepare(cls, config: FitConfig, run: Run, chosen: devices.Devices) -> "Training":
        """Opens the pictures and builds the model; nothing is written but decoded pictures.

        Raises:
          UserError: For anything that the user can mend.
        """
        clock = callbacks.Clock()
        asked = config
        pictures = run_data.with_batch_size(config.data, chosen.replicas)
        config = dataclasses.replace(config, data=pictures)
        _check_schedule(config)
        check(config)
        data = run_data.load(config.data)
        fingerprint = data.records.fingerprint
        _check_same_everywhere(chosen, asked, fingerprint)
        chosen.from_chief(lambda: run.check_same_batches(fingerprint, pictures.batch_size))
        seed = config.optimisation.seed
        # A backup has the variables by their paths, which Keras numbers by all layers before them.
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(seed)
        chosen.set_precision()
        with chosen.scope():
            augmentation = preprocessing.augmentation_of(config.augmentation, seed)
        model = compiled_model(config, data, chosen, augmentation)
        moved = None
        if config.data.data_on_device:
            moved = resident.move(data, model, augmentation, chosen.devices)
        return cls(config, run, chosen, data, augmentation, model, moved, clock)

    def start(self) -> None:
        """Makes the run directory, or takes that of a resumed run back to what was saved.

        Raises:
          UserError: It cannot be written.
        """
        if self.run.resumed:
            self.run.go_back()
            return
        architecture = []
        self.model.summary(print_fn=architecture.append, line_length=80)
        self.run.create("\n".join(architecture), descriptions.environment(self))

    def train(
        self,
        logging: Sequence[keras.callbacks.Callback],
        *,
        epochs: int | None = None,
        verbose: int = 0,
        notice: preemption.Notice | None = None,
    ) -> None:
        """Trains from where the run was last saved, and saves it after each epoch at the least.

        Args:
          logging: Callbacks that take what others add to the logs, but change nothing.
          epochs: Where to stop, by default after all; the learning rate's schedule is that of all.
          verbose: As of Keras's fit.
          notice: Ends the training when it is given.

        Raises:
          UserError: The loss became NaN.
          PreemptedError: The notice was given; all is saved.
        """
        data, augment = self.resident or (
            self.data,
            self.augmentation.on_batches if self.augmentation else None,
        )
        optimisation, chosen = self.config.optimisation, self.chosen
        batch_size, epochs = self.config.data.batch_size, epochs or optimisation.epochs
        patient = _patient_callbacks(optimisation, verbose)
        every_steps, every_seconds = checkpoint_interval(self.config.run.checkpoint_every)
        backup = callbacks.Backup(
            self.run.backup if chosen.is_chief else None,
            chosen.from_chief(self.run.saved),
            patient,
            every_steps=every_steps,
            every_seconds=every_seconds,
            notice=notice,
            cluster=chosen.cluster,
        )
        start = backup.start
        if start.stopped or start.epochs >= epochs:
            return
        self.clock.seen_before = min(start.step * batch_size, len(data.rows["train"]))

        def train(shares: input_pipeline.Shares) -> tf.data.Dataset:
            batches = data.batches(
                "train",
                batch_size,
                class_weight=class_weight(optimisation, data),
                seed=optimisation.seed,
                shuffle=True,
                first_epoch=start.epochs,
                first_step=start.step,
                epochs=epochs,
                augment=augment,
                shares=shares,
            )
            # Keras counts the steps that `Backup` passes over: it expects so many more.
            return batches.repeat() if start.step else batches

        def validation(shares: input_pipeline.Shares) -> tf.data.Dataset:
            return data.batches("validation", batch_size, shares=shares)

        # Of what is dealt out Keras does not see where it ends.
        ends = {} if chosen.strategy == "none" else {"validation_steps": self._steps("validation")}
        self.model.fit(
            chosen.dealt(train),
            epochs=epochs,
            initial_epoch=start.epochs,
            steps_per_epoch=self._steps("train"),
            validation_data=chosen.dealt(validation) if "validation" in data.rows else None,
            **ends,
            # Those that log come after those that add to the logs, the backup after all that count.
            callbacks=[callbacks.StopOnNaN(), *patient, *logging, backup, self.clock],
            shuffle=False,  # The batches come shuffled.
            verbose=verbose,
        )

    def _steps(self, purpose: str) -> int:
        """Of a pass over a split, which may not be there."""
        return math.ceil(len(self.data.rows.get(purpose, ())) / self.config.data.batch_size)

    @property
    def learning_rate(self) -> float:
        """That of the first step."""
        return _learning_rate(self.config.optimisation, self.chosen.replicas)

    def result(self, **test: Any) -> dict[str, Any]:
        """What result.json says, with the numbers of the test."""
        return {
            "model": self.config.model.model,
            "classes": list(self.data.classes),
            "parameters": self.model.count_params(),
            **self.clock.numbers(len(self.data.rows["train"])),
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
    if "reduce_lr_patience" in asked and optimisation.learning_rate_schedule != "constant":
        raise UserError(
            "reduce_lr_patience: changes the learning rate, which "
            f"--learning_rate_schedule={optimisation.learning_rate_schedule} sets at every step; "
            "expected one of the two"
        )


def check(config: FitConfig | BenchmarkConfig) -> None:
    """Checks the network and the optimizer, which takes no images.

    Raises:
      UserError: There is no such network or optimizer, or the images are too small for the network.
    """
    networks.fitting_sizes(config.model, run_data.format_of(config.data).shape)
    optimizer_class(config.optimisation.optimizer)


def compiled_model(
    config: FitConfig,
    data: run_data.Data,
    chosen: devices.Devices,
    augmentation: preprocessing.Augmentation | None,
) -> keras.Model:
    """Builds the network that fits the data, and compiles it, for as many replicas as chosen."""
    pictures = data.batches("train", config.data.batch_size).map(lambda images, labels: images)
    first_layers = [
        *(augmentation.layers if augmentation else ()),
        *preprocessing.normalization_of(config.normalization, pictures),
    ]
    steps = math.ceil(len(data.rows["train"]) / config.data.batch_size)
    with chosen.scope():
        model = networks.build(
            config.model, data.image_shape, len(data.classes), data.class_mode, first_layers
        )
        one = chosen.strategy == "none"
        kind = trained_model.TrainedModel if one else trained_model.ReplicatedModel
        model = kind(model.input, model.output, name=model.name)
        model.plain_loss = networks.loss_for(data.class_mode)
        model.compile(
            optimizer=_optimizer(config.optimisation, chosen.replicas, steps),
            loss=networks.loss_for(data.class_mode, config.optimisation.label_smoothing),
            metrics=["accuracy"],
            jit_compile=chosen.jit_compile,
        )
        # Now, so that a backup finds the variables that it is to be read into: Keras makes those of
        # the metrics when it sees labels and outputs.
        model.optimizer.build(model.trainable_variables)
        outputs = np.zeros((1, *model.output_shape[1:]), np.float32)
        model.compute_metrics(None, data.encode(np.zeros(1, int)), outputs)
        model.reset_metrics()
    return model


def _learning_rate(config: OptimisationConfig, replica_count: int) -> float:
    """The first one, scaled as the flags say."""
    linear = config.scale_learning_rate == "linear"
    return config.learning_rate * replica_count if linear else config.learning_rate


def optimizer_class(name: str) -> type[keras.optimizers.Optimizer]:
    """Returns the optimizer of Keras with that name, in whatever case.

    Raises:
      UserError: There is none.
    """
    base, wrapper = keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer
    known = {
        title.lower(): kind
        for title, kind in vars(keras.optimizers).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind not in (base, wrapper)
    }
    if name.lower() not in known:
        raise UserError(f"optimizer {name!r}: unknown; expected one of {', '.join(sorted(known))}")
    return known[name.lower()]


def _optimizer(
    config: OptimisationConfig, replica_count: int, steps: int
) -> keras.optimizers.Optimizer:
    # Not given at all where it is None: AdamW has a default of its own.
    options = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    learning_rate = _learning_rate(config, replica_count)
    if config.learning_rate_schedule == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, config.epochs * steps)
    return optimizer_class(config.optimizer)(learning_rate=learning_rate, **options)


def _patient_callbacks(config: OptimisationConfig, verbose: int) -> list[keras.callbacks.Callback]:
    made = []
    if (patience := config.reduce_lr_patience) is not None:
        made.append(keras.callbacks.ReduceLROnPlateau(patience=patience, verbose=verbose))
    if (patience := config.early_stopping_patience) is not None:
        made.append(keras.callbacks.EarlyStopping(patience=patience, verbose=verbose))
    return made


def _logging_callbacks(training: Training) -> list[keras.callbacks.Callback]:
    run, validated = training.run, "validation" in training.data.rows
    made = [
        keras.callbacks.CSVLogger(run.path / "metrics.csv", append=True),
        keras.callbacks.ModelCheckpoint(
            run.path / "model.keras",
            monitor="val_loss",
            save_best_only=validated,
            initial_value_threshold=run.best("val_loss") if validated else None,
        ),
    ]
    if training.config.run.tensorboard:
        made.append(keras.callbacks.TensorBoard(run.path / "tensorboard", write_graph=False))
    return made


def class_weight(config: OptimisationConfig, data: run_data.Data) -> dict[int, float] | None:
    """n / (C * n_c) for each class c, as scikit-learn's "balanced" (King and Zeng, 2001)."""
    if config.class_weight is None:
        return None
    counts = data.counts("train")
    return {c: counts.sum() / (len(counts) * n) for c, n in enumerate(counts) if n}


def _draw_augmentation(config: FitConfig, data: run_data.Data, run: Run) -> None:
    """Draws some training pictures as they are, and as their first epochs vary them."""
    # Made anew: drawing takes numbers from the generators of Keras's layers.
    seed = config.optimisation.seed
    augmentation = preprocessing.augmentation_of(config.augmentation, seed)
    rows = tf.constant(data.rows["train"][:4])
    images = data.pictures.gather(rows)
    versions = [
        augmentation.examples(images, input_pipeline.example_seeds(seed, epoch, rows))
        for epoch in range(5)
    ]
    plots.augmentation(images.numpy(), np.stack(versions, axis=1), run.path / "augmentation.png")


def _test(data: run_data.Data, model: keras.Model, batch_size: int, run: Run) -> dict[str, Any]:
    """What result.json says of the test split; draws its confusion matrix."""
    outputs = model.predict(data.batches("test", batch_size), verbose=0)
    labels = data.labels("test")
    predicted = prediction.class_probabilities(outputs).argmax(axis=-1)
    matrix = tf.math.confusion_matrix(labels, predicted, len(data.classes)).numpy()
    plots.confusion_matrix(matrix, data.classes, run.path / "confusion_matrix.png")
    correct = predicted == labels
    return {
        "test_images": len(labels),
        "test_accuracy": float(np.mean(correct)),
        "test_accuracy_interval": scores.interval(int(correct.sum()), len(labels)),
        "test_loss": prediction.mean_loss(data, labels, outputs),
        "test_pictures_chose_the_model": data.shared("test", "validation") > 0,
        **scores.largest_class(labels, data.classes),
    }
