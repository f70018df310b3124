"""What a zip of a million images costs: prepared, opened again, its first batch, an epoch's order.

python tests/measurements/millions.py --images=100000,1000000 --index=10000000

--index is a number of records of which only the index is written, without images. Each stage runs
in a process of its own. Its memory is the largest that it and its children had together, as the
kernel counts it twenty times a second; the imports of TensorFlow are told apart.
"""

import io
import itertools
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np
from absl import app, flags
from PIL import Image

_IMAGES = flags.DEFINE_list("images", ["100000", "1000000"], "Numbers of images.")
_INDEX = flags.DEFINE_list("index", [], "Numbers of records of which only the index is written.")
_CLASSES = flags.DEFINE_integer("classes", 1000, "The number of classes.")
_FOLDER = flags.DEFINE_string("folder", None, "Folder for zips and records; by default temporary.")

_START = """
import json, pathlib, sys, time
from pizza_steak.tensorflow_import import import_tensorflow
import_tensorflow()
import numpy as np
from pizza_steak import index, input_pipeline, kept, records
from pizza_steak.decoded import StreamedPictures
from pizza_steak.decoding import Format

def memory():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

def tell(what):
    global last
    print(json.dumps([what, time.monotonic() - last, memory()]), flush=True)
    last = time.monotonic()

last = time.monotonic()
tell("imports")
"""
_PREPARE = """
records.prepare(archive=sys.argv[1], data_dir=sys.argv[2])
tell("prepared")
"""
_OPEN = """
found = records.prepare(archive=sys.argv[1], data_dir=sys.argv[2])
pictures = StreamedPictures(found, Format((32, 32)), {})
labels, classes = found.labels, len(found.classes)
"""
_WRITE_INDEX = """
count, classes = map(int, sys.argv[2:])

def blocks(files):
    for start in range(0, count, index._BLOCK):
        rows = np.arange(start, min(start + index._BLOCK, count))
        column = dict.fromkeys(index._COLUMNS, rows)
        names = [f"class_{row % classes:04}/{row:08}.jpg" for row in rows.tolist()]
        yield column | {"labels": rows % classes, "digests": np.stack([rows] * 2, 1),
                        "filenames": names}

index._blocks = blocks
index.columns(pathlib.Path(sys.argv[1]), {"": count}, list(map(str, range(classes))))
tell("written")
"""
_OPEN_INDEX = """
classes = int(sys.argv[3])
labels = index.columns(pathlib.Path(sys.argv[1]), {}, [])["labels"]
"""
_USE = """
tell("opened")

class Rows:
    parallel_calls, read_ahead = 2, None

    def gather(self, rows):
        return rows

def batches(pictures, size):
    return input_pipeline.batches(
        pictures, np.arange(len(labels)), labels, size, seed=1, shuffle=True,
        encode=lambda batch: input_pipeline.encode_labels(batch, "categorical", classes),
    ).as_numpy_iterator()

if "pictures" in globals():
    next(batches(pictures, 32))
    tell("first batch of 32 images, categorical")
order, seen = batches(Rows(), 256), np.zeros(len(labels), bool)
rows, _ = next(order)
seen[rows] = True
tell("order of an epoch, first step")
times = [last]
for rows, _ in order:
    seen[rows] = True
    times.append(time.monotonic())
assert seen.all()
tell(f"its other steps, longest pause {np.diff(times).max():.2f} s")
"""


def main(argv):
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as name:
        folder = pathlib.Path(name)
        for images in map(int, _IMAGES.value):
            archive, data_dir = folder / f"{images}.zip", folder / "data"
            _make_zip(archive, images)
            print(f"{images:,} images, a zip of {archive.stat().st_size / 1e6:,.0f} MB")
            _run(images, _PREPARE, archive, data_dir)
            _run(images, _OPEN + _USE, archive, data_dir)
            shutil.rmtree(data_dir)
            archive.unlink()
        for records in map(int, _INDEX.value):
            print(f"{records:,} records, the index alone")
            arguments = folder, records, _CLASSES.value
            _run(records, _WRITE_INDEX, *arguments)
            _run(records, _OPEN_INDEX + _USE, *arguments)


def _make_zip(path: pathlib.Path, images: int) -> None:
    """Writes JPEGs of 8 x 8 pixels; each has a comment of its own."""
    rng = np.random.default_rng(0)
    templates = []
    for _ in range(64):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "JPEG")
        templates.append(buffer.getvalue())
    with zipfile.ZipFile(path, "w") as zip_file:
        for number in range(images):
            start, rest = templates[number % 64][:2], templates[number % 64][2:]
            comment = b"\xff\xfe\x00\x0e%012d" % number
            name = f"class_{number % _CLASSES.value:04}/{number:08}.jpg"
            zip_file.writestr(name, start + comment + rest)


def _run(images: int, code: str, *arguments: object) -> None:
    """Runs Python code in a process of its own; prints what it tells, its time and its memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", _START + code, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, sum(map(_memory, _tree(process.pid))))
            time.sleep(0.05)
        assert process.returncode == 0
        output.seek(0)
        told = [json.loads(line) for line in output]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    for (_, _, memory_before), (what, seconds, memory) in itertools.pairwise(told):
        speed = f", {images / seconds:,.0f} images/s" if what in ("prepared", "written") else ""
        print(f"  {what}: {seconds:,.2f} s{speed}, {memory - memory_before:+,.0f} MB")
    text = f"  all with imports ({told[0][2]:,.0f} MB): {cpu:,.1f} CPU s, peak {peak:,.0f} MB"
    print(text, flush=True)


def _tree(process: int) -> list[int]:
    """Returns a process and its descendants."""
    try:
        tasks = os.listdir(f"/proc/{process}/task")
        paths = [pathlib.Path(f"/proc/{process}/task/{task}/children") for task in tasks]
        children = [child for path in paths for child in path.read_text().split()]
    except OSError:  # It has ended.
        return [process]
    return [process, *(one for child in children for one in _tree(int(child)))]


def _memory(process: int) -> float:
    try:
        pages = int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    app.run(main)
