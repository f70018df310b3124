"""Trains a classifier on an archive of class folders.

python -m trainers.fit --flagfile=tinyvgg.flags --archive=~/pizza_steak.zip
"""

from trainers import command
from trainers.config import FitConfig


def main(config: FitConfig) -> None:
    from trainers import training  # Imports TensorFlow, which --help must not wait for.

    print(training.fit(config).summary())


if __name__ == "__main__":
    command.run(main, FitConfig)
