"""The index of records is mapped, exact and independent of how it was made."""

import hashlib
import mmap
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pizza_steak import index, records

NAMES = ["a/1.jpg", "a/2.jpg", "a/ñandú 🍕.jpg", "b/1.jpg", "b/x/" + "ü" * 90 + ".jpg", "é/1.jpg"]


@pytest.fixture(scope="module")
def archive(make_archive):
    return make_archive(NAMES, as_zip=False)


@pytest.fixture(scope="module")
def prepared(archive, tmp_path_factory):
    return records.prepare(archive=archive, data_dir=tmp_path_factory.mktemp("data_dir"))


def columns(prepared):
    return {name: column for name, column in vars(prepared).items() if name != "builder"}


def assert_same_columns(one, other):
    assert one.fingerprint == other.fingerprint
    for name, column in columns(one).items():
        np.testing.assert_array_equal(column, columns(other)[name])


def is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def test_every_column_is_mapped(archive, prepared):
    again = records.prepare(archive=archive, data_dir=prepared.folder.parents[2])
    arrays = [column for column in columns(again).values() if isinstance(column, np.ndarray)]
    arrays += vars(again.filenames).values()
    assert len(arrays) == 8
    assert all(map(is_mapped, arrays))


def test_a_long_name_costs_its_own_letters_only(make_archive, tmp_path):
    def size(longest):
        names = [f"{label}/{number}.jpg" for label in "ab" for number in range(100)]
        found = records.prepare(
            archive=make_archive([*names, f"a/{longest}.jpg"]), data_dir=tmp_path
        )
        (folder,) = found.folder.glob("index-*")
        return sum(file.stat().st_size for file in folder.rglob("*"))

    assert size("x" * 200) - size("x") == 199


def test_the_fingerprint_is_that_of_runs_made_before_the_index_was_mapped(prepared):
    filenames = np.array(list(prepared.filenames))
    assert filenames.dtype.itemsize == 4 * max(map(len, NAMES))
    digest = hashlib.sha256("\0".join(prepared.classes).encode())
    for column in (prepared.labels, filenames, prepared.digests):
        digest.update(column.tobytes())
    assert prepared.fingerprint == digest.hexdigest()[:12]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_an_index_that_is_made_in_parts_is_the_same(archive, prepared, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(index, "_BLOCK", rows)
    again = records.prepare(archive=archive, data_dir=tmp_path)
    assert_same_columns(again, prepared)
    assert list(again.filenames) == list(prepared.filenames)


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone"])
@pytest.mark.parametrize(
    "name", ["_offsets.npy", "digests.npy", "filenames.utf8", "filename_ends.npy", "fingerprint"]
)
def test_a_damaged_index_is_made_again(archive, prepared, tmp_path, name, damage):
    shutil.copytree(prepared.folder.parents[2], tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.rglob(name)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if damage == "a bit" else content[:-1])
    if damage == "gone":
        file.unlink()
    assert_same_columns(records.prepare(archive=archive, data_dir=tmp_path), prepared)


def test_filenames_are_a_sequence_of_text(prepared):
    filenames = prepared.filenames
    assert sorted(filenames) == sorted(NAMES)
    assert len(filenames) == len(NAMES)
    listed = list(filenames)
    assert [filenames[row] for row in np.arange(len(NAMES))] == listed
    assert [type(name) for name in filenames] == [str] * len(NAMES)
    assert (filenames[-1], filenames[1:4], filenames[::-2]) == (
        listed[-1],
        listed[1:4],
        listed[::-2],
    )
    assert filenames.index(NAMES[2]) == listed.index(NAMES[2])
    assert "a/3.jpg" not in filenames
    for row in (len(NAMES), -len(NAMES) - 1):
        with pytest.raises(IndexError):
            filenames[row]


def test_a_graph_for_other_processes_has_the_path_of_a_column(tmp_path):
    count = 2**20 + 3
    np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.int64, (count,))[-2:] = 5, 7
    column = np.asarray(np.load(tmp_path / "labels.npy", mmap_mode="r"))

    @tf.function
    def values(rows):
        return index.gather(column, rows)

    assert values(tf.constant([count - 1, 3, count - 2])).numpy().tolist() == [7, 0, 5]
    (graph,) = values._list_all_concrete_functions()
    assert graph.graph.as_graph_def().ByteSize() < 10_000


@pytest.mark.parametrize("column", [np.arange(9), np.arange(9)[2:5]])
def test_a_column_that_is_not_mapped_is_in_the_graph(column):
    assert index.gather(column, tf.constant([2, 0])).numpy().tolist() == column[[2, 0]].tolist()


def test_a_part_of_a_mapped_column_is_that_part(prepared):
    part = prepared.labels[2:]
    assert index.gather(part, tf.constant([1, 0])).numpy().tolist() == part[[1, 0]].tolist()
