import os
import pathlib
import re
import stat
import zipfile

import pytest
import tensorflow as tf

from pizza_steak.archive import read_archive
from pizza_steak.errors import ArchiveError

FOOD = ["train/pizza/1.jpg", "train/steak/2.jpg", "test/pizza/3.jpg", "test/steak/4.jpg"]


def listing(archive):
    return {
        split: [(picture.filename, picture.label) for picture in pictures]
        for split, pictures in archive.splits.items()
    }


def contents(archive):
    return {
        picture.filename: encoded
        for split in archive.splits
        for picture, encoded in archive.read(split)
    }


def refusal(path):
    """The message with which listing or reading the archive at `path` ends."""
    with pytest.raises(ArchiveError) as raised:
        contents(read_archive(path))
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def zip_with(path, name, content=b"a picture", *, compression=zipfile.ZIP_STORED, **attributes):
    """Writes a sound zip with one member more, whose entry in the zip's directory is forged."""
    with zipfile.ZipFile(path, "w", compression) as zip_file:
        for sound in FOOD:
            zip_file.writestr(sound, sound)
        info = zipfile.ZipInfo("placeholder")
        info.filename = name  # Past ZipInfo's own tidying.
        zip_file.writestr(info, content, compression)
        for attribute, value in attributes.items():
            setattr(info, attribute, value)
    return path


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("root", ["", "food/"], ids=["no-root", "root"])
@pytest.mark.parametrize(
    ("validation", "split"),
    [("val", "validation"), ("valid", "validation"), ("validation", "validation"), (None, None)],
)
def test_split_folders(make_archive, as_zip, root, validation, split):
    layout = FOOD + ([f"{validation}/{food}/5.jpg" for food in ("pizza", "steak")] * bool(split))
    archive = read_archive(make_archive([root + name for name in layout], as_zip=as_zip))
    expected = {
        "train": [("train/pizza/1.jpg", "pizza"), ("train/steak/2.jpg", "steak")],
        "test": [("test/pizza/3.jpg", "pizza"), ("test/steak/4.jpg", "steak")],
    }
    if split:
        expected[split] = [(f"{validation}/{food}/5.jpg", food) for food in ("pizza", "steak")]
    assert listing(archive) == expected
    assert archive.classes == ("pizza", "steak")
    assert not archive.left_out


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("root", ["", "food/", "./"], ids=["no-root", "root", "dot"])
def test_class_folders_alone_are_the_split_train(make_archive, as_zip, root):
    layout = [root + name for name in ("steak/2.jpg", "pizza/b.jpg", "pizza/a.jpg")]
    archive = read_archive(make_archive(layout, as_zip=as_zip))
    assert listing(archive) == {
        "train": [("pizza/a.jpg", "pizza"), ("pizza/b.jpg", "pizza"), ("steak/2.jpg", "steak")]
    }


def test_the_root_may_have_any_name(make_archive):
    archive = read_archive(make_archive(["İzmir/pizza/1.jpg", "İzmir/steak/2.jpg"]))
    assert listing(archive) == {"train": [("pizza/1.jpg", "pizza"), ("steak/2.jpg", "steak")]}


def test_no_two_pictures_have_one_filename(make_archive):
    path = make_archive(["food/train/a/1.jpg", "Food/train/a/1.jpg", "food/train/b/2.jpg"])
    try:
        pictures = listing(read_archive(path))["train"]
    except ArchiveError:
        return
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("around", ["data/food/", "data/v1/food/"])
def test_the_root_may_lie_deeper(make_archive, as_zip, around):
    layout = [around + name for name in FOOD] + ["data/notes.txt", "data/cover.jpg"]
    archive = read_archive(make_archive(layout, as_zip=as_zip))
    assert {split: len(found) for split, found in archive.splits.items()} == {"train": 2, "test": 2}
    assert archive.left_out == {".txt": 1, "outside the class folders": 1}


def test_training_and_testing_are_splits(make_archive):
    layout = [name.replace("train/", "Training/").replace("test/", "Testing/") for name in FOOD]
    archive = read_archive(make_archive(layout))
    assert archive.splits.keys() == {"train", "test"}
    assert archive.classes == ("pizza", "steak")


