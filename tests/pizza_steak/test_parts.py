"""Several zips, or folders, are one data set: as if they were unpacked into one folder."""

import os
import pathlib
import shutil
import struct
import tracemalloc
import unicodedata
import zipfile

import numpy as np
import pytest
from small_runs import parse_flags

import pizza_steak
from pizza_steak import contents, inspection, members, records
from pizza_steak.archive import ReadingOptions, read_archive
from pizza_steak.configuration import InspectConfig
from pizza_steak.errors import ArchiveError, UserError

CLASSES = ("pizza", "steak", "taco")
SPLIT = [f"{s}/{name}/{n}.jpg" for s in ("train", "test") for name in CLASSES for n in range(4)]
WHOLE = [f"{name}/{number}.jpg" for name in CLASSES for number in range(8)]
# Of a name, in which part it is.
CUTS = {
    "by class": lambda name: pathlib.Path(name).parent.name,
    "by split": lambda name: name.split("/")[0],
    "by number": lambda name: ord(name[-5]) % 3,
    "into one": lambda name: 0,
    "one each": lambda name: name.replace("/", "-"),
}


def write_part(path: pathlib.Path, files: dict[str, bytes], as_zip: bool = True) -> pathlib.Path:
    if as_zip:
        with zipfile.ZipFile(path, "w") as zip_file:
            for name, content in files.items():
                zip_file.writestr(name, content)
        return path
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def write_parts(tmp_path_factory, jpeg):
    """`write_parts(parts)`: the pattern of zips part-<key>.zip with such names, in a new place.

    `parts` maps keys to names, or to names with their contents. The content of others depends on
    the name alone.
    """

    def write(parts, as_zip=True):
        folder = tmp_path_factory.mktemp("parts")
        for key, files in parts.items():
            if not isinstance(files, dict):
                files = {name: jpeg(seed(name)) for name in files}
            write_part(folder / f"part-{key}{'.zip' * as_zip}", files, as_zip)
        return folder / f"part-*{'.zip' * as_zip}"

    return write


def seed(name: str) -> int:
    """Of a name without the folders around everything."""
    return sum(map(ord, "/".join(name.split("/")[-3:])))


def cut_up(names, part_of, around="{}"):
    parts = {}
    for name in names:
        parts.setdefault(part_of(name), []).append(around.format(name))
    return parts


def listed(archive):
    return {
        split: [(image.filename, image.label) for image in images]
        for split, images in archive.splits.items()
    }


def read(archive):
    return {
        image.filename: encoded
        for split in archive.splits
        for image, encoded in archive.read(split)
    }


def refusal(path, options=None) -> str:
    with pytest.raises(ArchiveError) as raised:
        read(read_archive(path, options))
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("as_zip", [True, False], ids=["zips", "folders"])
@pytest.mark.parametrize("around", ["{}", "photos/{}", "data/photos/{}"])
@pytest.mark.parametrize("names", [SPLIT, WHOLE], ids=["split", "whole"])
@pytest.mark.parametrize("cut", CUTS)
def test_they_are_what_one_folder_would_be(
    write_parts, make_archive, jpeg, tmp_path, cut, names, around, as_zip
):
    files = {name: jpeg(seed(name)) for name in names} | {"train/notes.txt": b"", "README": b""}
    whole = read_archive(make_archive(files, as_zip=False))
    parts = cut_up([*files], CUTS[cut], around)
    parts = {
        key: {name: files[name.removeprefix(around[:-2])] for name in part}
        for key, part in parts.items()
    }
    archive = read_archive(write_parts(parts, as_zip))
    assert len(archive.parts) == len(parts)
    assert listed(archive) == listed(whole)
    assert (archive.classes, archive.counts) == (whole.classes, whole.counts)
    assert (archive.left_out, archive.warnings) == (whole.left_out, whole.warnings)
    assert read(archive) == {name: files[name] for name in names}
    digests = {contents.fingerprint(one, tmp_path / "cache") for one in (whole, archive)}
    assert len(digests) == 1


