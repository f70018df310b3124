"""`python -m pizza_steak.inspect`: what it finds, draws and answers to wrong input."""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from absl.flags import FlagValues, IllegalFlagValueError
from images import encode, turned
from PIL import Image
from small_runs import parse_flags

from pizza_steak import decoding, flags, inspection
from pizza_steak.archive import read_archive
from pizza_steak.configuration import InspectConfig, TransformConfig
from pizza_steak.errors import UserError
from trainers import configuration as configs

PACKAGE = pathlib.Path(inspection.__file__).parent


def encoded(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def rows(text: str) -> list[list[str]]:
    """The cells of a table's lines."""
    return [line.split() for line in text.splitlines()]


def report(**values) -> str:
    """The text about a dataset, with these values of flags."""
    parsed = FlagValues()
    flags.define_flags(InspectConfig, parsed)
    config = flags.from_flags(InspectConfig, parsed)
    for concern in dataclasses.fields(config):
        known = {field.name for field in dataclasses.fields(concern.type)} & values.keys()
        changes = {name: values.pop(name) for name in known}
        changed = dataclasses.replace(getattr(config, concern.name), **changes)
        config = dataclasses.replace(config, **{concern.name: changed})
    assert not values
    return inspection.report(config)


@pytest.fixture(scope="module")
def sound(jpeg):
    """Two classes, 3 and 2 pictures to train on, 1 and 1 to test on; no two alike."""
    names = (
        "train/a/1",
        "train/a/2",
        "train/a/3",
        "train/b/1",
        "train/b/2",
        "test/a/1",
        "test/b/1",
    )
    return {f"{name}.jpg": jpeg(seed) for seed, name in enumerate(names)}


@pytest.fixture(scope="module")
def inspected(make_archive, tmp_path_factory):
    """`inspected(layout, **options)`: the JSON and the text that are told of such an archive."""

    def inspect(layout, **options):
        path = tmp_path_factory.mktemp("inspected") / "found.json"
        text = report(archive=make_archive(layout), json=path, **options)
        return json.loads(path.read_text()), text

    return inspect


def test_everything_is_counted(inspected, picture, jpeg, sound):
    png = encoded(picture(9, 90, 30), "PNG")
    found, text = inspected(sound | {"train/b/png.jpg": png, "train/b/.DS_Store": b""})
    assert found["counts"] == {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}}
    assert found["formats"] == {"JPEG": 7, "PNG": 1}  # By content, not by name.
    assert found["left_out"] == {".DS_Store": 1}
    assert found["measures"]["width"] == {"least": 24, "median": 24, "most": 90}
    assert found["measures"]["height"] == {"least": 20, "median": 20, "most": 30}
    assert found["measures"]["aspect_ratio"]["most"] == 3
    sizes = sorted(map(len, (*sound.values(), png)))
    assert [found["measures"]["bytes"][name] for name in ("least", "most")] == [sizes[0], sizes[-1]]
    assert (found["broken"], found["duplicates"]) == ({}, [])
    for row in ("train test all", "a 3 1 4", "b 3 1 4", "all classes 6 2 8"):
        assert row.split() in rows(text)
    assert "LEAKAGE" not in text
    assert "CONTRADICTION" not in text


def test_a_folder_that_loses_every_file_is_named(inspected, sound):
    _, text = inspected(sound | {"train/c/1.svg": b"", "test/c/2.svg": b""})
    assert (
        "caution     the folder 'c' is not a class, because it has no images (2 .svg)"
        in text.splitlines()
    )


def test_a_zip_is_read_as_the_flags_say(tmp_path):
    path = tmp_path / "food.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        for name in ("AAAAAA/1.jpg", "b/2.jpg"):
            zip_file.writestr(name, b"")
    path.write_bytes(path.read_bytes().replace(b"AAAAAA", "ソース".encode("cp932")))
    with pytest.raises(UserError, match="--zip_encoding=cp932"):
        report(archive=path)
    assert "ソース" in report(archive=path, zip_encoding="cp932")
    for flag in ("zip_encoding=klingon", "zip_encoding=rot13", "max_unpacked_gb=-1"):
        with pytest.raises(IllegalFlagValueError, match=r"an encoding such|non-negative"):
            parse_flags(f"--archive={path}", f"--{flag}", config=InspectConfig)


def test_the_balance_is_that_of_the_largest_class_to_the_smallest(inspected, sound):
    _, text = inspected(sound)
    assert ["most", "/", "least", "1.50", "1.00"] in rows(text)


