import io
import os
import pathlib
import random
import socket
import stat
import struct
import tracemalloc
import unicodedata
import zipfile
import zlib

import fuzzed_archives
import hypothesis
import pytest
import tensorflow as tf

from pizza_steak import members
from pizza_steak.archive import ReadingOptions, read_archive
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


def refusal(path, options=None):
    """The message with which listing or reading the archive at `path` ends."""
    with pytest.raises(ArchiveError) as raised:
        contents(read_archive(path, options))
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


def zip_of_bytes(path, files, *, utf_8=False, system=0):
    """Writes a zip whose names are bytes, as packers of other systems write them."""
    placeholders = {name: "ABCDEFGH"[number] * len(name) for number, name in enumerate(files)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zip_file:
        for name, content in files.items():
            info = zipfile.ZipInfo(placeholders[name])
            info.create_system, info.flag_bits = system, 0x800 * utf_8
            zip_file.writestr(info, content)
    packed = buffer.getvalue()
    for name, placeholder in placeholders.items():
        packed = packed.replace(placeholder.encode(), name)
        if utf_8:
            packed = packed.replace(b"\x14\0\0\0\0\0", b"\x14\0\0\x08\0\0")
    path.write_bytes(packed)
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


@pytest.mark.parametrize(
    "spell",
    [lambda name: name.replace("/", "\\"), "./{}".format, lambda name: name.replace("/", "//./")],
)
def test_names_as_some_packers_write_them(tmp_path, spell):
    path = tmp_path / "food.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        for name in FOOD:
            info = zipfile.ZipInfo("placeholder")
            info.filename, info.create_system = spell(name), 0
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
    monkeypatch.setattr(members, "SUFFIXES", members.SUFFIXES - members._HEIF)
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
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"]
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


def test_a_member_without_a_name_is_left_out(tmp_path):
    assert read_archive(zip_with(tmp_path / "food.zip", "")).left_out == {"without suffix": 1}


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


@pytest.mark.parametrize("forged_checksum", [True, False])
def test_never_unpacks_more_than_a_member_claims(tmp_path, forged_checksum):
    claimed, held = 1000, 64 * 2**20
    path = tmp_path / "food.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zip_file:
        for sound in FOOD:
            zip_file.writestr(sound, sound)
        zip_file.writestr("train/pizza/bomb.jpg", bytes(held))
        checksum = zip_file.infolist()[-1].CRC
    forged = zlib.crc32(bytes(claimed)) if forged_checksum else checksum
    packed = path.read_bytes()
    for value, other in ((held, claimed), (checksum, forged)):
        assert packed.count(struct.pack("<L", value)) == 2  # In both headers.
        packed = packed.replace(struct.pack("<L", value), struct.pack("<L", other))
    path.write_bytes(packed)

    tracemalloc.start()
    try:
        if forged_checksum:  # A sound member for everyone who believes its headers.
            assert contents(read_archive(path))["train/pizza/bomb.jpg"] == bytes(claimed)
        else:
            assert "train/pizza/bomb.jpg cannot be read" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 10, 5000])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_claims_more_than_it_holds_is_damaged(tmp_path, size, compression):
    content = bytes(range(100)) * (size // 100)
    path = zip_with(
        tmp_path / "food.zip",
        "train/pizza/short.jpg",
        content,
        compression=compression,
        file_size=len(content) + 1,
    )
    assert "train/pizza/short.jpg cannot be read" in refusal(path)


@pytest.mark.parametrize(
    ("compression", "told"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")]
)
def test_refuses_methods_whose_memory_has_no_bound(tmp_path, compression, told):
    path = zip_with(
        tmp_path / "food.zip", "train/pizza/bomb.jpg", bytes(9), compression=compression
    )
    assert f"is packed with {told}; pack the folders again with Deflate" in refusal(path)


@pytest.mark.parametrize("method", [9, 93, 95, 99])
def test_refuses_methods_that_zipfile_does_not_know(tmp_path, method):
    assert "is packed with" in refusal(
        zip_with(tmp_path / "food.zip", "train/pizza/5.jpg", compress_type=method)
    )


def claiming(path, sizes):
    """Writes a zip whose members claim these sizes."""
    with zipfile.ZipFile(path, "w") as zip_file:
        for number, size in enumerate(sizes):
            info = zipfile.ZipInfo(f"{('pizza', 'steak')[number % 2]}/{number}.jpg")
            zip_file.writestr(info, b"x" * 100)
            info.file_size = size
    return path


def test_the_sum_of_all_sizes_is_bounded_and_the_flag_that_lifts_it_is_named(tmp_path):
    path = claiming(tmp_path / "bomb.zip", [200 * 10**6] * 6)
    told = "claim to unpack to 1,200,000,000, more than the 1,000,000,000 allowed"
    assert told in (message := refusal(path))
    assert message.endswith("pass --max_unpacked_gb=2")
    assert len(read_archive(path, ReadingOptions(max_unpacked_gb=2)).splits["train"]) == 6
    assert "more than the 100,000,000 allowed" in refusal(path, ReadingOptions(max_unpacked_gb=0.1))


def test_a_large_zip_may_unpack_to_a_hundred_times_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "_HARMLESS_BYTES", 0)
    path = claiming(tmp_path / "food.zip", [100] * 20)
    size = path.stat().st_size
    assert read_archive(claiming(path, [size * 5] * 20))
    assert "--max_unpacked_gb=1" in refusal(claiming(path, [size * 5 + 1] * 20))


def test_the_number_of_files_is_bounded(make_archive, monkeypatch):
    path = make_archive([f"{label}/{number}.jpg" for label in "ab" for number in range(5)])
    monkeypatch.setattr(members, "_MOST_FILES", 10)
    assert read_archive(path)
    monkeypatch.setattr(members, "_MOST_FILES", 9)
    assert "larger than one of 9 files; pack several zips and pass a pattern" in refusal(path)
    monkeypatch.setattr(members, "_MOST_DIRECTORY_BYTES", 100)
    assert "unpack it and pass the folder" in refusal(path)


@pytest.mark.parametrize("shift", [0, 100, 1])
def test_refuses_members_that_share_bytes(tmp_path, shift):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zip_file:
        for number in range(20):
            zip_file.writestr(f"{('pizza', 'steak')[number % 2]}/{number:02}.jpg", bytes(10**6))
        first = zip_file.infolist()[0]
        for number, info in enumerate(zip_file.infolist()):
            info.header_offset = first.header_offset + number * shift
    assert "overlap" in refusal(path)


def test_refuses_a_member_that_runs_into_the_directory(tmp_path):
    path = zip_with(tmp_path / "food.zip", "train/pizza/5.jpg", compress_size=200)
    assert "overlap" in refusal(path)


JAPANESE = ["ソース/1.jpg", "ソーセージ/2.jpg", "steak/3.jpg"]


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("cp932", JAPANESE),
        ("gbk", ["乗法/1.jpg", "披萨/2.jpg", "steak/3.jpg"]),
        ("big5", ["成功/1.jpg", "許功/2.jpg", "steak/3.jpg"]),
        ("cp850", ["jalapeño/1.jpg", "crêpe/2.jpg", "steak/3.jpg"]),
    ],
)
def test_names_in_another_encoding_need_a_flag(tmp_path, encoding, names):
    files = {name.encode(encoding): name.encode() for name in names}
    path = zip_of_bytes(tmp_path / "food.zip", files)
    assert "such as --zip_encoding=cp932" in refusal(path)
    archive = read_archive(path, ReadingOptions(zip_encoding=encoding))
    assert archive.classes == tuple(sorted(name.split("/")[0] for name in names))
    assert contents(archive) == {name: name.encode() for name in names}
    message = refusal(path, ReadingOptions(zip_encoding="ascii"))
    assert "is not a name in ascii; pass another --zip_encoding" in message


