"""Training: from flags to a run directory."""

import dataclasses
import importlib.metadata
import math
import pathlib
import platform
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import input_pipeline
from pizza_steak.errors import UserError
from trainers import callbacks, devices, models, plots, prediction, preprocessing, runs
from trainers import data as run_data
from trainers.config import AugmentationConfig, FitConfig, OptimisationConfig


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Where a finished run is, and its numbers.

    Attributes:
      run_dir: The run directory.
      values: What its result.json says.
    """

    run_dir: pathlib.Path
    values: dict[str, Any]

    def summary(self) -> str:
        """The numbers for people, and where everything is."""
        values = self.values
        history = values["history"]
        best = int(np.argmin(history["val_loss"]))
        return "\n".join(
            [
                f"best epoch {best + 1} of {len(history['loss'])}: "
                f"val_accuracy {history['val_accuracy'][best]:.4f}, "
                f"val_loss {history['val_loss'][best]:.4f}",
                f"test accuracy {values['test_accuracy']:.4f}, loss {values['test_loss']:.4f}",
                f"{values['fit_seconds']:.1f} s, "
                f"{values['train_images_per_second']:.0f} training pictures a second",
                f"all of it in {self.run_dir}",
            ]
        )


def fit(config: FitConfig) -> FitResult:
    """Trains the model that `config` describes and leaves a run directory.

    The weights are those of the last epoch during training; what is kept, tested and drawn is the
    best model by validation loss.

    Raises:
      UserError: For anything that the user can mend; then no run directory was made, unless the
        loss became NaN, which leaves the epochs before it.
    """
    clock = callbacks.Clock()
    chosen = devices.choose(config.devices)
    run = runs.plan(config)
    if run.finished:
        return FitResult(run.path, run.result)
    data = run_data.load(config.data)
    run.check_same_pictures(data.records.fingerprint)
    keras.utils.set_random_seed(config.optimisation.seed)
    keras.config.set_dtype_policy(chosen.precision)
    augmentation = preprocessing.augmentation_of(config.augmentation, config.optimisation.seed)
    model = compiled_model(config, data, chosen, augmentation)
    print(_plan_table(config, data, chosen, model, run), flush=True)

    architecture = []
    model.summary(print_fn=architecture.append, line_length=80)
    if not run.resumed:
        run.create("\n".join(architecture), _environment(data, chosen))
    _train(config, data, model, augmentation, run, clock)
    if augmentation:
        _draw_augmentation(config, data, run)
    model.load_weights(run.path / "model.keras")
    test = _test(data, model, config.data.batch_size, run)
    result = {
        "model": config.model.model,
        "classes": list(data.classes),
        "parameters": model.count_params(),
        **clock.numbers(len(data.rows["train"])),
        **test,
        "history": run.history,
    }
    plots.curves(result["history"], run.path / "curves.png")
    run.finish(result)
    return FitResult(run.path, result)


def compiled_model(
    config: FitConfig,
    data: run_data.Data,
    chosen: devices.Devices,
    augmentation: preprocessing.Augmentation | None,
) -> keras.Model:
    """Builds the network that fits the data, and compiles it."""
    pictures = data.batches("train", config.data.batch_size).map(lambda images, labels: images)
    model = models.build(
        config.model,
        data.image_shape,
        len(data.classes),
        data.class_mode,
        [
            *(augmentation.layers if augmentation else ()),
            *preprocessing.normalization_of(config.normalization, pictures),
        ],
    )
    model.compile(
        optimizer=_optimizer(config.optimisation),
        loss=models.loss_for(data.class_mode),
        metrics=["accuracy"],
        jit_compile=chosen.jit_compile,
    )
    # Now, so that a backup finds the variables that it is to be read into.
    model.optimizer.build(model.trainable_variables)
    return model


def _optimizer(config: OptimisationConfig) -> keras.optimizers.Optimizer:
    base, wrapper = keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer
    known = {
        name.lower(): kind
        for name, kind in vars(keras.optimizers).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind not in (base, wrapper)
    }
    if config.optimizer.lower() not in known:
        raise UserError(
            f"optimizer {config.optimizer!r}: unknown; expected one of {', '.join(sorted(known))}"
        )
    # Not given at all where it is None: AdamW has a default of its own.
    options = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    return known[config.optimizer.lower()](learning_rate=config.learning_rate, **options)


def _train(
    config: FitConfig,
    data: run_data.Data,
    model: keras.Model,
    augmentation: preprocessing.Augmentation | None,
    run: runs.Run,
    clock: callbacks.Clock,
) -> None:
    optimisation, batch_size = config.optimisation, config.data.batch_size
    run.forget_after(run.first_epoch)
    patient = _patient_callbacks(optimisation)
    backup = callbacks.Backup(run.backup, run.logs, patient)
    if backup.stopped or backup.epochs >= optimisation.epochs:
        return
    train = data.batches(
        "train",
        batch_size,
        seed=optimisation.seed,
        shuffle=True,
        first_epoch=backup.epochs,
        epochs=optimisation.epochs,
        augment=augmentation.on_batches if augmentation else None,
    )
    model.fit(
        train,
        epochs=optimisation.epochs,
        initial_epoch=backup.epochs,
        steps_per_epoch=math.ceil(len(data.rows["train"]) / batch_size),
        validation_data=data.batches("validation", batch_size),
        class_weight=_class_weight(optimisation, data),
        # Those that log come after those that add to the logs, the backup after all that count.
        callbacks=[
            callbacks.StopOnNaN(),
            *patient,
            *_logging_callbacks(config, run),
            backup,
            clock,
        ],
        shuffle=False,  # The batches come shuffled.
        verbose=1 if sys.stdout.isatty() else 2,
    )


def _patient_callbacks(config: OptimisationConfig) -> list[keras.callbacks.Callback]:
    made = []
    if (patience := config.reduce_lr_patience) is not None:
        made.append(keras.callbacks.ReduceLROnPlateau(patience=patience, verbose=1))
    if (patience := config.early_stopping_patience) is not None:
        made.append(keras.callbacks.EarlyStopping(patience=patience, verbose=1))
    return made


def _logging_callbacks(config: FitConfig, run: runs.Run) -> list[keras.callbacks.Callback]:
    made = [
        keras.callbacks.CSVLogger(run.path / "metrics.csv", append=True),
        keras.callbacks.ModelCheckpoint(
            run.path / "model.keras",
            monitor="val_loss",
            save_best_only=True,
            initial_value_threshold=run.best("val_loss"),
        ),
    ]
    if config.run.tensorboard:
        made.append(keras.callbacks.TensorBoard(run.path / "tensorboard", write_graph=False))
    return made


def _class_weight(config: OptimisationConfig, data: run_data.Data) -> dict[int, float] | None:
    """n / (C * n_c) for each class c, as scikit-learn's "balanced" (King and Zeng, 2001)."""
    if config.class_weight is None:
        return None
    counts = data.counts("train")
    return {c: counts.sum() / (len(counts) * n) for c, n in enumerate(counts) if n}


