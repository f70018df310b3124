"""However records are written, they are the same: by TFDS's own loop, in little memory, by Beam."""

import json
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from pizza_steak import index, records
from pizza_steak import pizza_steak_dataset_builder as dataset_builder
from pizza_steak.archive import read_archive

NAMES = [
    f"food/{split}/{label}/{number}.jpg"
    for split, count in {"train": 20, "test": 6, "val": 3}.items()
    for label in ("crème brûlée", "pizza", "steak")
    for number in range(count)
]


@pytest.fixture(scope="module", params=[True, False], ids=["zip", "folder"])
def archive(request, make_archive):
    return make_archive(NAMES, as_zip=request.param)


def build(archive, data_dir, **options):
    config = dataset_builder.ArchiveConfig.of(read_archive(archive), data_dir)
    builder = dataset_builder.Builder(data_dir=data_dir, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**options))
    return records.prepare(archive=archive, data_dir=data_dir)


def encoded_records(prepared):
    """The records, in the order of the rows."""
    return [
        record for file in records._files(prepared.builder) for _, record in index._frames(file)
    ]


def features(prepared):
    return [
        dict(tf.train.Example.FromString(record).features.feature)
        for record in encoded_records(prepared)
    ]


def assert_same(one, other):
    assert one.folder.relative_to(one.folder.parents[2]) == other.folder.relative_to(
        other.folder.parents[2]
    )
    assert one.fingerprint == other.fingerprint
    assert one.counts == other.counts
    assert features(one) == features(other)
    sizes = [info.num_bytes for info in one.builder.info.splits.values()]
    assert sizes == [info.num_bytes for info in other.builder.info.splits.values()]


@pytest.mark.parametrize("num_shards", [None, 3])
def test_records_are_those_of_tfds_own_loop(archive, tmp_path, num_shards):
    options = {"num_shards": num_shards}
    ours = build(archive, tmp_path / "ours", **options)
    theirs = build(archive, tmp_path / "theirs", **options, max_examples_per_split=len(NAMES))
    assert_same(ours, theirs)
    for name in ("features.json", "dataset_info.json", "label.labels.txt"):
        assert (ours.folder / name).read_text() == (theirs.folder / name).read_text()


def test_records_have_the_same_bytes_each_time(archive, tmp_path):
    for record in encoded_records(records.prepare(archive=archive, data_dir=tmp_path)):
        example = tf.train.Example.FromString(record)
        assert record == example.SerializeToString(deterministic=True)


@pytest.mark.parametrize("most", [1, 1000, 10**6])  # More files than TFDS has, some, none.
def test_the_order_does_not_depend_on_how_much_is_shuffled_in_memory(
    archive, tmp_path, monkeypatch, most
):
    files = []

    def add(self, key, data, original=shuffle._Bucket.add):
        files.append(self)
        original(self, key, data)

    expected = records.prepare(archive=archive, data_dir=tmp_path / "expected")
    monkeypatch.setattr(shuffle._Bucket, "add", add)
    monkeypatch.setattr(dataset_builder, "_SHUFFLED_AT_ONCE", most)
    assert_same(records.prepare(archive=archive, data_dir=tmp_path / "found"), expected)
    assert bool(files) == (most < 10**6)


def test_a_configuration_may_name_an_archive_by_its_path(archive, tmp_path):
    # As `tfds build pizza_steak --config='{"archive": …}'` does.
    arguments = json.loads(json.dumps({"archive": str(archive), "reading": {"follow_links": True}}))
    config = dataset_builder.Builder.builder_config_cls(**arguments)
    builder = dataset_builder.Builder(data_dir=tmp_path, config=config)
    builder.download_and_prepare()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tfrecord*")}
    found = records.prepare(archive=archive, data_dir=tmp_path)
    assert found.folder == pathlib.Path(builder.data_dir)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tfrecord*")} == written


WORKERS = {
    "in this process": {"direct_running_mode": "in_memory"},
    "two threads": {"direct_running_mode": "multi_threading", "direct_num_workers": 2},
    "two processes": {"direct_running_mode": "multi_processing", "direct_num_workers": 2},
}


def with_beam(**options):
    pipeline_options = pytest.importorskip("apache_beam.options.pipeline_options")
    return {"beam_options": pipeline_options.PipelineOptions([], runner="DirectRunner", **options)}


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_beam_writes_the_same_records(archive, tmp_path, monkeypatch, workers):
    options = with_beam(**WORKERS[workers])
    monkeypatch.setattr(dataset_builder, "_READ_AT_ONCE", 7)
    expected = records.prepare(archive=archive, data_dir=tmp_path / "expected")
    found = build(archive, tmp_path / "found", num_shards=3, **options)
    assert_same(found, expected)
    assert not list(found.folder.glob("images.*"))


@pytest.mark.parametrize("damage", ["damaged", "another file"])
def test_beam_refuses_an_archive_that_changed(make_archive, jpeg, tmp_path, damage):
    options = with_beam(**WORKERS["in this process"])
    path = make_archive(NAMES)
    config = dataset_builder.ArchiveConfig.of(read_archive(path), tmp_path)
    builder = dataset_builder.Builder(data_dir=tmp_path, config=config)
    if damage == "damaged":
        path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"bad"))
    else:
        make_archive(dict.fromkeys(NAMES, jpeg(1000))).replace(path)
    with pytest.raises(Exception, match=f"archive {path}: .* cannot be read"):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**options))
    assert not list(tmp_path.rglob("*tfrecord*"))
    assert not list(tmp_path.glob("pizza_steak/*/*1.0.0*"))


@pytest.mark.slow
def test_tfds_builds_an_archive_with_beam_from_the_command_line(archive, tmp_path):
    for package in ("apache_beam", "mlcroissant"):
        pytest.importorskip(package, reason=f"TFDS's commands import {package}")
    command = [sys.executable, "-m", "tensorflow_datasets.scripts.cli.main", "build", "pizza_steak"]
    command += ["--imports=pizza_steak", f"--config={json.dumps({'archive': str(archive)})}"]
    command += [f"--data_dir={tmp_path / 'found'}", "--beam_pipeline_options=runner=DirectRunner"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tfrecord*")}
    found = records.prepare(archive=archive, data_dir=tmp_path / "found")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tfrecord*")} == written
    assert_same(found, records.prepare(archive=archive, data_dir=tmp_path / "expected"))
