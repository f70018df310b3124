"""Commands with faults at random, for an hour; what they leave must be as if there were none.

PYTHONPATH=tests python tests/measurements/soak.py --seconds=3600

Each round prepares an archive, trains, sweeps and evaluates in one folder. A command is killed, or
its disk is full, or fails, or has no handles, at a random operation, up to three times in a row;
then it runs undisturbed. Files that are kept are damaged between commands, too.
"""

import collections
import errno
import json
import pathlib
import random
import resource
import shutil
import tempfile
import time

import faults
from absl import app, flags
from small_runs import assert_same_run, layout, train_and_test

from pizza_steak import kept

_SECONDS = flags.DEFINE_float("seconds", 3600, "How long.")
_SEED = flags.DEFINE_integer("seed", 1, "The seed.")
SMALL = ["--image_size=32", "--batch_size=8", "--filters=4", "--learning_rate=0.01", "--seed=7"]
SMALL += ["--archive=../shades", "--data_dir=data"]
COMMANDS = [
    ("trainers", "fit", [*SMALL, "--run_dir=run", "--epochs=3", "--checkpoint_every=2",
                         "--resume=auto"]),
    ("trainers", "evaluate", ["--run_dir=run", "--data_dir=data"]),
    ("tuning", "sweep", [*SMALL, "--sweep_dir=sweep", "--tuner=random", "--max_trials=3",
                         "--max_epochs=2", "--min_epochs=1", "--finalists=1", "--final_epochs=2"]),
    ("trainers", "export", ["--run_dir=run", "--data_dir=data", "--overwrite"]),
]  # fmt: skip
FAULTS = [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EIO, False), (errno.EMFILE, False)]
FAULTS += [(0, False)] * 3  # Killed.
KEPT = ["images.npy", "index-4/*", "*.tfrecord*", "dataset_info.json", "bad.json", "latest.npz"]


def main(argv):
    rng = random.Random(_SEED.value)
    counts: collections.Counter = collections.Counter()
    peaks = collections.defaultdict(list)
    end = time.monotonic() + _SECONDS.value
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        for file, content in layout(train_and_test("dark", "light")).items():
            (folder / "shades" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "shades" / file).write_bytes(content)
        whole = folder / "whole"
        whole.mkdir()
        operations = {}
        for package, command, arguments in COMMANDS:
            ended = faults.run(whole, package, command, *arguments)
            assert ended.status == 0, ended.text
            operations[command] = ended.operations
        while time.monotonic() < end:
            under = folder / "under"
            under.mkdir()
            counts["rounds"] += 1
            for package, command, arguments in COMMANDS:
                for _ in range(rng.randint(0, 3)):
                    number, lasting = rng.choice(FAULTS)
                    at = rng.randint(1, operations[command])
                    fault = {"at": at, "number": number, "lasting": lasting}
                    ended = faults.run(under, package, command, *arguments, **fault)
                    counts[f"{command}: faults"] += 1
                    lines = [x for x in ended.text.splitlines() if x.startswith("error:")]
                    told = ended.status in (0, -9) or (ended.status, len(lines)) == (1, 1)
                    if not told or "Traceback" in ended.text:
                        counts["WRONG"] += 1
                        print(command, fault, ended, flush=True)
                    if rng.random() < 0.3:
                        counts["files damaged"] += damage(under, rng)
                ended = faults.run(under, package, command, *arguments)
                peaks[command].append(ended.peak)
                if ended.status:
                    counts["WRONG"] += 1
                    print("again:", command, ended, flush=True)
            try:
                check(under, whole)
            except AssertionError as error:
                counts["WRONG"] += 1
                print("different:", error, flush=True)
                shutil.copytree(under, f"{folder.parent}/soak-{counts['rounds']}")
            shutil.rmtree(under)
            if counts["rounds"] % 5 == 0:
                report(counts, peaks)
        report(counts, peaks)


def damage(under: pathlib.Path, rng: random.Random) -> int:
    """Damages one of the files that are kept: a bit, its end, or all of it."""
    found = sorted(path for kind in KEPT for path in under.rglob(kind))
    if not found:
        return 0
    path = rng.choice(found)
    content = bytearray(path.read_bytes())
    kind = rng.choice(["bit", "cut", "zeros"])
    if kind == "bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes({"bit": content, "cut": content[:-7], "zeros": bytes(len(content))}[kind])
    return 1


def check(under: pathlib.Path, whole: pathlib.Path) -> None:
    for run in ("run", "sweep/best"):
        assert_same_run(under / run, whole / run)
    values = [
        json.loads((f / "run/evaluation/evaluation.json").read_text()) for f in (under, whole)
    ]
    for one in values:
        del one["run"]
    assert values[0] == values[1]
    scores = [(f / "sweep/trials.csv").read_text().splitlines() for f in (under, whole)]
    assert len(scores[0]) == len(scores[1])
    assert all(kept.verify(under).values())


def report(counts: collections.Counter, peaks: dict[str, list[int]]) -> None:
    memory = {
        command: (min(values) // 1024, max(values) // 1024) for command, values in peaks.items()
    }
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    handles = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    print(
        f"{dict(counts)}; peak MB of each command, least and most: {memory}; this process: {own} "
        f"MB, {handles} handles",
        flush=True,
    )


if __name__ == "__main__":
    app.run(main)
