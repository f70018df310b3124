"""`python -m trainers.predict`: the pictures that it finds, and what it says of them."""

import csv
import dataclasses
import io
import json
import os
import stat
import zipfile

import numpy as np
import pytest
from PIL import Image
from small_runs import fit, run_command, snapshot

from pizza_steak.archive import ReadingOptions
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import PredictionConfig
from trainers.finished import annotation, loading, prediction, sources
from trainers.runs import run_directory


@pytest.fixture(scope="module")
def photographs(jpeg):
    """JPEGs of many shapes: two classes, 4 each to train on, 5 and 4 to test on."""
    names = [f"train/{label}/{number}.jpg" for label in "ab" for number in range(4)]
    names += [f"test/{label}/{number}.jpg" for label in "ab" for number in range(4)]
    names += ["test/a/[4] été.jpg"]
    return {name: jpeg(seed, 30 + 7 * seed, 90 - 3 * seed) for seed, name in enumerate(names)}


@pytest.fixture(scope="module")
def folder(make_archive, photographs):
    return make_archive(photographs, as_zip=False)


@pytest.fixture(scope="module")
def zipped(make_archive, photographs):
    return make_archive(photographs)


@pytest.fixture(scope="module")
def make_run(folder, small_flags, tmp_path_factory):
    def make(*flags):
        run_dir = tmp_path_factory.mktemp("predicts") / "run"
        argv = [*small_flags, f"--archive={folder}", f"--run_dir={run_dir}", "--epochs=1", *flags]
        return run_directory.open_run(str(fit(*argv).run_dir))

    return make


@pytest.fixture(scope="module")
def run(make_run):
    return make_run()


@pytest.mark.parametrize(
    "flags",
    [
        ["--aspect_ratio=crop", "--color_mode=grayscale", "--interpolation=nearest"],
        ["--aspect_ratio=pad", "--image_size=20,30"],
    ],
)
def test_files_get_the_predictions_of_the_decoded_array_to_the_last_bit(make_run, folder, flags):
    run = make_run(*flags)
    data = run_data.load(run.config.data)
    rows = data.rows["test"]
    images = data.pictures.gather(rows).numpy()
    outputs = loading.load_model(run).predict(images, batch_size=4, verbose=0)
    expected = np.concatenate([1 - outputs, outputs], axis=1)

    files = [str(folder / data.records.filenames[row]) for row in rows]
    predictions = prediction.predict(run, files, batch_size=4)
    np.testing.assert_array_equal(predictions.probabilities, expected)
    assert predictions.paths == files
    assert predictions.faults == {}


def test_a_zip_gets_the_predictions_of_its_folder(run, zipped, folder):
    of_zip, of_folder = (prediction.predict(run, [str(path)]) for path in (zipped, folder))
    assert len(of_zip.paths) == 17
    np.testing.assert_array_equal(of_zip.probabilities, of_folder.probabilities)


FOUND = {
    "file": ("test/a/0.jpg", ["test/a/0.jpg"]),
    "folder": ("test/b", [f"test/b/{n}.jpg" for n in range(4)]),
    "folder with a slash": ("test/b/", [f"test/b/{n}.jpg" for n in range(4)]),
    "pattern": ("test/*/[01].jpg", [f"test/{label}/{n}.jpg" for label in "ab" for n in (0, 1)]),
    "pattern of folders": ("test/?", [f"test/a/{n}.jpg" for n in range(4)]
                           + ["test/a/[4] été.jpg"] + [f"test/b/{n}.jpg" for n in range(4)]),
    "file with a name like a pattern": ("test/a/[4] été.jpg", ["test/a/[4] été.jpg"]),
}  # fmt: skip


