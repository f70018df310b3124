"""Kills a sweep at random moments until it ends, and compares it with one left alone.

python tests/measurements/killed_sweeps.py --kills=20 --archive=pizza_steak_64px.zip \\
    --tuner=hyperband --max_trials=16 --max_epochs=9 --image_size=32 --blocks=1:2 --filters=8

All flags but --kills, --kills_seed and --most_seconds are those of tuning.sweep. Each kill is a -9
for the command's process, so many seconds after its start as chance says.
"""

import csv
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile

from absl import app, flags

_KILLS = flags.DEFINE_integer("kills", 20, "How often the sweep is killed.")
_SEED = flags.DEFINE_integer("kills_seed", 1, "Draws the moments.")
_MOST = flags.DEFINE_float("most_seconds", 20.0, "The longest time until a kill.")
# These are the machine's, or the clock's.
_NOT_COMPARED = ("seconds", "ended_after")


def main(argv):
    rng = random.Random(_SEED.value)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = (pathlib.Path(folder, name) for name in ("alone", "killed"))
        subprocess.run(command(argv, alone), check=True, stdout=subprocess.DEVNULL)
        kills = 0
        while True:
            process = subprocess.Popen(command(argv, killed), stdout=subprocess.DEVNULL)
            try:
                patience = rng.uniform(1, _MOST.value) if kills < _KILLS.value else None
                status = process.wait(patience)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                done = len(rows(killed)) if (killed / "trials.csv").exists() else 0
                print(f"kill {kills} after {patience:.1f} s, {done} trials ended", flush=True)
                continue
            if status:
                sys.exit(f"exit status {status}")
            break
        same = rows(alone) == rows(killed)
        flags_same = (alone / "best.flags").read_text() == (killed / "best.flags").read_text()
        print(f"{kills} kills, {len(rows(killed))} trials, the same table: {same}")
        sys.exit(0 if same and flags_same else 1)


def command(argv, folder: pathlib.Path) -> list[str]:
    return [sys.executable, "-m", "tuning.sweep", *argv[1:], f"--sweep_dir={folder}"]


def rows(folder: pathlib.Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in _NOT_COMPARED}
            for row in csv.DictReader(file)
        ]


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