def test_records_are_the_same_however_the_parts_are_cut(write_parts, tmp_path):
    def record_files(path, data_dir):
        prepared = records.prepare(archive=path, data_dir=data_dir)
        return {file.name: file.read_bytes() for file in prepared.folder.glob("*.tfrecord*")}

    pattern = write_parts(cut_up(SPLIT, CUTS["by class"]))
    expected = record_files(pattern, tmp_path / "1")
    assert expected
    others = [write_parts(cut_up(SPLIT, CUTS[cut], "data/{}")) for cut in ("into one", "by number")]
    for path in (*others, next(others[0].parent.iterdir())):
        assert record_files(path, tmp_path / path.parent.name) == expected
        prepared = records.prepare(archive=path, data_dir=tmp_path / "1")
        assert prepared.folder.parent.name.startswith("part-")  # No other was made.
        assert len(list((tmp_path / "1").rglob("dataset_info.json"))) == 1


def test_one_part_may_hold_no_images(write_parts):
    parts = cut_up(WHOLE, CUTS["by class"], "photos/{}") | {"notes": ["notes.txt"], "empty": []}
    archive = read_archive(write_parts(parts))
    assert archive.classes == CLASSES
    assert archive.left_out == {".txt": 1}


NUMBERED = {
    number: [f"part-{number}/{name}" for name in names]
    for number, names in cut_up(WHOLE, CUTS["by number"]).items()
}


@pytest.mark.parametrize(
    "parts",
    [
        NUMBERED,
        cut_up(WHOLE, CUTS["by class"], "Images_{}"),
        {key: [f"all/{name}" for name in names] for key, names in NUMBERED.items()},
        {key: [*names, f"part-{key}/notes.txt", "cover.txt"] for key, names in NUMBERED.items()},
        {n: [f"food.batch {n}/photos/{name}" for name in WHOLE[n::2]] for n in range(2)},
        {n: [f"shard{n:03}/train/{name}" for name in WHOLE[n::5]] for n in range(5)},
    ],
)
def test_a_numbered_folder_around_each_part_is_left_out_of_the_names(write_parts, parts):
    if any(name.startswith("Images_") for names in parts.values() for name in names):
        parts = {
            number: [f"Images_{number}/{name.removeprefix('Images_')}" for name in names]
            for number, names in enumerate(parts.values())
        }
    archive = read_archive(write_parts(parts))
    assert archive.classes == CLASSES
    names = [image.filename.removeprefix("train/") for image in archive.splits["train"]]
    assert names == sorted(WHOLE)
    assert archive.warnings == ()


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (
            {"a": ["asia/cats/1.jpg"], "b": ["europe/dogs/1.jpg"]},
            "asia/ and europe/ may be classes, or folders around the classes of each part; if they "
            "are classes, pack the parts again with a folder train/ around them; if not, pack the "
            "parts again without them",
        ),
        ({n: [f"{n}/cats/{n}.jpg", f"{n}/dogs/{n}.jpg"] for n in range(2)}, "0/ and 1/ may be"),
        ({n: [f"person_{n}/running/{n}.jpg"] for n in range(2)}, "person_0/ and person_1/ may"),
        (
            {n: [f"part-{n}/{n}.jpg", f"part-{n}/cats/{n}.jpg"] for n in range(2)},
            "part-0/ and part-1/ may",
        ),
        (
            {"1": ["part-1/cats/1.jpg"], "2": ["cats/2.jpg", "dogs/2.jpg"]},
            "some parts hold cats/, and others part-1/cats/; pack the parts again, all with or all "
            "without part-1/",
        ),
        ({"1": ["part-1/train/a/1.jpg"], "2": ["train/a/2.jpg"]}, "train/ holds class folders (a)"),
        ({"1": ["train/a/1.jpg", "train/b/1.jpg"], "2": ["test/a/2.jpg"]}, "but not in test/: b"),
        ({"1": ["train/a/1.jpg", "train/b/1.jpg"], "2": ["c/a/2.jpg"]}, "beside c/"),
        ({"1": ["a/1.jpg"], "2": ["a/2.jpg"]}, "one class only, 'a'"),
        ({"1": ["1.jpg"], "2": ["2.jpg"]}, "no class folders with images"),
        (
            {"1": ["year/a/1.jpg", "year/b/1.jpg"], "2": ["other/a/1.jpg", "other/b/1.jpg"]},
            "may be",
        ),
    ],
)
def test_folders_that_may_be_classes_or_not_are_refused(write_parts, parts, problem):
    pattern = write_parts(parts)
    message = refusal(pattern)
    assert message.startswith(f"archive {pattern}: ")
    assert problem in message