@pytest.mark.parametrize("root", ["", "vehicles/"])
def test_a_class_may_be_called_train(make_archive, root):
    archive = read_archive(make_archive([f"{root}train/1.jpg", f"{root}tram/2.jpg"]))
    assert archive.classes == ("train", "tram")
    assert archive.splits.keys() == {"train"}


@pytest.mark.parametrize("spell", [lambda name: name.replace("/", "\\"), "./{}".format])
def test_names_as_some_packers_write_them(tmp_path, spell):
    path = tmp_path / "food.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        for name in FOOD:
            info = zipfile.ZipInfo("placeholder")
            info.filename = spell(name)
            zip_file.writestr(info, name)
    assert contents(read_archive(path)) == {name: name.encode() for name in FOOD}


@pytest.mark.parametrize("name", ["train/pizza/1\n.jpg", "train/piz\x1bza/1.jpg"])
def test_refuses_control_characters_in_names(make_archive, tmp_path, name):
    assert "control character" in refusal(zip_with(tmp_path / "food.zip", name))
    assert "control character" in refusal(make_archive([*FOOD, name], as_zip=False))


@pytest.mark.parametrize("name", ["料理", "été 2024", "-"])
def test_any_file_name_gives_a_name_of_its_own(make_archive, name):
    names = {read_archive(make_archive(layout, name=name)).name for layout in (FOOD, FOOD[:2])}
    assert len(names) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9_]+-[0-9a-f]{12}", name) for name in names)


def test_one_split_named_train_is_no_root(make_archive):
    archive = read_archive(make_archive(FOOD[:2]))
    assert listing(archive) == {
        "train": [("train/pizza/1.jpg", "pizza"), ("train/steak/2.jpg", "steak")]
    }


def test_classes_and_labels_are_those_of_flow_from_directory(make_archive):
    classes = ["banana", "Apple", "apple pie", "10", "9", "_x", "Zebra", "éclair", "a-b", "a.b"]
    nested = ["banana/ripe/1.jpg", "banana/ripe/very/1.jpg", "Apple/1.jpeg", "10/1.JPG"]
    layout = [f"train/{name}/0.jpg" for name in classes] + [f"train/{name}" for name in nested]
    folder = make_archive(layout, as_zip=False)
    keras = tf.keras.preprocessing.image.ImageDataGenerator().flow_from_directory(folder / "train")

    archive = read_archive(folder)
    assert list(archive.classes) == list(keras.class_indices)
    labels = {
        picture.filename: archive.classes.index(picture.label)
        for picture in archive.splits["train"]
    }
    assert labels == {
        f"train/{name}": label
        for name, label in zip(keras.filenames, keras.classes.tolist(), strict=True)
    }


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_leaves_out_and_counts_what_is_no_picture(make_archive, as_zip):
    others = {
        ".DS_Store": [".DS_Store", "train/pizza/.DS_Store"],
        ".tif": ["train/pizza/scan.TIF"],
        ".txt": ["README.txt", "train/pizza/notes.txt"],
        "._*": ["train/steak/._2.jpg"],
        "Thumbs.db": ["test/steak/Thumbs.db"],
        "__MACOSX": ["__MACOSX/train/pizza/._1.jpg", "__MACOSX/train/pizza/1.jpg"],
        "desktop.ini": ["desktop.ini"],
        "hidden": ["train/.cache/1.jpg", "train/pizza/.1.jpg"],
        "outside the class folders": ["train/cover.jpg", "docs/plates/1.png"],
        "without suffix": ["train/pizza/LICENSE"],
    }
    layout = FOOD + [name for names in others.values() for name in names]
    archive = read_archive(make_archive(layout, as_zip=as_zip))
    assert sorted(contents(archive)) == sorted(FOOD)
    assert archive.left_out == {kind: len(names) for kind, names in others.items()}


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "bmp", "gif", "webp"])
def test_takes_every_format_that_tensorflow_decodes(make_archive, suffix):
    archive = read_archive(make_archive([f"pizza/1.{suffix}", "steak/2.jpg"]))
    assert f"pizza/1.{suffix}" in contents(archive)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_reads_the_bytes_unchanged(make_archive, jpeg, as_zip):
    files = {name: jpeg(seed) for seed, name in enumerate(FOOD)} | {"train/steak/5.png": b"\0\r\n"}
    assert contents(read_archive(make_archive(files, as_zip=as_zip))) == files


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        ([], "no class folders"),
        (["1.jpg", "2.jpg"], "no class folders"),
        (["train/1.jpg", "test/2.jpg"], "no class folders"),
        (["pizza/notes.txt", "steak/notes.txt"], "no class folders"),
        (["pizza/1.jpg", "pizza/2.jpg"], "one class only, 'pizza'"),
        (["train/pizza/1.jpg", "test/pizza/2.jpg"], "one class only, 'pizza'"),
        (FOOD[:3], "class 'steak' is in train/ but not in test/"),
        (FOOD[1:], "class 'pizza' is in test/ but not in train/"),
    ],
)
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_refuses_what_is_no_classification_task(make_archive, as_zip, layout, problem):
    assert problem in refusal(make_archive(layout, as_zip=as_zip))


