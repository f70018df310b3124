import dataclasses
import itertools
import math
import os

import numpy as np
import pytest
import tensorflow as tf

from pizza_steak.decoded import DecodedPictures, Format, decode
from pizza_steak.errors import UserError
from pizza_steak.input_pipeline import (
    Shares,
    batch_rows,
    batches,
    choose_class_mode,
    encode_labels,
)
from pizza_steak.records import prepare


def numbered(count):
    """Pictures of 2 x 1 pixels that show their row, in two digits to the base of 256."""
    rows = np.arange(count)
    digits = np.stack([rows // 256, rows % 256, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    return DecodedPictures(np.repeat(digits[:, None, None], 2, axis=1), bad={})


def rows_shown(images):
    return (images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]).tolist()


def visits(count, batch_size, *, rows=None, **options):
    """The rows of each batch, read off the pictures."""
    rows = np.arange(count) if rows is None else np.asarray(rows)
    dataset = batches(numbered(count), rows, None, batch_size, **options)
    return [rows_shown(images) for images in dataset.as_numpy_iterator()]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


in_blocks = pytest.mark.parametrize("block", [None, 1, 3, 200])


@in_blocks
@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 300])
@pytest.mark.parametrize("batch_size", [1, 3, 32, 1000])
def test_every_epoch_visits_every_row_once(count, batch_size, block):
    found = visits(count, batch_size, shuffle=True, shuffle_block=block, epochs=3, seed=5)
    steps = math.ceil(count / batch_size)
    assert len(found) == 3 * steps
    for epoch in range(3):
        batches_of_epoch = found[epoch * steps : (epoch + 1) * steps]
        assert sorted(flat(batches_of_epoch)) == list(range(count))
        assert all(len(batch) == batch_size for batch in batches_of_epoch[:-1])
        assert len(batches_of_epoch[-1]) == count - (steps - 1) * batch_size


@in_blocks
def test_every_epoch_has_an_order_of_its_own(block):
    orders = visits(100, 100, shuffle=True, shuffle_block=block, epochs=300)
    assert len(set(map(tuple, orders))) == 300
    assert list(range(100)) not in orders


@in_blocks
def test_every_seed_has_an_order_of_its_own(block):
    seeds, options = [0, 1, 2, 256, 1000, 2**31, 2**40], {"shuffle": True, "shuffle_block": block}
    orders = [flat(visits(100, 100, seed=seed, **options)) for seed in seeds]
    assert len(set(map(tuple, orders))) == len(seeds)


@pytest.mark.parametrize("block", [None, 1, 2, 5])
def test_every_row_comes_to_every_place(block):
    orders = visits(5, 5, shuffle=True, shuffle_block=block, epochs=200)
    counts = np.zeros((5, 5), int)
    for order in orders:
        counts[range(5), order] += 1
    assert (abs(counts - 40) < 30).all(), counts


@pytest.mark.parametrize("batch_size", [1, 4, 11])
@pytest.mark.parametrize("first_epoch", [1, 2, 4])
def test_going_on_at_an_epoch_shows_what_would_have_been_seen(batch_size, first_epoch):
    whole = visits(10, batch_size, shuffle=True, epochs=4, seed=3)
    rest = visits(10, batch_size, shuffle=True, epochs=4, seed=3, first_epoch=first_epoch)
    assert rest == whole[first_epoch * math.ceil(10 / batch_size) :]


