import os
import pathlib
import random
import stat
import zipfile

import pytest
import tensorflow as tf

from pizza_steak import archive as archives
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


@pytest.mark.parametrize(
    ("name", "stem"), [("my food (2)", "my_food_2"), ("été 2024", "t_2024"), ("料理", "archive")]
)
def test_the_stem_is_of_letters_that_any_file_system_takes(make_archive, name, stem):
    assert read_archive(make_archive(FOOD, name=name)).stem == stem


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
        ".svg": ["train/pizza/plate.SVG"],
        ".txt": ["README.txt", "train/pizza/notes.txt"],
        "._*": ["train/steak/._2.jpg"],
        "Thumbs.db": ["test/steak/Thumbs.db"],
        "__MACOSX": ["__MACOSX/train/pizza/._1.jpg", "__MACOSX/train/pizza/1.jpg"],
        "desktop.ini": ["desktop.ini"],
        "hidden": ["train/.cache/1.jpg", "train/pizza/.1.jpg"],
        "outside the class folders": ["train/cover.jpg", "cover.png"],
        "without suffix": ["train/pizza/LICENSE"],
    }
    layout = FOOD + [name for names in others.values() for name in names]
    archive = read_archive(make_archive(layout, as_zip=as_zip))
    assert sorted(contents(archive)) == sorted(FOOD)
    assert archive.left_out == {kind: len(names) for kind, names in others.items()}


@pytest.mark.parametrize(
    "suffix",
    [
        *("jpg", "JPEG", "jpe", "jfif", "mpo", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm"),
        *("avif", "heic", "HEIF", "hif"),
    ],
)
def test_takes_every_format_of_photographs(make_archive, suffix):
    archive = read_archive(make_archive([f"pizza/1.{suffix}", "steak/2.jpg"]))
    assert f"pizza/1.{suffix}" in contents(archive)


def test_without_pillow_heif_the_extra_is_named(make_archive, monkeypatch):
    monkeypatch.setattr(archives, "SUFFIXES", archives.SUFFIXES - archives._HEIF)
    names = [name.replace(".jpg", ".HEIC") for name in FOOD]
    told = ".heic (pip install pillow-heif reads them)"
    assert read_archive(make_archive([*FOOD, *names])).left_out == {told: 4}
    assert f"no class folders with images (left out: 4 {told})" in refusal(make_archive(names))


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
        (["food/pizza/1.jpg", "food/2.jpg"], "'pizza' (left out: 1 outside the class folders)"),
        (
            [*FOOD, "train/taco/1.jpg", "train/kebab/1.jpg"],
            "classes in train/ but not in test/: kebab and taco; add images to test/kebab/ and "
            "test/taco/, or remove train/kebab/ and train/taco/",
        ),
        (
            [*FOOD, "Val/pizza/1.jpg", "Val/steak/1.jpg", "Val/taco/1.jpg"],
            "classes in Val/ but not in test/: taco; add images to test/taco/, or remove Val/taco/",
        ),
        (FOOD[1:], "classes in test/ but not in train/: pizza; add images to train/pizza/, or"),
    ],
)
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_refuses_what_is_no_classification_task(make_archive, as_zip, layout, problem):
    assert problem in refusal(make_archive(layout, as_zip=as_zip))


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("root", ["", "photos/", "data/photos/"])
@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        (
            ["car/red/1.jpg", "plane/x/3.jpg", "train/steam/1.jpg"],
            "{0}train/ holds class folders (steam), beside {0}car/ and {0}plane/, which would be "
            "classes of their own; if {0}train/ is a split, move {0}car/ and {0}plane/ elsewhere "
            "or into it; if it is a class, rename it",
        ),
        ([*FOOD, "extra/1.jpg"], "(pizza and steak), beside {0}extra/, which would be"),
        ([*FOOD, "docs/plates/1.jpg"], "(pizza and steak), beside {0}docs/, which would be"),
        (
            [*FOOD[:2], "test/3.jpg"],
            "class folders in {0}train/ (pizza and steak) but none in {0}test/; sort the images "
            "there into class folders, or move {0}test/ elsewhere",
        ),
        (
            ["extra/1.jpg", *(f"food/{name}" for name in FOOD)],
            "{0}food/test/ holds class folders (pizza), beside {0}extra/; if it is a split, move "
            "{0}extra/ elsewhere; if {0}food/ is a class, rename {0}food/test/",
        ),
        ([f"{year}/{name}" for name in FOOD for year in (2023, 2024)], "beside {0}2024/; if it is"),
        ([f"c{number}/1.jpg" for number in range(9)] + FOOD, "beside {0}c0/, {0}c1/, {0}c2/ and 6"),
    ],
)
def test_refuses_what_may_be_splits_or_classes(make_archive, as_zip, root, layout, problem):
    path = make_archive([root + name for name in layout], as_zip=as_zip)
    assert problem.format(root) in refusal(path)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize(
    ("layout", "classes"),
    [
        (["2/1.jpg", "10/1.jpg"], ("10", "2")),
        (["animals/cat/1.jpg", "animals/dog/2.jpg", "food/pizza/3.jpg"], ("animals", "food")),
        (["Train/pizza/1.jpg", "Train/steak/2.jpg"], ("pizza", "steak")),
        (
            ["photos/train/1.jpg", "photos/test/2.jpg", "photos/tram/3.jpg"],
            ("test", "train", "tram"),
        ),
    ],
    ids=["numbers", "one-folder-deeper", "capitals", "classes-named-as-splits"],
)
def test_classes(make_archive, as_zip, layout, classes):
    archive = read_archive(make_archive(layout, as_zip=as_zip))
    assert archive.classes == classes
    assert archive.splits.keys() == {"train"}
    assert not archive.left_out


def test_an_empty_folder_is_no_class(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    (folder / "train/taco").mkdir()
    path = make_archive(FOOD)
    with zipfile.ZipFile(path, "a") as zip_file:
        zip_file.writestr("train/taco/", b"")
    assert read_archive(folder).classes == read_archive(path).classes == ("pizza", "steak")


def test_no_class_folder_is_left_out_in_silence(make_archive):
    """Any layout is refused, or the images left out lie in the folders around class folders."""
    rng = random.Random(0)
    listed = 0
    for _ in range(400):
        depths = [rng.randint(1, 3) for _ in range(rng.randint(2, 6))]
        folders = {"/".join(rng.choices(["train", "test", "a", "b"], k=depth)) for depth in depths}
        path = make_archive({f"{folder}/1.jpg": b"" for folder in folders} | {"cover.jpg": b""})
        try:
            archive = read_archive(path)
        except ArchiveError:
            continue
        listed += 1
        taken = {p.member for pictures in archive.splits.values() for p in pictures}
        for folder in folders:
            if f"{folder}/1.jpg" not in taken:
                assert any(member.startswith(f"{folder}/") for member in taken)
    assert listed > 40


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


def test_a_picture_that_changes_after_it_was_listed_is_named(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    archive = read_archive(folder)
    with (folder / FOOD[0]).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArchiveError, match=f"{FOOD[0]} changed"):
        contents(archive)


def test_a_path_may_start_at_home(make_archive, monkeypatch):
    path = make_archive(FOOD)
    monkeypatch.setenv("HOME", str(path.parent))
    assert read_archive("~/food.zip").path == path
