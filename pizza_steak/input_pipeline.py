"""Makes batches of images, each a pure function of (seed, epoch, step).

There is no shuffle buffer and no state. Any batch of any epoch can be made first, so a resumed run
sees the same batches as an uninterrupted one.
"""

import atexit
import dataclasses
import gc
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops import iterator_ops, multi_device_iterator_ops

from pizza_steak import cores, data_service, index
from pizza_steak.decoded import (
    WITHOUT_AUTOTUNE,
    Pictures,
    StreamedPictures,
    dataset_of,
    gather_readable,
)
from pizza_steak.errors import UserError

# Number of batches to prefetch.
_PREFETCHED = 4
# Number of images to read ahead, of those that do not stay in memory: as many reads at a time.
_READ_AHEAD = 64
# Number of blocks that `shuffle_block` mixes at a time.
_OPEN_BLOCKS = 16
CLASS_MODES = ("binary", "categorical", "sparse", "none")


def choose_class_mode(class_mode: str | None, num_classes: int) -> str:
    """Returns the class mode; for None "binary" if there are two classes, else "sparse".

    Raises:
      UserError: The class mode is unknown, or "binary" with another number of classes than two.
    """
    if class_mode is None:
        return "binary" if num_classes == 2 else "sparse"
    if class_mode not in CLASS_MODES:
        raise UserError(
            f"class_mode {class_mode!r}: unknown; expected one of {', '.join(CLASS_MODES)}"
        )
    if class_mode == "binary" and num_classes != 2:
        raise UserError(
            f"class_mode 'binary': the images have {num_classes} classes, expected two; "
            "use 'sparse' or 'categorical'"
        )
    return class_mode


