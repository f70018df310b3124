"""An image file to pixels, by Pillow and in a TensorFlow graph."""

import io

import numpy as np
import pytest
import tensorflow as tf
from images import encode, noise, turned
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from pizza_steak import decoding, decoding_in_graph
from pizza_steak.decoding import ASPECT_RATIOS, CHANNELS, INTERPOLATIONS, Format, decode_image


def by_pillow(encoded, size=None, resample=Image.Resampling.NEAREST):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    return np.asarray(image.resize(size[::-1], resample) if size else image)


def decoded(encoded, size, interpolation="nearest", **options):
    return decode_image(encoded, Format(size, interpolation, **options))


def fault(encoded):
    return decoding.decode_images(1, lambda place: encoded, Format((8, 8)))[1][0]


def in_graph(encoded, format):
    return tf.function(decoding_in_graph.decode_image)(tf.constant(encoded), format).numpy()


@pytest.mark.parametrize(
    ("mode", "file_format", "options"),
    [
        ("RGB", "JPEG", {"quality": 40}),
        ("RGB", "JPEG", {"quality": 95, "subsampling": 0}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"keep_rgb": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("L", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("1", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGBA", "BMP", {}),
        ("L", "BMP", {}),
        ("P", "BMP", {}),
        ("P", "GIF", {}),
        ("P", "GIF", {"save_all": True, "append_images": [noise(37, 21, "P", seed=1)]}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "WEBP", {"quality": 60}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("RGB", "WEBP", {"lossless": True, "save_all": True, "append_images": [noise(37, 21)]}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_pixels_are_pillows(mode, file_format, options):
    encoded = encode(noise(37, 21, mode, seed=2), file_format, **options)
    np.testing.assert_array_equal(decoded(encoded, (21, 37)), by_pillow(encoded))


def test_of_sixteen_bits_the_upper_eight_are_kept():
    deep = np.random.default_rng(0).integers(0, 2**16, (21, 37), dtype=np.uint16)
    pixels = decoded(encode(Image.fromarray(deep), "PNG"), (21, 37))
    np.testing.assert_array_equal(pixels, np.repeat(deep[..., None] >> 8, 3, axis=-1))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 17, 64, 97, 180, 225, 256, 320, 384, 511, 512])
def test_nearest_takes_pillows_pixels(file_format, length):
    encoded = encode(noise(length, max(1, length * 2 // 3)), file_format)
    for size in [(1, 1), (7, 5), (64, 64), (75, 100), (224, 224), (225, 223), (299, 331)]:
        pixels, expected = decoded(encoded, size), by_pillow(encoded, size)
        assert np.count_nonzero(pixels != expected) == 0, f"to {size}"


@pytest.mark.parametrize("interpolation", sorted(set(INTERPOLATIONS) - {"nearest"}))
@pytest.mark.parametrize("size", [(9, 13), (21, 37), (50, 40)], ids=["down", "same", "up"])
def test_other_interpolations_are_tensorflows_rounded_and_clipped(interpolation, size):
    black_or_white = noise(37, 21).point(lambda value: 255 * (value > 127))
    encoded = encode(black_or_white, "PNG")
    exact = tf.image.resize(tf.cast(by_pillow(encoded), tf.float32), size, method=interpolation)
    pixels = decoded(encoded, size, interpolation, antialias=False)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - np.clip(exact, 0, 255)).max() <= 0.5
    if interpolation in ("bicubic", "lanczos3", "lanczos5") and size != (21, 37):
        assert np.min(exact) < -1 and np.max(exact) > 256  # There was something to clip.


@pytest.mark.parametrize("interpolation", decoding.PILLOW_FILTERS)
@pytest.mark.parametrize("size", [(9, 13), (21, 37), (50, 40)], ids=["down", "same", "up"])
def test_antialiased_pixels_are_pillows(interpolation, size):
    encoded = encode(noise(37, 21), "PNG")
    expected = by_pillow(encoded, size, decoding.PILLOW_FILTERS[interpolation])
    np.testing.assert_array_equal(decoded(encoded, size, interpolation), expected)


def test_alpha_weighs_colours_as_in_pillow():
    image = noise(37, 21, "RGBA")
    expected = image.resize((13, 9), Image.Resampling.BILINEAR)
    pixels = decoded(encode(image, "PNG"), (9, 13), "bilinear", color_mode="rgba")
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 1


@pytest.fixture(scope="module")
def photographs():
    """Two of scikit-learn's, as JPEG of 640 x 427 and 600 x 400."""
    china, flower = map(Image.fromarray, load_sample_images().images)
    return [encode(china, "JPEG", quality=90), encode(flower.resize((600, 400)), "JPEG")]


def test_scaled_jpeg_stay_within_a_bound_of_a_full_decode(photographs):
    scales = set()
    for side in (25, 32, 40, 48, 64, 80, 96, 112, 128, 160, 186, 200, 213, 214, 224, 256, 299):
        differences = []
        for encoded in photographs:
            with Image.open(io.BytesIO(encoded)) as image:
                placed = decoding.place(*image.size[::-1], Format((side, side)))
                fitting = [s for s in decoding.JPEG_SCALES if decoding.scale_fits(s, placed)]
            scales.add(max(fitting, default=1))
            pixels = decoded(encoded, (side, side), "bilinear").astype(float)
            full = by_pillow(encoded, (side, side), Image.Resampling.BILINEAR)
            differences.append(np.abs(pixels - full).mean())
        assert np.mean(differences) <= 1.5, side
    assert scales == {1, 2, 4, 8}


def test_without_antialias_jpeg_are_decoded_in_full(photographs):
    full = tf.image.resize(by_pillow(photographs[0]), (64, 64))
    pixels = decoded(photographs[0], (64, 64), "bilinear", antialias=False)
    assert np.abs(pixels - full).max() <= 0.5


ORIENTED = [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]


@pytest.mark.parametrize(("file_format", "options"), ORIENTED, ids=lambda value: str(value))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(file_format, options, orientation):
    encoded = encode(noise(37, 21), file_format, exif=turned(orientation), **options)
    upright = by_pillow(encoded)
    assert upright.shape == ((37, 21, 3) if orientation >= 5 else (21, 37, 3))
    for interpolation in ("nearest", "bilinear"):
        np.testing.assert_array_equal(decoded(encoded, upright.shape[:2], interpolation), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_can_be_ignored(orientation):
    plain = encode(noise(37, 21), "PNG")
    encoded = encode(noise(37, 21), "PNG", exif=turned(orientation))
    np.testing.assert_array_equal(
        decoded(encoded, (21, 37), exif="ignore"), decoded(plain, (21, 37))
    )


DAMAGED_EXIF = [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]


@pytest.mark.parametrize("exif", [*DAMAGED_EXIF, turned(0), turned(9)])
def test_exif_data_that_mean_nothing_are_ignored(exif):
    plain, encoded = encode(noise(37, 21), "JPEG"), encode(noise(37, 21), "JPEG", exif=exif)
    expected = decoded(plain, (21, 37))
    np.testing.assert_array_equal(decoded(encoded, (21, 37)), expected)
    np.testing.assert_array_equal(in_graph(encoded, Format((21, 37), "nearest")), expected)


def test_an_orientation_in_xmp_is_found():
    xmp = b'<x:xmpmeta tiff:Orientation="6"/>'
    plain = encode(noise(37, 21), "JPEG")
    for options in ({}, {"exif": DAMAGED_EXIF[0]}):
        encoded = encode(noise(37, 21), "JPEG", xmp=xmp, **options)
        expected = np.rot90(by_pillow(plain), k=-1)
        np.testing.assert_array_equal(decoded(encoded, (37, 21)), expected)


def test_a_jpeg_with_damaged_exif_data_is_turned_as_pillow_turns_it():
    rng = np.random.default_rng(0)
    turns = []
    for number in range(800):
        exif = turned((1, 6)[number % 2], big_endian=number % 4 > 1)
        damaged = bytearray(encode(noise(9, 7), "JPEG", exif=exif))
        for place in rng.integers(20, 80, rng.integers(1, 4)):
            damaged[place] = rng.choice([0, 1, 3, 6, 255, rng.integers(256)])
        encoded = bytes(damaged)
        try:
            with decoding.open_image(encoded) as image:
                turns.append(decoding.orientation(image))
                upright = by_pillow(encoded)
        except Exception:  # Of the image itself, or of Pillow's turning it.
            continue
        np.testing.assert_array_equal(decoded(encoded, upright.shape[:2]), upright)
    assert turns.count(1) > 100 and turns.count(6) > 50  # It differs with Pillow's version.


@pytest.mark.parametrize("file_format", ["TIFF", "AVIF", "PPM", "HEIF", "MPO"])
def test_every_kind_of_photograph_is_read(file_format):
    if file_format == "HEIF":
        pytest.importorskip("pillow_heif")
    encoded = encode(noise(64, 48), file_format)
    np.testing.assert_array_equal(decoded(encoded, (48, 64)), by_pillow(encoded))


def test_without_its_decoder_a_heic_file_names_the_extra(monkeypatch):
    pytest.importorskip("pillow_heif")
    encoded = encode(noise(64, 48), "HEIF")
    monkeypatch.setattr(decoding, "KINDS", tuple(k for k in decoding.KINDS if k != "HEIF"))
    assert "pip install pillow-heif" in fault(encoded)


def test_other_decoders_of_pillows_see_nothing():
    encoded = encode(noise(64, 48), "TGA")
    assert Image.open(io.BytesIO(encoded)).format == "TGA"
    assert "cannot identify" in fault(encoded)


@pytest.fixture(scope="module")
def files(photographs):
    """What a graph has to decode as Pillow does: turned, wide, tall, tiny, with alpha."""
    with Image.open(io.BytesIO(photographs[0])) as image:
        tall = image.resize((150, 300))
        turns = [
            encode(tall, "JPEG", exif=turned(orientation, big_endian))
            for orientation in range(1, 9)
            for big_endian in (False, True)
        ]
    modes = [("RGB", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG")]
    return [*photographs, *turns, *(encode(noise(37, 21, mode), kind) for mode, kind in modes)]


FORMATS = [
    *(Format((64, 64), interpolation) for interpolation in INTERPOLATIONS),
    *(Format((64, 48), aspect_ratio=aspect_ratio) for aspect_ratio in ASPECT_RATIOS),
    *(Format((224, 160), aspect_ratio=aspect_ratio) for aspect_ratio in ASPECT_RATIOS),
    *(Format((30, 30), "bicubic", color_mode=color_mode) for color_mode in CHANNELS),
    Format((224, 224), "lanczos3", "crop", "rgba"),
    Format((5, 7), "lanczos3", "pad"),
    Format((64, 64), antialias=False),
    Format((64, 64), exif="ignore"),
]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_graph_gives_the_same_pixels(format, files):
    decode = tf.function(
        lambda encoded: decoding_in_graph.decode_image(encoded, format),
        input_signature=[tf.TensorSpec((), tf.string)],
    )
    for number, encoded in enumerate(files):
        assert not decoding_in_graph.needs_pillow(encoded, format)
        expected = decode_image(encoded, format)
        np.testing.assert_array_equal(decode(encoded).numpy(), expected, err_msg=str(number))


@pytest.mark.parametrize(
    "encoded",
    [
        encode(noise(370, 210, "CMYK"), "JPEG"),
        *(encode(noise(37, 21), kind) for kind in ("BMP", "GIF", "WEBP", "TIFF")),
        encode(noise(37, 21), "PNG", exif=turned(6)),
        encode(noise(37, 21), "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="6"/>'),
    ],
    ids=["CMYK", "BMP", "GIF", "WebP", "TIFF", "turned PNG", "turned by XMP"],
)
def test_what_a_graph_cannot_decode_exactly_is_known(encoded):
    assert decoding_in_graph.needs_pillow(encoded, Format((64, 64)))


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "WEBP"])
def test_a_graph_refuses_what_is_neither_jpeg_nor_png(file_format):
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected a JPEG or PNG file"):
        in_graph(encode(noise(37, 21), file_format), Format((8, 8)))
