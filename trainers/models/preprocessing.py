"""Augmentation and normalization, by their flags: what lies between decoded images and network."""

import dataclasses
from collections.abc import Callable, Sequence

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
      on_host: Whether `seeded` run in the input pipeline, or else in the model.
      cycle: Number of versions of each image, which the epochs use in turn; None for a new version
        in every epoch.
    """

    seeded: Sequence[augmentation.RandomAffine | augmentation.RandomIntensity]
    stateful: Sequence[keras.layers.Layer]
    on_host: bool
    cycle: int | None = None

    @property
    def on_batches(self) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None:
        """The part in the input pipeline: the argument `augment` of `input_pipeline.batches`."""
        return self._augment if self.on_host and self.seeded else None

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The part in the model: its first layers."""
        return [*(() if self.on_host else self.seeded), *self.stateful]

    def examples(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Returns augmented images, wherever the layers run in training.

        Args:
          images: uint8 of shape (B, H, W, C), as the result.
          seeds: Of shape (B, 2), as `input_pipeline.example_seeds` returns them.
        """
        images = tf.cast(self._augment(images, seeds), tf.float32)
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

    def _augment(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return self.vary(images, self.draw(seeds))


def augmentation_of(config: AugmentationConfig, seed: int) -> Augmentation | None:
    """Returns the augmentation that the flags ask for, or None.

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
    made = Augmentation(seeded, stateful, config.augment_on == "host", config.augmentation_cycle)
    if made.cycle is not None and made.layers:
        raise UserError(
            "augmentation_cycle: layers in the model draw anew in each step; expected "
            "--augment_on=host, and none of Keras's own layers such as --rand_augment"
        )
    return made


def normalization_of(
    config: NormalizationConfig, images: tf.data.Dataset
) -> list[keras.layers.Layer]:
    """Returns the layers that the flags ask for, adapted to batches of training images."""
    return normalization.normalization_layers(images, **dataclasses.asdict(config))
