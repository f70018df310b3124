"""Times the JPEG decoders that can be imported, and compares their pixels with those in use.

PYTHONPATH=. python tests/measurements/decoders.py --archive=food4.zip

To measure more of them: pip install imagecodecs 'PyTurboJPEG<2', which needs libturbojpeg 2. The
decoders take turns. Figures are medians: CPU time per image, in one thread and in two.
"""

import concurrent.futures
import functools
import importlib
import io
import statistics
import time

import cv2
import numpy as np
import simplejpeg
from absl import app, flags
from PIL import Image

from pizza_steak import decoding
from pizza_steak.archive import read_archive
from pizza_steak.tensorflow_import import import_tensorflow

_ARCHIVE = flags.DEFINE_string("archive", None, "Zip or folder of class folders.", required=True)
_IMAGES = flags.DEFINE_integer("images", 300, "How many of its JPEGs to decode.")
_OBLONG = flags.DEFINE_bool("oblong", False, "Leave out square images, which no crop cuts.")
_TURNS = flags.DEFINE_integer("turns", 5, "How often.")
_SCALES = (1, 2, 4)
# Pixels around a part: libjpeg makes those at its edges from neighbors that it did not decode.
_MARGIN = 16


def main(argv):
    images = jpegs()
    print(f"{len(images)} images; CPU ms per image, and difference from simplejpeg, 0 to 255")
    print(f"{'':<38}{'1 thread':>10}{'2':>8}{'unequal':>10}{'most':>6}{'mean':>8}")
    timed = {}
    for name, (decode, part) in decoders().items():
        for scale in _SCALES:
            one = functools.partial(decode, scale=scale)
            try:
                one(images[0])
            except NotImplementedError:
                continue
            timed[f"{name}, 1/{scale}" if scale > 1 else name] = one, (scale, part)
    for ratio in decoding.ASPECT_RATIOS:
        format = decoding.Format((224, 224), aspect_ratio=ratio)
        one = functools.partial(decoding.decode_image, format=format)
        timed[f"with the resize to 224, {ratio}"] = one, None
    milliseconds = {name: ([], []) for name in timed}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for turn in range(_TURNS.value + 1):
            for name, (decode, _) in timed.items():
                for threads, turns in zip((1, 2), milliseconds[name], strict=True):
                    spent = cpu_milliseconds(decode, images, threads, pool)
                    turns += [spent] * (turn > 0)
    for name, (decode, compared) in timed.items():
        one, two = map(statistics.median, milliseconds[name])
        different = differences(decode, images, *compared) if compared else ""
        print(f"{name:<38}{one:>10.3f}{two:>8.3f}{different}", flush=True)


def jpegs() -> list[bytes]:
    """Some JPEGs of the archive that simplejpeg decodes, of all classes."""
    archive = read_archive(_ARCHIVE.value)
    found = []
    for split in archive.splits:
        for _, encoded in archive.read(split):
            try:
                height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
            except ValueError:
                continue
            if colors not in ("CMYK", "YCCK") and not (_OBLONG.value and height == width):
                found.append(encoded)
    chosen = np.random.default_rng(1).permutation(len(found))[: _IMAGES.value]
    return [found[index] for index in chosen]


def decoders():
    """Each decoder by name, and whether it decodes only the part that is kept by a crop."""
    tf = import_tensorflow()
    found = {"simplejpeg, in use": (_simplejpeg, False)}
    for dct in ("", "INTEGER_ACCURATE", "INTEGER_FAST"):
        options = {"channels": 3, "dct_method": dct}
        found[f"TensorFlow {dct}".strip()] = (
            lambda encoded, scale, options=options: tf.io.decode_jpeg(
                encoded, ratio=scale, **options
            ).numpy(),
            False,
        )

    def part(encoded: bytes, scale: int) -> np.ndarray:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
        (top, left), size = middle(-(-height // scale), -(-width // scale))
        start_y, start_x = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
        end_y = min(top + size + _MARGIN, -(-height // scale))
        end_x = min(left + size + _MARGIN, -(-width // scale))
        window = [start_y, start_x, end_y - start_y, end_x - start_x]
        options = {"channels": 3, "ratio": scale, "dct_method": "INTEGER_ACCURATE"}
        pixels = tf.image.decode_and_crop_jpeg(encoded, window, **options).numpy()
        top, left = top - start_y, left - start_x
        return pixels[top : top + size, left : left + size]

    found["TensorFlow, middle square only"] = part, True
    found["Pillow"] = _pillow, False
    found["OpenCV"] = _opencv, False
    for name, make in (("turbojpeg", _turbojpeg), ("imagecodecs", _imagecodecs)):
        try:
            found[name] = make(importlib.import_module(name)), False
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: {error}")
    return found


def _simplejpeg(encoded: bytes, scale: int) -> np.ndarray:
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    return simplejpeg.decode_jpeg(
        encoded, min_height=-(-height // scale), min_width=-(-width // scale)
    )


def _pillow(encoded: bytes, scale: int) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (image.width // scale, image.height // scale))
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _opencv(encoded: bytes, scale: int) -> np.ndarray:
    modes = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    mode = modes[scale] | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), mode)[..., ::-1]


def _turbojpeg(turbojpeg):
    decoder = turbojpeg.TurboJPEG()
    return lambda encoded, scale: decoder.decode(encoded, turbojpeg.TJPF_RGB, (1, scale))


def _imagecodecs(imagecodecs):
    def decode(encoded: bytes, scale: int) -> np.ndarray:
        if scale > 1:
            raise NotImplementedError
        return imagecodecs.jpeg8_decode(encoded, outcolorspace="RGB")

    return decode


def middle(height: int, width: int) -> tuple[tuple[int, int], int]:
    """The corner of the largest square in the middle, and its side."""
    size = min(height, width)
    return ((height - size) // 2, (width - size) // 2), size


def cpu_milliseconds(decode, images, threads, pool) -> float:
    start = time.process_time()
    parts = [images[thread::threads] for thread in range(threads)]
    list(pool.map(lambda part: [None for encoded in part if decode(encoded) is None], parts))
    return 1000 * (time.process_time() - start) / len(images)


def differences(decode, images, scale, part) -> str:
    unequal, most, means = 0, 0, []
    for encoded in images:
        expected = _simplejpeg(encoded, scale)
        if part:
            (top, left), size = middle(*expected.shape[:2])
            expected = expected[top : top + size, left : left + size]
        found = decode(encoded)
        if found.shape != expected.shape:
            return f"  {found.shape} for {expected.shape}"
        difference = np.abs(found.astype(np.int16) - expected)
        unequal += bool(difference.any())
        most = max(most, int(difference.max()))
        means.append(difference.mean())
    return f"{unequal:>10}{most:>6}{np.mean(means):>8.3f}"


if __name__ == "__main__":
    app.run(main)
