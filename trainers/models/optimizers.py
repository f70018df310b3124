"""The optimizers, by the flags of `OptimisationConfig`."""

from typing import Any

import keras

from pizza_steak.errors import FlagError, UserError
from trainers.configuration import OptimisationConfig


def optimizer_class(name: str) -> type[keras.optimizers.Optimizer]:
    """Returns the Keras optimizer of that name, in upper or lower case.

    Raises:
      FlagError: There is no such optimizer.
    """
    base, wrapper = keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer
    known = {
        title.lower(): kind
        for title, kind in vars(keras.optimizers).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind not in (base, wrapper)
    }
    if name.lower() not in known:
        raise FlagError(f"optimizer {name!r}: unknown; expected one of {', '.join(sorted(known))}")
    return known[name.lower()]


def check(config: OptimisationConfig) -> None:
    """Checks the flags of the optimizer and its learning rate.

    Raises:
      UserError: There is no such optimizer, or the warm-up is longer than the training.
    """
    optimizer_class(config.optimizer)
    if not config.warmup_epochs < config.epochs:
        raise UserError(
            f"warmup_epochs {config.warmup_epochs:g}: expected fewer than --epochs={config.epochs}"
        )


def learning_rate(config: OptimisationConfig, rate: float, replicas: int) -> float:
    """Returns the learning rate at the start or after the warm-up, from that of one replica."""
    return rate * replicas if config.scale_learning_rate == "linear" else rate


def build(
    config: OptimisationConfig, rate: float, replicas: int, epochs: int, steps: int
) -> keras.optimizers.Optimizer:
    """Builds the optimizer.

    Args:
      config: The flags.
      rate: The learning rate of the first step, for one replica.
      replicas: The number of replicas.
      epochs: Epochs to train for, which a schedule of the learning rate needs.
      steps: Steps per epoch.

    Raises:
      UserError: There is no such optimizer.
    """
    options: dict[str, Any] = {}
    if config.weight_decay is not None:  # Else no argument: AdamW has a default of its own.
        options["weight_decay"] = config.weight_decay
    if config.clip_norm is not None:
        options["global_clipnorm"] = config.clip_norm
    if config.ema is not None:
        options |= {"use_ema": True, "ema_momentum": config.ema}
    schedule = _schedule(config, learning_rate(config, rate, replicas), epochs * steps, steps)
    # A backup has the name in the paths of variables. Keras would number it in a second stage.
    optimizer = optimizer_class(config.optimizer)(
        learning_rate=schedule, name=config.optimizer.lower(), **options
    )
    if keras.config.dtype_policy().name != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")


def _schedule(
    config: OptimisationConfig, rate: float, total: int, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    # At least one step is left, so that the learning rate is reached.
    warmup = min(round(config.warmup_epochs * steps), total - 1)
    cosine = config.learning_rate_schedule == "cosine"
    if warmup:
        return keras.optimizers.schedules.CosineDecay(
            0.0,
            total - warmup,
            alpha=0.0 if cosine else 1.0,  # With 1 the learning rate stays constant.
            warmup_target=rate,
            warmup_steps=warmup,
        )
    return keras.optimizers.schedules.CosineDecay(rate, total) if cosine else rate