@pytest.mark.parametrize(
    "copy, leakage, contradiction",
    [
        ("test/a/copy.jpg", True, False),
        ("train/b/copy.jpg", False, True),
        ("test/b/copy.jpg", True, True),
        ("train/a/copy.jpg", False, False),
    ],
)
def test_the_same_bytes_twice_are_named_and_judged(inspected, sound, copy, leakage, contradiction):
    found, text = inspected(sound | {copy: sound["train/a/1.jpg"]})
    (group,) = found["duplicates"]
    assert sorted(group["files"]) == sorted([copy, "train/a/1.jpg"])
    assert (group["leakage"], group["contradiction"]) == (leakage, contradiction)
    assert ("LEAKAGE" in text, "CONTRADICTION" in text) == (leakage, contradiction)
    assert " = ".join(group["files"]) in text


def test_broken_are_the_pictures_that_training_refuses(make_records, inspected, picture, sound):
    from pizza_steak import decoded

    whole = {
        format: encoded(picture(3, 40, 40), format)
        for format in ("JPEG", "PNG", "GIF", "BMP", "WEBP")
    }
    files = {f"train/a/{format}.jpg": content for format, content in whole.items()}
    files |= {f"train/b/half {f}.jpg": c[: len(c) // 2] for f, c in whole.items()}
    files |= {
        "train/b/empty.png": b"",
        "train/b/text.jpg": b"no picture",
        "train/b/targa.jpg": encoded(picture(3, 40, 40), "TGA"),
    }
    found, text = inspected(sound | files)
    records = make_records(sound | files)
    refused = decoded.decode(records, 8, on_bad_image="skip").bad
    assert found["broken"].keys() == {records.filenames[row] for row in refused}
    assert len(found["broken"]) == 8
    for name, reason in found["broken"].items():
        assert f"{name} ({reason})" in text


def test_images_that_exif_turns_are_counted_and_measured_upright(inspected, sound, picture):
    def stored(orientation):
        return encode(picture(3, 90, 30), "JPEG", exif=turned(orientation))

    files = {f"train/a/turned {n}.jpg": stored(n) for n in (3, 6)} | {"train/b/0.jpg": stored(1)}
    found, text = inspected(sound | files)
    assert found["turned_by_exif"] == 2
    assert ["turned", "2", "by", "EXIF", "orientation"] in rows(text)
    assert found["measures"]["height"]["most"] == 90
    assert "turned      none" in inspected(sound)[1]


def test_long_lists_are_cut_and_complete_in_json(inspected, sound):
    files = {f"train/a/bad {number:02}.jpg": b"no picture" for number in range(30)}
    found, text = inspected(sound | files)
    assert found["broken"].keys() == files.keys()
    assert text.count("(cannot identify image file)") == 10
    assert "and 20 more" in text


def test_the_sample_is_seeded_sound_and_drawn_from_all(make_archive, jpeg, sound):
    files = sound | {f"train/b/{n}.jpg": jpeg(n, 9, 9) for n in range(10, 60)}
    archive = read_archive(make_archive(files | {"train/a/bad.jpg": b"no picture"}))

    def sample(seed):
        shrink = {"figure": lambda encoded: encoded[:20]}
        examples = inspection._examples(archive)
        found = inspection.inspect("food", {}, examples, seed=seed, shrink=shrink)
        for image, drawn in found.sample:
            assert drawn == {"figure": files[image.filename][:20]}
        return [picture.filename for picture, _ in found.sample]

    assert sample(1) == sample(1) != sample(2)
    assert len(set(sample(1))) == 24
    drawn = set().union(*map(sample, range(40)))
    assert drawn == files.keys()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"grid": "figure"}, id="grid"),
        pytest.param({"augmented": "figure", "rotation_range": 90}, id="augmented"),
    ],
)
def test_figures_are_sound_and_the_same_for_the_same_seed(make_archive, sound, tmp_path, options):
    files = {name.replace("/a/", "/$5_$7 été 蛋/"): content for name, content in sound.items()}
    archive = make_archive(files)
    pixels = []
    for seed in (1, 1, 2):
        paths = {name: tmp_path / "figure" for name, value in options.items() if value == "figure"}
        report(archive=archive, seed=seed, image_size=32, **options | paths)
        with Image.open(tmp_path / "figure") as image:
            pixels.append(np.asarray(image))
    np.testing.assert_array_equal(pixels[0], pixels[1])
    assert pixels[0].shape != pixels[2].shape or (pixels[0] != pixels[2]).any()
    assert [path.name for path in tmp_path.iterdir()] == ["figure"]


def test_the_augmented_are_versions_of_the_original(jpeg, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        inspection.figures, "picture_grid", lambda images, *args, **kwargs: drawn.extend(images)
    )
    pixels = decoding.decode_image(jpeg(), decoding.Format((24, 24)))
    inspection.draw_augmented([pixels], "figure.png", 1, TransformConfig(horizontal_flip=True))
    original, *versions = map(np.asarray, drawn)
    flipped = [bool((version == original[:, ::-1]).all()) for version in versions]
    unchanged = [bool((version == original).all()) for version in versions]
    assert all(np.logical_xor(flipped, unchanged))
    assert len(versions) == 5


