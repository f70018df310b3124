"""Image files that are damaged, or made to take memory and time: who decodes them, at what cost."""

import contextlib
import itertools
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from images import encode, noise
from measurements import fuzzed_images

from pizza_steak import archive, decoding, decoding_in_graph, inspection
from pizza_steak.decoded import CACHES, decode
from pizza_steak.decoding import Format, decode_images
from pizza_steak.errors import ArchiveError, MachineError, UserError

SMALL = Format((8, 8))


def fault(encoded, format=SMALL):
    """Why an image is not decoded, or ""."""
    return decode_images(1, lambda place: encoded, format)[1][0]


def refused_by_graph(encoded, format=SMALL):
    try:
        tf.function(decoding_in_graph.decode_image)(tf.constant(encoded), format)
    except tf.errors.InvalidArgumentError as error:
        return str(error)
    return ""


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(*chunks, width=12, height=8, rows=None):
    """A PNG file with chunks between its header and its pixels."""
    rows = np.random.default_rng(0).bytes(height * (1 + 3 * width)) if rows is None else rows
    rows = bytes(0 if n % (1 + 3 * width) == 0 else byte for n, byte in enumerate(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_scans(count):
    """A progressive JPEG whose last scan is repeated."""
    jpeg = encode(noise(24, 16), "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", jpeg)]
    last = jpeg[starts[-1] : -2]
    return jpeg[:-2] + last * (count - len(starts)) + jpeg[-2:]


def damaged_images():
    """Sound, odd and damaged files, by name."""
    whole = png()
    files = {"whole.png": whole}
    files |= {f"cut {count}.png": whole[:-count] for count in range(1, 17)}
    text = chunk(b"tEXt", b"Comment\0words")
    files["checksum of text.png"] = png(text[:-1] + bytes([text[-1] ^ 1]))
    large = zlib.compress(bytes(2**21))
    files["large zTXt.png"] = png(chunk(b"zTXt", b"Comment\0\0" + large))
    files["large iTXt.png"] = png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + large))
    files["large iCCP.png"] = png(chunk(b"iCCP", b"icc\0\0" + large))
    files["plain text.png"] = png(text)
    files["unknown critical.png"] = png(chunk(b"ABCD", b"content"))
    files["unknown ancillary.png"] = png(chunk(b"abCd", b"content"))
    pixels = whole.index(b"IDAT") + 4
    for name, place in (("start", pixels + 20), ("middle", pixels + 100), ("end", pixels + 280)):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        files[f"{name} of pixels.png"] = bytes(broken)
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM"):
        sound = encode(noise(37, 21), kind)
        files[f"sound.{kind}"] = sound
        for count in (1, 2, 5, 20, len(sound) // 2):
            files[f"cut {count}.{kind}"] = sound[:-count]
        for number in range(6):
            changed = bytearray(sound)
            changed[rng.integers(len(sound))] ^= 1 << rng.integers(8)
            files[f"bit {number}.{kind}"] = bytes(changed)
    return files


def test_inspect_training_and_the_service_agree_on_damaged_images(make_archive, make_records):
    files = damaged_images()
    layout = {
        f"train/{label}/{name}.jpg": content + (label == "b") * b" "
        for label in "ab"
        for name, content in files.items()
    }
    examples = inspection._examples(archive.read_archive(make_archive(layout)))
    found = inspection.inspect("damaged", {}, examples).broken()
    assert len(layout) / 4 < len(found) < len(layout)
    prepared = make_records(layout)
    for cache, format in itertools.product(CACHES, (SMALL, Format((9, 5), "nearest", "crop"))):
        bad = decode(prepared, format, cache=cache, on_bad_image="skip").bad
        assert found == {prepared.filenames[row]: reason for row, reason in bad.items()}

    rows = np.setdiff1d(np.arange(len(layout)), [*bad])
    rows = np.setdiff1d(rows, decoding_in_graph.for_pillow(prepared, SMALL))
    graph = tf.function(decoding_in_graph.decode_image)
    names = {prepared.filenames[row].rpartition(".jpg")[0].partition("a/")[2] for row in rows}
    assert {"whole.png", "plain text.png", "sound.JPEG"} <= names
    for row in rows:
        (encoded,) = prepared.encoded(np.array([row]))
        expected = decoding.decode_image(encoded, SMALL)
        np.testing.assert_array_equal(graph(tf.constant(encoded), SMALL).numpy(), expected)


def test_a_png_with_broken_pixels_is_refused_whether_turned_or_not():
    for broken in [content for name, content in damaged_images().items() if "of pixels" in name]:
        for exif in decoding.EXIF:
            assert fault(broken, Format((8, 8), exif=exif))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF"])
def test_the_limit_of_pixels_is_the_same_everywhere(kind, make_archive, make_records):
    encoded = encode(noise(37, 21), kind)
    within, beyond = (Format((8, 8), max_pixels=37 * 21 - less) for less in (0, 1))
    assert not fault(encoded, within)
    reason = fault(encoded, beyond)
    assert "37 x 21" in reason and "--max_pixels" in reason
    if kind in ("JPEG", "PNG"):
        assert not refused_by_graph(encoded, within)
        assert "at most 776 pixels" in refused_by_graph(encoded, beyond)

    layout = {f"train/{label}/{kind}.jpg": encoded for label in "ab"}
    examples = list(inspection._examples(archive.read_archive(make_archive(layout))))
    for format in (within, beyond):
        found = inspection.inspect("large", {}, examples, max_pixels=format.max_pixels)
        assert len(found.broken()) == 2 * (format is beyond)
        assert (found.formats(), found.measures()["width"]["most"]) == ({kind: 2}, 37)


@pytest.mark.parametrize("width, height", [(decoding.MAX_SIDE + 1, 1), (1, 100_000)])
def test_too_long_sides_are_refused(width, height):
    encoded = png(width=width, height=height)
    assert f"{width:,} x {height:,} pixels, expected at most 65,535 on each side" in fault(encoded)
    assert "65535 on a side" in refused_by_graph(encoded)
    assert not fault(png(width=decoding.MAX_SIDE, height=1))


def test_a_verdict_is_not_kept_for_another_limit(make_records):
    layout = {f"train/{label}/1.jpg": encode(noise(37, 21), "PNG") for label in "ab"}
    prepared = make_records(layout)
    for max_pixels, bad in ((776, 2), (777, 0), (776, 2)):
        format = Format((8, 8), max_pixels=max_pixels)
        for cache in CACHES:
            found = decode(prepared, format, cache=cache, on_bad_image="skip").bad
            assert len(found) == bad


@pytest.mark.parametrize("max_pixels", [0, -1, 1.5, decoding.MOST_PIXELS + 1])
def test_a_limit_that_cannot_be_is_refused(max_pixels):
    with pytest.raises(UserError, match="max_pixels"):
        Format((8, 8), max_pixels=max_pixels)


def test_jpegs_of_too_many_scans_are_refused_before_they_are_decoded():
    most = decoding.MAX_SCANS
    assert not fault(with_scans(most))
    assert not refused_by_graph(with_scans(most))
    for count in (most + 1, most + 2, 10_000):
        assert f"{count:,} scans" in fault(with_scans(count))
    assert "scans" in refused_by_graph(with_scans(10_000))


def test_what_only_looks_like_scans_does_not_count():
    jpeg = encode(noise(24, 16), "JPEG")
    thumbnails = b"".join(segment(0xE5, b"\xff\xda" * 100) for _ in range(5))
    within, behind = jpeg[:2] + thumbnails + jpeg[2:], jpeg + b"\xff\xda" * 500
    for encoded in (within, behind):
        pixels = decoding.decode_image(encoded, SMALL)
        np.testing.assert_array_equal(pixels, decoding.decode_image(jpeg, SMALL))


def exif_of_overlapping_values(size):
    """EXIF data with many tags, each of whose values is all of it."""
    count = size // 24
    entries = (struct.pack("<HHLL", tag + 1, 7, size, 0) for tag in range(count))
    start = b"II*\0" + struct.pack("<LH", 8, count) + b"".join(entries) + bytes(4)
    return start + bytes(size - len(start))


def tiff_of_strips(count):
    """A TIFF whose strips have one pixel each, all the same."""
    start = 8 + 2 + 12 * 9 + 4
    values = {256: 1, 257: count, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    entries = [(tag, 4, 1, value) for tag, value in values.items()]
    entries += [(273, 4, count, start), (279, 4, count, start + 4 * count)]
    directory = b"".join(struct.pack("<HHLL", *entry) for entry in sorted(entries))
    columns = np.repeat(np.array([start + 8 * count, 1], "<u4"), count).tobytes()
    return b"II*\0" + struct.pack("<LH", 8, 9) + directory + bytes(4) + columns + b"\0"


def bombs():
    """Small files that say or unpack to a lot, by name."""
    jpeg, side = encode(noise(24, 16), "JPEG"), 13_300
    packed = zlib.compressobj()
    much = b"".join([*(packed.compress(bytes(2**20)) for _ in range(100)), packed.flush()])
    exif = exif_of_overlapping_values(2**20)
    parts = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    many = b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts)
    gif = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    bmp = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 4, 0, 0, 256, 0) + bytes(4 * 256)
    wide = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    webp = b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0/\x7f\xfe\x9f\x0f\x07\x10\x11\xfd\x0fDD\xff\x03"
    return {
        "zTXt.png": png(chunk(b"zTXt", b"Comment\0\0" + much)),
        "iCCP.png": png(chunk(b"iCCP", b"icc\0\0" + much)),
        "many zTXt.png": png(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20))) * 500),
        "pixels.png": png(chunk(b"IDAT", much)),
        "eXIf.png": png(chunk(b"eXIf", exif)),
        "20,000.png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", wide) + chunk(b"IDAT", much[:9000]),
        "EXIF.jpg": jpeg[:2] + many + jpeg[2:],
        "13,300.jpg": re.sub(
            rb"(\xff\xc0.{3}).{4}",
            lambda f: f[1] + struct.pack(">HH", side, side),
            jpeg,
            flags=re.S,
        ),
        "scans.jpg": with_scans(100_000),
        "13,300.gif": gif + frame + b";",
        "frames.gif": gif[:6] + b"\x08\0\x08\0" + gif[10:] + frame * 200_000 + b";",
        "comments.gif": gif[:6]
        + b"\x08\0\x08\0"
        + gif[10:]
        + b"!\xfe\1a\0" * 200_000
        + frame
        + b";",
        "13,300.bmp": b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + bmp + b"\0\1\0\1",
        "16,000.webp": webp,
        "frames.webp": encode(
            noise(8, 8),
            "WEBP",
            save_all=True,
            append_images=[noise(8, 8, seed=n) for n in range(99)],
        ),
        "overlap.tif": exif_of_overlapping_values(2**20),
        "strips.tif": tiff_of_strips(2**20),
        "20,000.ppm": b"P6 20000 20000 255\n" + bytes(1000),
        "comments.ppm": b"P3 1 1 255\n" + b"#\n" * 2**20 + b"1 1 1\n",
    }


