"""Cuts the power of a file system while a run is trained on it, and after it has ended.

PYTHONPATH=tests python tests/measurements/power_cuts.py --cuts=20

As root, on Linux: the run is on ext4 on a loop device, whose file is copied at a random moment. So
the copy has what had reached the disk. It is mounted, and the same command runs again there.
"""

import contextlib
import pathlib
import random
import shutil
import subprocess
import tempfile
import time

from absl import app, flags
from small_runs import assert_same_run, layout, run_command, start_command, train_and_test

from pizza_steak import kept

_CUTS = flags.DEFINE_integer("cuts", 20, "How many runs are cut, each at a random moment.")
FLAGS = ["--image_size=32", "--batch_size=8", "--filters=4", "--seed=7", "--epochs=6"]
FLAGS += ["--checkpoint_every=1", "--run_dir=run", "--data_dir=data", "--resume=auto"]


@contextlib.contextmanager
def mounted(disk: pathlib.Path, at: pathlib.Path):
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", disk, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


def main(argv):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for file, content in layout(train_and_test("dark", "light")).items():
            (folder / "shades" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "shades" / file).write_bytes(content)
        command = [*FLAGS, f"--archive={folder}/shades"]
        (folder / "whole").mkdir()
        run_command("--help", cwd=folder)  # The first command takes longer.
        start = time.monotonic()
        status, _, text = run_command(*command, cwd=folder / "whole")
        seconds = time.monotonic() - start
        assert status == 0, text
        found = []
        for cut in range(_CUTS.value + 1):
            disk, copy = folder / "disk", folder / "copy"
            with disk.open("wb") as file:
                file.truncate(64 * 2**20)
            subprocess.run(["mkfs.ext4", "-q", disk], check=True)
            with mounted(disk, folder / "mnt") as there:
                process = start_command(*command, cwd=there)
                if cut == _CUTS.value:  # Right after the end.
                    process.communicate()
                    shutil.copyfile(disk, copy)
                else:
                    time.sleep(random.Random(cut).uniform(0.1, 1.0) * seconds)
                    shutil.copyfile(disk, copy)
                    process.kill()
                    process.communicate()
            with mounted(copy, folder / "mnt") as there:
                left = sorted(
                    f"{path.relative_to(there)} {path.stat().st_size}"
                    for path in there.rglob("*")
                    if path.is_file() and not path.stat().st_size and path.suffix != ".lock"
                )
                ended = (there / "run/result.json").exists()
                backup = (there / "run/backup").exists()
                status, _, text = run_command(*command, cwd=there)
                assert status == 0, text
                assert_same_run(there / "run", folder / "whole/run")
                assert all(kept.verify(there / "data").values())
                state = "ended" if ended else "backup" if backup else "no backup"
                found.append(state)
                print(f"{cut}: {state}; empty files {left}; {text.strip()}", flush=True)
        print({state: found.count(state) for state in set(found)})


if __name__ == "__main__":
    app.run(main)
