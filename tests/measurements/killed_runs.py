"""Kills runs at random moments until they end, and compares them with one left alone.

python tests/measurements/killed_runs.py --kills=30 --terms=10
python tests/measurements/killed_runs.py --kills=30 --terms=10 --processes=2

Each kill is a -9, each term a SIGTERM for the command's process, or for one of several that train
together, at a moment between its start and the time that the run takes if it is left alone. The
same command, with --resume=auto, then goes on. A run that has ended is compared, to the last bit,
and another one started. Ends with status 1 where anything differs, a run does not go on, a SIGTERM
is not heeded, or a process does not end as it should when another has ended. All other flags are
those of trainers.fit.
"""

import collections
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from pizza_steak.tensorflow_import import import_tensorflow

_KILLS = flags.DEFINE_integer("kills", 30, "How often a run is killed.")
_TERMS = flags.DEFINE_integer("terms", 10, "How often it is terminated.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many train together.")
_SEED = flags.DEFINE_integer("kills_seed", 1, "Draws the moments, and which it is.")
_FLAGS = (
    "--dataset=pizza_steak/sample",
    "--image_size=64",
    "--epochs=12",
    "--batch_size=8",
    "--rotation_range=20",
    "--batch_normalization",
    "--dropout=0.3",
    "--learning_rate=0.003",
    "--reduce_lr_patience=2",
    "--checkpoint_every=7",
    "--resume=auto",
    "--cluster_timeout=20",
)
_PREEMPTED = 75
# Seconds after which a process hangs.
_LONGEST = 300
_OTHER_ENDED = "error: .* has (ended|not come within) .*\n"
# Exit statuses after a signal; a SIGTERM before or after training ends the process as usual.
_STATUSES = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {-signal.SIGTERM, _PREEMPTED}}


def main(argv):
    rng = random.Random(_SEED.value)
    signals = [signal.SIGKILL] * _KILLS.value + [signal.SIGTERM] * _TERMS.value
    rng.shuffle(signals)
    statuses = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = [sys.executable, "-m", "trainers.fit", *_FLAGS, *argv[1:], f"--data_dir={name}"]
        run([*command, "--epochs=1", f"--run_dir={folder / 'first'}"])  # Leaves decoded pictures.
        start = time.monotonic()
        run([*command, f"--run_dir={folder / 'alone'}"])
        longest = time.monotonic() - start
        runs = 0
        while signals:
            runs += 1
            run_dir = folder / f"killed {runs}"
            while True:
                number = signals[-1] if signals else None
                moment = rng.uniform(0, longest) if signals else None
                victim = rng.randrange(_PROCESSES.value)
                status = run([*command, f"--run_dir={run_dir}"], number, moment, victim)
                statuses[status] += 1
                if status == 0:
                    break
                if number is None or status not in _STATUSES[number]:
                    sys.exit(f"run {runs}: exit status {status}")
                signals.pop()
                print(f"run {runs}: status {status} after {moment:.1f} s", flush=True)
            if different := differences(folder / "alone", run_dir):
                sys.exit(f"run {runs} differs from the one left alone: {', '.join(different)}")
    print(
        f"{runs} runs, {statuses[-signal.SIGKILL]} times killed, {statuses[_PREEMPTED]} times "
        f"preempted, {statuses[-signal.SIGTERM]} times terminated before or after training: "
        "history, weights and files are those of the run left alone"
    )


def run(
    command: list[str],
    number: signal.Signals | None = None,
    moment: float | None = None,
    victim: int = 0,
) -> int:
    """The exit status of the process that gets a signal so many seconds after the start of all."""
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for environment in environments()
    ]
    sent = None
    try:
        processes[victim].wait(moment)
    except subprocess.TimeoutExpired:
        processes[victim].send_signal(sent := number)
    try:
        stderr = [process.communicate(timeout=_LONGEST)[1].decode() for process in processes]
    except subprocess.TimeoutExpired as error:
        for process in processes:
            process.kill()
        sys.exit(f"{error}; the victim's exit status is {processes[victim].returncode}")
    status = processes[victim].returncode
    # Preempted are all or none; one that dies ends the others, unless they had nothing left to do.
    expected = {status} if status in (0, _PREEMPTED) else {0, 1}
    for process, text in zip(processes, stderr, strict=True):
        told = process.returncode != 1 or re.fullmatch(_OTHER_ENDED, text)
        if process is not processes[victim] and not (process.returncode in expected and told):
            sys.exit(f"exit status {process.returncode} where the victim's is {status}: {text}")
    if status == 1 or (status == 0 and sent == signal.SIGTERM):
        sys.exit(f"exit status {status} after {sent}: {stderr[victim]}")
    return status


def environments() -> list[dict[str, str]]:
    """What tells each of the processes of all."""
    if _PROCESSES.value == 1:
        return [{}]
    sockets = [socket.create_server(("localhost", 0)) for _ in range(_PROCESSES.value)]
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    tasks = [{"type": "worker", "index": index} for index in range(_PROCESSES.value)]
    return [
        {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
        for task in tasks
    ]


def differences(run_dir: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What is not the same of two runs."""
    import_tensorflow()  # Now: it takes seconds.
    import keras

    pairs = {
        "metrics.csv": [(folder / "metrics.csv").read_bytes() for folder in (run_dir, other)],
        "files": [sorted(path.name for path in folder.iterdir()) for folder in (run_dir, other)],
        "weights": [
            [w.tobytes() for w in keras.models.load_model(folder / "model.keras").get_weights()]
            for folder in (run_dir, other)
        ],
    }
    results = [json.loads((folder / "result.json").read_text()) for folder in (run_dir, other)]
    for name in ("history", "test_accuracy", "test_loss"):
        pairs[name] = [result[name] for result in results]
    return [name for name, (one, another) in pairs.items() if one != another]


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
