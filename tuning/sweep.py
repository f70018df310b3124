"""Searches for the best settings of a classifier, and trains and tests that.

python -m tuning.sweep --flagfile=sweep.flags --archive=~/pizza_steak.zip
"""

from trainers import command
from tuning.configuration import SweepConfig


def main(config: SweepConfig) -> None:
    from tuning import search  # Imports TensorFlow, which --help must not wait for.

    print(search.search(config))


if __name__ == "__main__":
    command.run(main, SweepConfig)