@pytest.mark.parametrize("zip_encoding", [None, "cp932"])
@pytest.mark.parametrize("utf_8", [True, False])
def test_names_in_utf_8_need_none(tmp_path, utf_8, zip_encoding):
    if zip_encoding and not utf_8:
        pytest.skip("the flag is for the names that do not say it")
    files = {name.encode(): name.encode() for name in JAPANESE}
    path = zip_of_bytes(tmp_path / "food.zip", files, utf_8=utf_8, system=3)
    archive = read_archive(path, ReadingOptions(zip_encoding=zip_encoding))
    assert contents(archive) == {name: name.encode() for name in JAPANESE}


def test_the_encoding_of_names_that_are_left_out_does_not_matter(tmp_path):
    files = {name.encode(): b"" for name in FOOD} | {"説明.txt".encode("cp932"): b""}
    assert read_archive(zip_of_bytes(tmp_path / "food.zip", files)).left_out == {".txt": 1}


def test_on_unix_a_backslash_is_a_letter(tmp_path):
    files = {b"a\\b/1.jpg": b"", b"c/2.jpg": b""}
    path = zip_of_bytes(tmp_path / "food.zip", files, system=3)
    assert read_archive(path).classes == ("a\\b", "c")


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("dataset/training_set/", "dataset/test_set/"),
        ("dataset/training_set/training_set/", "dataset/test_set/test_set/"),
        ("seg_train/seg_train/", "seg_test/seg_test/"),
        ("food/Train Images/", "food/Test Images/"),
        ("train/train/", "test/"),
        ("food-train/", "food-val/"),
    ],
)
def test_names_of_splits_as_others_write_them(make_archive, as_zip, train, test):
    layout = [f"{split}{food}/1.jpg" for split in (train, test) for food in ("pizza", "steak")]
    archive = read_archive(make_archive(layout, as_zip=as_zip))
    assert archive.classes == ("pizza", "steak")
    (other,) = archive.splits.keys() - {"train"}
    assert other == ("validation" if "val" in test else "test")
    assert [image.member for image in archive.splits["train"]] == layout[:2]
    assert [image.member for image in archive.splits[other]] == layout[2:]
    top = layout[0].removeprefix("dataset/").removeprefix("food/").split("/")[0]
    assert [image.filename for image in archive.splits["train"]] == [
        f"{top}/pizza/1.jpg",
        f"{top}/steak/1.jpg",
    ]


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("root", ["", "photos/"])
@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        (
            [f"{fold}/{food}/1.jpg" for fold in ("fold1", "fold2") for food in ("ham", "pie")],
            "{0}fold1/ and {0}fold2/ hold folders of the same names (ham and pie); if these are "
            "the classes, rename {0}fold1/ and {0}fold2/ to train/, test/ or val/; if {0}fold1/ "
            "and {0}fold2/ are the classes, move them into a folder train/",
        ),
        (
            [f"{year}/{year}/{food}/1.jpg" for year in (2023, 2024) for food in ("ham", "pie")],
            "hold folders of the same names (ham and pie)",
        ),
        (
            [f"{a}/{food}/1.jpg" for a in ("trainset", "heldout") for food in ("ham", "pie", "x")],
            "{0}heldout/ and {0}trainset/ hold folders of the same names (ham, pie and x)",
        ),
        (
            ["seg_pred/seg_pred/1.jpg"]
            + [f"{a}/{a}/{food}/1.jpg" for a in ("seg_test", "seg_train") for food in ("x", "y")],
            "beside {0}seg_pred/, which would be a class of its own",
        ),
        (
            ["extra/1.jpg"]
            + [f"data/{a}/{food}/1.jpg" for a in ("training_set", "test_set") for food in "xy"],
            "{0}data/test_set/ holds class folders (x), beside {0}extra/; if it is a split",
        ),
    ],
    ids=["folds", "years-doubled", "unknown-names", "intel", "deeper"],
)
def test_splits_never_become_classes(make_archive, as_zip, root, layout, problem):
    path = make_archive([root + name for name in layout], as_zip=as_zip)
    assert problem.format(root) in refusal(path)