@pytest.mark.parametrize(
    ("parts", "classes"),
    [
        (
            {"a": ["cats/1.jpg", "cats/black/2.jpg"], "b": ["dogs/1.jpg", "dogs/big/2.jpg"]},
            "cats dogs",
        ),
        ({"a": ["cats/1.jpg"], "b": ["dogs/big/2.jpg"]}, "cats dogs"),
        ({str(n): [f"{n}/{n}.jpg"] for n in range(3)}, "0 1 2"),
        ({str(n): [f"part-{n}/{n}.jpg"] for n in range(3)}, "part-0 part-1 part-2"),
    ],
)
def test_a_class_may_be_alone_in_its_part(write_parts, parts, classes):
    assert read_archive(write_parts(parts)).classes == tuple(classes.split())


@pytest.mark.parametrize("as_zip", [True, False], ids=["zips", "folders"])
def test_one_name_in_two_parts_is_refused_and_both_are_named(write_parts, as_zip):
    composed, decomposed = (unicodedata.normalize(form, "jalapeño") for form in ("NFC", "NFD"))
    suffix = ".zip" * as_zip
    for other in (composed, decomposed):
        parts = {"a": [*SPLIT, f"train/pizza/{composed}.jpg"], "b": [f"train/pizza/{other}.jpg"]}
        pattern = write_parts(parts, as_zip)
        message = refusal(pattern)
        assert message.startswith(f"archive {pattern.parent}/part-b{suffix}: ")
        assert f"is in {pattern.parent}/part-a{suffix} too; remove one of them, or" in message


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    for path in (f"{tmp_path}/part-*.zip", f"{tmp_path}/[ab].zip", f"{tmp_path}/*/part-?.zip"):
        told = f"archive {path}: nothing matches this pattern; expected zip files or a folder"
        assert refusal(path) == told
        with pytest.raises(ArchiveError, match="nothing matches"):
            records.split_counts(archive=path, data_dir=tmp_path)


def test_a_path_that_exists_is_no_pattern(write_parts, tmp_path, monkeypatch):
    pattern = write_parts({"1": SPLIT, "2": ["train/pizza/other.jpg"]})
    name = tmp_path / "part-[12]*?.zip"
    shutil.copy(pattern.with_name("part-1.zip"), name)
    shutil.copy(pattern.with_name("part-2.zip"), tmp_path / "part-1x.zip")
    archive = read_archive(name)
    assert (archive.parts, archive.counts) == ((name,), {"test": 12, "train": 12})

    folder = tmp_path / "data [1] *"
    shutil.copytree(pattern.parent, folder)
    for path in (
        folder / "part-*.zip",
        folder / "part-[12].zip",
        tmp_path / "data*" / "part-*.zip",
    ):
        assert sum(read_archive(path).counts.values()) == 25
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("part-*.zip", "./part-?.zip", "~/data*/part-*.zip", "../**/part-[12].zip"):
        assert sum(read_archive(path).counts.values()) == 25


def test_other_files_that_match_are_named(write_parts):
    pattern = write_parts({"1": SPLIT})
    (pattern.parent / "part-1.zip.sha256").write_text("0")
    pattern = pattern.with_name("part-*")
    assert refusal(pattern).startswith(f"archive {pattern.parent}/part-1.zip.sha256: not a zip")


def test_errors_name_the_part(write_parts, tmp_path):
    pattern = write_parts(cut_up(SPLIT, CUTS["by class"]))
    archive = read_archive(pattern)
    part = pattern.with_name("part-steak.zip")
    sound = part.read_bytes()
    for damaged, told in (
        (sound[:-30], "a truncated or damaged zip"),
        (b"no zip", "not a zip file"),
        (sound.replace(b"JFIF", b"JFIG", 1), "train/steak/0.jpg cannot be read"),
    ):
        part.write_bytes(damaged)
        assert f"archive {part}: {told}" in refusal(pattern)

    # After it was listed.
    part.write_bytes(sound.replace(b"train/steak/1.jpg", b"train/steak/9.jpg"))
    with pytest.raises(ArchiveError) as raised:
        read(archive)
    assert f"{part}: train/steak/1.jpg cannot be read (not the file that was" in str(raised.value)
    part.unlink()
    with pytest.raises(ArchiveError, match=f"archive {part}: cannot be read .No such file"):
        read(archive)
    part.symlink_to("nowhere")
    assert refusal(pattern).startswith(f"archive {part}: no such file")


