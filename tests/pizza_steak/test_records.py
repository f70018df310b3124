import hashlib
import os
import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from small_runs import snapshot

from pizza_steak import atomic, records
from pizza_steak.archive import read_archive
from pizza_steak.errors import UserError
from pizza_steak.pizza_steak_dataset_builder import ArchiveConfig, Builder
from pizza_steak.splits import Request

COUNTS = {"train": 20, "test": 6, "val": 3}  # Of each class.
LAYOUT = [
    f"{folder}/{label}/{number}.jpg"
    for folder, count in COUNTS.items()
    for label in ("pizza", "steak", "taco")
    for number in range(count)
]


def prepare(path, data_dir, num_shards):
    """Opens the records of an archive, which TFDS wrote into so many files a split."""
    builder = Builder(data_dir=data_dir, config=ArchiveConfig.of(read_archive(path)))
    download_config = tfds.download.DownloadConfig(num_shards=num_shards)
    builder.download_and_prepare(download_config=download_config)
    return records.prepare(archive=path, data_dir=data_dir)


@pytest.fixture(scope="module")
def archive(make_archive):
    return make_archive(LAYOUT)


@pytest.fixture(scope="module", params=[1, 3], ids=["one-shard", "three-shards"])
def food(request, archive, tmp_path_factory):
    return prepare(archive, tmp_path_factory.mktemp("data_dir"), request.param)


def test_a_split_lies_in_as_many_files_as_asked_for(archive, tmp_path):
    food = prepare(archive, tmp_path, 3)
    assert len(list(food.folder.glob("*-train.tfrecord-*"))) == 3


@pytest.mark.parametrize(
    "split",
    [
        "train",
        "test",
        "validation",
        "train[:80%]",
        "train[80%:]",
        "train[10:20]",
        "train[19:41]",
        "train[-7:]",
        "train+test",
        "test+train",
        "train[:50%]+test[50%:]+validation",
        "all",
    ],
)
def test_rows_are_what_tfds_reads(food, split):
    one_file_after_another = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = food.builder.as_dataset(split=split, read_config=one_file_after_another)
    examples = list(tfds.as_numpy(dataset))
    rows = food.rows(split)
    assert rows.dtype == np.int64
    assert [food.filenames[row] for row in rows] == [e["filename"].decode() for e in examples]
    assert food.labels[rows].tolist() == [e["label"] for e in examples]


def test_labels_are_the_folders(food):
    assert food.classes == ("pizza", "steak", "taco")
    labels = [food.classes[label] for label in food.labels]
    assert labels == [filename.split("/")[1] for filename in food.filenames]
    assert sorted(food.filenames) == sorted(LAYOUT)


@pytest.mark.parametrize("cut", ["1%", "33%", "80%", "7", "-7"])
def test_a_cut_parts_a_split_without_loss_or_overlap(food, cut):
    parts = [*food.rows(f"train[:{cut}]"), *food.rows(f"train[{cut}:]")]
    assert sorted(parts) == sorted(food.rows("train"))


def test_the_splits_are_disjoint_and_all_rows(food):
    rows = [*food.rows("train"), *food.rows("test"), *food.rows("validation")]
    assert sorted(rows) == list(range(len(LAYOUT)))


def test_an_archive_may_have_a_long_name(make_archive, tmp_path):
    path = make_archive(LAYOUT, name="x" * 251)
    assert len(records.prepare(archive=path, data_dir=tmp_path).labels) == len(LAYOUT)


def test_a_folder_that_loses_every_file_is_a_warning(make_archive, tmp_path, caplog):
    path = make_archive([*LAYOUT, "train/soup/1.svg"])
    with caplog.at_level("WARNING", logger="absl"):
        records.prepare(archive=path, data_dir=tmp_path)
    (told,) = caplog.messages
    assert (
        told
        == f"archive {path}: the folder 'soup' is not a class, because it has no images (1 .svg)"
    )


def test_any_slice_of_a_split_is_mixed(food):
    assert set(food.labels[food.rows("train[:30%]")]) == {0, 1, 2}


