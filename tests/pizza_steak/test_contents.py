import io
import os
import pathlib
import shutil
import time
import tracemalloc
import unicodedata
import zipfile

import numpy as np
import pytest

import pizza_steak
from pizza_steak import contents, members, records, splits
from pizza_steak.archive import Archive, ReadingOptions, read_archive
from pizza_steak.errors import ArchiveError

FOOD = ["train/pizza/1.jpg", "train/steak/2.jpg", "test/pizza/3.jpg", "test/steak/4.jpg"]


@pytest.fixture
def fingerprint(tmp_path):
    """`fingerprint(path)` of an archive, with a cache that the test's calls share."""
    return lambda path: contents.fingerprint(read_archive(path), tmp_path / "cache")


@pytest.fixture
def reads(monkeypatch):
    """The members that were read, in no order."""
    read = []

    def checksum_file(self, picture, original=Archive.checksum_file):
        read.append(picture.member)
        return original(self, picture)

    monkeypatch.setattr(Archive, "checksum_file", checksum_file)
    return read


def wait_for_the_next_tick():
    time.sleep(members.TICK / 1e9 + 0.1)


@pytest.fixture(scope="module")
def aged(make_archive):
    """A folder whose files are old enough to be remembered."""
    folder = make_archive(FOOD, as_zip=False)
    wait_for_the_next_tick()
    return folder


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_it_is_of_the_images_alone(make_archive, fingerprint, as_zip):
    files = {name: name.encode() for name in FOOD}
    expected = fingerprint(make_archive(files, as_zip=not as_zip))
    for layout, name in (
        (files, "food"),
        (files, "other"),
        (dict(reversed(files.items())), "food"),
        ({**files, "notes.txt": b""}, "food"),
        ({f"root/{name}": files[name] for name in files}, "food"),
    ):
        assert fingerprint(make_archive(layout, name, as_zip)) == expected


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: (name.replace("/1.jpg", "/0.jpg"), content),
        lambda name, content: (name.replace("steak", "Steak"), content),
        lambda name, content: (name.replace("test/", "val/"), content),
        lambda name, content: (name, content.replace(b"/1.jpg", b"/0.jpg")),
        lambda name, content: (name, content.replace(b"/1.jpg", b"/01.jpg")),
    ],
    ids=["filename", "class", "split", "byte", "size"],
)
def test_it_changes_with_the_images(make_archive, fingerprint, change, as_zip):
    files = {name: name.encode() for name in FOOD}
    changed = dict(change(*file) for file in files.items())
    before = fingerprint(make_archive(files, as_zip=as_zip))
    assert fingerprint(make_archive(changed, as_zip=as_zip)) != before


def set_back(file: pathlib.Path, status: os.stat_result):
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("wait", [True, False], ids=["remembered", "young"])
def test_a_byte_that_changes_behind_the_same_size_and_mtime_is_noticed(
    make_archive, fingerprint, wait
):
    folder = make_archive(FOOD, as_zip=False)
    file = folder / FOOD[0]
    if wait:
        wait_for_the_next_tick()
    before = fingerprint(folder)
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)
    set_back(file, status)
    assert fingerprint(folder) != before


