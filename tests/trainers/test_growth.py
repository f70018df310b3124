"""`trainers.benchmark --growth`: the archives that it measures, and what it says of them."""

import collections
import errno
import json
import mmap
import os
import pathlib
import signal

import numpy as np
import pytest
import small_runs
from absl import flags
from small_runs import layout, snapshot, train_and_test

from pizza_steak.archive import read_archive
from pizza_steak.errors import FlagError, UserError
from trainers.configuration import BenchmarkConfig, DataConfig
from trainers.throughput import growth

STEPS = ("preparing", "decoding", "opening", "first batch", "epoch")


def parse_flags(*argv: str) -> BenchmarkConfig:
    options = ("--growth", "--image_size=32", "--batch_size=7")
    return small_runs.parse_flags(*options, *argv, config=BenchmarkConfig)


def content(archive) -> collections.Counter:
    """How often the archive has an image, by its split, class and bytes."""
    return collections.Counter(
        (split, image.label, encoded)
        for split in archive.splits
        for image, encoded in archive.read(split)
    )


def changes(path: pathlib.Path) -> dict[pathlib.Path, int]:
    """When each file of an archive was last changed."""
    return {file: file.stat().st_ctime_ns for file in (path, *path.rglob("*"))}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("folders", [train_and_test("dark", "light"), {"dark": 3, "light": 2}])
def test_an_archive_grows_by_copies(as_zip, folders, make_archive, tmp_path):
    path = make_archive(layout(folders), as_zip=as_zip)
    before = changes(path)
    found = read_archive(path)
    grown = read_archive(growth.grow(found, 3, tmp_path))
    assert grown.path.is_dir() != as_zip
    assert grown.classes == found.classes
    assert content(grown) == {image: 3 * count for image, count in content(found).items()}
    assert changes(path) == before  # As a new link to a file would be.


def test_a_folder_grows_by_links(make_archive, tmp_path):
    path = make_archive(layout({"dark": 3, "light": 2}), as_zip=False)
    grown = growth.grow(read_archive(path), 10, tmp_path)
    files = [file.stat() for file in grown.rglob("*.png")]
    assert (len(files), len({file.st_ino for file in files})) == (50, 5)


@pytest.mark.slow
def test_each_step_has_a_row_for_each_size(archive, tmp_path):
    argv = [f"--archive={archive}", f"--data_dir={tmp_path}/data_dir", "--sizes=1,3"]
    report = growth.measure(parse_flags(*argv, f"--json={tmp_path}/figures.json"))
    assert [row.name for row in report.rows] == [f"{step} x {n}" for step in STEPS for n in (1, 3)]
    assert [row.images for row in report.rows] == [36, 108] * len(STEPS)
    for row in report.rows:
        assert min(row.seconds, row.cpu_seconds, row.images_per_second) > 0
        assert row.memory_mb >= 0
    for first, grown in zip(report.rows[::2], report.rows[1::2], strict=True):
        assert (first.times_as_long, grown.times_as_long) == (1, grown.seconds / first.seconds)
    mapped = {row.name: row.mapped_mb for row in report.rows}
    assert mapped["epoch x 3"] >= 60 * 32 * 32 * 3 / 1e6 > mapped["preparing x 3"]
    assert report.left_out == []
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["name"] for row in figures["rows"]] == [row.name for row in report.rows]
    for row in report.rows:
        assert f"\n{row.name:<20}" in report.summary()
    assert set(snapshot(tmp_path)) == {"data_dir", "figures.json"}


@pytest.mark.slow
def test_what_an_image_lacks_is_said_in_a_line(make_archive, tmp_path):
    files = layout(train_and_test("dark", "light")) | {"train/dark/bad.jpg": b"no picture"}
    argv = [f"--archive={make_archive(files)}", f"--data_dir={tmp_path}", "--sizes=1"]
    with pytest.raises(UserError, match=r"1 image cannot be decoded: train/dark/.*bad\.jpg"):
        growth.measure(parse_flags(*argv))
    assert snapshot(tmp_path) == {}


def test_a_size_that_the_disk_cannot_hold_is_left_out(archive, tmp_path):
    argv = [f"--archive={archive}", f"--data_dir={tmp_path}", "--sizes=2_000_000_000"]
    report = growth.measure(parse_flags(*argv))
    (left_out,) = report.left_out
    assert left_out.startswith("x 2,000,000,000 was left out: it takes ")
    assert report.rows == []
    assert report.summary().endswith(left_out)
    assert snapshot(tmp_path) == {}


def _kill(data, used):
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(data, used):
    raise ValueError("a bug")


def _fill_the_disk(data, used):
    raise OSError(errno.ENOSPC, "No space left on device", "records")


@pytest.mark.slow
def test_a_killed_process_a_bug_and_a_full_disk_are_told_apart():
    assert growth._in_process(_kill, DataConfig()) is None
    with pytest.raises(RuntimeError, match="_fail: exit status 1"):
        growth._in_process(_fail, DataConfig())
    with pytest.raises(UserError, match="records: No space left on device"):
        growth._in_process(_fill_the_disk, DataConfig())


def test_memory_is_of_the_process_and_mapped_pages_are_not(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, np.ones(20_000_000, np.uint8))
    before = growth._own_mb()
    mapped = np.load(path, mmap_mode="r")
    _, usage = growth._used(lambda: mapped.sum(), before, tmp_path)
    assert usage.mapped_mb == pytest.approx(20, abs=0.1)
    assert usage.memory_mb < 10

    def take():
        memory = mmap.mmap(-1, 20_000_000)  # malloc may have as much from earlier tests.
        memory.write(b"1" * 20_000_000)
        return memory

    kept, usage = growth._used(take, before, tmp_path / "other")
    assert usage.memory_mb > 19
    assert usage.mapped_mb == 0
    assert kept[-1:] == b"1"


@pytest.mark.parametrize("flag", ["--only=warm", "--plot=figures.png", "--profile=profile"])
def test_flags_of_other_rows_are_refused(flag, archive):
    with pytest.raises(FlagError, match=f"{flag}: is not for --growth"):
        growth.measure(parse_flags(f"--archive={archive}", flag))


def test_images_of_no_archive_are_refused():
    with pytest.raises(UserError, match="expected an --archive"):
        growth.measure(parse_flags("--dataset=pizza_steak/sample"))


@pytest.mark.parametrize("sizes", ["0", "1,0", "1.5", "1,2.0", "many"])
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises(flags.Error, match="sizes"):
        parse_flags(f"--sizes={sizes}")
