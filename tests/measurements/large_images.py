"""What images cost at the limit of pixels, bombs of metadata, a grid of photographs, a backup.

PYTHONPATH=tests:tests/pizza_steak python tests/measurements/large_images.py

Each is measured in a process of its own, by Linux's count of its largest memory.
"""

import io
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import test_hostile_images
from absl import app
from PIL import Image

_SIDE = 9459  # Its square is just below --max_pixels' default.
_FORMATS = (
    *(("PNG", "RGB"), ("PNG", "RGBA"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB")),
    *(("JPEG", "RGB"), ("WEBP", "RGB"), ("AVIF", "RGB")),
)
# A process that is started has the peak of the one that starts it, until it is cleared.
_PEAK = """
import pathlib, sys, time
pathlib.Path("/proc/self/clear_refs").write_text("5")

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000
"""
_DECODED = """
from pizza_steak import decoding

encoded = pathlib.Path(sys.argv[1]).read_bytes()
decoding.decode_images(1, lambda place: encoded[:100], decoding.Format((224, 224)))
before, start = peak(), time.process_time()
_, faults = decoding.decode_images(1, lambda place: encoded, decoding.Format((224, 224)))
seconds = time.process_time() - start
refused = "" if not faults[0] else f": {faults[0]}"
print(f"{peak() - before:,.0f} MB more, {seconds:.1f} CPU s{refused}")
"""
_INSPECTED = """
from small_runs import parse_flags
from pizza_steak import inspection
from pizza_steak.configuration import InspectConfig

before = peak()
inspection.report(parse_flags(*sys.argv[1:], config=InspectConfig))
print(f"{peak() - before:,.0f} MB more")
"""
_BACKUP = """
import statistics
from pizza_steak.tensorflow_import import import_tensorflow
import_tensorflow()
import keras
from trainers.runs import checkpoint

units = int(sys.argv[1])
image = outputs = keras.Input((units,))
for _ in range(3):
    outputs = keras.layers.Dense(units)(outputs)
model = keras.Model(image, outputs)
model.compile("adam", "mse")
model.optimizer.build(model.trainable_variables)
variables = [*model.variables, *model.optimizer.variables]
seconds = []
for _ in range(11):
    start = time.perf_counter(), time.process_time()
    progress = checkpoint.Progress(1)
    checkpoint.write(pathlib.Path(sys.argv[2]), progress, "", "float32", variables, None)
    seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
wall, cpu = (1000 * statistics.median(values) for values in zip(*seconds))
print(f"{model.count_params():,} parameters: {wall:.0f} ms, {cpu:.0f} CPU ms")
"""


def main(argv):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for kind, mode in _FORMATS:
            path = folder / f"{mode}.{kind}"
            Image.new(mode, (_SIDE, _SIDE)).save(path, kind)
            show(f"{kind} {mode} of {_SIDE} x {_SIDE}", _DECODED, path)
            path.unlink()
        for bomb, content in test_hostile_images.bombs().items():
            path = folder / bomb
            path.write_bytes(content)
            show(f"bomb {bomb}, {len(content):,} bytes", _DECODED, path)
            path.unlink()
        for kind in ("PNG", "JPEG"):
            photographs = folder / kind
            write_photographs(photographs, kind)
            given = [f"--archive={photographs}"]
            show(f"inspect, 30 {kind} of 24 MP", _INSPECTED, *given)
            given.append(f"--grid={folder / 'grid.png'}")
            show(f"inspect --grid, 30 {kind} of 24 MP", _INSPECTED, *given)
        for units in (50, 2200):
            show("backup", _BACKUP, units, folder / "backup")


def write_photographs(folder: pathlib.Path, kind: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    large = Image.fromarray(pixels).resize((6000, 4000), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, kind)
    for number in range(30):
        path = folder / ("pizza", "steak")[number % 2] / f"{number}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue() + bytes(number))  # Unlike bytes.


def show(name: str, code: str, *arguments: object) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _PEAK + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    print(f"{name}: {lines[-1] if lines else done.returncode}", flush=True)


if __name__ == "__main__":
    app.run(main)
