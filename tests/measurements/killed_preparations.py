"""Processes that prepare one archive at once, and are killed at random.

PYTHONPATH=tests python tests/measurements/killed_preparations.py --archive=food4.zip --kills=50
"""

import pathlib
import random
import tempfile
import time

from absl import app, flags
from small_runs import run_command, start_command

from pizza_steak import kept

_ARCHIVE = flags.DEFINE_string("archive", None, "The archive.", required=True)
_KILLS = flags.DEFINE_integer("kills", 50, "How many processes are killed.")
_PROCESSES = flags.DEFINE_integer("processes", 8, "How many work at once.")
CODE = """
import sys, zlib
from pizza_steak import decoded, records
found = records.prepare(archive=sys.argv[1], data_dir=sys.argv[2])
pictures = decoded.decode(found, 64)
print(found.fingerprint, zlib.crc32(pictures.array.tobytes()))
"""


def main(argv):
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        archive = str(pathlib.Path(_ARCHIVE.value).absolute())
        run_command("--help", code="")  # The first process takes longer.
        start = time.monotonic()
        status, expected, text = run_command(archive, f"{name}/whole", code=CODE)
        seconds = time.monotonic() - start
        assert status == 0, text
        kills = rounds = 0
        while kills < _KILLS.value:
            data_dir, rounds = f"{name}/{rounds}", rounds + 1
            started = [start_command(archive, data_dir, code=CODE) for _ in range(_PROCESSES.value)]
            for _ in range(min(_PROCESSES.value - 1, _KILLS.value - kills)):
                time.sleep(rng.uniform(0, 0.4) * seconds)
                victim = rng.choice(started)
                kills += victim.poll() is None
                victim.kill()
                started.remove(victim)
                victim.communicate()
                started.append(start_command(archive, data_dir, code=CODE))
            for process in started:
                told, text = process.communicate()
                assert (process.returncode, told) == (0, expected), text
            assert all(kept.verify(pathlib.Path(data_dir)).values())
            left = list(pathlib.Path(data_dir).rglob(f".{'?' * 32}.*"))
            print(f"round {rounds}: {kills} kills, left {left}", flush=True)


if __name__ == "__main__":
    app.run(main)