def test_only_new_and_changed_files_are_read(make_archive, jpeg, fingerprint, reads):
    folder = make_archive(FOOD, as_zip=False)
    fingerprint(folder)
    fingerprint(folder)
    assert sorted(reads) == sorted(FOOD * 2)  # Too young to be remembered.
    wait_for_the_next_tick()
    fingerprint(folder)
    reads.clear()
    fingerprint(folder)
    assert not reads

    added = [f"train/pizza/added-{number}.jpg" for number in range(10)]
    for name in added:
        (folder / name).write_bytes(jpeg())
    (folder / FOOD[1]).touch()
    fingerprint(folder)
    assert sorted(reads) == sorted([*added, FOOD[1]])


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"{}", npz(), npz(names=np.zeros(3, np.uint8))),
        npz(names=np.zeros(3, np.uint8), stamps=np.zeros((4, 3)), checksums=np.zeros(3)),
        npz(names=np.zeros(3, np.uint8), stamps=np.zeros((4, 3), "U1"), checksums=np.zeros(4)),
    ],
)
def test_a_damaged_cache_is_made_anew(aged, fingerprint, reads, tmp_path, content):
    expected = fingerprint(aged)
    (cache,) = (tmp_path / "cache").glob("*.npz")
    good = contents._recall_files(cache)
    cache.write_bytes(content)
    assert fingerprint(aged) == expected
    assert all(map(np.array_equal, contents._recall_files(cache), good))
    assert len(reads) == 2 * len(FOOD)


def test_no_wrong_bit_in_the_cache_changes_the_fingerprint(aged, fingerprint, tmp_path):
    expected = fingerprint(aged)
    (cache,) = (tmp_path / "cache").glob("*.npz")
    good = cache.read_bytes()
    for place in range(0, len(good), 29):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        cache.write_bytes(damaged)
        assert fingerprint(aged) == expected
        cache.write_bytes(good[:place])
        assert fingerprint(aged) == expected


def test_what_a_killed_process_left_is_removed(aged, fingerprint, tmp_path):
    fingerprint(aged)
    (file,) = (tmp_path / "cache").glob("*.npz")
    left = file.with_name(f".{'0' * 32}.{file.name}")
    left.write_text("half")
    file.unlink()
    fingerprint(aged)
    assert {path.name for path in file.parent.iterdir()} == {file.name, f".{file.name}.lock"}


