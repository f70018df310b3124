"""`python -m trainers.predict`: the pictures that it finds, and what it says of them."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from small_runs import fit, run_command

from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import PredictionConfig
from trainers.finished import loading, prediction, sources
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

    files = [str(folder / name) for name in data.records.filenames[rows]]
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
    "empty folder": ("{here}/empty", "empty: no image there"),
    "empty pattern": ("{here}/*.gif", "*.gif: no image there"),
    "no such member": ("{zip}/none", "none: no image there"),
    "not a zip": ("{here}/no.zip", "not a zip file"),
    "member of no zip": ("{here}/no.zip/a.jpg", "not a zip file"),
    "too long a name": ("x" * 300, "xxx: no image there"),
}


@pytest.mark.parametrize("path, message", NOT_FOUND.values(), ids=NOT_FOUND)
def test_a_path_without_pictures_is_one_line(zipped, tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_text("no zip")
    with pytest.raises(UserError) as caught:
        sources.find([path.format(here=tmp_path, zip=zipped)])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


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


@pytest.mark.slow
def test_the_command_tells_pictures_errors_and_a_status(run, folder, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    argv = [f"{folder}/test/b/0.jpg", str(tmp_path), f"--run_dir={run.path}"]
    status, stdout, stderr = run_command(*argv, command="predict", fresh=True)
    (line,), (error,) = stdout.splitlines(), stderr.splitlines()
    assert status == 1
    assert line.startswith(f"{folder}/test/b/0.jpg  ")
    assert error.startswith(f"error: {tmp_path}/bad.jpg: ")


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