def encode_labels(
    labels: tf.Tensor, class_mode: str, num_classes: int, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Encodes labels as `flow_from_directory` does.

    Args:
      labels: Integers of shape (B,), class indices.
      class_mode: One of `CLASS_MODES`, but not "none".
      num_classes: The number of classes C.
      dtype: The dtype of the result.

    Returns:
      Shape (B,) for "binary" and "sparse"; (B, C), one-hot, for "categorical".
    """
    encoded = tf.one_hot(labels, num_classes) if class_mode == "categorical" else labels
    return tf.cast(encoded, dtype)


@dataclasses.dataclass(frozen=True)
class Shares:
    """The split of each batch into shares, one for each replica of a model.

    Attributes:
      replicas: Number of replicas. All shares of a batch have the same size, except that the last
        ones may be smaller or empty.
      here: The replicas whose shares are made in this process.
    """

    replicas: int = 1
    here: range = range(1)


def batch_rows(
    step: tf.Tensor,
    rows: tf.Tensor,
    batch_size: int,
    *,
    seed: int,
    shuffle: bool,
    block: int | None = None,
    replica: int | tf.Tensor = 0,
    replicas: int = 1,
    in_runs: bool = False,
) -> tf.Tensor:
    """Returns the rows of one batch, or of one replica's share of it.

    Epoch e visits the rows in a permutation that `index_shuffle` draws from (seed, e). The last
    batch of an epoch holds the remaining rows.

    With `block`, an epoch visits windows of 16 blocks of neighboring rows. The blocks of an epoch
    begin at a random row and are in random order, and so are the rows of each window.

    Args:
      step: int64 scalar, counted from the first step of epoch 0.
      rows: int64 of shape (N,), the rows that an epoch visits.
      batch_size: Number of rows in a batch, summed over all replicas.
      seed: Seed of the order.
      shuffle: Whether each epoch has its own order; else the order is that of `rows`.
      block: Number of rows in a block; None to shuffle all rows. Only with `shuffle`.
      replica: Scalar, the index of the replica.
      replicas: Number of replicas.
      in_runs: Whether to return the rows as they would be if a window were not shuffled: the
        batches of a window then hold the same rows, block after block.

    Returns:
      int64 of shape (B,). B is the batch size divided by `replicas`, rounded up; at the end of an
      epoch it may be less.
    """
    count = tf.size(rows, out_type=tf.int64)
    steps = -(-count // batch_size)
    epoch, step = step // steps, step % steps
    first, last = step * batch_size, tf.minimum((step + 1) * batch_size, count)
    share = -(-(last - first) // replicas)
    first += tf.cast(replica, tf.int64) * share
    size = tf.clip_by_value(last - first, 0, share)
    # At least one, because index_shuffle refuses an empty vector.
    positions = tf.minimum(first, last - 1) + tf.range(tf.maximum(size, 1))
    if shuffle:
        words = tf.stack([tf.constant(seed, tf.int64), epoch])
        if block:
            positions = _shuffled_in_blocks(positions, count, words, block, in_runs)
        else:
            positions = _shuffled(positions, count, _pairs(words, 3))
    return tf.gather(rows, positions[:size])


def _pairs(words: tf.Tensor, count: int) -> list[tf.Tensor]:
    """Returns seeds for `index_shuffle`, which reads 8 bits of each word of its seed."""
    return tf.unstack(tf.random.stateless_uniform([count, 2], words, 0, 256, tf.int32))


def _shuffled(numbers: tf.Tensor, count: tf.Tensor, pairs: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the places of numbers below `count` in a permutation."""
    for pair in pairs:  # One alone would give 65,536 orders.
        numbers = tf.random.experimental.index_shuffle(numbers, pair, count - 1)
    return numbers


def _shuffled_in_blocks(
    positions: tf.Tensor, count: tf.Tensor, words: tf.Tensor, block: int, in_runs: bool
) -> tf.Tensor:
    """Returns the places of positions in the permutation of `batch_rows` with `block`."""
    pairs = _pairs(words, 6)
    window = tf.constant(block * _OPEN_BLOCKS, tf.int64)
    number = positions // window
    offset = positions - number * window
    if not in_runs:
        last = tf.minimum(window, count - number * window) - 1
        for pair in pairs[:3]:
            # A seed for each window: index_shuffle takes only one (TensorFlow 2.21).
            first, second = tf.unstack(tf.cast(pair, tf.int64))
            seeds = tf.stack([first + 0 * number, second + number // 256, number], -1)
            offset = tf.raw_ops.RandomIndexShuffle(
                index=offset, seed=seeds % 256, max_index=last, rounds=4
            )
    place, blocks = number * _OPEN_BLOCKS + offset // block, count // block
    # The rows that fill no block come last.
    whole = tf.maximum(blocks, 1)
    chosen = _shuffled(tf.minimum(place, whole - 1), whole, pairs[3:])
    chosen = tf.where(place < blocks, chosen, blocks)
    # Blocks begin elsewhere in each epoch, so that the same rows do not always come together.
    first = tf.random.stateless_uniform([], words, 0, count, tf.int64)
    return (first + chosen * block + offset % block) % count


def example_seeds(seed: int, epoch: int | tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns one seed for each example and epoch; it does not depend on the batch.

    Args:
      seed: The run's seed, a signed integer of 32 bits.
      epoch: Scalar, 0 to 2**32 - 1.
      rows: Integers of shape (B,), the examples' rows in the dataset.

    Returns:
      int64 of shape (B, 2), different for different (seed, epoch, row).
    """
    rows = tf.cast(rows, tf.int64)
    run = tf.constant(seed, tf.int64) * 2**32 + tf.cast(epoch, tf.int64)
    return tf.stack([tf.fill(tf.shape(rows), run), rows], axis=-1)


def epoch_of(seeds: tf.Tensor) -> tf.Tensor:
    """Returns the epoch of each of some `example_seeds`, int64 of shape (B,)."""
    return tf.bitwise.bitwise_and(seeds[:, 0], 2**32 - 1)


def batches(
    pictures: Pictures,
    rows: np.ndarray,
    labels: np.ndarray | None,
    batch_size: int,
    *,
    encode: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    weights: np.ndarray | None = None,
    seed: int = 0,
    shuffle: bool = False,
    shuffle_block: int | None = None,
    first_epoch: int = 0,
    first_step: int = 0,
    epochs: int = 1,
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    shares: Shares = Shares(),
    service: str | None = None,
) -> tf.data.Dataset:
    """Returns the batches of the epochs from `first_epoch` to `epochs` - 1.

    Images that `gather_readable` leaves out are missing in their batch, with all that belongs to
    them. In place of a batch that has no other image there is one image of another row; a share may
    be empty.

    Args:
      pictures: The decoded images of N records.
      rows: int64 array, the rows that an epoch visits, such as `Records.rows` returns.
      labels: int32 or int64 of shape (N,), the class index of each record, such as
        `Records.labels`; or None for images only.
      batch_size: Number of images in a batch; the last batch of an epoch may hold fewer.
      encode: Called with the class indices of a batch, such as by `encode_labels`; returns its
        labels. By default labels are class indices.
      weights: float32 of shape (C,), the weight of each class in the loss; only with labels.
      seed: Seed of the order and of the augmentation.
      shuffle: Whether each epoch has its own order; else the order is that of `rows`.
      shuffle_block: Number of rows in a block, if `shuffle` is to read in runs; see `batch_rows`.
      first_epoch: The first epoch.
      first_step: Number of batches of `first_epoch` to skip.
      epochs: The epoch to stop before.
      augment: Called with the images of a batch and their `example_seeds`, such as
        `augmentation.RandomAffine.augment`.
      shares: The shares of each batch to make. They come one after the other, as
        `tf.distribute.Strategy.distribute_datasets_from_function` takes them.
      service: Address of a tf.data service, grpc://host:port, that makes the same batches; see
        `data_service.map_steps`. It needs `StreamedPictures` with `in_graph`.

    Returns:
      Dataset of (images, labels), of (images, labels, weights), or of images: uint8 of shape
      (B, height, width, channels).
    """
    steps, here = math.ceil(len(rows) / batch_size), shares.here
    # A model can do nothing with an empty batch; replicas can with an empty share.
    instead = np.asarray(rows) if shares.replicas == 1 else None
    # Of all records, so a graph may hold no copy of them.
    columns = dataset_of(rows) if labels is None else dataset_of(rows, labels)

    def rows_of(number, rows, in_runs=False):
        return batch_rows(
            number // len(here),
            rows,
            batch_size,
            seed=seed,
            shuffle=shuffle,
            block=shuffle_block,
            replica=here.start + number % len(here),
            replicas=shares.replicas,
            in_runs=in_runs,
        )

    def load(pictures, number, rows, labels=None):
        step, batch = number // len(here), rows_of(number, rows)
        images, batch = gather_readable(pictures, batch, instead)
        if augment is not None:
            images = augment(images, example_seeds(seed, step // steps, batch))
        if labels is None:
            return images
        indices = index.gather(labels, batch)
        if weights is None:
            return images, encode(indices)
        return images, encode(indices), tf.gather(weights, indices)

    first = (first_step + first_epoch * steps) * len(here)
    end = epochs * steps * len(here)
    counted = tf.data.Dataset.range(first, end)
    if service:
        assert isinstance(pictures, StreamedPictures)
        shown = () if labels is None else (labels,)
        local = dataclasses.replace(pictures, in_graph=False)

        def load_there(number):
            return load(pictures, number, tf.constant(rows), *shown)

        def load_here(number):
            return load(local, number, *columns.get_single_element())

        loaded = data_service.map_steps(counted, load_there, service, load_here)
    else:
        # The cores bound augmentation, whatever bounds the gathering.
        calls = pictures.parallel_calls if augment is None else cores.count()

        def load_all(_):
            # Read once: with deterministic operations, tf.data makes one batch at a time if `load`
            # reads a dataset's element.
            given = columns.get_single_element()
            numbers = counted
            if pictures.read_ahead:
                # Other hosts read other images of a window.
                block = shuffle_block if shuffle and len(here) == shares.replicas else None
                window = block * _OPEN_BLOCKS if block else 1
                # Read as a whole, also if the first batches of the window are skipped.
                step = first_step % max(steps, 1)
                skipped = (step - step * batch_size // window * window // batch_size) * len(here)
                numbers = _read_ahead(
                    pictures.read_ahead,
                    lambda number: rows_of(number, given[0], in_runs=window > 1),
                    (first - skipped, end),
                    -(-max(window, _READ_AHEAD) // batch_size) * len(here),
                ).skip(skipped)
            return numbers.map(
                lambda number: load(pictures, number, *given), num_parallel_calls=calls
            )

        length = tf.data.experimental.assert_cardinality(counted.cardinality())
        loaded = tf.data.Dataset.range(1).flat_map(load_all).apply(length)
    return loaded.prefetch(_PREFETCHED * len(here)).with_options(WITHOUT_AUTOTUNE)


def _read_ahead(
    read: Callable[[np.ndarray], None],
    rows_of: Callable[[tf.Tensor], tf.Tensor],
    numbers: tuple[int, int],
    ahead: int,
) -> tf.data.Dataset:
    """Returns the numbers of a range; `read` has got the rows of so many more when one comes."""

    def start(number: np.ndarray, end: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if number < end:
            read(rows)
        return number - ahead

    def start_in_graph(number: tf.Tensor) -> tf.Tensor:
        given = [number, end, rows_of(number)]
        return tf.ensure_shape(tf.numpy_function(start, given, tf.int64, stateful=False), ())

    first, end = numbers
    return tf.data.Dataset.range(first, end + ahead).map(start_in_graph).skip(ahead)


def an_epoch_each_pass(
    batches_of: Callable[[tf.Tensor], tf.data.Dataset], *, steps: int
) -> tf.data.Dataset:
    """Returns a dataset that gives the batches of the next epoch each time it is iterated over.

    Args:
      batches_of: Returns the batches of an epoch, an int64 scalar.
      steps: The number of batches in an epoch.
    """
    epochs = itertools.count()

    def next_epoch(_: tf.Tensor) -> tf.Tensor:
        # Called for the first batch of an iterator, not when it is made: Keras makes iterators that
        # it never reads.
        return tf.ensure_shape(tf.numpy_function(lambda: next(epochs), [], tf.int64), ())

    # Keras warns about its own default, shuffle=True, for every Dataset.
    warnings.filterwarnings("ignore", message="`shuffle=True` was passed", category=UserWarning)
    return (
        tf.data.Dataset.range(1)
        .map(next_epoch)
        .flat_map(batches_of)
        .apply(tf.data.experimental.assert_cardinality(steps))
    )


class Described(tf.data.Dataset):
    """A dataset with a text for people in place of TensorFlow's repr; the elements are the same."""

    def __init__(self, dataset: tf.data.Dataset, text: str):
        self._dataset, self._text = dataset, text
        super().__init__(tf.data.experimental.to_variant(dataset))

    def __repr__(self) -> str:
        return self._text

    __str__ = __repr__

    # What tf.data asks of a subclass.
    @property
    def element_spec(self) -> Any:
        return self._dataset.element_spec

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]


@atexit.register
def _free_iterators() -> None:
    """Frees all iterators before the interpreter shuts down.

    Images that are decoded as they are used are read by `tf.numpy_function`, in threads that Python
    stops at shutdown: an iterator that is freed later waits for them forever (TensorFlow 2.21).
    Threads left by a failed reduction would also complain then.
    """
    kinds = (iterator_ops.OwnedIterator, multi_device_iterator_ops.OwnedMultiDeviceIterator)
    for candidate in gc.get_objects():
        if type(candidate) in kinds:
            vars(candidate).clear()
    gc.collect()
