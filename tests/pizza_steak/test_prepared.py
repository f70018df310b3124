import os
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
from small_runs import snapshot

from pizza_steak import atomic, contents, decoded, members, preparations, records
from pizza_steak.errors import UserError

CATS = [f"{name}/{number}.jpg" for name in ("cat", "dog") for number in range(1_100)]
FOOD = ["train/pizza/1.jpg", "train/steak/2.jpg", "test/pizza/3.jpg", "test/steak/4.jpg"]
DAY = 86400


@pytest.fixture(scope="module")
def original(make_archive, jpeg, tmp_path_factory):
    """A data_dir with `cats`, 2,200 images, and `food`, 4 images, used 3 days ago."""
    data_dir = tmp_path_factory.mktemp("data_dir")
    pets = make_archive(dict.fromkeys(CATS, jpeg()), name="cats")
    decoded.decode(records.prepare(archive=pets, data_dir=data_dir), 32)
    food = records.prepare(archive=make_archive(FOOD), data_dir=data_dir)
    age(food.folder.parent, 3)
    return data_dir


@pytest.fixture
def data_dir(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data_dir")


def age(folder, days):
    """Makes the files of a dataset as old as if it was prepared and last used then."""
    for file in folder.rglob("*"):
        os.utime(file, (time.time() - days * DAY - 60,) * 2)


def names(data_dir):
    """The full names of the datasets `cats` and `food`, the last used first."""
    return [one.name for one in preparations.prepared(data_dir / "pizza_steak")]


def run(*argv, python=()):
    command = [sys.executable, *python, "-m", "pizza_steak.prepared", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True)


def refusal(**arguments):
    with pytest.raises(UserError) as raised:
        preparations.report(**arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_it_lists_images_size_and_last_use(data_dir):
    folder = data_dir / "pizza_steak"
    cats, food = names(data_dir)
    megabytes = {
        name: sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file())
        / 1e6
        for name in (cats, food)
    }
    assert megabytes[cats] > 2_200 * 32 * 32 * 3 / 1e6  # With the decoded array.
    lines = preparations.report(data_dir=data_dir).splitlines()
    assert [re.split(r" {2,}", line.strip()) for line in lines] == [
        ["images", "size", "last use", "name"],
        ["2,200", f"{megabytes[cats]:.1f} MB", "just now", cats],
        ["4", f"{megabytes[food]:.1f} MB", "3 days ago", food],
        ["2,204", f"{sum(megabytes.values()):.1f} MB", "total", f"prepared in {folder}"],
    ]
    assert lines[0].index("name") == lines[1].index(cats) == lines[2].index(food)


@pytest.mark.parametrize("marker", ["there", "missing", "read-only"])
def test_to_open_records_is_to_use_them(make_archive, tmp_path, monkeypatch, marker):
    archive = make_archive(FOOD)
    folder = records.prepare(archive=archive, data_dir=tmp_path).folder
    age(folder, 40)
    if marker == "missing":  # As in a data_dir of an earlier version.
        (folder / preparations._MARKER).unlink()
    if marker == "read-only":
        monkeypatch.setattr(preparations, "_MARKER", "no folder/marker")
    assert "40 days ago" in preparations.report(data_dir=tmp_path)
    records.prepare(archive=archive, data_dir=tmp_path)
    used = "40 days ago" if marker == "read-only" else "just now"
    assert used in preparations.report(data_dir=tmp_path)


@pytest.mark.parametrize("prefix", ["", "pizza_steak/"])
def test_remove_takes_what_is_named_and_nothing_else(data_dir, prefix):
    cats, food = names(data_dir)
    others = {
        name: content
        for name, content in snapshot(data_dir).items()
        if not name.startswith(f"pizza_steak/{food}")
    }
    told = preparations.report(data_dir=data_dir, remove=[prefix + food])
    assert food in told
    assert cats not in told
    after = snapshot(data_dir)
    assert {name: after[name] for name in others} == others
    assert [name for name in after if food in name and not name.endswith(".lock")] == []


def test_removed_records_are_built_anew(make_archive, tmp_path):
    archive = make_archive(FOOD)
    first = records.prepare(archive=archive, data_dir=tmp_path)
    preparations.report(data_dir=tmp_path, unused_for=0)
    assert not first.folder.exists()
    assert records.prepare(archive=archive, data_dir=tmp_path).folder == first.folder


@pytest.mark.parametrize(("hours", "left"), [(71, 1), (73, 2), (0, 0)])
def test_unused_for(data_dir, hours, left):
    expected = names(data_dir)[:left]
    preparations.report(data_dir=data_dir, unused_for=hours * 3600)
    assert names(data_dir) == expected


def test_the_published_and_the_rendered_dataset_are_listed_too(sample_records):
    assert "sample" in preparations.report(data_dir=sample_records.folder.parents[2])


@pytest.mark.parametrize("name", ["food", "nope", "", ".", "..", "../pizza_steak", "*"])
def test_an_unknown_name_removes_nothing(data_dir, name):
    cats, food = names(data_dir)
    before = snapshot(data_dir)
    message = refusal(data_dir=data_dir, remove=[food, name])
    assert f"remove {name!r}: not in {data_dir}/pizza_steak" in message
    assert f"expected one of {cats}, {food}" in message
    assert snapshot(data_dir) == before


def test_only_datasets_of_this_package_are_removed(data_dir):
    folder = data_dir / "pizza_steak"
    own = names(data_dir)
    (folder / "notes/1.0.0").mkdir(parents=True)
    (folder / "notes/1.0.0/dataset_info.json").write_text('{"name": "mnist", "splits": []}')
    (folder / "damaged/1.0.0").mkdir(parents=True)
    (folder / "damaged/1.0.0/dataset_info.json").write_text("{")
    (folder / "being-made/incomplete.ABC_1.0.0").mkdir(parents=True)
    (folder / own[0]).rename(data_dir / "elsewhere")
    (folder / own[0]).symlink_to(data_dir / "elsewhere")
    others = {name for name in snapshot(data_dir) if not name.startswith(f"pizza_steak/{own[1]}")}
    assert names(data_dir) == own[1:]
    preparations.report(data_dir=data_dir, unused_for=0)
    assert names(data_dir) == []
    assert others <= snapshot(data_dir).keys()


def test_it_waits_for_who_makes_the_dataset(data_dir):
    cats, _ = names(data_dir)
    folder = data_dir / "pizza_steak" / cats
    thread = threading.Thread(
        target=preparations.report, kwargs={"data_dir": data_dir, "remove": [cats]}, daemon=True
    )
    with atomic.lock(folder):
        thread.start()
        thread.join(timeout=0.5)
        assert folder.exists()
    thread.join(timeout=60)
    assert not folder.exists()


def test_what_a_killed_removal_left_and_what_belongs_to_gone_folders_goes(make_archive, tmp_path):
    folder = make_archive(FOOD, as_zip=False)
    time.sleep(members.TICK / 1e9 + 0.1)
    home = records.prepare(archive=folder, data_dir=tmp_path).folder.parents[1]
    half = home / f".{'0' * 32}.food-0123456789ab"
    half.mkdir()
    assert len(list((home / contents.CACHE).glob("*.json"))) == 1
    shutil.rmtree(folder)
    preparations.report(data_dir=tmp_path, unused_for=0)
    assert not half.exists()
    assert list((home / contents.CACHE).glob("*.json")) == []


def test_where_nothing_is_prepared(tmp_path):
    where = tmp_path / "pizza_steak"
    assert preparations.report(data_dir=tmp_path) == f"no dataset prepared in {where}"
    told = preparations.report(data_dir=tmp_path, unused_for=0)
    assert told == f"no dataset removed from {where}"
    assert "nothing is prepared" in refusal(data_dir=tmp_path, remove=["food"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_imports_no_tensorflow(original):
    done = run(f"--data_dir={original}", python=["-X", "importtime"])
    assert done.returncode == 0
    assert "2,204" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pizza_steak.preparations" in imported
    assert not imported & {"tensorflow", "keras"}


@pytest.mark.slow
def test_an_unknown_name_exits_with_status_1_and_one_line(original):
    done = run(f"--data_dir={original}", "--remove=nope")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: remove 'nope': ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "named"),
    [("--unused_for=30", "30d"), ("--unused_for=-1d", "30d"), ("--removed=a", "removed")],
)
def test_wrong_flags_exit_with_status_2_and_one_line(flag, named):
    done = run(flag)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line


@pytest.mark.slow
def test_flags_may_be_repeated_and_combined(data_dir):
    cats, food = names(data_dir)
    done = run(f"--data_dir={data_dir}", f"--remove={cats}", f"--remove={food}")
    assert names(data_dir) == []
    assert cats in done.stdout
    assert food in done.stdout


def test_verify_finds_a_bit_that_the_disk_flipped(data_dir):
    assert "all " in preparations.verified(data_dir)
    (array,) = data_dir.rglob("images.npy")
    before, content = array.stat(), bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    os.utime(array, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = run("--verify", f"--data_dir={data_dir}")
    assert found.returncode == 1
    part = array.parent.relative_to(data_dir / "pizza_steak")
    assert f"damaged: {part}; the next run that needs them makes them again" in found.stderr
