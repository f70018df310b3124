"""A folder of one's own photographs, as a stranger has it, from one command to honest numbers."""

import json
import shutil

import numpy as np
import own_photographs
import pytest
from images import encode
from PIL import Image
from small_runs import fit, pictures

from pizza_steak import decoding, inspection
from pizza_steak.configuration import InspectConfig, SourceConfig

COUNTS = {"train": 42, "validation": 9, "test": 9}  # Of the 60 of each class.


@pytest.fixture(scope="module")
def archive(make_archive):
    """A zip with more of each of four classes than the script takes."""
    names = ("dark", "light", "middle", "light too")
    images = {name: pictures(f"train/{name.split()[0]}", 70) for name in names}
    return make_archive(
        {
            f"train/{name}/{number}.jpg": encode(Image.fromarray(pixels[:24]), "JPEG")
            for name in names
            for number, pixels in enumerate(images[name])
        }
    )


@pytest.fixture(scope="module")
def folder(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "holiday"
    own_photographs.make(archive, folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """`trained(archive)`: what the own-folder command gives, in an empty data_dir."""

    def train(path, *flags):
        place = tmp_path_factory.mktemp("trained")
        sizes = ["--image_size=16", "--epochs=1", "--notensorboard", *flags]
        where = [f"--data_dir={place / 'data'}", f"--run_dir={place / 'run'}"]
        return fit(f"--archive={path}", *sizes, *where)

    return train


def test_the_folder_is_what_a_phone_leaves(folder):
    found = inspection.report(InspectConfig(SourceConfig(archive=str(folder))))
    assert "turned      18 by EXIF orientation" in found
    assert "PNG 12, WEBP 12" in found
    assert ("HEIF 1" in found) == ("HEIF" in decoding.KINDS)
    stored, upright = folder / "dark" / "IMG_0000.jpg", decoding.Format((24, 32), "nearest")
    assert Image.open(stored).size == (24, 32)
    assert decoding.decode_image(stored.read_bytes(), upright).shape == (24, 32, 3)


@pytest.mark.slow
def test_one_command_trains_validates_and_tests_on_it(trained, folder):
    result = trained(folder)
    environment = json.loads((result.run_dir / "environment.json").read_text())
    counts = {name: split["images"] for name, split in environment["splits"].items()}
    assert counts == {name: 3 * count for name, count in COUNTS.items()}
    assert environment["overlaps"] == {}
    values = result.values
    low, high = values["test_accuracy_interval"]
    assert low < values["test_accuracy"] < high or values["test_accuracy"] in (low, high)
    assert values["test_images_chose_the_model"] is False
    assert f"({low:.2f} to {high:.2f}, 27 images)" in result.summary()


@pytest.mark.slow
def test_the_same_folder_zipped_is_the_same_run(trained, folder, tmp_path):
    zipped = shutil.make_archive(tmp_path / "photographs", "zip", folder)
    runs = [trained(path) for path in (folder, zipped)]
    one, other = (json.loads((r.run_dir / "environment.json").read_text()) for r in runs)
    assert one["splits"] == other["splits"]
    assert one["fingerprint"] == other["fingerprint"]
    assert runs[0].values["history"] == runs[1].values["history"]


@pytest.mark.slow
def test_images_that_exif_turns_are_other_pixels_when_it_is_ignored(trained, folder):
    applied, ignored = (trained(folder, f"--exif={exif}").values for exif in decoding.EXIF)
    assert not np.array_equal(applied["history"]["loss"], ignored["history"]["loss"])
