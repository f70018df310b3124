"""The optimizers, by the flags of `OptimisationConfig`."""

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


def learning_rate(config: OptimisationConfig, replicas: int) -> float:
    """Returns the learning rate of the first step."""
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
    # Without the flag no argument: AdamW has a default of its own.
    options = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    rate = learning_rate(config, replicas)
    if config.learning_rate_schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, config.epochs * steps)
    return optimizer_class(config.optimizer)(learning_rate=rate, **options)