COST = """
import pathlib, sys, time
from pizza_steak import decoding

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1000

for path in map(pathlib.Path, sys.argv[1:]):
    encoded = path.read_bytes()
    before = peak()
    faults = decoding.decode_images(1, lambda place: encoded, decoding.Format((8, 8)))[1]
    print(path.name, peak() - before, *faults, sep="\\t", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads Linux's counters")
def test_no_small_file_takes_much_memory_or_time(tmp_path):
    files = bombs()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-W", "ignore", "-c", COST, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * len(files))
    assert done.returncode == 0, done.stderr
    found = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert found.keys() == files.keys()
    for name, text in found.items():
        megabytes, reason = text.split("\t")
        assert int(megabytes) < 200, name
        if name[0] in "12":
            assert re.search("pixels, expected at most 89,478,485|than 178,956,970 pixels", reason)
        if name.startswith("scans"):
            assert "100,000 scans, expected at most 100" in reason


MEMORY_SHORT = """
import os, pathlib, resource, sys
from pizza_steak import decoding, errors

page = resource.getpagesize()
for path in map(pathlib.Path, sys.argv[1:]):
    encoded = path.read_bytes()
    for megabytes in range(0, 48, 6):
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
            continue
        size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * page
        resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20, -1))
        try:
            _, faults = decoding.decode_images(
                1, lambda place: encoded, decoding.Format((8, 8), "nearest")
            )
            print(path.name, *faults, sep="\\t", flush=True)
        except errors.UserError as error:
            print(path.name, error, sep="\\t", flush=True)
        os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's counters")
