"""Training on images in the device's memory: batches are gathered and augmented there."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pizza_steak import input_pipeline, memory
from pizza_steak.errors import UserError
from trainers.data import Data
from trainers.models.preprocessing import Augmentation

_COPIED_AT_ONCE = 256


class Resident(NamedTuple):
    """What batches come from, in place of images.

    Attributes:
      data: Its batches hold indices into the device's images, in place of the images.
      augment: The argument `augment` of its `batches`.
      gather: The attribute of a `TrainedModel` whose `fit` takes these batches.
    """

    data: Data
    augment: Callable[[tf.Tensor, tf.Tensor], Any] | None
    gather: Callable[[Any], tf.Tensor] | None


@dataclasses.dataclass(frozen=True)
class Places:
    """Has the methods of `decoded.Pictures`, but gathers indices into the sorted `rows`."""

    rows: np.ndarray
    bad: Mapping[int, str]
    parallel_calls: int = 1
    read_ahead: None = None

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.searchsorted(self.rows, rows)


def move(data: Data, augmentation: Augmentation | None, devices: Sequence[str]) -> Resident:
    """Copies the images of training and validation to the devices.

    Args:
      data: The images.
      augmentation: The augmentation of training images, which runs on the device.
      devices: TensorFlow's names for this process's devices, one for each replica.

    Raises:
      UserError: The images do not fit into the memory.
    """
    used = [data.rows[purpose] for purpose in ("train", "validation") if purpose in data.rows]
    rows = np.unique(np.concatenate(used))
    gather = _gatherer(_on_devices(data, rows, devices), augmentation)
    places = dataclasses.replace(data, pictures=Places(rows, data.pictures.bad))
    if augmentation is None:
        return Resident(places, None, gather)
    return Resident(places, dataclasses.replace(augmentation, on_host=False).in_pipeline, gather)


def _on_devices(data: Data, rows: np.ndarray, devices: Sequence[str]) -> list[tf.Variable]:
    """Returns the images of `rows` on each device: uint8 of shape (N, height, width, channels).

    These are no variables of a strategy, which would send their first value from host to host. They
    are filled in parts: a variable with an initial value takes its memory twice.
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
    # TensorFlow raises an InternalError if a copy to a GPU finds no memory.
    except (tf.errors.ResourceExhaustedError, tf.errors.InternalError) as error:
        raise UserError(_too_large(shape, "the device has free")) from error
    return copies


def _gatherer(
    copies: Sequence[tf.Variable], augmentation: Augmentation | None
) -> Callable[[Any], tf.Tensor]:
    """Returns what `TrainedModel.gather` calls in each replica."""

    def gather(inputs: tf.Tensor | tuple[tf.Tensor, tuple[tf.Tensor, ...]]) -> tf.Tensor:
        places, draws = inputs if isinstance(inputs, tuple) else (inputs, None)
        # The replicas are numbered through all processes, each process's in a row.
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        images = tf.gather(copies[tf.get_static_value(replica) % len(copies)], places)
        return augmentation.vary(images, draws) if augmentation and draws else images

    return gather


def _check_memory_of_machine(shape: tuple[int, ...], copies: int) -> None:
    """Raises an error if a CPU lacks the memory; Linux itself would end the process later."""
    if tf.config.list_logical_devices("GPU"):
        return
    if copies * math.prod(shape) > (there := memory.size()):
        raise UserError(_too_large(shape, f"{there / 1e9:.1f} GB, the memory of this machine"))


def _too_large(shape: tuple[int, ...], limit: str) -> str:
    count, *image = shape
    return (
        f"data_on_device: {count:,} images of {' x '.join(map(str, image))} bytes take "
        f"{math.prod(shape) / 1e9:.1f} GB, more than {limit}; leave the flag out, or use a "
        "smaller --image_size"
    )