def test_a_part_that_is_lost_while_records_are_made_leaves_none(write_parts, tmp_path):
    pattern = write_parts(cut_up(SPLIT, CUTS["by class"]))
    archive = records.open_archive(pattern, data_dir=tmp_path)
    pattern.with_name("part-taco.zip").unlink()
    with pytest.raises(ArchiveError, match=r"part-taco\.zip: cannot be read"):
        records.prepare(archive=archive, data_dir=tmp_path)
    assert list(tmp_path.rglob("*.tfrecord*")) == []


def test_limits_hold_for_each_zip_and_for_all_together(write_parts, monkeypatch):
    pattern = write_parts(cut_up(WHOLE, CUTS["by class"]))
    sizes = [part.stat().st_size for part in read_archive(pattern).parts]
    gigabytes = 1.5 * max(sizes) / 1e9
    for part in read_archive(pattern).parts:
        members.list_members(part, ReadingOptions(max_unpacked_gb=gigabytes))
    options = ReadingOptions(max_unpacked_gb=gigabytes)
    message = refusal(pattern, options)
    assert message.startswith(f"archive {pattern}: refused, {sum(sizes):,} bytes claim to unpack")
    assert "pass --max_unpacked_gb=1" in message
    monkeypatch.setattr(members, "_MOST_FILES", 10)
    assert len(read_archive(pattern).splits["train"]) == 24
    monkeypatch.setattr(members, "_MOST_FILES", 7)
    assert refusal(pattern).startswith(f"archive {pattern.with_name('part-pizza.zip')}: refused")


def test_parts_that_are_prepared_are_not_opened(write_parts, opened, tmp_path):
    pattern = write_parts(cut_up(SPLIT, CUTS["by class"]))
    first = records.prepare(archive=pattern, data_dir=tmp_path)
    assert len(opened) == 3 + 2 * 3  # To list each, and to read its two splits.
    opened.clear()
    again = records.prepare(archive=pattern, data_dir=tmp_path)
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)
    assert records.split_counts(archive=pattern, data_dir=tmp_path) == {"train": 12, "test": 12}
    assert records.open_archive(pattern, data_dir=tmp_path).classes == CLASSES
    assert opened == []
    shutil.rmtree(first.folder)
    assert records.prepare(archive=pattern, data_dir=tmp_path).fingerprint == first.fingerprint


@pytest.mark.parametrize("change", ["a part more", "a part less", "another part", "a part renamed"])
def test_parts_that_change_are_listed_again(write_parts, opened, tmp_path, change):
    pattern = write_parts(cut_up(SPLIT, CUTS["by number"]))
    before = records.prepare(archive=pattern, data_dir=tmp_path)
    part = pattern.with_name("part-1.zip")
    expected = sorted(before.filenames)
    if change == "a part more":
        write_part(pattern.with_name("part-4.zip"), {"train/taco/new.jpg": b"new"})
        expected = sorted([*expected, "train/taco/new.jpg"])
    elif change == "a part less":
        part.unlink()
        expected = [name for name in expected if CUTS["by number"](name) != 1]
    elif change == "another part":
        status = part.stat()
        part.write_bytes(part.read_bytes().replace(b"/1.jpg", b"/9.jpg"))
        os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
        expected = sorted(name.replace("/1.jpg", "/9.jpg") for name in expected)
    else:
        part.rename(part.with_name("part-7.zip"))
    after = records.prepare(archive=pattern, data_dir=tmp_path)
    assert sorted(after.filenames) == expected
    assert (after.fingerprint == before.fingerprint) == (change == "a part renamed")


def test_a_part_that_comes_after_they_were_remembered_is_not_mixed_up(
    write_parts, opened, tmp_path
):
    pattern = write_parts(cut_up(SPLIT, CUTS["by number"]))
    records.prepare(archive=pattern, data_dir=tmp_path)
    archive = records.open_archive(pattern, data_dir=tmp_path)
    write_part(pattern.with_name("part-00.zip"), {"notes.txt": b""})
    with pytest.raises(ArchiveError, match="changed while it was read"):
        list(archive.read("train"))


