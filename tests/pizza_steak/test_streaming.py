"""Images that are decoded as they are used: a bad one is found when its batch needs it."""

import types

import numpy as np
import pytest
import tensorflow as tf

import pizza_steak
from pizza_steak import decoded, input_pipeline, records, splits
from pizza_steak.augmentation import RandomAffine
from pizza_steak.decoding import Format
from pizza_steak.errors import UserError, quoted, raising_quoted
from pizza_steak.input_pipeline import Shares, batches, encode_labels

FORMAT = Format((8, 8))
NAMES = [f"train/{label}/{number:02}.jpg" for label in ("pizza", "steak") for number in range(12)]
TEST = [f"test/{label}/{number}.jpg" for label in ("pizza", "steak") for number in range(4)]
SEED, BATCH = 3, 5
AUGMENT = RandomAffine(rotation_range=40.0, horizontal_flip=True).augment
WEIGHTS = np.linspace(1, 2, len(NAMES), dtype=np.float32)


@pytest.fixture(scope="module")
def sound(make_records):
    return make_records(NAMES)


@pytest.fixture
def spoil(make_records, jpeg):
    """`spoil(rows)`: the same records, but images that cannot be decoded at these rows."""

    def make(records, rows):
        files = {name: jpeg(seed) for seed, name in enumerate(NAMES)}
        files |= {records.filenames[row]: b"no image" for row in rows}
        spoilt = make_records(files)
        assert list(spoilt.filenames) == list(records.filenames)
        return spoilt

    return make


def streamed(records, checked=()):
    return decoded.decode(records, FORMAT, cache="none", on_bad_image="skip", checked=checked)


