import gc
import hashlib
import io
import os
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from images import encode, noise
from PIL import Image

from pizza_steak.decoded import CACHES, DecodedPictures, StreamedPictures, decode
from pizza_steak.decoding import Format, decode_image
from pizza_steak.errors import BadImageError, UserError, quoted
from pizza_steak.records import prepare


def decoded(encoded, size, interpolation="nearest"):
    return decode_image(encoded, Format(size, interpolation))


def gathered(pictures, rows):
    return pictures.gather(tf.constant(rows, tf.int64)).numpy()


def test_decodes_by_content_whatever_the_name_says(make_records):
    images = {
        f"{label}/{file_format}.jpg": encode(noise(37, 21, seed=seed), file_format)
        for label in ("pizza", "steak")
        for seed, file_format in enumerate(["PNG", "BMP", "GIF", "WEBP", "TIFF", "AVIF", "PPM"])
    }
    records = make_records(images)
    pictures = decode(records, Format((21, 37), "nearest"))
    for row, filename in enumerate(records.filenames):
        with Image.open(io.BytesIO(images[filename])) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(gathered(pictures, [row])[0], expected)


LAYOUT = [f"train/{label}/{number}.jpg" for label in ("pizza", "steak") for number in range(70)]


@pytest.fixture(scope="module")
def food(make_records):
    """More pictures than are read at once."""
    return make_records(LAYOUT)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_the_same_pixels_from_disk_from_memory_and_streamed(food, interpolation):
    size = (16, 20)
    rows = np.random.default_rng(0).integers(0, len(LAYOUT), 50)
    expected = [decoded(encoded, size, interpolation) for encoded in food.read(rows).numpy()]
    for cache in CACHES:
        pictures = decode(food, Format(size, interpolation), cache=cache)
        np.testing.assert_array_equal(gathered(pictures, rows), expected, err_msg=cache)
        assert not pictures.bad


def test_one_number_is_height_and_width(food):
    assert decode(food, 10).array.shape == (len(LAYOUT), 10, 10, 3)


def test_the_array_is_read_only(food):
    with pytest.raises(ValueError, match="read-only"):
        decode(food, 10).array[0] = 0


def arrays(records):
    return sorted(records.folder.glob("*/images.npy"))


def test_each_size_and_interpolation_has_an_array_of_its_own(make_records):
    records = make_records(LAYOUT[60:80])
    kinds = [((8, 9), "nearest"), ((9, 8), "nearest"), ((8, 9), "bilinear"), ((8, 8), "area")]
    for count, (size, interpolation) in enumerate(kinds, 1):
        assert decode(records, Format(size, interpolation)).array.shape[1:3] == size
        assert len(arrays(records)) == count


def test_nothing_is_kept_where_nothing_is_asked_to_be(make_records):
    records = make_records(LAYOUT[60:80])
    for cache in ("memory", "none"):
        decode(records, 8, cache=cache)
        assert not arrays(records)


def test_a_second_call_decodes_nothing(make_records):
    records = make_records(LAYOUT[60:80])
    before = decode(records, 8).array
    (file,) = arrays(records)
    status = file.stat()
    for path in records.folder.glob("*tfrecord*"):
        path.unlink()  # Whoever decodes again must read these.
    np.testing.assert_array_equal(decode(records, 8).array, before)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)


def test_without_room_on_the_disk_pictures_are_streamed(make_records, monkeypatch, caplog):
    records = make_records(LAYOUT[60:80])
    room = 20 * 8 * 8 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=room))
    with caplog.at_level("WARNING", logger="absl"):
        pictures = decode(records, 8)
    assert isinstance(pictures, StreamedPictures)
    assert "no room on the disk" in caplog.text
    assert not arrays(records)

    room += 1000
    stored = decode(records, 8)
    np.testing.assert_array_equal(gathered(pictures, range(20)), stored.array)
    room = 0
    np.testing.assert_array_equal(decode(records, 8).array, stored.array)