@in_blocks
@pytest.mark.parametrize("first_step", range(4))
def test_going_on_at_a_step_shows_what_would_have_been_seen(first_step, block):
    options = {"shuffle": True, "shuffle_block": block, "epochs": 3, "seed": 3}
    rest = visits(10, 4, **options, first_epoch=1, first_step=first_step)
    assert rest == visits(10, 4, **options)[3 + first_step :]


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 32])
def test_shares_of_replicas_are_the_batch(replicas, batch_size, block):
    options = {"shuffle": True, "epochs": 2, "seed": 1, "first_epoch": 1, "first_step": 1}
    options["shuffle_block"] = block
    whole = visits(23, batch_size, **options)
    shares = [
        visits(23, batch_size, **options, shares=Shares(replicas, range(replica, replica + 1)))
        for replica in range(replicas)
    ]
    assert [flat(step) for step in zip(*shares, strict=True)] == whole
    for step in zip(*shares, strict=True):
        full = math.ceil(len(flat(step)) / replicas)
        sizes = [len(share) for share in step]
        assert sizes == sorted(sizes, reverse=True)
        assert sum(0 < size < full for size in sizes) <= 1 and max(sizes) == full


def test_shares_that_are_here_come_one_after_the_other():
    options = {"shuffle": True, "epochs": 2}
    two = visits(23, 9, **options, shares=Shares(4, range(2, 4)))
    third, fourth = (
        visits(23, 9, **options, shares=Shares(4, range(replica, replica + 1)))
        for replica in (2, 3)
    )
    assert two == flat(zip(third, fourth, strict=True))


def test_weights_belong_to_the_classes_of_their_pictures():
    classes, weights = np.arange(50) % 7, np.linspace(0, 1, 7, dtype=np.float32)
    dataset = batches(numbered(50), np.arange(50), classes, 8, weights=weights, shuffle=True)
    for images, labels, weights_given in dataset.as_numpy_iterator():
        assert labels.tolist() == classes[rows_shown(images)].tolist()
        assert weights_given.dtype == np.float32
        assert weights_given.tolist() == weights[labels].tolist()


@in_blocks
def test_the_batch_size_cuts_one_and_the_same_order(block):
    options = {"shuffle": True, "shuffle_block": block, "epochs": 2, "seed": 1}
    orders = [flat(visits(23, size, **options)) for size in (1, 4, 23, 99)]
    assert all(order == orders[0] for order in orders)


def runs(rows):
    """The number of runs of consecutive rows; the first row follows the last one."""
    return sum((one - other) % 1000 != 1 for other, one in itertools.pairwise(rows)) + 1


@pytest.mark.parametrize("seed", range(4))
def test_a_window_holds_whole_blocks_in_random_order(seed):
    options = {"shuffle": True, "block": 10, "seed": seed}

    def rows(step, **others):
        batch = batch_rows(tf.constant(step, tf.int64), tf.range(1000), 160, **options, **others)
        return batch.numpy().tolist()

    for step in range(14):  # Two epochs of 1,000 rows, a window a step.
        shuffled, in_runs = rows(step), rows(step, in_runs=True)
        assert sorted(shuffled) == sorted(in_runs)
        assert runs(in_runs) <= 16 and runs(shuffled) > len(shuffled) * 0.8
        lengths = {len(in_runs[start : start + 10]) for start in range(0, len(in_runs), 10)}
        assert lengths == {10}
        for start in range(0, len(in_runs), 10):
            assert runs(in_runs[start : start + 10]) == 1
    firsts = {rows(7 * epoch, in_runs=True)[0] % 10 for epoch in range(20)}
    assert len(firsts) > 5  # Epochs cut the rows at other places.


def test_windows_have_orders_of_their_own():
    batches_of = visits(1600, 160, shuffle=True, shuffle_block=10)
    orders = {tuple(np.argsort(np.argsort(batch)).tolist()) for batch in batches_of}
    assert len(orders) == 10


@dataclasses.dataclass
class ReadAhead:
    """Pictures that note which of them are read ahead, and when."""

    pictures: DecodedPictures
    noted: list = dataclasses.field(default_factory=list)
    bad = {}
    parallel_calls = 1

    def read_ahead(self, rows):
        self.noted.append(rows.tolist())

    def gather(self, rows):
        images = tf.numpy_function(self._gather, [rows], tf.uint8)
        return tf.ensure_shape(images, (*rows.shape, 2, 1, 3))

    def _gather(self, rows):
        read = [noted for noted in self.noted if isinstance(noted, list)]
        assert set(rows.tolist()) <= set(flat(read))
        self.noted.append(len(rows))
        return self.pictures.array[rows]