def test_the_datasets_of_the_package_are_told_of(sample_records):
    data_dir = sample_records.folder.parents[2]
    text = report(dataset="pizza_steak/sample", data_dir=data_dir)
    assert ["pizza", "120", "40", "160"] in rows(text)


@pytest.mark.parametrize(
    "argument",
    [
        "--rotation_range=20",
        "--width_shift_range=3",
        "--height_shift_range=0.2",
        "--zoom_range=0.8,1.2",
        "--brightness_range=1,1.5",
        "--channel_shift_range=20",
        "--horizontal_flip",
        "--fill_mode=wrap",
    ],
)
def test_flags_of_the_augmentation_are_those_of_fit(argument):
    parsed = {}
    for config, source in ((configs.FitConfig, []), (InspectConfig, ["--archive=food.zip"])):
        parsed[config] = FlagValues()
        flags.define_flags(config, parsed[config])
        parsed[config](["command", argument, *source])
    augmentation = flags.from_flags(configs.FitConfig, parsed[configs.FitConfig]).augmentation
    transform = flags.from_flags(InspectConfig, parsed[InspectConfig]).transform
    assert transform != TransformConfig()
    assert repr(transform) == repr(
        TransformConfig(**{name: getattr(augmentation, name) for name in vars(transform)})
    )


BAD_INPUT = {
    "no archive": ({"archive": "/nowhere/food.zip"}, "/nowhere/food.zip: no such file"),
    "unknown dataset": ({"dataset": "pizza_steak/chips"}, "'pizza_steak/chips': unknown"),
    "json in no folder": ({"json": "/nowhere/a.json"}, "/nowhere/a.json: No such file"),
    "figure of no format": ({"grid": "{here}/a.exe"}, "a.exe: unknown format"),
    "figure is a folder": ({"grid": "{here}"}, "Is a directory"),
    "nothing to augment": ({"augmented": "{here}/a.png"}, "--rotation_range"),
    "augmented nowhere": ({"rotation_range": 20}, "--augmented"),
    "augmentation makes no sense": (
        {"augmented": "{here}/a.png", "cval": 2},
        "cval=2",
    ),
}


@pytest.mark.parametrize("options, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(make_archive, sound, tmp_path, options, message):
    options = {
        name: value.format(here=tmp_path) if isinstance(value, str) else value
        for name, value in options.items()
    }
    source = {} if {"archive", "dataset"} & options.keys() else {"archive": make_archive(sound)}
    with pytest.raises(UserError) as caught:
        report(**source, **options)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_figure_of_nothing_is_a_users_error(make_archive, tmp_path):
    archive = make_archive({"train/a/1.jpg": b"no picture", "train/b/1.jpg": b"no picture"})
    with pytest.raises(UserError, match="none of the images"):
        report(archive=archive, grid=tmp_path / "a.png")


def run(*argv, python=()):
    command = [sys.executable, *python, "-m", "pizza_steak.inspect", *argv]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_an_archive_is_inspected_without_tensorflow(make_archive, sound):
    done = run(f"--archive={make_archive(sound)}", python=["-X", "importtime"])
    assert done.returncode == 0
    assert "7 images of 2 classes" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pizza_steak.inspection" in imported
    assert not imported & {"tensorflow", "keras"}


@pytest.mark.slow
def test_bad_input_exits_with_status_1_and_one_line():
    done = run("--archive=/nowhere/food.zip")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: archive /nowhere/food.zip: ")


@pytest.mark.slow
def test_no_module_of_the_package_shadows_the_standard_library():
    for module in ("dataclasses", "inspect"):
        program = f"import {module}; print({module}.__file__)"
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert pathlib.Path(done.stdout.strip()).parent != PACKAGE


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, named",
    [
        ([], "archive"),
        (["--archive=food.zip", "--dataset=pizza_steak/sample"], "dataset"),
        (["--archive=food.zip", "--sead=3"], "sead"),
        (["--archive=food.zip", "--image_size=0"], "--image_size"),
        (["--archive=food.zip", "--zoom_range=wide"], "--zoom_range"),
    ],
)
def test_wrong_flags_exit_with_status_2_and_one_line(argv, named):
    done = run(*argv)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line


def test_a_damaged_zip_is_named(make_archive, sound):
    path = make_archive(sound)
    with zipfile.ZipFile(path) as zip_file:
        offset = zip_file.getinfo("train/a/2.jpg").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train/a/2\.jpg cannot be read"):
        report(archive=path)