def test_classes_with_the_same_folders_may_lie_in_train(make_archive):
    """As the error says."""
    layout = [f"train/{label}/{side}/1.jpg" for label in ("ill", "well") for side in "lr"]
    assert read_archive(make_archive(layout)).classes == ("ill", "well")


def test_folders_with_images_of_their_own_are_classes(make_archive):
    layout = [
        f"{label}/{name}" for label in ("ill", "well") for name in ("1.jpg", "l/1.jpg", "r/1.jpg")
    ]
    assert read_archive(make_archive(layout)).classes == ("ill", "well")


def test_one_folder_in_every_class_is_no_split(make_archive):
    layout = [f"{label}/images/{number}.jpg" for label in ("pizza", "steak") for number in "12"]
    assert read_archive(make_archive(layout)).classes == ("pizza", "steak")


LEFT_OUT = {
    "Icon\r": "without suffix",
    "train/pizza/Icon\r": "without suffix",
    "train/pizza/@eaDir/1.jpg/SYNOFILE_THUMB_M.jpg": "@eaDir",
    "#recycle/train/steak/1.jpg": "#recycle",
    "$RECYCLE.BIN/1.jpg": "$RECYCLE.BIN",
    "System Volume Information/1.jpg": "System Volume Information",
    "lost+found/1.jpg": "lost+found",
    "train/pizza/.picasaoriginals/1.jpg": "hidden",
    "train/.thumbnails/\x1b/1.jpg": "hidden",
    "train/pizza/\x1b.txt": ".txt",
    "train/pizza/1.\x1b[31m": "without suffix",
}


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_names_of_files_that_are_left_out_do_not_matter(make_archive, as_zip):
    archive = read_archive(make_archive([*FOOD, *LEFT_OUT], as_zip=as_zip))
    assert sorted(contents(archive)) == sorted(FOOD)
    kinds = list(LEFT_OUT.values())
    assert archive.left_out == {kind: kinds.count(kind) for kind in kinds}


