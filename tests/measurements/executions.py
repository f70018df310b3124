"""Trains a small network with one step in a call of TensorFlow, and with several; compares them.

python tests/measurements/executions.py --turns=5 --archive=pizza_steak_64px.zip

The trainings take turns, because the speed of a machine drifts. All other flags are those of
trainers.fit.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from absl import app, flags

_TURNS = flags.DEFINE_integer("turns", 5, "How often each is trained.")
_STEPS = flags.DEFINE_list("numbers", ["1", "auto"], "Values of --steps_per_execution.")
_FLAGS = ("--image_size=32", "--batch_size=8", "--epochs=5", "--notensorboard", "--overwrite")


def main(argv):
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "trainers.fit", *_FLAGS, f"--data_dir={name}", *argv[1:]]
        found: dict[str, list[dict]] = {number: [] for number in _STEPS.value}
        for turn in range(_TURNS.value + 1):  # The first one decodes.
            for number in found:
                run_dir = pathlib.Path(name, "run")
                own = [f"--steps_per_execution={number}", f"--run_dir={run_dir}"]
                subprocess.run([*command, *own], check=True, stdout=subprocess.DEVNULL)
                if turn:
                    found[number].append(json.loads((run_dir / "result.json").read_text()))
        middle = statistics.median
        for number, results in found.items():
            speed = middle(result["train_images_per_second"] for result in results)
            processor = middle(result["fit_cpu_seconds"] for result in results)
            ends = [result["epoch_end_seconds"] for result in results]
            first = middle(end[0] for end in ends)
            later = middle(end[-1] - end[0] for end in ends)
            print(
                f"{number}: {speed:,.0f} images/s, {processor:.2f} CPU s; first epoch "
                f"{first:.2f} s, all later ones {later:.2f} s"
            )
        histories = [result["history"] for results in found.values() for result in results]
        print("same histories:", all(history == histories[0] for history in histories))


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