@pytest.mark.parametrize(
    "layout",
    [
        ["Train/pizza/1.jpg", "Train/steak/2.jpg", "Test/pizza/3.jpg", "Test/steak/4.jpg"],
        ["food/train/pizza/1.jpg", "food/train/steak/2.jpg", "extra/1.jpg"],
    ],
    ids=["capitals", "beside-the-root"],
)
def test_never_takes_the_folder_of_a_split_for_a_class(make_archive, layout):
    path = make_archive(layout)
    try:
        classes = read_archive(path).classes
    except ArchiveError:
        return
    assert classes == ("pizza", "steak")


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"\xff\xd8 a picture"), "not a zip file"),
        (lambda path: path.write_bytes(b""), "not a zip file"),
        (lambda path: path.write_bytes(zip_with(path, "a.jpg").read_bytes()[:200]), "truncated"),
        (lambda path: path.write_bytes(zip_with(path, "a.jpg").read_bytes()[:-5]), "truncated"),
        (lambda path: os.mkfifo(path), "neither a zip file nor a folder"),
    ],
    ids=["missing", "picture", "empty", "first-part", "all-but-the-end", "fifo"],
)
def test_refuses_what_is_no_archive(tmp_path, write, problem):
    path = tmp_path / "food.zip"
    write(path)
    assert problem in refusal(path)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "train/pizza/../../../evil.jpg",
        "train/pizza/..",
        "/etc/evil.jpg",
        "C:/evil.jpg",
        "C:\\evil.jpg",
        "c:evil.jpg",
        "..\\evil.jpg",
        "train\\..\\..\\evil.jpg",
        "\\\\host\\share\\evil.jpg",
    ],
)
def test_refuses_members_outside_the_archive(tmp_path, name):
    message = refusal(zip_with(tmp_path / "food.zip", name))
    assert repr(name) in message
    assert "outside" in message


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"external_attr": (stat.S_IFLNK | 0o777) << 16}, "symbolic link"),
        ({"flag_bits": 0x1}, "encrypted"),
        ({"file_size": 300 * 2**20}, "314,572,800 bytes"),
        ({"filename": FOOD[0], "orig_filename": FOOD[0]}, "twice"),
    ],
    ids=["symlink", "encrypted", "claims-300-MB", "duplicate"],
)
def test_refuses_hostile_members(tmp_path, attributes, problem):
    name = "train/pizza/evil.jpg"
    message = refusal(zip_with(tmp_path / "food.zip", name, **attributes))
    assert repr(attributes.get("filename", name)) in message
    assert problem in message


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
    ids=["stored", "deflated", "bzip2", "lzma"],
)
def test_names_the_member_that_is_damaged(tmp_path, compression):
    content = bytes(range(256)) * 9
    path = zip_with(tmp_path / "food.zip", "train/pizza/bad.jpg", content, compression=compression)
    with zipfile.ZipFile(path) as zip_file:
        info = zip_file.getinfo("train/pizza/bad.jpg")
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    packed = bytearray(path.read_bytes())
    for position in range(middle, middle + 8):
        packed[position] ^= 0xFF
    path.write_bytes(packed)
    assert "train/pizza/bad.jpg" in refusal(path)