@pytest.mark.parametrize("here", [range(1), range(2), range(1, 3)])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "shuffle_block": 5}])
def test_images_are_read_ahead(options, here):
    options |= {"epochs": 2, "first_step": 1, "shares": Shares(2 if here.start == 0 else 3, here)}
    if here == range(1):
        options["shares"] = Shares()
    pictures = ReadAhead(numbered(150))
    dataset = batches(pictures, np.arange(150), None, 8, **options)
    found = [rows_shown(images) for images in dataset.as_numpy_iterator()]
    assert found == visits(150, 8, **options)
    read = [rows for rows in pictures.noted if isinstance(rows, list)]
    assert sum(map(len, read)) == len(flat(found)) or options.get("shuffle_block")
    first = next(place for place, rows in enumerate(pictures.noted) if isinstance(rows, int))
    in_runs = "shuffle_block" in options and here.start == 0
    images_ahead = len(flat(pictures.noted[:first]))
    assert images_ahead >= (80 if in_runs else 64 * len(here) // options["shares"].replicas)
    if in_runs:
        assert sum(runs(rows) for rows in read) < sum(map(len, read)) / 2


def test_unshuffled_batches_are_in_the_order_of_the_rows():
    assert visits(9, 2, rows=[7, 3, 3, 8, 0], epochs=2) == [[7, 3], [3, 8], [0]] * 2


def test_shuffled_batches_hold_the_given_rows_alone():
    odd = list(range(1, 400, 2))
    (order,) = visits(400, 200, rows=odd, shuffle=True)
    assert sorted(order) == odd
    assert order != odd


def test_labels_belong_to_their_pictures():
    labels = np.random.default_rng(0).permutation(300).astype(np.int32)
    dataset = batches(numbered(300), np.arange(40, 300), labels, 32, shuffle=True, epochs=2)
    seen = 0
    for images, labels_of_batch in dataset.as_numpy_iterator():
        assert labels_of_batch.tolist() == labels[rows_shown(images)].tolist()
        seen += len(images)
    assert seen == 2 * 260


@pytest.mark.parametrize("array_type", ["in memory", "memory-mapped", "every other", "int32"])
def test_rows_and_labels_are_arrays_of_any_kind(array_type, tmp_path):
    def kept(name, array):
        if array_type == "every other":
            return np.repeat(array, 2)[::2]
        if array_type == "memory-mapped":
            np.save(tmp_path / name, array)
            return np.load(tmp_path / name, mmap_mode="r")
        return array.astype(np.int32) if array_type == "int32" and name == "labels.npy" else array

    rows = kept("rows.npy", np.arange(300)[::-3].copy())
    labels = kept("labels.npy", np.random.default_rng(0).integers(9, size=300))
    dataset = batches(numbered(300), rows, labels, 32)
    images, found = zip(*dataset.as_numpy_iterator(), strict=True)
    assert flat(map(rows_shown, images)) == rows.tolist()
    assert flat(found) == labels[rows].tolist()
    assert {part.dtype for part in found} == {labels.dtype}


def encoder(class_mode, classes, *dtype):
    return lambda labels: encode_labels(labels, class_mode, classes, *dtype)


def encoded_at_once(labels, class_mode, classes):
    """Labels of any number of records, as NumPy encodes them."""
    if class_mode == "categorical":
        return np.eye(classes, dtype=np.float32)[labels]
    return labels.astype(np.float32)


@pytest.mark.parametrize(
    ("class_mode", "classes"),
    [("binary", 2), ("categorical", 2), ("categorical", 1000), ("sparse", 2), ("sparse", 3000)],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int32", "uint8"])
def test_labels_of_a_batch_are_encoded_as_all_at_once(class_mode, classes, dtype):
    dtype = tf.as_dtype(dtype)
    labels = np.random.default_rng(0).integers(classes, size=90)
    expected = encoded_at_once(labels, class_mode, classes).astype(dtype.as_numpy_dtype)
    encode = encoder(class_mode, classes, dtype)
    dataset = batches(numbered(90), np.arange(90), labels, 16, encode=encode, shuffle=True)
    assert dataset.element_spec[1] == tf.TensorSpec((None, *expected.shape[1:]), dtype)
    for images, found in dataset.as_numpy_iterator():
        assert found.tobytes() == expected[rows_shown(images)].tobytes()


class NoPictures:
    """The pictures of any number of records, all of them black."""

    bad, parallel_calls, read_ahead = {}, 2, None

    def gather(self, rows):
        return tf.zeros((tf.size(rows), 2, 1, 3), tf.uint8)


@pytest.mark.parametrize("weights", [None, np.ones(1000, np.float32)])
@pytest.mark.parametrize("class_mode", ["categorical", "sparse"])
@pytest.mark.parametrize("count", [1000, 1_000_000])
def test_a_graph_is_small_whatever_the_number_of_records(class_mode, weights, count):
    labels = np.arange(count) % 1000

    @tf.function
    def first():
        encode = encoder(class_mode, 1000)
        options = {"weights": weights, "encode": encode, "shuffle": True}
        return next(iter(batches(NoPictures(), np.arange(count), labels, 32, **options)))

    assert first.get_concrete_function().graph.as_graph_def().ByteSize() < 100_000
    _, found, *_ = first()
    assert len(found) == 32


def test_a_million_records_of_a_thousand_classes_have_one_hot_labels():
    labels = np.arange(1_000_000) % 1000
    options = {"encode": encoder("categorical", 1000), "epochs": 2, "shuffle": True}
    dataset = batches(NoPictures(), np.arange(1_000_000), labels, 32, **options)
    ((_, one_hot),) = dataset.take(1).as_numpy_iterator()
    assert one_hot.shape == (32, 1000) and one_hot.sum(axis=1).tolist() == [1] * 32
    assert len(dataset) == 2 * 31_250


def test_rows_and_labels_may_be_larger_than_a_graph(tmp_path):
    count = 2**28 + 3  # int64: more than 2 GB. The files are sparse, and row 0 comes most times.
    for name, last in (("rows.npy", [count - 1, 7, count - 2]), ("labels.npy", [1, 8, 9])):
        np.lib.format.open_memmap(tmp_path / name, "w+", np.int64, (count,))[-3:] = last
    rows, labels = (np.load(tmp_path / name, mmap_mode="r") for name in ("rows.npy", "labels.npy"))
    dataset = batches(NoPictures(), rows, labels, 32, first_step=count // 32)
    ((_, found),) = dataset.as_numpy_iterator()
    assert found.tolist() == [9, 0, 8]


@pytest.mark.parametrize("class_mode", ["binary", "categorical", "sparse"])
def test_types_and_shapes_are_known_before_the_first_batch(class_mode):
    dataset = batches(
        numbered(3), np.arange(3), np.array([0, 1, 1]), 2, encode=encoder(class_mode, 2)
    )
    images_spec, labels_spec = dataset.element_spec
    assert images_spec == tf.TensorSpec((None, 2, 1, 3), tf.uint8)
    shape = (None, 2) if class_mode == "categorical" else (None,)
    assert labels_spec == tf.TensorSpec(shape, tf.float32)
    assert len(dataset) == 2


def test_the_same_batches_whatever_keeps_the_pictures(sample_records):
    labels, rows = sample_records.labels, sample_records.rows("test")
    options = {"shuffle": True, "epochs": 2, "seed": 7, "encode": encoder("sparse", 2)}
    datasets = [
        batches(decode(sample_records, 16, cache=cache), rows, labels, 32, **options)
        for cache in ("disk", "memory", "none")
    ]
    assert all(dataset.element_spec == datasets[0].element_spec for dataset in datasets)
    for elements in zip(*(dataset.as_numpy_iterator() for dataset in datasets), strict=True):
        for images, labels_of_batch in elements[1:]:
            np.testing.assert_array_equal(images, elements[0][0])
            np.testing.assert_array_equal(labels_of_batch, elements[0][1])


@pytest.mark.parametrize(
    ("class_mode", "classes"),
    [("binary", 2), ("categorical", 2), ("categorical", 3), ("sparse", 2), ("sparse", 3)],
)
def test_pictures_and_labels_are_those_of_flow_from_directory(
    make_archive, tmp_path, class_mode, classes
):
    layout = [f"{label}/{n}.jpg" for label in ("b", "A", "c")[:classes] for n in range(4)]
    folder = make_archive(layout, as_zip=False)
    keras = tf.keras.preprocessing.image.ImageDataGenerator().flow_from_directory(
        folder, (15, 17), class_mode=class_mode, shuffle=False, batch_size=len(layout)
    )
    expected_images, expected_labels = next(keras)

    records = prepare(archive=folder, data_dir=tmp_path)
    rows = [records.filenames.index(filename) for filename in keras.filenames]
    pictures = decode(records, Format((15, 17), "nearest"))
    encode = encoder(class_mode, classes)
    dataset = batches(pictures, np.array(rows), records.labels, len(rows), encode=encode)
    ((images, labels),) = dataset.as_numpy_iterator()
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
    assert labels.dtype == expected_labels.dtype


@pytest.mark.parametrize(
    ("asked", "classes", "chosen"),
    [(None, 2, "binary"), (None, 3, "sparse"), ("sparse", 2, "sparse"), ("binary", 2, "binary")]
    + [("categorical", classes, "categorical") for classes in (2, 3)]
    + [("none", classes, "none") for classes in (2, 3)],
)
def test_the_class_mode_is_what_is_asked_for_or_fits(asked, classes, chosen):
    assert choose_class_mode(asked, classes) == chosen


def test_binary_is_for_two_classes():
    with pytest.raises(UserError, match="3 classes, expected two; use 'sparse' or 'categorical'"):
        choose_class_mode("binary", 3)


READING = """
import os
import time
import numpy as np
import tensorflow as tf
from pizza_steak.input_pipeline import batches

class Slow:
    bad, parallel_calls, read_ahead = {}, os.cpu_count(), None

    def gather(self, rows):
        images = tf.numpy_function(self.read, [rows], tf.uint8, stateful=False)
        return tf.ensure_shape(images, (*rows.shape, 2, 2, 3))

    def read(self, rows):
        time.sleep(0.2)
        return np.zeros((len(rows), 2, 2, 3), np.uint8)

def dataset(context=None):
    return batches(Slow(), np.arange(100), None, 1)

strategy = tf.distribute.MirroredStrategy(["CPU:0"])
iterators = [iter(dataset()), iter(strategy.distribute_datasets_from_function(dataset))]
for iterator in iterators:
    next(iterator)
"""


def test_python_ends_while_pictures_are_being_read(start_python):
    process = start_python(READING)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


AUGMENTING = """
import threading
import numpy as np
import tensorflow as tf
from pizza_steak.decoded import DecodedPictures
from pizza_steak.input_pipeline import batches

tf.keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()
two = threading.Barrier(2, timeout=60)

def wait(images):
    two.wait()
    return images

def augment(images, seeds):
    return tf.numpy_function(wait, [images], tf.uint8, stateful=False)

pictures = DecodedPictures(np.zeros((8, 2, 2, 3), np.uint8), bad={})
print(len(list(batches(pictures, np.arange(8), None, 1, augment=augment))))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() < 2, reason="needs two cores")
def test_deterministic_operations_augment_several_batches_at_once(run_python):
    assert run_python(AUGMENTING).strip() == "8"