def _draw_augmentation(config: FitConfig, data: run_data.Data, run: runs.Run) -> None:
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


def _test(
    data: run_data.Data, model: keras.Model, batch_size: int, run: runs.Run
) -> dict[str, float]:
    """Loss and accuracy on the test split; draws its confusion matrix."""
    outputs = model.predict(data.batches("test", batch_size), verbose=0)
    labels = data.labels("test")
    predicted = prediction.class_probabilities(outputs).argmax(axis=-1)
    matrix = tf.math.confusion_matrix(labels, predicted, len(data.classes)).numpy()
    plots.confusion_matrix(matrix, data.classes, run.path / "confusion_matrix.png")
    return {
        "test_accuracy": float(np.mean(predicted == labels)),
        "test_loss": prediction.mean_loss(data, labels, outputs),
    }


def _plan_table(
    config: FitConfig,
    data: run_data.Data,
    chosen: devices.Devices,
    model: keras.Model,
    run: runs.Run,
) -> str:
    """What will run, for people, before it does."""
    optimisation, batch_size = config.optimisation, config.data.batch_size
    rows = []
    for purpose, split in data.splits.items():
        counts = data.counts(purpose)
        if len(counts) <= 6:
            by_class = ", ".join(
                f"{name} {n:,}" for name, n in zip(data.classes, counts, strict=True)
            )
        else:
            by_class = f"{len(counts)} classes of {counts.min():,} to {counts.max():,}"
        steps = math.ceil(counts.sum() / batch_size)
        rows.append((purpose, f"{split}: {counts.sum():,} pictures ({by_class}), {steps:,} steps"))
    rows += [
        ("dataset", data.records.builder.info.full_name),
        ("left out", ", ".join(f"{n:,} {kind}" for kind, n in _left_out(data).items())),
        ("caution", _overlap(data)),
        ("augmented", _augmentation_text(config.augmentation)),
        ("model", f"{config.model.model}, {model.count_params():,} parameters"),
        (
            "training",
            f"{optimisation.optimizer}, learning rate {optimisation.learning_rate:g}, "
            f"batch size {batch_size}, {optimisation.epochs} epochs, seed {optimisation.seed}",
        ),
        ("devices", chosen.summary()),
        ("run", f"{run.path}" + (f", from epoch {run.first_epoch + 1}" if run.resumed else "")),
    ]
    return "\n".join(f"{name:<12}{text}" for name, text in rows if text)


def _augmentation_text(config: AugmentationConfig) -> str:
    """The flags of it that are not at their defaults."""
    changed = [
        f"{field.name} {value}"
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    ]
    return ", ".join(changed)


def _overlap(data: run_data.Data) -> str:
    shared = np.intersect1d(data.rows["train"], data.rows["validation"]).size
    return f"{shared:,} of the validation pictures are trained on as well" if shared else ""


def _left_out(data: run_data.Data) -> dict[str, int]:
    """How many files are no examples: by kind in the archive, and those that are broken."""
    archive = getattr(data.records.builder.builder_config, "archive", None)
    kinds = dict(archive.left_out) if archive else {}
    if data.pictures.bad:
        kinds["cannot be decoded"] = len(data.pictures.bad)
    return kinds


def _environment(data: run_data.Data, chosen: devices.Devices) -> dict[str, Any]:
    packages = ("tensorflow", "keras", "tensorflow-datasets", "numpy")
    builder = data.records.builder
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: importlib.metadata.version(name) for name in packages},
        **dataclasses.asdict(chosen),
        "dataset": builder.info.full_name,
        "fingerprint": data.records.fingerprint,
        "left_out": _left_out(data),
        "bad_images": {
            str(data.records.filenames[row]): reason for row, reason in data.pictures.bad.items()
        },
    }
