"""Measures the memory of processes that go through an epoch of one data set at the same time.

PYTHONPATH=. python tests/measurements/processes.py --images=10000 --processes=8

The images are made by chance. Figures are those of Linux's smaps_rollup, in MB above the imports:
a page that several processes map counts whole in the Rss of each, in their Pss in equal parts, and
in the private memory of none.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import cv2
import numpy as np
from absl import app, flags

_IMAGES = flags.DEFINE_integer("images", 10_000, "How many images; each takes 0.15 MB decoded.")
_PROCESSES = flags.DEFINE_integer("processes", 8, "How many processes share them.")
_CODE = """
import json, pathlib, sys
from pizza_steak.tensorflow_import import import_tensorflow
import_tensorflow()
from trainers import data
from trainers.configuration import DataConfig

def memory():
    text = pathlib.Path("/proc/self/smaps_rollup").read_text()
    taken = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6
             for line in text.splitlines()[1:]}
    taken["Private"] = taken["Private_Clean"] + taken["Private_Dirty"]
    return {name: taken[name] for name in ("Rss", "Pss", "Private", "Anonymous")}

def tell(figures):
    print(json.dumps(figures), flush=True)
    input()

tell({})
before = memory()
tell(before)
config = DataConfig(archive=sys.argv[1], data_dir=sys.argv[2], image_size=224)
images = data.load(config)
for batch in images.batches("train", 32, shuffle=True):
    pass
tell({})
after = memory()
tell({name: after[name] - before[name] for name in after})
"""


def main(argv):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_archive(folder / "images.zip")
        run(1, folder)  # It decodes the images.
        arrays = folder.glob("data_dir/*/*/*/*/images.npy")
        print(f"decoded array: {sum(path.stat().st_size for path in arrays) / 1e6:,.0f} MB")
        print(f"{'processes':<12}{'figure':<12}{'sum':>10}{'least':>10}{'most':>10}")
        for count in (1, _PROCESSES.value):
            imports, used = run(count, folder)
            print(f"{count:<12}{'imports':<12}{sum(one['Pss'] for one in imports):>10,.0f}")
            for figure in used[0]:
                values = [one[figure] for one in used]
                print(f"{'':<12}{figure:<12}", end="")
                print(f"{sum(values):>10,.0f}{min(values):>10,.0f}{max(values):>10,.0f}")


def write_archive(path: pathlib.Path) -> None:
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(path, "w") as file:
        for number in range(_IMAGES.value):
            pixels = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (256, 256))
            _, encoded = cv2.imencode(".jpg", pixels)
            file.writestr(f"{('pizza', 'steak')[number % 2]}/{number}.jpg", encoded.tobytes())


def run(count: int, folder: pathlib.Path) -> tuple[list[dict], list[dict]]:
    """The memory of each process before it opens the data set, and what comes on top."""
    arguments = [folder / "images.zip", folder / "data_dir"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _CODE, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    # All have come to one place before any goes on, and each stays until all are measured.
    told = []
    for _ in range(4):
        told.append([json.loads(process.stdout.readline()) for process in processes])
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        process.communicate()
    return told[1], told[3]


if __name__ == "__main__":
    app.run(main)
