"""The one way from flags to a training: hardware, images, augmentation, compiled model."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import input_pipeline
from pizza_steak.errors import UserError
from pizza_steak.flags import Numbers
from trainers import data as run_data
from trainers import user_code
from trainers.configuration import DataConfig, ModelConfig
from trainers.hardware import devices
from trainers.models import (
    backbones,
    mixing,
    networks,
    optimizers,
    precision,
    preprocessing,
    trained_model,
)

_IMAGE_SIZE = 224


@dataclasses.dataclass(frozen=True)
class Stage:
    """Epochs that train the same variables.

    Attributes:
      first: The first epoch.
      end: The epoch to stop before.
      trainable: The number of layers before the head that are trained; infinity for all.
      learning_rate: The learning rate of its first step, for one replica.
    """

    first: int
    end: int
    trainable: float
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a training needs.

    Attributes:
      config: The flags, with what they come to for this network and hardware.
      chosen: The hardware, and how it computes.
      data: The images.
      augmentation: The augmentation of training images, None for none.
      network: The network.
      mixing: Mixes the images of a training step, None for none.
      stages: The stages of the training, in order.
      compiled_first: The network, compiled for the first stage.
    """

    config: Any
    chosen: devices.Devices
    data: run_data.Data
    augmentation: preprocessing.Augmentation | None
    network: networks.Network
    mixing: mixing.Mixing | None
    stages: tuple[Stage, ...]
    compiled_first: trained_model.TrainedModel | None = None

    @property
    def model(self) -> trained_model.TrainedModel:
        """The network, compiled for the first stage."""
        assert self.compiled_first  # `prepare` has set it.
        return self.compiled_first

    @property
    def augment(self) -> Callable[[tf.Tensor, tf.Tensor], Any] | None:
        """The augmentation in the input pipeline; None if there is none."""
        return self.augmentation.in_pipeline if self.augmentation else None

    def could_fix_features(self, stage: Stage) -> bool:
        """Returns whether --augmentation_cycle, or no augmentation, gives a stage fixed features.

        In a cluster nothing does: its processes may share a disk, but cannot compute one after the
        other.
        """
        if stage.trainable or self.network.features is None or self.chosen.cluster or self.mixing:
            return False
        return self.augmentation is None or not self.augmentation.stateful

    def has_fixed_features(self, stage: Stage) -> bool:
        """Returns whether the head gets the same features of an image in all epochs of a stage.

        With --augmentation_cycle these are the same features of each version.
        """
        augmented_anew = self.augmentation is not None and self.augmentation.cycle is None
        return self.could_fix_features(stage) and not augmented_anew

    def compiled(self, stage: Stage, *, head_only: bool = False) -> trained_model.TrainedModel:
        """Returns the network, or its head alone, compiled for a stage.

        It has the layers of the network: a model that was compiled for another stage cannot be
        trained any more.

        Args:
          stage: The stage.
          head_only: Whether to return the head.
        """
        config, chosen, network = self.config, self.chosen, self.network
        whole = network.head if head_only else network.model
        assert whole  # A network without a head has no such stage.
        network.set_trainable(stage.trainable)
        alone = chosen.strategy == "none"
        kind = trained_model.TrainedModel if alone else trained_model.ReplicatedModel
        with chosen.scope():
            model = kind(whole.input, whole.output, name=network.model.name)
            units = model.output_shape[-1]
            model.plain_loss = networks.loss_for(units)
            model.mixing = self.mixing
            model.gather = self.augmentation.in_step if self.augmentation else None
            model.compile(
                optimizer=optimizers.build(
                    config.optimisation,
                    stage.learning_rate,
                    chosen.replicas,
                    stage.end - stage.first,
                    self.steps("train"),
                ),
                loss=networks.loss_for(
                    units, config.optimisation.label_smoothing, mixed=self.mixing is not None
                ),
                metrics=["accuracy"],
                jit_compile=chosen.jit_compile,
            )
            # Keras would create the variables of optimizer and metrics at the first step, but a
            # backup is loaded into them before.
            model.optimizer.build(model.trainable_variables)
            model.compute_metrics(None, np.zeros(1, np.float32), np.zeros((1, units), np.float32))
            model.reset_metrics()
        return model

    def steps(self, purpose: str) -> int:
        """Returns the steps per epoch of a split; 0 if there is no such split."""
        return math.ceil(len(self.data.rows.get(purpose, ())) / self.config.data.batch_size)

    def last_is_smaller(self, purpose: str) -> bool:
        """Returns whether the last batch of a split holds fewer images than the others."""
        return len(self.data.rows.get(purpose, ())) % self.config.data.batch_size != 0


def image_size(data: DataConfig, model: ModelConfig) -> Numbers:
    """Returns the image size of the flags, or else what the network wants.

    Raises:
      UserError: There is no such run or file.
    """
    size = data.image_size
    if size is None and not networks.is_built_here(model):
        size = backbones.image_size(model)
    return _IMAGE_SIZE if size is None else size