def test_it_needs_no_cache(make_archive, tmp_path):
    (tmp_path / "file").touch()
    folder = read_archive(make_archive(FOOD, as_zip=False))
    zipped = read_archive(make_archive(FOOD))
    assert contents.fingerprint(folder, tmp_path / "file") == contents.fingerprint(zipped, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_are_never_whole_in_memory(make_archive, fingerprint):
    folder = make_archive(FOOD, as_zip=False)
    for name in FOOD:
        os.truncate(folder / name, 64 * 2**20)
    tracemalloc.start()
    try:
        fingerprint(folder)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_a_file_that_becomes_a_pipe_is_named(make_archive, tmp_path):
    folder = make_archive(FOOD, as_zip=False)
    archive = read_archive(folder)
    (folder / FOOD[0]).unlink()
    os.mkfifo(folder / FOOD[0])
    with pytest.raises(ArchiveError, match=f"{FOOD[0]} cannot be read .not a regular file"):
        contents.fingerprint(archive, tmp_path)


def test_accents_are_compared_in_one_form(make_archive, fingerprint):
    composed, decomposed = (unicodedata.normalize(form, "jalapeño") for form in ("NFC", "NFD"))
    layouts = [
        {name.replace("pizza", label): name.encode() for name in FOOD}
        for label in (composed, decomposed)
    ]
    archives = [make_archive(files, as_zip=as_zip) for files in layouts for as_zip in (True, False)]
    assert len(set(map(fingerprint, archives))) == 1


def test_a_file_that_is_gone_is_named(make_archive, tmp_path):
    folder = make_archive(FOOD, as_zip=False)
    archive = read_archive(folder)
    (folder / FOOD[0]).unlink()
    with pytest.raises(ArchiveError, match=FOOD[0]):
        contents.fingerprint(archive, tmp_path)


def test_caches_of_folders_that_are_gone_are_removed(aged, make_archive, fingerprint, tmp_path):
    gone = make_archive(FOOD, as_zip=False)
    fingerprint(aged)
    (cache,) = (tmp_path / "cache").glob("*.npz")
    fingerprint(gone)
    shutil.rmtree(gone)
    older = tmp_path / "cache" / "0.json"
    older.write_text('{"folder": "/", "files": {}}')
    contents.forget_missing(tmp_path / "cache")
    assert {file for file in cache.parent.iterdir() if file.name[0] != "."} == {cache}


@pytest.fixture
def zipped(make_archive):
    """A zip with a file that is left out, and a folder that is warned of."""
    return make_archive([*FOOD, "train/pizza/notes.txt", "train/soup/1.svg"])


def told(path, data_dir, caplog, **options):
    """What a start tells of an archive: its images, warnings and files that are left out."""
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        found = records.prepare_splits(
            "", splits.Request(validation_split="none"), archive=path, data_dir=data_dir, **options
        )
    prepared = found.records
    left_out = prepared.builder.builder_config.archive.left_out
    rows = {purpose: rows.tolist() for purpose, rows in found.rows.items()}
    return prepared.fingerprint, prepared.classes, rows, caplog.messages, left_out


def test_a_prepared_zip_is_not_opened(zipped, opened, tmp_path, caplog):
    expected = told(zipped, tmp_path, caplog)
    assert opened.count(zipped) == 3  # To list it, and to read each split.
    assert len(expected[3]) == 1
    assert expected[4] == {".svg": 1, ".txt": 1}
    opened.clear()
    assert told(zipped, tmp_path, caplog) == expected
    assert records.split_counts(archive=zipped, data_dir=tmp_path) == {"train": 2, "test": 2}
    assert records.open_archive(zipped, data_dir=tmp_path).classes == ("pizza", "steak")
    assert opened == []


@pytest.fixture
def listed(monkeypatch, opened):
    """The folders and zips that were listed; they are remembered although they are new."""
    paths = []

    def list_members(path, options, original=members.list_members):
        paths.append(path)
        return original(path, options)

    monkeypatch.setattr(members, "list_members", list_members)
    return paths


def test_a_prepared_folder_is_not_listed(make_archive, listed, opened, tmp_path, caplog):
    folder = make_archive([*FOOD, "train/pizza/notes.txt", "train/soup/1.svg"], as_zip=False)
    expected = told(folder, tmp_path, caplog)
    assert expected[4] == {".svg": 1, ".txt": 1}
    assert len(expected[3]) == len(listed) == 1
    assert len(opened) == 2 * len(FOOD)  # For the checksums, and for the records.
    assert told(folder, tmp_path, caplog) == expected
    elsewhere = pathlib.Path(os.path.relpath(folder))
    assert records.split_counts(archive=elsewhere, data_dir=tmp_path) == {"train": 2, "test": 2}
    assert (len(listed), len(opened)) == (1, 2 * len(FOOD))
    # Its images are listed when they are needed, and are still those of the fingerprint.
    archive = records.open_archive(folder, data_dir=tmp_path)
    assert [image.filename for image in archive.splits["train"]] == FOOD[:2]
    assert (len(listed), len(opened)) == (2, 2 * len(FOOD))


def write_another_byte(folder):
    file = folder / FOOD[0]
    status = file.stat()
    file.write_bytes(b"1" + file.read_bytes()[1:])
    set_back(file, status)


def make_a_link(folder):
    (folder / "train/pizza/link.jpg").symlink_to("1.jpg")


@pytest.mark.parametrize(
    ("change", "images"),
    [
        (write_another_byte, 4),
        (make_a_link, 5),
        (lambda folder: (folder / FOOD[0]).rename(folder / "train/pizza/9.jpg"), 4),
        (lambda folder: (folder / FOOD[0]).rename(folder / "train/steak/1.jpg"), 0),
        (lambda folder: (folder / FOOD[0]).touch(), 4),
        (lambda folder: (folder / "train/pizza/5.jpg").write_bytes(b"5"), 5),
        (lambda folder: (folder / "train/pizza/5.txt").write_bytes(b"5"), 4),
        (lambda folder: (folder / FOOD[0]).unlink(), 0),
        (lambda folder: os.mkfifo(folder / "train/pizza/pipe.jpg"), 4),
        (lambda folder: (folder / "train/empty").mkdir(), 4),
    ],
)
def test_a_folder_that_changed_is_listed_again(make_archive, listed, tmp_path, change, images):
    folder = make_archive(FOOD, as_zip=False)
    before = records.prepare(archive=folder, data_dir=tmp_path)
    change(folder)
    listed.clear()
    fresh = tmp_path / "other"
    if images:
        after = records.prepare(archive=folder, data_dir=tmp_path)
        assert len(after.labels) == images
        assert after.fingerprint == records.prepare(archive=folder, data_dir=fresh).fingerprint
        changed = change is write_another_byte or images == 5
        assert changed <= (after.fingerprint != before.fingerprint)
    else:
        for data_dir in (tmp_path, fresh):
            with pytest.raises(ArchiveError, match="not in train/: pizza"):
                records.prepare(archive=folder, data_dir=data_dir)
    assert listed == [folder, folder]


@pytest.mark.parametrize("kind", ["young", "with a link", "with a folder that cannot be read"])
def test_a_folder_that_may_change_unseen_is_always_listed(
    make_archive, listed, tmp_path, monkeypatch, kind
):
    folder = make_archive(FOOD, as_zip=False)
    if kind == "young":
        monkeypatch.setattr(members, "TICK", 10**15)
    elif kind == "with a link":
        make_a_link(folder)
    else:
        (folder / ".hidden").mkdir()

        def scandir(path, original=os.scandir):
            if str(path).rstrip("/").endswith(".hidden"):
                raise PermissionError("no")
            return original(path)

        monkeypatch.setattr(os, "scandir", scandir)
    for count in (1, 2):
        records.prepare(archive=folder, data_dir=tmp_path)
        assert listed == [folder] * count


def test_a_folder_that_changes_after_it_was_remembered_is_not_mixed_up(
    make_archive, listed, tmp_path
):
    folder = make_archive(FOOD, as_zip=False)
    records.prepare(archive=folder, data_dir=tmp_path)
    archive = records.open_archive(folder, data_dir=tmp_path)
    write_another_byte(folder)
    with pytest.raises(ArchiveError, match="changed while it was read"):
        list(archive.read("train"))


def test_flow_from_directory_lists_a_zip_once(zipped, opened, tmp_path):
    def filepaths():
        return pizza_steak.flow_from_directory(zipped / "train", data_dir=tmp_path).filepaths

    assert filepaths() == [str(zipped / name) for name in FOOD if name.startswith("train/")]
    assert opened.count(zipped) == 3  # To list it, and to read each split.
    opened.clear()
    assert len(filepaths()) == 2
    assert opened == [zipped]


def overwrite(path, other):
    path.write_bytes(other.read_bytes())


def move_there(path, other):
    shutil.copy(other, path.with_name("new"))
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize("change", [overwrite, move_there])
def test_a_zip_that_changed_is_listed_again_though_its_size_and_time_are_the_same(
    make_archive, opened, tmp_path, change
):
    path, other = (make_archive(dict.fromkeys(FOOD, content)) for content in (b"one", b"two"))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    before = records.prepare(archive=path, data_dir=tmp_path).fingerprint
    change(path, other)
    os.utime(path, ns=times)
    assert path.stat().st_size == other.stat().st_size
    after = records.prepare(archive=path, data_dir=tmp_path).fingerprint
    assert after != before
    assert after == records.prepare(archive=other, data_dir=tmp_path / "other").fingerprint


def test_a_zip_that_is_gone_or_read_in_another_way_is_not_remembered(zipped, opened, tmp_path):
    records.prepare(archive=zipped, data_dir=tmp_path)
    with pytest.raises(ArchiveError, match="unpack"):
        reading = ReadingOptions(max_unpacked_gb=1e-9)
        records.prepare(archive=zipped, data_dir=tmp_path, reading=reading)
    assert records.split_counts(archive=zipped, data_dir=tmp_path)
    zipped.unlink()
    with pytest.raises(ArchiveError, match="no such file"):
        records.split_counts(archive=zipped, data_dir=tmp_path)


def test_a_young_zip_is_not_remembered(zipped, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(members, "TICK", 10**15)
    for _ in range(2):
        opened.clear()
        records.prepare(archive=zipped, data_dir=tmp_path)
        assert zipped in opened


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"zip": 1}', b"\xff"])
def test_a_zip_whose_cache_is_damaged_is_listed_again(zipped, opened, tmp_path, content, caplog):
    expected = told(zipped, tmp_path, caplog)
    (file,) = (tmp_path / "pizza_steak" / contents.CACHE).glob("*.json")
    file.write_bytes(content)
    opened.clear()
    assert told(zipped, tmp_path, caplog) == expected
    assert opened == [zipped]
    opened.clear()
    assert told(zipped, tmp_path, caplog) == expected
    assert opened == []


@pytest.mark.parametrize("lost", ["the records", "a part of them"])
def test_a_remembered_zip_is_prepared_again_where_its_records_are_lost(
    zipped, opened, tmp_path, caplog, lost
):
    expected = told(zipped, tmp_path, caplog)
    (file,) = tmp_path.rglob("*-test.tfrecord*")
    if lost == "the records":
        shutil.rmtree(file.parents[1])
    else:
        file.unlink()
    found = told(zipped, tmp_path, caplog)
    assert (found[:3], found[4]) == (expected[:3], expected[4])


def test_a_zip_that_changes_after_it_was_remembered_is_not_mixed_up(make_archive, opened, tmp_path):
    path, other = (make_archive(dict.fromkeys(FOOD, content)) for content in (b"one", b"two"))
    folder = records.prepare(archive=path, data_dir=tmp_path).folder
    listed = records.open_archive(path, data_dir=tmp_path)
    shutil.rmtree(folder.parent)
    overwrite(path, other)
    with pytest.raises(ArchiveError, match="changed while it was read") as raised:
        records.prepare(archive=listed, data_dir=tmp_path)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.rglob("*.tfrecord*")) == []