def test_a_left_out_member_may_be_large_encrypted_or_a_link(tmp_path):
    for name, attributes in (
        ("train/video.mp4", {"file_size": 2**31}),
        ("secret.txt", {"flag_bits": 1}),
        (".venv/lib64", {"external_attr": (stat.S_IFLNK | 0o777) << 16}),
        (".DS_Store", {"compress_type": 12}),
    ):
        path = zip_with(tmp_path / "food.zip", name, **attributes)
        assert sorted(contents(read_archive(path))) == sorted(FOOD)


@pytest.mark.parametrize("label", ["A: intact", "B:broken", "x:y", "c:"])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_a_class_may_have_a_colon_in_its_name(make_archive, as_zip, label):
    archive = read_archive(make_archive([f"a/{label}/1.jpg", "a/z/1.jpg"], as_zip=as_zip))
    assert archive.classes == (label, "z")


def test_links_that_are_left_out_anyway_do_not_matter(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    (folder / "train/pizza/.#000.jpg").symlink_to("user@host.1234:5678")
    (folder / "train/pizza/notes.txt").symlink_to("nowhere")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/lib64").symlink_to("bin")
    (folder / "lost+found").symlink_to(folder)
    assert read_archive(folder).left_out == {".txt": 1, "hidden": 2, "lost+found": 1}


def test_what_is_not_a_regular_file_is_left_out_and_named(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    os.mkfifo(folder / "train/pizza/pipe.jpg")
    (folder / "train/pizza/zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "test/pizza/socket.png"))
        archive = read_archive(folder)
    assert sorted(contents(archive)) == sorted(FOOD)
    assert archive.left_out == {"not a regular file": 3}
    (warning,) = archive.warnings
    for name in ("train/pizza/pipe.jpg", "train/pizza/zero.jpg", "test/pizza/socket.png"):
        assert name in warning


def test_a_file_that_becomes_a_pipe_after_it_was_listed_is_named(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    archive = read_archive(folder)
    (folder / FOOD[0]).unlink()
    os.mkfifo(folder / FOOD[0])
    with pytest.raises(ArchiveError, match=f"{FOOD[0]} cannot be read .not a regular file"):
        contents(archive)


@pytest.mark.parametrize("size", [members._MOST_BYTES + 1, 8 * 2**30])
def test_a_sparse_file_has_the_limit_of_a_member(make_archive, size):
    folder = make_archive(FOOD, as_zip=False)
    with (folder / "train/pizza/sparse.jpg").open("wb") as file:
        file.truncate(size)
    assert f"'train/pizza/sparse.jpg' has {size:,} bytes, more than" in refusal(folder)


def test_a_link_to_a_file_elsewhere_is_followed_only_when_asked(make_archive, tmp_path):
    folder = make_archive(FOOD, as_zip=False)
    (tmp_path / "private.jpg").write_bytes(b"private")
    (folder / "train/pizza/within.jpg").symlink_to(folder / FOOD[1])
    assert (
        contents(read_archive(folder))["train/pizza/within.jpg"] == (folder / FOOD[1]).read_bytes()
    )
    (folder / "train/pizza/link.jpg").symlink_to(tmp_path / "private.jpg")
    assert "train/pizza/link.jpg' is a link to a file outside" in refusal(folder)
    followed = contents(read_archive(folder, ReadingOptions(follow_links=True)))
    assert followed["train/pizza/link.jpg"] == b"private"


@pytest.mark.parametrize("target", ["../..", "..", "../pizza", "."])
def test_links_in_a_circle_end(make_archive, target):
    folder = make_archive(FOOD, as_zip=False)
    (folder / "train/pizza/circle").symlink_to(target)
    assert "around it" in refusal(folder, ReadingOptions(follow_links=True))


def test_links_to_each_other_end(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    (folder / "train/pizza/circle").symlink_to("../steak")
    (folder / "train/steak/circle").symlink_to("../pizza")
    assert "around it" in refusal(folder, ReadingOptions(follow_links=True))


def test_a_dangling_link_is_named(make_archive):
    folder = make_archive(FOOD, as_zip=False)
    (folder / "train/pizza/gone.jpg").symlink_to("nowhere")
    message = refusal(folder)
    assert "'train/pizza/gone.jpg' cannot be read (No such file or directory)" in message


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_accents_are_compared_in_one_form(make_archive, as_zip):
    composed, decomposed = (unicodedata.normalize(form, "jalapeño") for form in ("NFC", "NFD"))
    layout = [name.replace("pizza", composed) for name in FOOD[:2]]
    layout += [name.replace("pizza", decomposed) for name in FOOD[2:]]
    archive = read_archive(make_archive(layout, as_zip=as_zip))
    assert archive.classes == (composed, "steak")
    assert sorted(image.member for image in archive.splits["test"]) == sorted(layout[2:])
    assert len(contents(archive)) == 4
    path = make_archive(
        [*FOOD, *(f"train/pizza/{name}.jpg" for name in (composed, decomposed))], as_zip=as_zip
    )
    assert "appears twice" in refusal(path)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
@pytest.mark.parametrize("other", ["Pizza", "pizza ", " pizza", "piz\u200bza", "\uff50izza"])
def test_classes_that_look_alike_are_said_to(make_archive, as_zip, other):
    told = " and ".join(map(repr, sorted(["pizza", other], key=repr)))
    told = f"the class folders {told} differ only in capitals, blanks or invisible letters"
    layout = [*FOOD[:2], *(name.replace("pizza", other) for name in FOOD[2:])]
    assert f": {told}; give them the same name" in refusal(make_archive(layout, as_zip=as_zip))
    layout = ["pizza/1.jpg", f"{other}/1.jpg", "steak/1.jpg"]
    archive = read_archive(make_archive(layout, as_zip=as_zip))
    assert archive.classes == tuple(sorted(["pizza", other, "steak"]))  # As letters: A and a.
    assert archive.warnings == (told,)


def test_classes_that_do_not_look_alike_are_not_said_to(make_archive):
    layout = [f"{label}/1.jpg" for label in ("Maße", "Masse", "hot dog", "hotdog", "a b", "a_b")]
    assert not read_archive(make_archive(layout)).warnings


def test_a_long_name_is_shortened(make_archive):
    path = make_archive(FOOD, name="x" * 251)
    assert len(read_archive(path).stem) == 80


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_a_folder_that_loses_every_file_is_a_warning(make_archive, as_zip):
    layout = ["pizza/1.jpg", "steak/1.jpg", "steak/notes.txt", "taco/1.jxl", "taco/2.jxl"]
    for around in ("", "train/", "food/"):
        path = make_archive([around + name for name in layout] + ["README.md"], as_zip=as_zip)
        archive = read_archive(path)
        assert archive.classes == ("pizza", "steak")
        assert archive.warnings == (
            "the folder 'taco' is not a class, because it has no images (2 .jxl)",
        )
    assert not read_archive(make_archive([*FOOD, ".hidden/1.txt", "__MACOSX/a/1.txt"])).warnings


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_the_depth_of_folders_is_bounded(make_archive, as_zip):
    layout = ["pizza/1.jpg", "steak/" + "a/" * 98 + "1.jpg"]
    assert read_archive(make_archive(layout, as_zip=as_zip)).classes == ("pizza", "steak")
    layout += ["steak/" + "b/" * 100 + "1.jpg"]
    assert "lies in more than 100 folders" in refusal(make_archive(layout, as_zip=as_zip))


def test_members_in_a_thousand_folders_are_refused_or_left_out(make_archive):
    deep = "/".join(["a"] * 1000)
    message = refusal(make_archive([*FOOD, f"train/{deep}/1.jpg"]))
    assert "more than 100 folders" in message
    assert len(message) < 400
    message = refusal(make_archive([*FOOD, f"train/{'a' * 5000}/1.jpg"]))
    assert "has more than 4,096 letters" in message
    assert len(message) < 400
    assert read_archive(make_archive([*FOOD, f"train/{deep}/1.txt"])).left_out == {".txt": 1}


def test_refuses_two_zips_in_one_file(make_archive, tmp_path):
    one, other = make_archive(FOOD), make_archive(["pizza/5.jpg", "steak/6.jpg"])
    path = tmp_path / "both.zip"
    path.write_bytes(one.read_bytes() + other.read_bytes())
    assert f"{one.stat().st_size:,} bytes lie around its directory" in refusal(path)
    path.write_bytes(b"#!/bin/sh\n" + one.read_bytes())
    assert "10 bytes lie around its directory" in refusal(path)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_refuses_members_that_are_pipes_or_devices(tmp_path, kind):
    name = "train/pizza/pipe.jpg"
    path = zip_with(tmp_path / "food.zip", name, external_attr=(kind | 0o644) << 16)
    assert f"{name!r} is not a regular file" in refusal(path)


@pytest.mark.parametrize(
    "letter", ["\x7f", "\x80", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\u202a"]
)
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "folder"])
def test_refuses_names_that_mislead(make_archive, as_zip, letter):
    for name in (f"train/pizza/a{letter}b.jpg", f"train/piz{letter}za/1.jpg"):
        message = refusal(make_archive([*FOOD, name], as_zip=as_zip))
        assert "has a control character" in message
        assert letter not in message


@pytest.mark.parametrize(
    "label", ["\u0645\u06cc\u200c\u0631", "\U0001f468\u200d\U0001f373", "\u200fא"]
)
def test_takes_names_with_letters_that_join_others(make_archive, label):
    archive = read_archive(make_archive([f"{label}/1.jpg", "steak/1.jpg"]))
    assert label in archive.classes


def test_no_wrong_bit_in_the_directory_hides_a_picture_in_silence(tmp_path):
    names = [*FOOD, "train/pizza/5.jpg"]
    path = tmp_path / "food.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zip_file:
        for name in names:
            zip_file.writestr(name, name * 5)
    sound, start = path.read_bytes(), zip_file.start_dir
    expected = contents(read_archive(path))
    refused = 0
    for bit in range(8 * start, 8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            archive = read_archive(path)
            found = contents(archive)
        except ArchiveError:
            refused += 1
            continue
        if found != expected:  # A name is that of no image any more, and is counted.
            assert sum(archive.left_out.values()) == 1
            assert len(found) == len(expected) - 1
            assert found.items() <= expected.items()
    assert refused > 4 * (len(sound) - start)  # Half of the bits.


@pytest.mark.parametrize("zip_64", [True, False])
def test_the_end_says_how_many_files_there_are(make_archive, zip_64):
    path = make_archive(FOOD)
    sound = path.read_bytes()
    at = len(sound) - 22
    end = list(struct.unpack("<4s4H2LH", sound[at:]))
    for count in (4, 3, 5, 0, 4 + 2**16):
        if zip_64:
            record = struct.pack(
                "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, end[5], end[6]
            )
            locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
            end[3:7] = 0xFFFF, 0xFFFF, end[5], end[6]
        else:
            record = locator = b""
            end[3:5] = [count % 2**16] * 2
        path.write_bytes(sound[:at] + record + locator + struct.pack("<4s4H2LH", *end))
        # The Finder writes the last 16 bits of the number, without Zip64.
        if count == 4 or (count % 2**16 == 4 and not zip_64):
            assert len(contents(read_archive(path))) == 4
        else:
            assert "4 files are listed but its end says" in refusal(path)


def test_refuses_one_part_of_several(make_archive):
    path = make_archive(FOOD)
    packed = bytearray(path.read_bytes())
    packed[-18] = 1
    path.write_bytes(packed)
    assert "one part of a zip in several" in refusal(path)


@hypothesis.settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(fuzzed_archives.INPUTS)
def test_damaged_and_forged_zips_are_read_or_refused(tmp_path, drawn):
    """`tests/measurements/fuzzed_archives.py` reads many more."""
    path = tmp_path / "food.zip"
    path.write_bytes(fuzzed_archives.edited(*drawn))
    fuzzed_archives.read(path)
    assert [found.name for found in tmp_path.iterdir()] == ["food.zip"]


@pytest.mark.parametrize("packed", fuzzed_archives.SOUND)
def test_the_zips_that_are_damaged_are_sound(tmp_path, packed):
    path = tmp_path / "food.zip"
    path.write_bytes(packed)
    archive = read_archive(path, ReadingOptions(zip_encoding="cp932"))
    assert len(contents(archive)) == 4
    assert archive.left_out == {".DS_Store": 1, ".txt": 1, "__MACOSX": 1}