@pytest.mark.parametrize("path, expected", FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("kind", ["folder", "zipped"])
def test_a_path_finds_the_same_in_a_folder_and_in_its_zip(
    request, photographs, kind, path, expected
):
    root = request.getfixturevalue(kind)
    found = sources.find([f"{root}/{path}"])
    assert [source.path for source in found] == [f"{root}/{name}" for name in expected]
    assert [source.read() for source in found] == [photographs[name] for name in expected]


def test_pictures_come_in_the_order_of_the_arguments(folder):
    paths = [f"{folder}/test/b/1.jpg", f"{folder}/test/a/0.jpg", f"{folder}/test/b/1.jpg"]
    assert [source.path for source in sources.find(paths)] == paths


def test_what_is_no_picture_is_left_out_of_folders_and_zips(make_archive, jpeg):
    files = {"a.jpg": jpeg(), "notes.txt": b"", ".DS_Store": b"", "__MACOSX/a.jpg": b""}
    for as_zip in (True, False):
        root = make_archive(files, as_zip=as_zip)
        assert [source.path for source in sources.find([str(root)])] == [f"{root}/a.jpg"]


NOT_FOUND = {
    "no such file": ("{here}/none.jpg", "none.jpg: no image there"),
    "none in a pattern of folders": ("{here}/emp*", "empty: no image there"),
    "empty folder": ("{here}/empty", "empty: no image there"),
    "empty pattern": ("{here}/*.gif", "*.gif: no image there"),
    "no such member": ("{zip}/none", "none: no image there"),
    "not a zip": ("{here}/no.zip", "not a zip file"),
    "member of no zip": ("{here}/no.zip/a.jpg", "not a zip file"),
    "too long a name": ("x" * 300, "xxx: no image there"),
}


@pytest.mark.parametrize("path, message", NOT_FOUND.values(), ids=NOT_FOUND)
def test_a_path_without_pictures_is_one_line(run, zipped, tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_text("no zip")
    predictions = prediction.predict(run, [path.format(here=tmp_path, zip=zipped)])
    (line,) = predictions.errors().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert predictions.write(PredictionConfig()) == predictions.counts() == ""


def test_a_missing_path_costs_only_itself(run, folder, tmp_path):
    good = [f"{folder}/test/a/0.jpg", f"{folder}/test/b/1.jpg"]
    asked = ["none.jpg", good[0], "https://example.com/a.jpg", f"{tmp_path}/*.gif", good[1]]
    predictions = prediction.predict(run, asked)
    alone = prediction.predict(run, good)
    assert predictions.paths == asked
    assert predictions.faults.keys() == {0, 2, 3}
    np.testing.assert_array_equal(predictions.probabilities[[1, 4]], alone.probabilities)
    assert predictions.write(PredictionConfig()) == alone.write(PredictionConfig())
    assert predictions.errors().count("\n") == 3


def faults(path, below=None, **reading):
    """The fault of each image, "" where there is none, by its path below a folder or zip."""
    found = sources.find([str(path)], ReadingOptions(**reading))
    return {source.path.removeprefix(f"{below or path}/"): source.fault for source in found}


def test_what_cannot_be_read_in_a_folder_costs_only_itself(make_archive, tmp_path):
    folder = make_archive(["a/1.jpg", "2.jpg", "piz\x1bza.jpg"], as_zip=False)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "notes.txt").symlink_to("nowhere")
    (folder / "self").symlink_to(".")
    (tmp_path / "private.jpg").write_bytes(b"private")
    (folder / "private.jpg").symlink_to(tmp_path / "private.jpg")
    (folder / "2 again.jpg").symlink_to("2.jpg")
    with (folder / "sparse.bmp").open("wb") as file:
        file.truncate(8 * 2**30)
    found = faults(folder)
    sound = {"a/1.jpg", "2.jpg", "2 again.jpg"}
    assert {path for path, fault in found.items() if not fault} == sound
    told = {
        "gone.jpg": "cannot be read (No such file or directory)",
        "pipe.jpg": "not a regular file",
        "piz\x1bza.jpg": "has a control character",
        "private.jpg": "is a link to a file outside the folder",
        "self": "is a link to a folder",
        "sparse.bmp": "has 8,589,934,592 bytes, more than the 268,435,456 allowed",
        "zero.png": "not a regular file",
    }
    assert found.keys() == sound | told.keys()
    for path, text in told.items():
        assert text in found[path]


def test_what_cannot_be_read_in_a_zip_costs_only_itself(tmp_path):
    path = tmp_path / "food.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        zip_file.writestr("a/1.jpg", b"")
        zip_file.writestr("a/2.jpg", b"", zipfile.ZIP_LZMA)
        for name, changed in (
            ("a/3.jpg", {"flag_bits": 1}),
            ("a/4.jpg", {"file_size": 2**29}),
            ("a/5.jpg", {"external_attr": stat.S_IFIFO << 16}),
        ):
            zip_file.writestr(name, b"")
            for attribute, value in changed.items():
                setattr(zip_file.infolist()[-1], attribute, value)
    found = faults(path)
    assert [name for name, fault in found.items() if not fault] == ["a/1.jpg"]
    for name, text in (("2", "LZMA"), ("3", "encrypted"), ("4", "has 536,"), ("5", "regular")):
        assert text in found[f"a/{name}.jpg"]


def test_links_to_folders_are_followed_only_when_asked(make_archive, tmp_path):
    folder = make_archive(["a/1.jpg"], as_zip=False)
    other = make_archive(["x/2.jpg"], as_zip=False)
    (folder / "b").symlink_to(other)
    for path in (folder, folder / "*", folder / "**", folder / "**" / "*"):
        found = faults(path, below=folder)
        assert found.keys() == {"a/1.jpg", "b"}
        assert not found["a/1.jpg"]
        assert "--follow_links" in found["b"]
        found = faults(path, below=folder, follow_links=True)
        assert found == {"a/1.jpg": "", "b/x/2.jpg": ""}
    assert faults(folder / "b") == {"x/2.jpg": ""}  # Who names the link asks for it.


def test_a_pattern_ends_where_links_go_round(make_archive):
    folder = make_archive(["a/1.jpg"], as_zip=False)
    for name in ("x", "y"):
        (folder / "a" / name).symlink_to(".")
    assert [path for path, fault in faults(folder / "**" / "*.jpg").items() if not fault] == [
        f"{folder}/a/1.jpg"
    ]


def test_a_pattern_finds_an_image_once(make_archive):
    folder = make_archive(["a/b/1.jpg", ".hidden/2.jpg", "a/.3.jpg"], as_zip=False)
    for pattern in ("**", "**/*", "**/*.jpg", "a/**", "*/b"):
        assert [s.path for s in sources.find([f"{folder}/{pattern}"])] == [f"{folder}/a/b/1.jpg"]


def test_a_pipe_that_is_named_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("pipe.jpg", "pipe.zip"):
        (source,) = sources.find([str(tmp_path / name)])
        with pytest.raises(OSError, match="not a regular file"):
            source.read()


def test_a_zip_with_names_in_another_encoding(tmp_path):
    path = tmp_path / "food.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        zip_file.writestr("AAAAAA/1.jpg", b"1")
        zip_file.writestr("b/2.jpg", b"2")
    path.write_bytes(path.read_bytes().replace(b"AAAAAA", "ソース".encode("cp932")))
    assert sorted(map(bool, faults(path).values())) == [False, True]
    assert faults(path, zip_encoding="cp932") == {"b/2.jpg": "", "ソース/1.jpg": ""}
    (source,) = sources.find([f"{path}/ソース"], ReadingOptions(zip_encoding="cp932"))
    assert source.read() == b"1"


def test_a_bomb_costs_only_itself(tmp_path, folder):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        for number in range(5):
            zip_file.writestr(f"{number}.jpg", b"")
            zip_file.infolist()[-1].file_size = 2**28
    good = f"{folder}/test/a/0.jpg"
    found = sources.find([str(path), good])
    assert [source.path for source in found] == [str(path), good]
    assert "--max_unpacked_gb=2" in found[0].fault
    assert not found[1].fault
    assert len(sources.find([str(path)], ReadingOptions(max_unpacked_gb=2))) == 5


@pytest.mark.parametrize(
    "url", ["https://example.com/a.jpg", "HTTP://example.com/a.zip", "s3://bucket/a.jpg"]
)
def test_a_url_is_said_to_be_one(url):
    (source,) = sources.find([url])
    assert source.path == url
    assert "is a URL; fetch it first" in source.fault


def test_a_bad_picture_has_a_reason_and_the_rest_go_on(run, folder, photographs, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "half.jpg").write_bytes(photographs["test/a/0.jpg"][:500])
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    bad = [str(tmp_path / f"{name}.jpg") for name in ("text", "half", "gone")]
    good = [str(folder / "test" / "a" / f"{n}.jpg") for n in range(4)]
    mixed = [bad[0], good[0], good[1], bad[1], bad[2], good[2], good[3]]
    predictions = prediction.predict(run, mixed, batch_size=2)
    alone = prediction.predict(run, good, batch_size=2)
    assert predictions.faults.keys() == {0, 3, 4}
    assert predictions.faults[4] == "No such file or directory"
    np.testing.assert_array_equal(predictions.probabilities[[1, 2, 5, 6]], alone.probabilities)


def test_a_damaged_member_of_a_zip_has_a_reason_and_the_rest_go_on(run, zipped, tmp_path):
    path = tmp_path / "damaged.zip"
    content = bytearray(zipped.read_bytes())
    with zipfile.ZipFile(zipped) as zip_file:
        content[zip_file.getinfo("test/a/1.jpg").header_offset + 200] ^= 0xFF
    path.write_bytes(content)
    predictions = prediction.predict(run, [f"{path}/test/a"])
    (place,) = predictions.faults
    assert predictions.paths[place] == f"{path}/test/a/1.jpg"
    assert "CRC" in predictions.faults[place]


def test_a_file_may_end_with_zeros(run, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "BMP")
    assert file.getvalue().endswith(b"\0")
    (tmp_path / "black.bmp").write_bytes(file.getvalue())
    assert prediction.predict(run, [str(tmp_path / "black.bmp")]).faults == {}


FORMULAS = ["=1+1.jpg", "+1.jpg", "-2.jpg", "@SUM.jpg"]


def test_no_cell_of_a_csv_is_a_formula(run, jpeg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a\r=1.jpg").write_bytes(jpeg())
    for name in FORMULAS:
        (tmp_path / name).write_bytes(jpeg())
    asked = PredictionConfig(csv="a.csv", json="a.json", annotate="annotated")
    paths = [*FORMULAS, "a\r=1.jpg", "=none"]
    predictions = prediction.predict(run, paths)
    predictions = dataclasses.replace(predictions, classes=["=cmd|' /C calc'!A0", "-b"])
    predictions.write(asked)
    with open("a.csv", newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    assert [row[0] for row in rows] == [*(f"'{p}" for p in FORMULAS), r"a\r=1.jpg", "'=none"]
    for _, name, probability, error in rows[: len(FORMULAS)]:
        assert name in ("'=cmd|' /C calc'!A0", "'-b")
        assert 0.5 <= float(probability) <= 1 and not error
    names = [row["path"] for row in json.loads((tmp_path / "a.json").read_text())]
    assert names == paths
    with open("annotated/predictions.csv", newline="", encoding="utf-8") as file:
        _, *listed = csv.reader(file)
    assert not any(cell.startswith(tuple("=+-@")) for row in listed for cell in row)
    predictions.write(asked)  # The folder is known again.
    assert len(os.listdir("annotated")) == 2 + len(FORMULAS)


def test_json_and_csv_say_the_same_as_the_probabilities(run, folder, tmp_path):
    (tmp_path / "bad, with a comma.jpg").write_text("no picture")
    predictions = prediction.predict(run, [f"{folder}/test/a/[4] été.jpg", str(tmp_path)])
    files = {"json": tmp_path / "a.json", "csv": tmp_path / "a.csv"}
    lines = predictions.write(PredictionConfig(**{name: str(f) for name, f in files.items()}))
    (good, bad), (row, bad_row) = (
        json.loads(files["json"].read_text()),
        csv.DictReader(files["csv"].open(newline="", encoding="utf-8")),
    )
    probabilities = dict(zip("ab", predictions.probabilities[0].tolist(), strict=True))
    assert good == {
        "path": f"{folder}/test/a/[4] été.jpg",
        "class": max(probabilities, key=probabilities.get),
        "probability": max(probabilities.values()),
        "probabilities": probabilities,
    }
    assert row == {
        **{name: str(good[name]) for name in ("path", "class", "probability")},
        "error": "",
    }
    assert bad == {"path": f"{tmp_path}/bad, with a comma.jpg", "error": predictions.faults[1]}
    assert (bad_row["path"], bad_row["error"]) == (bad["path"], bad["error"])
    assert lines.split()[-2:] == [good["class"], f"{good['probability']:.4f}"]
    assert sorted(tmp_path.iterdir()) == sorted(
        [*files.values(), tmp_path / "bad, with a comma.jpg"]
    )


def test_the_standard_output_is_written_once_and_a_file_whole(run, folder):
    predictions = prediction.predict(run, [f"{folder}/test/a/0.jpg"])
    assert json.loads(predictions.write(PredictionConfig(json="-")))[0]["class"] in "ab"
    assert predictions.write(PredictionConfig(csv="-")).startswith("path,class,")
    with pytest.raises(UserError, match="both are -"):
        predictions.write(PredictionConfig(json="-", csv="-"))
    with pytest.raises(UserError, match=r"/nowhere/a\.json"):
        predictions.write(PredictionConfig(json="/nowhere/a.json"))


def test_the_most_probable_classes_come_first(run, folder, tmp_path):
    predictions = prediction.predict(run, [f"{folder}/test/a/0.jpg"])
    row = dict(zip("ab", predictions.probabilities[0].tolist(), strict=True))
    best, other = sorted(row, key=row.get, reverse=True)
    for top in (2, 3):  # There are no more than two classes.
        asked = PredictionConfig(top=top, csv=str(tmp_path / "top.csv"))
        (line,) = predictions.write(asked).splitlines()
        assert line.split()[1:] == [best, f"{row[best]:.4f}", other, f"{row[other]:.4f}"]
        (read,) = csv.DictReader((tmp_path / "top.csv").open(newline=""))
        assert (read["class"], read["class_2"]) == (best, other)
        assert float(read["probability_2"]) == row[other]


def predictions_of(classes, probabilities, faults=()):
    found = [sources.Source(f"{number}.jpg", bytes) for number in range(len(probabilities))]
    return prediction.Predictions(
        found, classes, np.array(probabilities, np.float32), dict.fromkeys(faults, "missing")
    )


def test_images_are_counted_by_class_and_the_most_frequent_class_comes_first():
    rows = [[0.2, 0.8], [0.9, 0.1], [0.3, 0.7], [0.9, 0.1]]
    assert predictions_of(["a", "b"], rows, [3]).counts() == "3 images: b 2, a 1\n"
    assert predictions_of(["a", "b"], rows[:1]).counts() == ""  # The line says all.
    many = predictions_of([f"class_{number}" for number in range(30)], np.eye(30))
    assert many.counts().endswith("class_9 1, 20 other classes\n")


def test_columns_of_wide_letters_are_aligned():
    lines = predictions_of(["寿司", "pizza"], np.eye(2)).write(PredictionConfig())
    assert lines == "0.jpg  寿司   1.0000\n1.jpg  pizza  1.0000\n"


def annotate(run, images, folder, **asked):
    predictions = prediction.predict(run, list(map(str, images)))
    predictions.write(PredictionConfig(annotate=str(folder), **asked))
    with (folder / annotation.LISTING).open(newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_annotated_images_have_the_photograph_and_text_below_it(run, folder, tmp_path, jpeg):
    (tmp_path / "bad.jpg").write_text("no picture")
    (tmp_path / "wide.jpg").write_bytes(jpeg(1, 800, 400))
    image = f"{tmp_path}/wide.jpg"
    rows = annotate(run, [image, tmp_path / "bad.jpg", "none.jpg"], tmp_path / "out")
    assert rows.keys() == {image}
    assert rows[image]["class"] in "ab"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "predictions.csv",
        "wide.jpg",
    ]
    heights = []
    for top in (1, 2):
        annotate(run, [image], tmp_path / "out", top=top)
        with Image.open(tmp_path / "out" / "wide.jpg") as drawn, Image.open(image) as photograph:
            pixels = np.asarray(drawn, int)
            assert pixels.shape[1] == 800
            assert np.abs(pixels[:400] - np.asarray(photograph, int)).mean() < 5
            below = pixels[405:]
            assert below.max() == 255
            assert below.min() < 50  # Letters.
            heights.append(len(pixels))
    assert 400 < heights[0] < heights[1]


def test_small_images_are_enlarged_and_large_ones_made_smaller(run, tmp_path, jpeg):
    for name, width, height in (("small", 20, 10), ("large", 3000, 1500)):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(1, width, height))
    annotate(run, tmp_path.glob("*.jpg"), tmp_path / "out")
    for name, width in (("small", 320), ("large", 1024)):
        with Image.open(tmp_path / "out" / f"{name}.jpg") as image:
            assert image.width == width


@pytest.mark.parametrize(
    "paths, names",
    [
        (["x/1.jpg", "y/2.png"], ["1.jpg", "2.jpg"]),
        (["x/a/1.jpg", "x/b/1.png", "2.jpg"], ["a_1.jpg", "b_1.jpg", "2.jpg"]),
        (["x/a/1.jpg", "y/a/1.jpg"], ["x_a_1.jpg", "y_a_1.jpg"]),
        (["/1.jpg", "/1.png"], ["1.jpg", "1-2.jpg"]),
        (["a/1.jpg", "a/1.JPG", "1.jpg"], ["a_1.jpg", "a_1-2.jpg", "1.jpg"]),
        (["1.jpg", "1.jpg"], ["1.jpg"]),
        (["1.jpg", "1.png", "1-2.jpg"], ["1.jpg", "1-2.jpg", "1-2-2.jpg"]),
        (["../1.jpg", "a/1.jpg"], ["1.jpg", "a_1.jpg"]),
        (["food.zip/寿司/1.jpg", "food.zip/b/1.jpg"], ["寿司_1.jpg", "b_1.jpg"]),
    ],
)
def test_images_with_the_same_name_are_kept_apart(paths, names):
    assert list(annotation.distinct_names(paths).values()) == names


def test_an_annotated_folder_is_replaced_and_any_other_is_refused(run, folder, tmp_path):
    out = tmp_path / "out"
    annotate(run, [f"{folder}/test/a/0.jpg"], out)
    annotate(run, [f"{folder}/test/b/1.jpg"], out)
    assert sorted(path.name for path in out.iterdir()) == ["1.jpg", "predictions.csv"]
    (out / "mine.txt").write_text("")
    before = snapshot(out)
    for path in (out, folder, out / "mine.txt", "/dev/null/out"):
        with pytest.raises(UserError, match=r"annotate .*; pass another --annotate") as caught:
            prediction.check_outputs(PredictionConfig(annotate=str(path)))
        assert len(str(caught.value).splitlines()) == 1
    assert snapshot(out) == before


@pytest.mark.slow
def test_the_command_tells_pictures_errors_and_a_status(run, folder, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    argv = [f"{folder}/test/b/0.jpg", "none.jpg", str(tmp_path), f"{folder}/test/b/1.jpg"]
    argv += [f"--run_dir={run.path}", f"--annotate={tmp_path}/out"]
    status, stdout, stderr = run_command(*argv, command="predict", fresh=True)
    assert status == 1
    assert [line.split()[0] for line in stdout.splitlines()] == [argv[0], argv[3]]
    saved, counts, *errors = stderr.splitlines()
    assert saved == f"annotated images saved to {tmp_path}/out"
    assert counts.startswith("2 images: ")
    assert [error.split(": ")[1] for error in errors] == ["none.jpg", f"{tmp_path}/bad.jpg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv, status, named",
    [
        (["--run_dir=runs/1"], 2, "IMAGE"),
        (["a.jpg", "--run_dri=runs/1"], 2, "run_dri"),
        (["a.jpg"], 1, "run_dir"),
    ],
)
def test_wrong_flags_and_input_are_one_line_and_a_status(argv, status, named):
    done = run_command(*argv, command="predict")
    (line,) = done[2].splitlines()
    assert done[:2] == (status, "")
    assert line.startswith("error: ")
    assert named in line


@pytest.mark.slow
def test_help_does_not_wait_for_tensorflow():
    status, stdout, imports = run_command("--help", python=["-X", "importtime"], command="predict")
    assert status == 0
    assert "--run_dir" in stdout
    assert "tensorflow" not in imports
