"""Kills a sweep at random moments until it ends, and checks what it leaves.

python tests/measurements/killed_sweeps.py --kills=30 --archive=pizza_steak_64px.zip \\
    --tuner=hyperband --max_trials=22 --max_epochs=9 --image_size=32 --blocks=1:2 --filters=8

All flags but --kills, --kills_seed and --most_seconds are those of tuning.sweep. Each kill is a -9,
so many seconds after the last one as chance says: for the command's process, which is started
again, or with --workers for one of them.

With one worker, the table and the best settings have to be those of a sweep left alone. Several
workers make other trials each time; then each trial has to have the metrics, to the last digit, of
the same training left alone.
"""

import collections
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
_WORKERS = flags.DEFINE_integer("workers", 1, "As for tuning.sweep.")
# These are the machine's, or the clock's.
_NOT_COMPARED = ("seconds", "ended_after", "predict_cpu_ms")


def main(argv):
    rng = random.Random(_SEED.value)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = (pathlib.Path(folder, name) for name in ("alone", "killed"))
        kills, starts = 0, 0
        while True:
            starts += 1
            process = subprocess.Popen(command(argv, killed), stdout=subprocess.DEVNULL)
            while process.poll() is None:
                try:
                    process.wait(rng.uniform(1, _MOST.value) if kills < _KILLS.value else None)
                except subprocess.TimeoutExpired:
                    victims = [process.pid, *(workers(process.pid) if _WORKERS.value > 1 else [])]
                    victim = rng.choice(victims)
                    os.kill(victim, signal.SIGKILL)
                    kills += 1
                    done = len(rows(killed)) if (killed / "trials.csv").exists() else 0
                    name = "the sweep" if victim == process.pid else "a worker"
                    print(f"kill {kills}: {name}, {done} trials begun", flush=True)
                    if victim == process.pid:
                        process.wait()
            if process.returncode not in (0, -signal.SIGKILL):
                # Without a worker that lives, a sweep ends with an error, and can be resumed.
                print(f"exit status {process.returncode}", flush=True)
            if process.returncode == 0:
                break
        print(f"{kills} kills, {starts} starts, {len(rows(killed))} trials")
        if _WORKERS.value > 1:
            sys.exit(0 if same_trainings(killed, pathlib.Path(folder)) else 1)
        subprocess.run(command(argv, alone), check=True, stdout=subprocess.DEVNULL)
        same = rows(alone) == rows(killed)
        print(f"the same table: {same}")
        flags_same = (alone / "best.flags").read_text() == (killed / "best.flags").read_text()
        sys.exit(0 if same and flags_same else 1)


def command(argv, folder: pathlib.Path) -> list[str]:
    given = [*argv[1:], f"--workers={_WORKERS.value}", f"--sweep_dir={folder}"]
    return [sys.executable, "-m", "tuning.sweep", *given]


def workers(pid: int) -> list[int]:
    """Returns the workers of a sweep, which its forkserver has forked."""
    return [worker for server in children(pid) for worker in children(server)]


def children(pid: int) -> list[int]:
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def rows(folder: pathlib.Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in _NOT_COMPARED}
            for row in csv.DictReader(file)
        ]


def same_trainings(sweep: pathlib.Path, folder: pathlib.Path) -> bool:
    """Returns whether each trial has the metrics of its run left alone, and each run is known."""
    cores = len(os.sched_getaffinity(0))
    threads = {"TF_NUM_INTRAOP_THREADS": str(max(1, cores // _WORKERS.value))}
    table, different = rows(sweep), []
    statuses = collections.Counter(row["status"] for row in table)
    metrics = [*sweep.glob("trials/*/metrics.csv"), *sweep.glob("finals/*/metrics.csv")]
    runs = sorted(path.parent for path in metrics)
    named = {row["run"] for row in table}
    for run in runs:
        again = folder / "again" / run.name
        flagfile = run / "run.flags"
        subprocess.run(
            [sys.executable, "-m", "trainers.fit", f"--flagfile={flagfile}", f"--run_dir={again}"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | threads,
        )
        found = (run / "metrics.csv").read_text().splitlines()
        expected = (again / "metrics.csv").read_text().splitlines()
        if found != expected[: len(found)]:
            different.append(run.name)
    print(f"{len(runs)} runs, {dict(statuses)}; other metrics than left alone: {different or None}")
    return not different and {run.name for run in runs} == named


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
