"""Pictures that lie in the device's memory, where batches of them are gathered and augmented."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pizza_steak import input_pipeline
from pizza_steak.errors import UserError
from trainers.data import Data
from trainers.models.preprocessing import Augmentation

_COPIED_AT_ONCE = 256


class Resident(NamedTuple):
    """What batches are made of in place of pictures.

    Attributes:
      data: Gives the places of pictures in the device's array.
      augment: What its `batches` take as `augment`.
    """

    data: Data
    augment: Callable[[tf.Tensor, tf.Tensor], tuple] | None


@dataclasses.dataclass(frozen=True)
class Places:
    """As `decoded.Pictures`, but gives where a picture lies among those of `rows`, which rise."""

    rows: np.ndarray
    bad: Mapping[int, str]
    parallel_calls: int = 1

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.searchsorted(self.rows, rows)


def move(
    data: Data, network: keras.Model, augmentation: Augmentation | None, devices: Sequence[str]
) -> Resident:
    """Copies what is trained and validated on to the device, and has the network gather it there.

    What would be augmented on the host is augmented on the device, by the same numbers: these are
    still drawn on the host, because a GPU would take a kernel for each example.

    Args:
      data: The pictures.
      network: Compiled. From now on its `fit` and `evaluate` take batches of the result; `predict`
        and the saved model take pictures, as before.
      augmentation: What it is trained with.
      devices: TensorFlow's names for those of this process that it is trained on.

    Raises:
      UserError: The pictures do not fit.
    """
    used = [data.rows[purpose] for purpose in ("train", "validation") if purpose in data.rows]
    rows = np.unique(np.concatenate(used))
    images = _on_devices(data, rows, devices)
    _gather_first(network, images, augmentation)
    places = dataclasses.replace(data, pictures=Places(rows, data.pictures.bad))
    if augmentation is None or augmentation.on_batches is None:
        return Resident(places, None)
    return Resident(places, lambda batch, seeds: (batch, augmentation.draw(seeds)))


def _on_devices(data: Data, rows: np.ndarray, devices: Sequence[str]) -> list[tf.Variable]:
    """The pictures of `rows` on each device: uint8 of shape (N, height, width, channels).

    Not one variable of a strategy, which would send its first value from host to host. Filled a
    part at a time, because a variable that begins with a value is there twice until it has it.
    """
    shape = (len(rows), *data.image_shape)
    _check_memory_of_machine(shape, len(devices))
    copies = []
    try:
        for device in devices:
            with tf.device(device):
                copies.append(tf.Variable(lambda: tf.zeros(shape, tf.uint8), trainable=False))
        start = 0
        for batch in input_pipeline.batches(data.pictures, rows, None, _COPIED_AT_ONCE):
            for device, images in zip(devices, copies, strict=True):
                with tf.device(device):
                    indices = tf.range(start, start + len(batch))
                    images.scatter_update(tf.IndexedSlices(batch, indices))
            start += len(batch)
    # Where a copy to a GPU finds no room, TensorFlow says the second.
    except (tf.errors.ResourceExhaustedError, tf.errors.InternalError) as error:
        raise UserError(_too_large(shape, "the device has free")) from error
    return copies


def _gather_first(
    network: keras.Model, copies: Sequence[tf.Variable], augmentation: Augmentation | None
) -> None:
    """Puts gathering and augmentation before the network's training and test step.

    Not into a model around it, because callbacks are to see, save and restore the network.
    """

    def of_places(step: Callable) -> Callable:
        def step_of_places(batch):
            inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(batch)
            places, draws = inputs if isinstance(inputs, tuple) else (inputs, None)
            # All replicas are numbered, those of each process one after the other.
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            images = copies[tf.get_static_value(replica) % len(copies)]
            gathered = tf.gather(images, places)
            if draws is not None:
                gathered = augmentation.vary(gathered, draws)
            return step((gathered, labels, weights))

        return step_of_places

    network.train_step = of_places(network.train_step)
    network.test_step = of_places(network.test_step)
    network.make_test_function(force=True)  # There may be one of the step before.


def _check_memory_of_machine(shape: tuple[int, ...], copies: int) -> None:
    """Where the device is the CPU, which promises memory that is not there."""
    if tf.config.list_logical_devices("GPU") or not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if copies * math.prod(shape) > memory:
        raise UserError(_too_large(shape, f"{memory / 1e9:.1f} GB, the memory of this machine"))


def _too_large(shape: tuple[int, ...], limit: str) -> str:
    count, *picture = shape
    return (
        f"data_on_device: {count:,} pictures of {' x '.join(map(str, picture))} bytes take "
        f"{math.prod(shape) / 1e9:.1f} GB, more than {limit}; leave the flag out, or use a "
        "smaller --image_size"
    )