@pytest.mark.parametrize("read", ["read", "read_in_graph"])
@pytest.mark.parametrize("draw", ["forward", "backward", "with repetition", "none"])
def test_reads_the_bytes_of_the_archive_in_any_order(archive, food, draw, read):
    listing = read_archive(archive)
    contents = {
        picture.filename: encoded
        for split in listing.splits
        for picture, encoded in listing.read(split)
    }
    rows = {
        "forward": np.arange(len(LAYOUT)),
        "backward": np.arange(len(LAYOUT))[::-1],
        "with repetition": np.random.default_rng(0).integers(0, len(LAYOUT), 200),
        "none": np.arange(0),
    }[draw]
    encoded = tf.function(getattr(food, read))(tf.constant(rows))
    assert encoded.shape == rows.shape
    assert encoded.numpy().tolist() == [contents[food.filenames[row]] for row in rows]


@pytest.mark.parametrize(
    "split",
    [
        *("", "nope", "train+nope", "[10:20]", "train[", "train[abc]", "train[::2]"),
        *("train[:150%]", "train[:500]", "train[5:5]", "train[:0%]", "train[8:3]", "train[60:]"),
    ],
)
def test_a_split_that_is_unknown_or_empty_is_a_users_error(food, split):
    with pytest.raises(UserError) as raised:
        food.rows(split)
    message = str(raised.value)
    assert repr(split) in message
    assert "\n" not in message


def test_opening_again_reads_and_writes_no_records(archive, tmp_path):
    first = prepare(archive, tmp_path, 2)
    before = {path: path.stat().st_mtime_ns for path in first.folder.glob("[!.]*")}
    again = records.prepare(archive=archive, data_dir=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in first.folder.glob("[!.]*")} == before
    assert again.fingerprint == first.fingerprint
    assert list(again.filenames) == list(first.filenames)
    np.testing.assert_array_equal(again.labels, first.labels)


def test_digests_are_those_of_the_archives_bytes(archive, food):
    listing = read_archive(archive)
    expected = {
        picture.filename: hashlib.sha256(encoded).digest()[:16]
        for split in listing.splits
        for picture, encoded in listing.read(split)
    }
    found = [digest.astype(">u8").tobytes() for digest in food.digests]
    assert found == [expected[name] for name in food.filenames]


def test_the_fingerprint_is_of_the_content_alone(archive, make_archive, food, tmp_path):
    assert food.fingerprint == prepare(archive, tmp_path, 2).fingerprint
    copy = make_archive(LAYOUT, name="copy", as_zip=False)
    assert food.fingerprint == records.prepare(archive=copy, data_dir=tmp_path).fingerprint
    swapped = [copy / "train/pizza/0.jpg", copy / "train/pizza/1.jpg"]
    contents = [path.read_bytes() for path in swapped]
    for path, content in zip(swapped, reversed(contents), strict=True):
        path.write_bytes(content)
    assert food.fingerprint != records.prepare(archive=copy, data_dir=tmp_path).fingerprint


def test_counts_are_known_before_anything_is_prepared(archive, food, sample_records):
    assert records.split_counts(archive=archive) == food.counts
    assert records.split_counts("pizza_steak/sample") == sample_records.counts
    assert records.split_counts("pizza_steak/photos") == {"train": 1500, "test": 500}


def test_the_fingerprint_tells_archives_apart(make_records):
    fingerprints = {
        make_records(layout).fingerprint
        for layout in (LAYOUT, LAYOUT[1:], [*LAYOUT, "train/pizza/more.jpg"])
    }
    assert len(fingerprints) == 3


@pytest.mark.slow
def test_two_processes_prepare_one_archive_at_once(archive, tmp_path, run_at_once):
    code = """
import sys
from pizza_steak import atomic, records
wait()
print(records.prepare(archive=sys.argv[1], data_dir=sys.argv[2]).fingerprint)
"""
    fingerprints = [output.strip() for output in run_at_once(2, code, archive, tmp_path)]
    expected = records.prepare(archive=archive, data_dir=tmp_path).fingerprint
    assert fingerprints == [expected, expected]


