"""What the flags ask for between decoded pictures and network: augmentation and normalisation."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from pizza_steak import augmentation, normalization
from pizza_steak.errors import UserError
from trainers.configuration import AugmentationConfig, NormalizationConfig


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied.

    Attributes:
      seeded: Layers that draw for each example from its own seed.
      stateful: Keras's own layers, which draw for a batch at a time: only in the model, where their
        state is saved with its weights.
      on_host: Whether `seeded` run in the input pipeline, else in the model.
    """

    seeded: Sequence[augmentation.RandomAffine | augmentation.RandomIntensity]
    stateful: Sequence[keras.layers.Layer]
    on_host: bool

    @property
    def on_batches(self) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None:
        """The part of the input pipeline: what `input_pipeline.batches` takes as `augment`."""
        return self._augment if self.on_host and self.seeded else None

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The part of the model."""
        return [*(() if self.on_host else self.seeded), *self.stateful]

    def examples(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """All of it, wherever it runs: uint8 images of shape (B, H, W, C) by seeds of (B, 2)."""
        images = tf.cast(self._augment(images, seeds), tf.float32)
        for layer in self.stateful:
            images = layer(images, training=True)
        return tf.saturate_cast(tf.round(images), tf.uint8)

    def draw(self, seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The numbers that `seeded` draw for examples by their seeds."""
        return tuple(layer.draw(seeds) for layer in self.seeded)

    def vary(self, images: tf.Tensor, draws: tuple[tf.Tensor, ...]) -> tf.Tensor:
        """What `seeded` make of images by their draws."""
        for layer, uniforms in zip(self.seeded, draws, strict=True):
            images = layer.apply(images, uniforms)
        return images

    def _augment(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return self.vary(images, self.draw(seeds))


def augmentation_of(config: AugmentationConfig, seed: int) -> Augmentation | None:
    """The augmentation that the flags ask for, or None.

    Raises:
      UserError: A range makes no sense.
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
    return Augmentation(seeded, stateful, config.augment_on == "host")


def normalization_of(
    config: NormalizationConfig, pictures: tf.data.Dataset
) -> list[keras.layers.Layer]:
    """The layers of `normalization.normalization_layers` that the flags ask for."""
    return normalization.normalization_layers(pictures, **dataclasses.asdict(config))
