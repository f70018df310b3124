"""The one way from flags to a training: hardware, images, augmentation, compiled model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainers import data as run_data
from trainers.configuration import DataConfig
from trainers.hardware import devices
from trainers.models import mixing, networks, optimizers, preprocessing, trained_model


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a training needs.

    Attributes:
      config: The flags, with the batch size that they come to.
      chosen: The hardware, and how it computes.
      data: The images.
      augmentation: The augmentation of training images, None for none.
      model: The compiled model.
    """

    config: Any
    chosen: devices.Devices
    data: run_data.Data
    augmentation: preprocessing.Augmentation | None
    model: keras.Model

    @property
    def augment(self) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None:
        """The augmentation in the input pipeline; None if there is none, or it is in the model."""
        return self.augmentation.on_batches if self.augmentation else None

    @property
    def learning_rate(self) -> float:
        """The learning rate at the start, or after the warm-up."""
        return optimizers.learning_rate(self.config.optimisation, self.chosen.replicas)

    def steps(self, purpose: str) -> int:
        """Returns the steps per epoch of a split; 0 if there is no such split."""
        return math.ceil(len(self.data.rows.get(purpose, ())) / self.config.data.batch_size)


def prepare(
    config: Any,
    chosen: devices.Devices | None = None,
    load: Callable[[DataConfig], run_data.Data] = run_data.load,
) -> Setup:
    """Chooses the hardware, loads the images and builds the model; writes decoded images only.

    It sets Keras's random seed and dtype policy, those of the whole process.

    Args:
      config: The flags: `FitConfig`, or another that has its concerns but `run` and `cluster`.
      chosen: The hardware; by default what `config` says.
      load: Loads the images. It gets the data flags with their batch size, before a seed is set or
        a model is built.

    Raises:
      UserError: The user has to change something. A network or optimizer that does not exist, and
        images that are too small for the network, are found before `load`.
    """
    chosen = chosen or devices.choose(config.devices)
    config = dataclasses.replace(
        config, data=run_data.with_batch_size(config.data, chosen.replicas)
    )
    networks.fitting_sizes(config.model, run_data.format_of(config.data).shape)
    optimizers.check(config.optimisation)
    mixing.check(config.optimisation, chosen.jit_compile)
    data = load(config.data)
    # A backup finds variables by their paths, in which Keras numbers the layers of the process.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(config.optimisation.seed)
    chosen.set_precision()
    with chosen.scope():
        augmentation = preprocessing.augmentation_of(config.augmentation, config.optimisation.seed)
    model = _compiled_model(config, data, chosen, augmentation)
    return Setup(config, chosen.as_compiled(model), data, augmentation, model)


def _compiled_model(
    config: Any,
    data: run_data.Data,
    chosen: devices.Devices,
    augmentation: preprocessing.Augmentation | None,
) -> keras.Model:
    images = data.batches("train", config.data.batch_size).map(lambda images, labels: images)
    first_layers = [
        *(augmentation.layers if augmentation else ()),
        *preprocessing.normalization_of(config.normalization, images),
    ]
    steps = math.ceil(len(data.rows["train"]) / config.data.batch_size)
    alone = chosen.strategy == "none"
    kind = trained_model.TrainedModel if alone else trained_model.ReplicatedModel
    with chosen.scope():
        network = networks.build(config.model, data.image_shape, len(data.classes), first_layers)
        model = kind(network.input, network.output, name=network.name)
        units = model.output_shape[-1]
        model.plain_loss = networks.loss_for(units)
        model.mixing = mixing.mixing_of(config.optimisation, len(data.classes))
        model.compile(
            optimizer=optimizers.build(config.optimisation, chosen.replicas, steps),
            loss=networks.loss_for(
                units, config.optimisation.label_smoothing, mixed=model.mixing is not None
            ),
            metrics=["accuracy"],
            jit_compile=chosen.jit_compile,
        )
        # Keras would create the variables of optimizer and metrics at the first step, but a backup
        # is loaded into them before.
        model.optimizer.build(model.trainable_variables)
        model.compute_metrics(None, np.zeros(1, np.float32), np.zeros((1, units), np.float32))
        model.reset_metrics()
    return model