def test_short_memory_is_no_fault_of_an_image(tmp_path):
    image, half = noise(1500, 1500), noise(1000, 1000)
    files = {
        "baseline.jpg": encode(image, "JPEG"),
        "progressive.jpg": encode(image, "JPEG", progressive=True),
        "lossy.webp": encode(image, "WEBP", method=0),
        "lossless.webp": encode(half, "WEBP", lossless=True, method=0, quality=0),
        "image.png": encode(image, "PNG", compress_level=0),
        "image.gif": encode(image.convert("P"), "GIF"),
        "image.tif": encode(image, "TIFF", compression="tiff_lzw"),
        "image.avif": encode(half, "AVIF", speed=10),
    }
    if "HEIF" in decoding.KINDS:
        files["image.heic"] = encode(half, "HEIF")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", MEMORY_SHORT, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = {name: set() for name in files}
    for line in done.stdout.splitlines():
        name, text = line.split("\t")
        found[name].add(text[:30])
    for name in files:
        assert found[name] == {"", "memory: too little to decode i"}, name


def test_a_machines_fault_is_no_verdict_and_a_missing_file_is_one(tmp_path):
    def broken_disk(place):
        with open("/proc/self/mem", "rb", buffering=0) as file:
            return file.read(10)  # Linux answers EIO.

    def no_file_left(place):
        with contextlib.ExitStack() as opened:
            while True:
                opened.enter_context(open(os.devnull))

    with pytest.raises(MachineError, match="Input/output error"):
        decode_images(1, broken_disk, SMALL)
    with pytest.raises(MachineError, match="Too many open files"):
        decode_images(1, no_file_left, SMALL)
    _, faults = decode_images(1, lambda place: (tmp_path / "none.jpg").read_bytes(), SMALL)
    assert faults == ["No such file or directory"]

    def refused(place):
        raise ArchiveError("archive food.zip: too large")

    assert decode_images(1, refused, SMALL)[1] == ["archive food.zip: too large"]


def test_random_damage_neither_crashes_nor_hangs_nor_divides_the_decoders():
    counts = fuzzed_images.run(inputs=2500)
    assert counts.total() == 2500
    assert {found for _, found in counts} == {"sound", "refused"}


def test_the_graph_does_not_crash_on_random_damage_either():
    sound = fuzzed_images.sound_images()
    names = [name for name in sound if name.startswith(("JPEG", "PNG"))]
    numbers = [number for number in range(600) if [*sound][number % len(sound)] in names]
    found = [
        fuzzed_images.verdict(fuzzed_images.damaged(number, sound)[1], graph=True)
        for number in numbers
    ]
    assert {"sound", "refused"} <= {*found} <= {"sound", "refused", "sound, graph differs"}