@pytest.fixture(scope="module")
def spoilt(make_records, jpeg):
    """Records of sound pictures and three that cannot be decoded."""
    layout = {name: jpeg(seed) for seed, name in enumerate(LAYOUT)}
    whole = jpeg(99, 64, 64)
    layout["train/pizza/truncated.jpg"] = whole[: len(whole) // 2]
    layout["train/steak/text.jpg"] = b"<html>404</html>"
    layout["train/steak/empty.jpg"] = b""
    return make_records(layout)


BAD = {"train/pizza/truncated.jpg", "train/steak/text.jpg", "train/steak/empty.jpg"}


@pytest.mark.parametrize("cache", CACHES)
def test_all_bad_pictures_are_named_in_one_line(spoilt, cache):
    for _ in range(2):  # Made anew, then found.
        with pytest.raises(BadImageError) as raised:
            decode(spoilt, 12, cache=cache)
        message = str(raised.value)
        assert "\n" not in message
        assert "3 images" in message and "--on_bad_image=skip" in message
        assert all(filename in message for filename in BAD)
        assert {filename for filename, _ in raised.value.failures} == BAD


@pytest.mark.parametrize("cache", CACHES)
def test_bad_pictures_are_skipped_and_the_others_intact(spoilt, cache, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        pictures = decode(spoilt, 12, cache=cache, on_bad_image="skip")
    assert all(filename in caplog.text for filename in BAD)
    assert {spoilt.filenames[row] for row in pictures.bad} == BAD
    sound = np.setdiff1d(np.arange(len(spoilt.labels)), [*pictures.bad])
    expected = [decoded(encoded, (12, 12), "bilinear") for encoded in spoilt.read(sound).numpy()]
    np.testing.assert_array_equal(gathered(pictures, sound), expected)


MEMORY_SHORT = """
import pathlib, resource, sys
from pizza_steak import decoded, decoding, records
from pizza_steak.errors import UserError

prepared = records.prepare(archive=sys.argv[1], data_dir=sys.argv[2])
decoded.decode(prepared, decoding.Format((8, 8), max_pixels=1), cache="memory", on_bad_image="skip")
format = decoding.Format((8, 8), "nearest")
for cache in decoded.CACHES:
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**27, -1))
    try:
        decoded.decode(prepared, format, cache=cache, on_bad_image="skip")
    except UserError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    assert not list(prepared.folder.glob(f"[!.]*{format.name}*"))
print(decoded.decode(prepared, format, on_bad_image="skip").bad)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's counters")
def test_nothing_is_kept_when_memory_is_short(make_archive, tmp_path, run_python):
    large = encode(Image.new("RGB", (8000, 8000)), "JPEG", progressive=True)
    archive = make_archive({f"train/{label}/1.jpg": large for label in ("pizza", "steak")})
    *errors, bad = run_python(MEMORY_SHORT, archive, tmp_path).splitlines()
    assert [error.partition(":")[0] for error in errors] == ["memory"] * len(CACHES)
    assert bad == "{}"


def test_lost_records_are_no_fault_of_an_image(make_records):
    records = make_records(LAYOUT[60:80])
    streamed = StreamedPictures(records, Format((8, 8)), {})
    for path in records.folder.glob("*tfrecord*"):
        path.unlink()
    for cache in CACHES:
        with pytest.raises(UserError, match="cannot be read: No such file"):
            decode(records, 8, cache=cache, on_bad_image="skip")
    assert not [*records.folder.glob("decoded-*"), *records.folder.glob("checked-*")]
    with pytest.raises(tf.errors.OpError) as raised:
        list(tf.data.Dataset.range(1).batch(1).map(streamed.gather))
    assert "cannot be read: No such file" in str(quoted(raised.value))


def holds_data(file):
    return file.stat().st_blocks > 0  # A hole takes none, however large the file.


@pytest.mark.slow
def test_killed_halfway_leaves_no_array(make_archive, tmp_path, start_python):
    code = """
import sys
from pizza_steak import decoded, records
decoded.decode(records.prepare(archive=sys.argv[1], data_dir=sys.argv[2]), 1024)
"""
    archive = make_archive(LAYOUT)
    process = start_python(code, archive, tmp_path)
    while not any(map(holds_data, tmp_path.glob("pizza_steak/*/1.0.0/.*.decoded-*/images.npy"))):
        assert process.poll() is None, process.stderr.read()
    process.kill()
    process.wait()

    food = prepare(archive=archive, data_dir=tmp_path)
    assert not list(food.folder.glob("decoded-*"))
    rows = np.array([0, len(LAYOUT) - 1])
    expected = [decoded(encoded, (1024, 1024), "bilinear") for encoded in food.read(rows).numpy()]
    np.testing.assert_array_equal(gathered(decode(food, 1024), rows), expected)


@pytest.mark.slow
def test_two_processes_decoding_at_once_make_one_sound_array(make_archive, tmp_path, run_at_once):
    code = """
import hashlib, sys
from pizza_steak import decoded, records
food = records.prepare(archive=sys.argv[1], data_dir=sys.argv[2])
wait()
print(hashlib.sha256(decoded.decode(food, 128).array.tobytes()).hexdigest())
"""
    archive = make_archive(LAYOUT)
    food = prepare(archive=archive, data_dir=tmp_path)
    digests = [output.strip() for output in run_at_once(2, code, archive, tmp_path)]
    expected = decode(food, 128, cache="memory").array
    assert digests == [hashlib.sha256(expected.tobytes()).hexdigest()] * 2
    np.testing.assert_array_equal(np.load(*food.folder.rglob("images.npy")), expected)


LARGER_THAN_MEMORY = """
import os, sys
import numpy as np
import tensorflow as tf
from pizza_steak.decoded import DecodedPictures
from pizza_steak.input_pipeline import batches

array = np.asarray(np.load(sys.argv[1], mmap_mode="r"))
if sys.argv[2] == "deterministic":
    tf.keras.utils.set_random_seed(1)
    tf.config.experimental.enable_op_determinism()
pictures = DecodedPictures(array, bad={})
rows = np.array([0, len(array) // 2, len(array) - 1])
dataset = batches(pictures, rows, None, 2, augment=lambda images, seeds: images + 1)
del array, pictures
found = [images[:, 0, 0, 0].tolist() for images in dataset.as_numpy_iterator()]
nested = tf.data.Dataset.range(1).flat_map(lambda _: dataset)
strategy = tf.distribute.MirroredStrategy(["CPU:0"])
for other in (nested, strategy.experimental_distribute_dataset(dataset)):
    assert [images.numpy()[:, 0, 0, 0].tolist() for images in other] == found
anonymous = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
print(found, int(anonymous.split()[1]) < 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's counters")
@pytest.mark.parametrize("mode", ["default", "deterministic"])
def test_an_array_larger_than_memory_is_gathered_in_place(run_python, tmp_path, mode):
    path = tmp_path / "images.npy"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shape = (memory // (512 * 512 * 3) + 1_000, 512, 512, 3)
    with path.open("wb") as file:  # Sparse: it takes no room on the disk.
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + np.prod(shape))
        for row, pixel in ((shape[0] // 2, 7), (shape[0] - 1, 9)):
            file.seek(start + row * np.prod(shape[1:]))
            file.write(bytes([pixel]))
    path.chmod(0o444)
    assert run_python(LARGER_THAN_MEMORY, path, mode).strip() == "[[1, 8], [10]] True"


def test_images_outlive_the_array_that_held_them(food):
    pictures = decode(food, 10, cache="memory")
    dataset = tf.data.Dataset.range(3).batch(3).map(pictures.gather)
    expected = pictures.array[:3].copy()
    del pictures
    gc.collect()
    np.testing.assert_array_equal(next(dataset.as_numpy_iterator()), expected)


def test_no_image_is_gathered_from_an_empty_array():
    pictures = DecodedPictures(np.zeros((0, 4, 5, 3), np.uint8), bad={})
    assert gathered(pictures, []).shape == (0, 4, 5, 3)
