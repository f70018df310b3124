"""Predicts the classes of images with the model of a finished run.

python -m trainers.predict --run_dir=runs/tinyvgg photo.jpg ~/photos 'more/*.jpg' food.zip/test

An IMAGE is a file, a folder, a pattern or a zip; what follows the path of a zip is within it.
"""

import sys

from trainers import command
from trainers.configuration import PredictConfig
from trainers.hardware import devices


def main(config: PredictConfig, images: list[str]) -> None:
    # Imports TFDS, for which --help must not wait.
    from trainers.runs import run_directory

    run = run_directory.named_run(config.prediction.run_dir)
    devices.prepare(run.config.devices)
    from trainers.finished import prediction

    predictions = prediction.predict(run, images, config.prediction.batch_size)
    print(predictions.write(config.prediction), end="")
    if predictions.faults:
        print(predictions.errors(), end="", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    command.run(main, PredictConfig, arguments="IMAGE")
