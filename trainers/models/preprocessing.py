"""Augmentation and normalization, by their flags: what lies between decoded images and network."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from pizza_steak import augmentation, input_pipeline, normalization
from pizza_steak.errors import UserError
from trainers.configuration import AugmentationConfig, NormalizationConfig


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images.

    Attributes:
      seeded: Layers that draw for each example from its own seed.
      stateful: Keras's own layers, which draw once per batch. They run in the model, which saves
        their state with its weights.
      on_host: Whether `seeded` run in the input pipeline, or else in the training step, with
        random numbers that the pipeline draws: a GPU would take a kernel for each example.
      cycle: Number of versions of each image, which the epochs use in turn; None for a new version
        in every epoch.
    """

    seeded: Sequence[augmentation.RandomAffine | augmentation.RandomIntensity]
    stateful: Sequence[keras.layers.Layer]
    on_host: bool
    cycle: int | None = None

    @property
    def in_pipeline(self) -> Callable[[tf.Tensor, tf.Tensor], Any] | None:
        """The part in the input pipeline: the argument `augment` of `input_pipeline.batches`."""
        if not self.seeded:
            return None
        return self.augment if self.on_host else lambda images, seeds: (images, self.draw(seeds))

    @property
    def in_step(self) -> Callable[[Any], tf.Tensor] | None:
        """The part in the training step: the attribute `gather` of a `TrainedModel`."""
        return None if self.on_host or not self.seeded else self._vary_drawn

    def _vary_drawn(self, inputs: Any) -> tf.Tensor:
        # Validation images come without random numbers.
        return self.vary(*inputs) if isinstance(inputs, tuple) else inputs

    def examples(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Returns augmented images, wherever the layers run in training.

        Args:
          images: uint8 of shape (B, H, W, C), as the result.
          seeds: Of shape (B, 2), as `input_pipeline.example_seeds` returns them.
        """
        images = tf.cast(self.augment(images, seeds), tf.float32)
        for layer in self.stateful:
            images = layer(images, training=True)
        return tf.saturate_cast(tf.round(images), tf.uint8)

    def draw(self, seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns the random numbers that `seeded` draw for examples with these seeds."""
        if self.cycle is not None:
            run, row = tf.unstack(seeds, axis=-1)
            epoch = input_pipeline.epoch_of(seeds)
            seeds = tf.stack([run - epoch + epoch % self.cycle, row], axis=-1)
        return tuple(layer.draw(seeds) for layer in self.seeded)

    def vary(self, images: tf.Tensor, draws: tuple[tf.Tensor, ...]) -> tf.Tensor:
        """Returns the images that `seeded` make with the numbers of `draw`."""
        for layer, uniforms in zip(self.seeded, draws, strict=True):
            images = layer.apply(images, uniforms)
        return images

    def augment(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Returns the images that `seeded` make for examples with these seeds."""
        return self.vary(images, self.draw(seeds))


def augmentation_of(
    config: AugmentationConfig, seed: int, *, on_host: bool = True
) -> Augmentation | None:
    """Returns the augmentation that the flags ask for, or None.

    Args:
      config: The flags.
      seed: The seed of all random numbers.
      on_host: Whether --augment_on=auto is the host.

    Raises:
      UserError: A range is wrong.
    """
    jitter = {
        name: getattr(config, name)
        for name in ("contrast_factor", "saturation_factor", "hue_factor")
    }
    stateful = []
    try:
        seeded = augmentation.augmentation_layers(config, seed)
        if any(factor is not None for factor in jitter.values()):
            stateful.append(keras.layers.RandomColorJitter(**jitter, seed=seed + 2))
        if config.rand_augment is not None:
            stateful.append(keras.layers.RandAugment(num_ops=config.rand_augment, seed=seed + 3))
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
    if not seeded and not stateful:
        return None
    if config.augmentation_cycle is not None and stateful:
        raise UserError(
            "augmentation_cycle: Keras's own layers, such as --rand_augment, draw anew in each "
            "step; expected none of them"
        )
    if config.augment_on != "auto":
        on_host = config.augment_on == "host"
    return Augmentation(seeded, stateful, on_host, config.augmentation_cycle)


def normalization_of(
    config: NormalizationConfig, images: tf.data.Dataset
) -> list[keras.layers.Layer]:
    """Returns the layers that the flags ask for, adapted to batches of training images."""
    return normalization.normalization_layers(images, **dataclasses.asdict(config))
