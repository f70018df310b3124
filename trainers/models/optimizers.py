"""The optimizers, by the flags of `OptimisationConfig`."""

from typing import Any

import keras

from pizza_steak.errors import UserError
from trainers.configuration import OptimisationConfig


def optimizer_class(name: str) -> type[keras.optimizers.Optimizer]:
    """Returns the Keras optimizer of that name, in upper or lower case.

    Raises:
      UserError: There is no such optimizer.
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


def learning_rate(config: OptimisationConfig, replicas: int) -> float:
    """Returns the learning rate at the start, or after the warm-up."""
    linear = config.scale_learning_rate == "linear"
    return config.learning_rate * replicas if linear else config.learning_rate


def build(config: OptimisationConfig, replicas: int, steps: int) -> keras.optimizers.Optimizer:
    """Builds the optimizer.

    Args:
      config: The flags.
      replicas: The number of replicas.
      steps: Steps per epoch, which a schedule of the learning rate needs.

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
    rate = _schedule(config, learning_rate(config, replicas), steps)
    return optimizer_class(config.optimizer)(learning_rate=rate, **options)


def _schedule(
    config: OptimisationConfig, rate: float, steps: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    total = config.epochs * steps
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