def order_of(rows, **options) -> list[np.ndarray]:
    """The rows of each batch of the first epoch."""
    steps = -(-len(rows) // BATCH)
    return [
        input_pipeline.batch_rows(tf.constant(step, tf.int64), tf.constant(rows), BATCH, **options)
        .numpy()
        for step in range(steps)
    ]  # fmt: skip


def all_batches(pictures, rows, **options):
    options = {"seed": SEED, "shuffle": True, "augment": AUGMENT, "weights": WEIGHTS} | options
    # Each image has a label of its own.
    labels = np.arange(len(NAMES))
    return list(batches(pictures, rows, labels, BATCH, epochs=2, **options).as_numpy_iterator())


ROWS = np.arange(len(NAMES))
SHUFFLED = {"seed": SEED, "shuffle": True}
PLACES = {
    "the first": lambda rows: order_of(rows, **SHUFFLED)[0][:1],
    "one in the middle": lambda rows: order_of(rows, **SHUFFLED)[2][2:3],
    "the last": lambda rows: order_of(rows, **SHUFFLED)[-1][-1:],
    "all but one of a batch": lambda rows: order_of(rows, **SHUFFLED)[1][1:],
    "several": lambda rows: rows[::3],
}


@pytest.mark.parametrize(
    "place, augment", [*((place, AUGMENT) for place in PLACES), ("several", None)]
)
def test_a_bad_image_is_missing_in_its_batch_with_all_that_belongs_to_it(
    sound, spoil, place, augment
):
    bad = PLACES[place](ROWS)
    pictures = streamed(spoil(sound, bad))
    expected = all_batches(decoded.decode(sound, FORMAT, cache="memory"), ROWS, augment=augment)
    found = all_batches(pictures, ROWS, augment=augment)
    assert len(found) == len(expected) == 10
    for batch, whole in zip(found, expected, strict=True):
        kept = ~np.isin(whole[1], bad)
        for values, others in zip(batch, whole, strict=True):
            np.testing.assert_array_equal(values, others[kept])
    assert sorted(pictures.left_out) == sorted(bad)
    assert not pictures.bad


def test_one_hot_labels_are_those_of_the_images_that_are_left(sound, spoil):
    bad = PLACES["several"](ROWS)
    pictures = streamed(spoil(sound, bad))

    def encode(indices):
        return encode_labels(indices, "categorical", 2)

    rows = order_of(ROWS, **SHUFFLED)
    made = batches(pictures, ROWS, sound.labels, BATCH, encode=encode, **SHUFFLED)
    for (images, labels), given in zip(made.as_numpy_iterator(), rows, strict=True):
        kept = given[~np.isin(given, bad)]
        assert len(images) == len(kept)
        np.testing.assert_array_equal(labels, np.eye(2)[sound.labels[kept]])


def test_all_images_of_a_class_may_be_bad(sound, spoil):
    pictures = streamed(spoil(sound, np.flatnonzero(sound.labels == 1)))
    labels = np.concatenate([labels for _, labels, _ in all_batches(pictures, ROWS)])
    assert set(sound.labels[labels]) == {0}
    assert len(labels) >= 24


@pytest.mark.parametrize("size", [1, BATCH])
def test_a_batch_without_a_readable_image_gets_one_of_another_row(sound, spoil, size):
    bad = order_of(ROWS, **SHUFFLED)[1]
    pictures = streamed(spoil(sound, bad))
    options = {"batch_size": size, "epochs": 2, **SHUFFLED}
    found = list(batches(pictures, ROWS, ROWS, **options).as_numpy_iterator())
    again = list(batches(streamed(pictures.records), ROWS, ROWS, **options).as_numpy_iterator())
    wanted = list(
        batches(decoded.decode(sound, FORMAT, cache="memory"), ROWS, ROWS, **options)
        .as_numpy_iterator()
    )  # fmt: skip
    empty = [step for step, (_, labels) in enumerate(wanted) if np.isin(labels, bad).all()]
    assert empty
    array = decoded.decode(sound, FORMAT, cache="memory").array
    for (images, labels), (_, same) in zip(found, again, strict=True):
        np.testing.assert_array_equal(labels, same)
        assert len(images) and not np.isin(labels, bad).any()
        np.testing.assert_array_equal(images, array[labels])
    assert all(len(found[step][1]) == 1 for step in empty)
    # A resumed run has them too.
    later = batches(pictures, ROWS, ROWS, first_step=empty[0], **options).as_numpy_iterator()
    np.testing.assert_array_equal(next(later)[1], found[empty[0]][1])


def test_without_any_readable_image_it_ends_with_one_line(sound, spoil):
    pictures = streamed(spoil(sound, ROWS))
    expected = "none of the 24 images to train on can be decoded"
    with pytest.raises(UserError, match=expected) as caught, raising_quoted():
        all_batches(pictures, ROWS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("replicas", [2, 5])
def test_shares_are_those_of_a_batch_without_its_bad_images(sound, spoil, replicas):
    # All images of the first share of a batch, so that it is empty, and some others.
    whole = order_of(ROWS, **SHUFFLED)
    first = order_of(ROWS, **SHUFFLED, replica=0, replicas=replicas)
    bad = np.concatenate([first[2], whole[0][-1:], whole[4]])
    pictures = streamed(spoil(sound, bad))
    everything = all_batches(pictures, ROWS, shares=Shares(replicas, range(replicas)))
    for step, given in enumerate(whole):
        shares = everything[step * replicas : (step + 1) * replicas]
        labels = np.concatenate([labels for _, labels, _ in shares])
        np.testing.assert_array_equal(labels, given[~np.isin(given, bad)])
        assert all(len(images) == len(labels) for images, labels, _ in shares)
    for replica in range(replicas):  # In processes of their own.
        alone = all_batches(pictures, ROWS, shares=Shares(replicas, range(replica, replica + 1)))
        for batch, other in zip(alone, everything[replica::replicas], strict=True):
            np.testing.assert_array_equal(batch[1], other[1])
    assert not len(everything[2 * replicas][0])


def test_it_warns_once_of_an_image(sound, spoil, caplog):
    bad = ROWS[::3]
    pictures = streamed(spoil(sound, bad))
    with caplog.at_level("WARNING", logger="absl"):
        for _ in range(2):
            all_batches(pictures, ROWS)
    warnings = [line for line in caplog.messages if "skipped an image" in line]
    assert len(warnings) == len(bad)
    assert all(any(sound.filenames[row] in line for line in warnings) for row in bad)


def test_the_first_bad_image_ends_it_with_its_name(sound, spoil):
    spoilt = spoil(sound, [7])
    pictures = decoded.decode(spoilt, FORMAT, cache="none", checked=())
    found = batches(pictures, ROWS, ROWS, BATCH, **SHUFFLED).as_numpy_iterator()
    before = next(step for step, rows in enumerate(order_of(ROWS, **SHUFFLED)) if 7 in rows)
    for _ in range(before):
        assert len(next(found)[1]) == BATCH
    with pytest.raises(tf.errors.OpError) as caught:
        next(found)
    line = str(quoted(caught.value))
    assert line.startswith(f"1 image cannot be decoded: {spoilt.filenames[7]} (")
    assert "--on_bad_image=skip" in line


# What is decoded before.


@pytest.fixture
def found(make_archive, jpeg, tmp_path):
    """Splits with bad images: two to train on, one to validate on, one to test on."""
    files = {name: jpeg(seed) for seed, name in enumerate([*NAMES, *TEST])}
    archive = make_archive(files)

    def split(archive, data_dir):
        request = splits.Request(None, "test[:50%]", "test[50%:]", 0.15, 0.15)
        return records.prepare_splits("", request, archive=archive, data_dir=data_dir)

    first = split(archive, tmp_path / "sound")
    bad = {purpose: rows[1:3] for purpose, rows in first.rows.items()}
    for rows in bad.values():
        files |= {first.records.filenames[row]: b"no image" for row in rows}
    made = split(make_archive(files), tmp_path / "spoilt")
    assert list(made.records.filenames) == list(first.records.filenames)
    return made, {purpose: set(rows.tolist()) for purpose, rows in bad.items()}


def lose_records(prepared):
    for path in prepared.folder.glob("*tfrecord*"):
        path.unlink()


def kept(prepared):
    return [*prepared.folder.glob("checked-*"), *prepared.folder.glob("decoded-*")]


def test_nothing_is_decoded_before_the_first_batch(found):
    splits, _ = found
    lose_records(splits.records)
    pictures, rows = decoded.decode_splits(splits, FORMAT, cache="none", on_bad_image="fail")
    assert not pictures.bad and not kept(splits.records)
    assert {purpose: len(one) for purpose, one in rows.items()} == {
        "train": 24,
        "validation": 4,
        "test": 4,
    }


def test_to_skip_only_what_is_scored_is_decoded_before_and_once(found):
    splits, bad = found
    pictures, rows = decoded.decode_splits(splits, FORMAT, cache="none", on_bad_image="skip")
    assert set(pictures.bad) == bad["validation"] | bad["test"]
    assert bad["train"] < set(rows["train"])
    assert not bad["validation"] & set(rows["validation"]) and not bad["test"] & set(rows["test"])
    lose_records(splits.records)
    for scored in (["test"], ["validation"], ["validation", "test"]):
        again, _ = decoded.decode_splits(
            splits, FORMAT, cache="none", on_bad_image="skip", scored=scored
        )
        assert set(again.bad) == set.union(*(bad[purpose] for purpose in scored))
    with pytest.raises(UserError, match="cannot be read"):
        decoded.decode_splits(splits, FORMAT, cache="none", on_bad_image="skip", scored=["train"])


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_the_order_does_not_depend_on_what_was_decoded_before(found, cache):
    splits, bad = found
    before = decoded.decode_splits(splits, FORMAT, cache="none", on_bad_image="skip")
    decoded.decode(splits.records, FORMAT, cache=cache, on_bad_image="skip")
    after = decoded.decode_splits(splits, FORMAT, cache="none", on_bad_image="skip")
    for purpose, rows in before[1].items():
        np.testing.assert_array_equal(after[1][purpose], rows)
    assert bad["train"] < set(after[1]["train"])


def test_an_image_that_is_scored_too_stays_in_the_order_of_training(found):
    splits, bad = found
    same = types.SimpleNamespace(**vars(splits) | {"rows": {**splits.rows}})
    same.rows["validation"] = same.rows["train"]
    _, rows = decoded.decode_splits(same, FORMAT, cache="none", on_bad_image="skip")
    assert bad["train"] < set(rows["train"])
    assert not bad["train"] & set(rows["validation"])


@pytest.mark.parametrize("how", ["fail", "skip"])
def test_without_room_on_the_disk_the_order_is_that_of_the_array(found, monkeypatch, how):
    splits, bad = found
    none = types.SimpleNamespace(free=0)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: none)
    pictures, rows = decoded.decode_splits(splits, FORMAT, cache="disk", on_bad_image=how)
    assert isinstance(pictures, decoded.StreamedPictures)
    if how == "fail":  # Bad images end the run, whenever they are found.
        assert not pictures.bad
    else:
        assert set(pictures.bad) == set.union(*bad.values())
        assert not bad["train"] & set(rows["train"])


@pytest.mark.parametrize("purpose", ["validation", "test"])
def test_a_scored_split_without_a_readable_image_is_refused(make_archive, jpeg, tmp_path, purpose):
    files = {name: jpeg(seed) for seed, name in enumerate([*NAMES, *TEST])}
    archive = make_archive(
        {
            name: content if name.startswith("train") else b"no image"
            for name, content in files.items()
        }
    )
    request = splits.Request(
        None, *(("test", "train[:4]") if purpose == "validation" else ("none", "test")), 0.1, 0.1
    )
    made = records.prepare_splits("", request, archive=archive, data_dir=tmp_path)
    with pytest.raises(UserError, match="has no readable image"):
        decoded.decode_splits(made, FORMAT, cache="none", on_bad_image="skip")


# From Python.


def test_load_starts_at_once_and_leaves_bad_images_out(make_archive, jpeg, tmp_path, caplog):
    files = {name: jpeg(seed) for seed, name in enumerate([*NAMES, *TEST])}
    files |= dict.fromkeys(["train/pizza/03.jpg", "test/steak/1.jpg"], b"no image")
    archive = make_archive(files)
    options = {"data_dir": tmp_path, "validation_split": "none", "decoded_cache": "none"}
    with caplog.at_level("WARNING", logger="absl"):
        data = pizza_steak.load(archive, 8, on_bad_image="skip", **options)
        assert data.sizes == {"train": 24, "test": 7}
        assert "test/steak/1.jpg" in caplog.text and "train/pizza/03.jpg" not in caplog.text
        assert sum(len(labels) for _, labels in data.train) == 23
        assert "train/pizza/03.jpg" in caplog.text
    assert sum(len(labels) for _, labels in data.test) == 7
    data = pizza_steak.load(archive, 8, **options)
    with pytest.raises(tf.errors.OpError) as caught:
        list(data.train)
    assert "train/pizza/03.jpg" in str(quoted(caught.value))


@pytest.mark.parametrize("shuffle", [True, False])
def test_flow_from_directory_names_the_files_that_it_gives(make_archive, jpeg, tmp_path, shuffle):
    names = [name.removeprefix("train/") for name in NAMES]
    files = {name: jpeg(seed) for seed, name in enumerate(names)}
    files |= dict.fromkeys([names[0], names[5], names[23]], b"no image")
    folder = make_archive(files, as_zip=False)
    options = {"shuffle": shuffle, "data_dir": tmp_path, "decoded_cache": "none", "batch_size": 5}
    options |= {"featurewise_center": True, "class_mode": "sparse"}
    flow = pizza_steak.flow_from_directory(folder, (8, 8), on_bad_image="skip", **options)
    labels = np.concatenate([labels for _, labels in flow])
    assert len(labels) == 21
    if shuffle:  # Which images are bad is found out on the way.
        assert flow.samples == len(flow.filenames) == 24
    else:
        assert flow.samples == len(flow.filenames) == 21
        np.testing.assert_array_equal(labels, flow.classes)
    with pytest.raises(UserError, match=r"cannot be decoded: .*/.*jpg") as caught:
        pizza_steak.flow_from_directory(folder, (8, 8), **options)
    assert "\n" not in str(caught.value)
