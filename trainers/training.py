"""Training: from flags to a run directory."""

import dataclasses
import importlib.metadata
import math
import pathlib
import platform
import sys
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers import devices, models, plots, runs
from trainers.config import FitConfig, OptimisationConfig


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
    clock = _Clock()
    chosen = devices.choose(config.devices)
    run = runs.plan(config)
    if run.finished:
        return FitResult(run.path, run.result)
    data = run_data.load(config.data)
    keras.utils.set_random_seed(config.optimisation.seed)
    keras.config.set_dtype_policy(chosen.precision)
    model = compiled_model(config, data, chosen)
    print(_plan_table(config, data, chosen, model, run), flush=True)

    architecture = []
    model.summary(print_fn=architecture.append, line_length=80)
    if not run.resumed:
        run.create("\n".join(architecture), _environment(data, chosen))
    _train(config, data, model, run, clock)
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
    plots.curves(run.history, run.path / "curves.png")
    run.finish(result)
    return FitResult(run.path, result)


def compiled_model(config: FitConfig, data: run_data.Data, chosen: devices.Devices) -> keras.Model:
    """Builds the network that fits the data, and compiles it."""
    size = config.data.image_size
    model = models.build(config.model, (size, size, 3), len(data.classes), data.class_mode)
    model.compile(
        optimizer=_optimizer(config.optimisation),
        loss=models.loss_for(data.class_mode),
        metrics=["accuracy"],
        jit_compile=chosen.jit_compile,
    )
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
    return known[config.optimizer.lower()](learning_rate=config.learning_rate)


def _train(
    config: FitConfig, data: run_data.Data, model: keras.Model, run: runs.Run, clock: "_Clock"
) -> None:
    backup = keras.callbacks.BackupAndRestore(
        run.path / "backup", double_checkpoint=True, delete_checkpoint=False
    )
    if run.resumed:
        # Now, not in `fit`: where the last backup is damaged Keras falls back to the one before,
        # and the pictures have to start from the epoch that it found.
        backup.set_model(model)
        backup.on_train_begin()
    first_epoch = run.first_epoch
    run.forget_after(first_epoch)

    optimisation, batch_size = config.optimisation, config.data.batch_size
    train = data.batches(
        "train",
        batch_size,
        seed=optimisation.seed,
        shuffle=True,
        first_epoch=first_epoch,
        epochs=optimisation.epochs,
    )
    model.fit(
        train,
        epochs=optimisation.epochs,
        initial_epoch=first_epoch,
        steps_per_epoch=math.ceil(len(data.rows["train"]) / batch_size),
        validation_data=data.batches("validation", batch_size),
        class_weight=_class_weight(optimisation, data),
        callbacks=[_StopOnNaN(), *_keras_callbacks(config, run), backup, clock],
        shuffle=False,  # The batches come shuffled.
        verbose=1 if sys.stdout.isatty() else 2,
    )


def _keras_callbacks(config: FitConfig, run: runs.Run) -> list[keras.callbacks.Callback]:
    callbacks = [
        keras.callbacks.CSVLogger(run.path / "metrics.csv", append=True),
        keras.callbacks.ModelCheckpoint(
            run.path / "model.keras",
            monitor="val_loss",
            save_best_only=True,
            initial_value_threshold=run.best("val_loss"),
        ),
    ]
    if config.run.tensorboard:
        callbacks.append(keras.callbacks.TensorBoard(run.path / "tensorboard", write_graph=False))
    optimisation = config.optimisation
    if optimisation.reduce_lr_patience is not None:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(patience=optimisation.reduce_lr_patience, verbose=1)
        )
    if optimisation.early_stopping_patience is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(patience=optimisation.early_stopping_patience, verbose=1)
        )
    return callbacks


def _class_weight(config: OptimisationConfig, data: run_data.Data) -> dict[int, float] | None:
    """n / (C * n_c) for each class c, as scikit-learn's "balanced" (King and Zeng, 2001)."""
    if config.class_weight is None:
        return None
    counts = data.counts("train")
    return {c: counts.sum() / (len(counts) * n) for c, n in enumerate(counts) if n}


class _StopOnNaN(keras.callbacks.Callback):
    """Ends training where the loss is no number any more, before anything saves such weights."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._check("loss", logs["loss"], f"step {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        self._check("validation loss", logs["val_loss"], "at its end")

    def _check(self, name: str, value: float, where: str) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"{name} became {value} in epoch {self._epoch + 1}, {where}; "
                "try a lower --learning_rate"
            )


class _Clock(keras.callbacks.Callback):
    """Notes when training begins, and when each epoch, its validation included, has ended."""

    def __init__(self):
        super().__init__()
        self._made = self._start = time.perf_counter()

        self._ends = [0.0]
        self._cpu_seconds = 0.0

    def on_train_begin(self, logs=None):
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        self._ends.append(time.perf_counter() - self._start)
        self._cpu_seconds = time.process_time() - self._cpu_start

    def numbers(self, pictures_an_epoch: int) -> dict[str, Any]:
        """The clock's part of result.json; of a resumed run, since it was resumed."""
        _, *ends = self._ends
        seconds = self._ends[-1]
        return {
            "start_seconds": round(self._start - self._made, 3),
            "fit_seconds": round(seconds, 3),
            "fit_cpu_seconds": round(self._cpu_seconds, 3),
            "train_images_per_second": round(len(ends) * pictures_an_epoch / (seconds or 1), 1),
            "epoch_end_seconds": [round(end, 3) for end in ends],
        }


def _test(
    data: run_data.Data, model: keras.Model, batch_size: int, run: runs.Run
) -> dict[str, float]:
    """Loss and accuracy on the test split; draws its confusion matrix."""
    probabilities = model.predict(data.batches("test", batch_size), verbose=0)
    labels = data.labels("test")
    if data.class_mode == "binary":
        predicted = (probabilities[:, 0] > 0.5).astype(int)
    else:
        predicted = probabilities.argmax(axis=-1)
    matrix = tf.math.confusion_matrix(labels, predicted, len(data.classes)).numpy()
    plots.confusion_matrix(matrix, data.classes, run.path / "confusion_matrix.png")
    loss = keras.losses.get(models.loss_for(data.class_mode))
    encoded = data.encode(labels).reshape(len(labels), -1)
    return {
        "test_accuracy": float(np.mean(predicted == labels)),
        "test_loss": float(np.mean(loss(encoded, probabilities))),
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
        "left_out": _left_out(data),
        "bad_images": {
            str(data.records.filenames[row]): reason for row, reason in data.pictures.bad.items()
        },
    }
