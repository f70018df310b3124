"""Features of a frozen backbone, computed once for each image and kept beside the decoded images.

The head is then trained on them. They are keyed by all that determines them: the images, their
format, the layers before the head with their weights, and with --augmentation_cycle the
augmentation and its seed.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pizza_steak import decoded, input_pipeline, progress_bar
from pizza_steak.errors import UserError, told
from pizza_steak.kept import make_once
from pizza_steak.npy_writer import NpyWriter
from trainers import data as run_data
from trainers.setup import Setup

_BATCH_SIZE = 64  # For each replica.
_BATCHES_AT_ONCE = 64


class KeptFeatures(NamedTuple):
    """What batches come from, in place of images.

    Attributes:
      data: Its batches hold features, float32 of shape (B, F), in place of images.
      augment: The argument `augment` of its `batches` in training.
    """

    data: run_data.Data
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None


@dataclasses.dataclass(frozen=True)
class _Features:
    """Has the methods of `decoded.Pictures`, but gathers features.

    Attributes:
      rows: The sorted rows of the images.
      stored: Features in the order of `rows`, once for each version of the images.
      bad: Why an image is unreadable, by row.
    """

    rows: np.ndarray
    stored: decoded.DecodedPictures
    bad: Mapping[int, str]
    parallel_calls: int = 2

    @property
    def read_ahead(self) -> Callable[[np.ndarray], None] | None:
        if (read_ahead := self.stored.read_ahead) is None:
            return None
        return lambda rows: read_ahead(np.searchsorted(self.rows, rows))

    def gather(self, rows: tf.Tensor, version: int | tf.Tensor = 0) -> tf.Tensor:
        places = tf.searchsorted(self.rows, rows, out_type=tf.int64)
        return self.stored.gather(version * len(self.rows) + places)


def keep(ready: Setup) -> KeptFeatures:
    """Computes the features of all images, unless an earlier run has kept them.

    Args:
      ready: Has fixed features in one of its stages.

    Raises:
      UserError: The features cannot be written.
    """
    data, augmentation = ready.data, ready.augmentation
    # Those of all images, so that runs with other splits and classes use them too.
    readable = np.setdiff1d(np.arange(len(data.records.labels)), [*data.pictures.bad])
    kept = dataclasses.replace(data, service=None, pictures=_features(ready, readable, None))
    if augmentation is None:
        return KeptFeatures(kept, None)
    assert augmentation.cycle  # Or the features would not be fixed.
    cycle, versions = (
        augmentation.cycle,
        _features(ready, np.sort(data.rows["train"]), augmentation.cycle),
    )
    return KeptFeatures(
        kept,
        lambda features, seeds: versions.gather(
            seeds[:, 1], input_pipeline.epoch_of(seeds) % cycle
        ),
    )


def _features(ready: Setup, rows: np.ndarray, versions: int | None) -> _Features:
    """Returns the features of images, or of so many augmented versions of them."""
    data, network = ready.data, ready.network.features
    assert network  # It has fixed features.
    shape = ((versions or 1) * len(rows), network.output_shape[-1])

    def write_to(write: Callable[[np.ndarray], None]) -> None:
        network.compile(jit_compile=ready.chosen.jit_compile)
        with progress_bar.progress_bar(total=shape[0], desc="features") as bar:
            for features in _computed(ready, rows, versions):
                write(features)
                bar.update(len(features))

    if ready.config.data.decoded_cache in (None, "disk") and os.access(
        data.records.folder, os.W_OK
    ):
        folder = data.records.folder / f"features-{_key(ready, rows, versions)}"
        stored = _on_disk(folder, shape, write_to)
    else:
        parts: list[np.ndarray] = []
        write_to(parts.append)
        stored = decoded.DecodedPictures(np.concatenate(parts), {})
    return _Features(rows, stored, data.pictures.bad)


def _computed(ready: Setup, rows: np.ndarray, versions: int | None) -> Iterator[np.ndarray]:
    """Yields features, float32 of shape (B, F): of all rows, in order, version by version."""
    data, network, augmentation = ready.data, ready.network.features, ready.augmentation
    assert network
    batch_size = _BATCH_SIZE * ready.chosen.replicas
    part = _BATCHES_AT_ONCE * batch_size
    for version in range(versions or 1):
        for start in range(0, len(rows), part):
            batches = input_pipeline.batches(
                data.pictures,
                rows[start : start + part],
                None,
                batch_size,
                seed=ready.config.optimisation.seed,
                first_epoch=version,
                epochs=version + 1,
                augment=augmentation.augment if augmentation and versions else None,
                service=data.service,
            )
            yield network.predict(batches, verbose=0).astype(np.float32)


def _key(ready: Setup, rows: np.ndarray, versions: int | None) -> str:
    """Returns a hexadecimal digest of all that determines the features."""
    config = ready.config
    determining = [
        ready.data.records.fingerprint,
        run_data.format_of(config.data).name,
        str(ready.network.digest),
        ready.chosen.precision,
    ]
    if versions:
        rows_digest = hashlib.sha256(rows.tobytes()).hexdigest()
        augmentation = dataclasses.replace(config.augmentation, augment_on="host")  # Or elsewhere.
        determining += [rows_digest, repr(augmentation), str(config.optimisation.seed)]
    return hashlib.sha256("\n".join(determining).encode()).hexdigest()[:16]


def _on_disk(
    folder: pathlib.Path,
    shape: tuple[int, int],
    write_to: Callable[[Callable[[np.ndarray], None]], None],
) -> decoded.DecodedPictures:
    """Returns the features in a folder, memory-mapped; writes them if they are not there."""

    def write(temporary: pathlib.Path) -> None:
        temporary.mkdir()
        with NpyWriter(temporary / "features.npy", shape, np.float32) as writer:
            write_to(writer.write)

    try:
        make_once(folder, write)
    except OSError as error:
        raise UserError(
            f"features {folder}: {told(error)}; make room, pass another --data_dir, or "
            "--decoded_cache=memory"
        ) from error
    return decoded.stored_array(folder / "features.npy", {})