def test_what_is_kept_of_zips_that_are_gone_is_removed(make_archive, opened, tmp_path):
    for path in (make_archive(FOOD), make_archive([*FOOD, "test/steak/5.jpg"])):
        contents.fingerprint(read_archive(path), tmp_path)
    path.unlink()
    (tmp_path / "other.json").write_text("[]")
    contents.forget_missing(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_folder_its_copies_and_its_zip_share_their_records(make_archive, tmp_path):
    layout = [f"{folder}/{number}.jpg" for folder in ("cat", "dog") for number in range(20)]
    folder = make_archive(layout, as_zip=False)
    others = [shutil.copytree(folder, tmp_path / name) for name in ("elsewhere/food", "renamed")]
    zipped = tmp_path / "zipped.zip"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as zip_file:
        for file in reversed(layout):
            zip_file.write(folder / file, f"photos/{file}")

    prepared = [records.prepare(archive=folder, data_dir=tmp_path / "data")]
    for file in layout:
        (folder / file).touch()
    for path in (folder, *others, zipped):
        prepared.append(records.prepare(archive=path, data_dir=tmp_path / "data"))
    assert len({one.folder for one in prepared}) == 1
    assert len(list((tmp_path / "data").rglob("dataset_info.json"))) == 1

    alone = [records.prepare(archive=path, data_dir=tmp_path / path.stem) for path in others]
    alone.append(records.prepare(archive=zipped, data_dir=tmp_path / "data 2"))
    for one in (*prepared, *alone):
        assert list(one.filenames) == list(prepared[0].filenames)
        assert one.labels.tolist() == prepared[0].labels.tolist()
