"""Trains a classifier on an archive of class folders.

python -m trainers.fit --flagfile=tinyvgg.flags --archive=~/pizza_steak.zip

SIGTERM, which Slurm, Kubernetes and spot machines send before they take the machine, ends training
after the step that it comes in: all is saved, and the exit status is 75. For job scripts, the same
command starts the run and goes on with it:

python -m trainers.fit --flagfile=tinyvgg.flags --run_dir=runs/pizza --resume=auto

Several processes that TF_CONFIG or Slurm tells of each other, each with this command, train one
model together; the first of them writes the run directory.
"""

from trainers import command
from trainers.configuration import FitConfig


def main(config: FitConfig) -> None:
    # They import TensorFlow, which --help must not wait for.
    from trainers.hardware import clusters
    from trainers.training import loop

    print(loop.fit(config, clusters.from_environment(config)).summary())


if __name__ == "__main__":
    command.run(main, FitConfig)
