"""Searches for the best settings, then trains and tests a model.

python -m tuning.sweep --flagfile=sweep.flags --archive=~/pizza_steak.zip
"""

from trainers import command
from tuning.configuration import SweepConfig


def main(config: SweepConfig) -> None:
    # Imports TensorFlow, for which --help must not wait.
    from tuning.trials import loop

    command.show(loop.sweep(config))


if __name__ == "__main__":
    command.run(main, SweepConfig)