def test_a_build_of_tfds_itself_is_left_alone_and_its_records_are_used(archive, tmp_path):
    config = ArchiveConfig.of(read_archive(archive), tmp_path)
    building = tmp_path / "pizza_steak" / config.name / "incomplete.ABC123_1.0.0"
    building.mkdir(parents=True)
    Builder(data_dir=tmp_path, config=config).download_and_prepare()
    written = {path: path.stat().st_mtime_ns for path in building.parent.glob("1.0.0/*.tfrecord*")}
    folder = records.prepare(archive=archive, data_dir=tmp_path).folder
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord*")} == written
    assert building.exists()


@pytest.mark.parametrize("sealed", [True, False], ids=["own", "of tfds build"])
@pytest.mark.parametrize("name", ["*-train.tfrecord*", "dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", ["a bit", "cut", "empty"])
def test_damaged_records_are_written_again(archive, food, tmp_path, name, damage, sealed):
    shutil.copytree(food.folder.parents[2], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / food.folder.relative_to(food.folder.parents[2])
    if not sealed:
        (folder.parent / ".1.0.0.checksums").unlink(missing_ok=True)
    (file,) = list(folder.glob(name))[:1]
    content = bytearray(file.read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 1
    file.write_bytes(content[: {"a bit": None, "cut": len(content) // 2, "empty": 0}[damage]])
    if damage == "a bit" and name == "features.json" and not sealed:
        return  # Some bits of its text mean nothing.
    again = records.prepare(archive=archive, data_dir=tmp_path)
    rows = np.arange(len(again.labels))
    assert again.fingerprint == food.fingerprint
    assert again.encoded(rows) == food.encoded(rows)


def test_records_that_are_there_are_opened_without_a_lock(archive, tmp_path):
    folder = prepare(archive, tmp_path, 1).folder
    opened = []
    thread = threading.Thread(
        target=lambda: opened.append(records.prepare(archive=archive, data_dir=tmp_path)),
        daemon=True,
    )
    with atomic.lock(folder.parent):
        thread.start()
        thread.join(timeout=60)  # Where it waits for the lock.
        assert len(opened) == 1


@pytest.fixture
def without_archive(make_archive, tmp_path):
    """Records of an archive that is gone, and the archive's rows by split."""
    archive = make_archive(LAYOUT)
    found = records.prepare_splits("", Request(), archive=archive, data_dir=tmp_path)
    (shutil.rmtree if archive.is_dir() else os.remove)(archive)
    return found


@pytest.mark.parametrize("prefix", ["", "pizza_steak/"])
def test_records_are_found_by_name_without_their_archive(without_archive, tmp_path, prefix):
    name = prefix + without_archive.records.folder.parent.name
    found = records.prepare_splits(name, Request(), data_dir=tmp_path)
    assert found.records.fingerprint == without_archive.records.fingerprint
    assert found.classes == without_archive.classes
    assert found.rows.keys() == without_archive.rows.keys()
    for purpose, rows in found.rows.items():
        assert rows.tolist() == without_archive.rows[purpose].tolist()
    assert found.records.encoded(np.arange(9)) == without_archive.records.encoded(np.arange(9))
    assert records.split_counts(name, data_dir=tmp_path) == without_archive.records.counts
    assert records.is_prepared(name, data_dir=tmp_path)


def test_damaged_records_without_an_archive_stay(without_archive, tmp_path):
    folder = without_archive.records.folder
    damaged = next(folder.glob("*.tfrecord*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = snapshot(folder)
    with pytest.raises(UserError, match="damaged; prepare them again with the --archive"):
        records.prepare(folder.parent.name, data_dir=tmp_path)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "name", ["a-0123456789ab", "pizza_steak/a-0123456789ab", "../a-0123456789ab", "a", "mnist", ""]
)
def test_a_name_of_no_records_is_refused(without_archive, tmp_path, name):
    with pytest.raises(UserError, match="expected one of pizza_steak/photos, pizza_steak/sample"):
        records.prepare_splits(name, Request(), data_dir=tmp_path)