def test_a_wrong_checksum_is_noticed(tmp_path):
    path = zip_with(tmp_path / "food.zip", "train/pizza/bad.jpg", CRC=1234)
    assert "train/pizza/bad.jpg" in refusal(path)


def test_refuses_a_zip_of_a_later_version(tmp_path):
    refusal(zip_with(tmp_path / "food.zip", "train/pizza/5.jpg", extract_version=99))


def test_refuses_a_member_without_a_name(tmp_path):
    refusal(zip_with(tmp_path / "food.zip", ""))


def test_refuses_a_name_in_a_zip_that_is_no_text(tmp_path):
    path = zip_with(tmp_path / "food.zip", "train/pizza/é.jpg")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xc3("))
    refusal(path)


def test_refuses_a_name_in_a_folder_that_is_no_text(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/train/pizza/\xff.jpg")).write_bytes(b"")
    refusal(folder)


def test_a_class_folder_behind_a_link_is_not_lost_in_silence(make_archive):
    folder = make_archive(["pizza/1.jpg", "steak/2.jpg", "taco/3.jpg"], as_zip=False)
    (folder / "taco").rename(folder.parent / "elsewhere")
    (folder / "taco").symlink_to(folder.parent / "elsewhere")
    keras = tf.keras.preprocessing.image.ImageDataGenerator().flow_from_directory(folder)
    try:
        classes = read_archive(folder).classes
    except ArchiveError:
        return
    assert classes == tuple(keras.class_indices)


def test_a_picture_that_is_gone_is_named(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    archive = read_archive(folder)
    (folder / FOOD[0]).unlink()
    with pytest.raises(ArchiveError, match=FOOD[0]):
        contents(archive)


def test_a_path_may_start_at_home(make_archive, monkeypatch):
    path = make_archive(FOOD)
    monkeypatch.setenv("HOME", str(path.parent))
    assert read_archive("~/food.zip").path == path


def fingerprint(path):
    return read_archive(path).fingerprint


def test_the_fingerprint_is_of_the_pictures_alone(make_archive):
    files = {name: name.encode() for name in FOOD}
    expected = fingerprint(make_archive(files))
    assert fingerprint(make_archive(files, name="other")) == expected
    assert fingerprint(make_archive(dict(reversed(files.items())))) == expected
    assert fingerprint(make_archive({**files, "notes.txt": b""})) == expected
    assert fingerprint(make_archive({f"root/{name}": files[name] for name in files})) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: (name.replace("/1.jpg", "/0.jpg"), content),
        lambda name, content: (name.replace("steak", "Steak"), content),
        lambda name, content: (name.replace("test/", "val/"), content),
        lambda name, content: (name, content.replace(b"/1.jpg", b"/0.jpg")),
        lambda name, content: (name, content.replace(b"/1.jpg", b"/01.jpg")),
    ],
    ids=["picture", "class", "split", "byte", "size"],
)
def test_the_fingerprint_of_a_zip_changes_with_its_pictures(make_archive, change):
    files = {name: name.encode() for name in FOOD}
    changed = dict(change(*file) for file in files.items())
    assert fingerprint(make_archive(changed)) != fingerprint(make_archive(files))


def test_archives_of_one_name_and_other_content_have_other_names(make_archive, jpeg):
    first = read_archive(make_archive(FOOD, name="my food (2)"))
    second = read_archive(make_archive(dict.fromkeys(FOOD, jpeg(9)), name="my food (2)"))
    assert first.name != second.name
    assert {archive.name.partition("-")[0] for archive in (first, second)} == {"my_food_2"}


def rename(file):
    file.rename(file.with_name("renamed.jpg"))


def change_a_byte(file):
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    before = file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=(before, before + 10**6))  # Clocks may be too coarse to tell the two apart.


@pytest.mark.parametrize("change", [rename, change_a_byte, pathlib.Path.unlink])
def test_the_fingerprint_of_a_folder_changes_with_its_files(make_archive, change):
    folder = make_archive([*FOOD, "train/pizza/0.jpg"], as_zip=False)
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    change(folder / "train/pizza/0.jpg")
    assert fingerprint(folder) != before