def test_what_is_kept_of_parts_is_removed_when_one_is_gone(write_parts, opened, tmp_path):
    pattern = write_parts(cut_up(SPLIT, CUTS["by class"]))
    contents.fingerprint(read_archive(pattern), tmp_path)
    contents.forget_missing(tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1
    pattern.with_name("part-taco.zip").unlink()
    contents.forget_missing(tmp_path)
    assert list(tmp_path.glob("*.json")) == []


def test_load_takes_a_pattern(write_parts, make_archive, jpeg, tmp_path):
    paths = [write_parts(cut_up(SPLIT, CUTS["by class"])), write_parts({"whole": SPLIT})]
    one, other = (pizza_steak.load(path, 16, data_dir=tmp_path) for path in paths)
    assert one.class_names == CLASSES == other.class_names
    for (images, labels), (expected, of_them) in zip(one.train, other.train, strict=True):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, of_them)


def test_inspect_takes_a_pattern(write_parts):
    pattern, whole = write_parts(cut_up(SPLIT, CUTS["by class"])), write_parts({"whole": SPLIT})
    one, other = (
        inspection.report(parse_flags(f"--archive={path}", config=InspectConfig))
        for path in (pattern, whole)
    )
    assert one.replace(str(pattern), "") == other.replace(str(whole), "")


def test_flow_from_directory_takes_a_pattern(write_parts, tmp_path):
    pattern = write_parts(cut_up(SPLIT, CUTS["by class"]))
    flow = pizza_steak.flow_from_directory(
        pattern / "train", (16, 16), data_dir=tmp_path, shuffle=False
    )
    assert flow.class_indices == {name: label for label, name in enumerate(CLASSES)}
    train = sorted(name for name in SPLIT if name.startswith("train"))
    assert flow.filenames == [name.removeprefix("train/") for name in train]
    assert flow.filepaths == [
        str(pattern.with_name(f"part-{name.split('/')[1]}.zip") / name) for name in train
    ]
    whole = write_parts(cut_up(WHOLE, CUTS["by class"]))
    assert pizza_steak.flow_from_directory(whole, data_dir=tmp_path).samples == len(WHOLE)
    with pytest.raises(UserError, match=r"no class folders there; expected .*/part-\*.zip/test or"):
        pizza_steak.flow_from_directory(pattern / "val", data_dir=tmp_path)


def test_the_directory_of_a_zip_is_never_whole_in_memory(tmp_path, monkeypatch):
    count = 8_000
    monkeypatch.setattr(members, "_LISTED_AT_ONCE", 500)
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        for number in range(count):
            zip_file.writestr(f"{CLASSES[number % 3]}/image_{number:08}.jpg", b"%d" % number)
    tracemalloc.start()
    try:
        archive = read_archive(path)
        assert tracemalloc.get_traced_memory()[1] / count < 650  # zipfile alone needs 700.
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        assert sum(1 for _ in archive.read("train")) == count
        assert (tracemalloc.get_traced_memory()[1] - held) / count < 50
    finally:
        tracemalloc.stop()


def test_no_end_record_in_a_comment_hides_a_member(tmp_path, monkeypatch):
    """zipfile takes what stands before a zip's end for its Zip64 end, wherever that leads."""
    path = tmp_path / "food.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        for name in WHOLE:
            zip_file.writestr(name, name)
        other_end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 0, 0, 0, 0)
        zip_file.infolist()[11].comment = other_end + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    assert len(read(read_archive(path))) == len(WHOLE)
    monkeypatch.setattr(members, "_LISTED_AT_ONCE", 12)
    assert "a truncated or damaged zip" in refusal(path)


def test_a_directory_is_listed_in_parts(write_parts, monkeypatch):
    (part,) = read_archive(write_parts({"1": [*SPLIT, "train/notes.txt"]})).parts
    expected = members.list_members(part, ReadingOptions())
    for at_once in (1, 3, 25):
        monkeypatch.setattr(members, "_LISTED_AT_ONCE", at_once)
        assert members.list_members(part, ReadingOptions()) == expected
