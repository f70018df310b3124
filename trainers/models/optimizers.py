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


def learning_rate(config: OptimisationConfig, rate: float, replicas: int) -> float:
    """Returns the learning rate of the first step, from that of one replica."""
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
    # Without the flag no argument: AdamW has a default of its own.
    options = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    rate = learning_rate(config, rate, replicas)
    if config.learning_rate_schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    # A backup has the name in the paths of variables. Keras would number it in a second stage.
    optimizer = optimizer_class(config.optimizer)(
        learning_rate=rate, name=config.optimizer.lower(), **options
    )
    if keras.config.dtype_policy().name != "mixed_float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