def resolved(config: Any) -> Any:
    """Returns flags with absolute paths, and values for the defaults that depend on --model.

    Raises:
      UserError: There is no such run or file.
    """
    model, built_here = config.model, networks.is_built_here(config.model)
    if not built_here:
        model = backbones.with_absolute_paths(model)
    size, rescale = image_size(config.data, model), config.normalization.rescale
    if rescale is None:
        rescale = 1 / 255 if built_here else 1.0
    return dataclasses.replace(
        config,
        model=model,
        data=dataclasses.replace(config.data, image_size=size),
        normalization=dataclasses.replace(config.normalization, rescale=rescale),
    )


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
    config = resolved(config)
    config = dataclasses.replace(
        config, data=run_data.with_batch_size(config.data, chosen.replicas)
    )
    networks.check(config.model, run_data.format_of(config.data).shape)
    check_training(config, chosen.jit_compile)
    data = load(config.data)
    if chosen.precision == "fastest":
        chosen = _in_fastest_precision(config, chosen, data)
    return _built(config, chosen, data)


def _in_fastest_precision(
    config: Any, chosen: devices.Devices, data: run_data.Data
) -> devices.Devices:
    """Returns the hardware with the precision in which a training step takes the least time."""

    def trained_in(policy: str) -> tuple[trained_model.TrainedModel, Any]:
        ready = _built(config, dataclasses.replace(chosen, precision=policy), data)

        def a_batch(shares: input_pipeline.Shares) -> tf.data.Dataset:
            batches = data.batches(
                "train", config.data.batch_size, shuffle=True, augment=ready.augment, shares=shares
            )
            return batches.take(len(shares.here)).cache().repeat()

        return ready.model, chosen.dealt(a_batch)

    candidates = devices.precisions(config.devices)
    policy, reason = precision.fastest(candidates, trained_in, chosen.from_chief)
    return dataclasses.replace(chosen, precision=policy, precision_reason=reason)


def _built(config: Any, chosen: devices.Devices, data: run_data.Data) -> Setup:
    """Builds and compiles the model for images."""
    # A backup finds variables by their paths, in which Keras numbers the layers of the process.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(config.optimisation.seed)
    chosen.set_precision()
    images = data.batches("train", config.data.batch_size).map(lambda images, labels: images)
    with chosen.scope():
        augmentation = preprocessing.augmentation_of(
            config.augmentation,
            config.optimisation.seed,
            on_host=not chosen.on_gpu or data.service is not None,
        )
        first_layers = augmentation.stateful if augmentation else []
    first_layers = [*first_layers, *preprocessing.normalization_of(config.normalization, images)]
    with chosen.scope():
        network = networks.build(
            config.model,
            data.image_shape,
            data.classes,
            first_layers,
            head_first=config.optimisation.head_epochs > 0,
        )
        mixed = mixing.mixing_of(config.optimisation, len(data.classes))
    stages = _stages(config, network)
    ready = Setup(config, chosen, data, augmentation, network, mixed, stages)
    model = ready.compiled(stages[0])
    return dataclasses.replace(ready, chosen=chosen.as_compiled(model), compiled_first=model)


def check_training(config: Any, jit_compile: bool | str = "auto") -> None:
    """Checks the flags of the training, before images are loaded.

    Args:
      config: The flags.
      jit_compile: As Keras takes it.

    Raises:
      UserError: The flags do not fit together, or there is no such optimizer.
    """
    _check_stages(config)
    optimizers.check(config.optimisation)
    mixing.check(config.optimisation, jit_compile)


def _check_stages(config: Any) -> None:
    asked, model = config.optimisation, config.model
    if asked.fine_tuning_rate is not None and not asked.head_epochs:
        raise UserError("fine_tuning_rate: is for the epochs after --head_epochs; expected both")
    if not asked.head_epochs:
        return
    if networks.is_built_here(model) or user_code.is_function(model.model):
        raise UserError(
            f"head_epochs {asked.head_epochs}: --model={model.model} has no head of its own; "
            "expected a network of keras.applications, a run or a .keras file"
        )
    if model.trainable == "head":
        raise UserError(
            f"head_epochs {asked.head_epochs}: --trainable=head trains nothing after them; "
            "expected one of the two"
        )
    if asked.head_epochs >= asked.epochs:
        raise UserError(
            f"head_epochs {asked.head_epochs}: expected fewer than --epochs={asked.epochs}"
        )


def _stages(config: Any, network: networks.Network) -> tuple[Stage, ...]:
    asked, trainable = config.optimisation, network.trainable
    if not asked.head_epochs:
        return (Stage(0, asked.epochs, trainable, asked.learning_rate),)
    rate = asked.fine_tuning_rate
    rate = asked.learning_rate / 10 if rate is None else rate
    return (
        Stage(0, asked.head_epochs, 0, asked.learning_rate),
        Stage(asked.head_epochs, asked.epochs, trainable, rate),
    )
