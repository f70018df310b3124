"""Predicts the classes of images with a finished run's model.

python -m trainers.predict --run_dir=runs/tinyvgg photo.jpg ~/photos
python -m trainers.predict --run_dir=runs/tinyvgg 'more/*.jpg' food.zip/test

An IMAGE is a file, a folder, a pattern or a zip; what follows the path of a zip
is within it. The predictions go to standard output, a line for each image; the
number of images of each class, and what is missing or unreadable, go to
standard error. The exit status is 1 if anything is missing or unreadable.
"""

import sys

from pizza_steak.archive import ReadingOptions
from trainers import command, user_code
from trainers.configuration import PredictConfig
from trainers.hardware import devices


def main(config: PredictConfig, images: list[str]) -> None:
    # Imports TFDS, for which --help must not wait.
    from trainers.runs import run_directory

    run = run_directory.named_run(config.prediction.run_dir)
    devices.prepare(devices.one_device(run.config.devices))
    from trainers.finished import prediction

    user_code.import_all(config.prediction.code)
    asked = config.prediction
    prediction.check_outputs(asked)
    reading = ReadingOptions.of(asked)
    predictions = prediction.predict(run, images, asked.batch_size, reading)
    # A pipe gets the predictions and nothing else.
    print(predictions.write(asked), end="", flush=True)
    if asked.annotate:
        print(f"annotated images saved to {asked.annotate}", file=sys.stderr)
    print(predictions.counts() + predictions.errors(), end="", file=sys.stderr)
    if predictions.faults:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main, PredictConfig, arguments="IMAGE")
