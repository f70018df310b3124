"""Trains a classifier on an archive of class folders.

python -m trainers.fit --flagfile=tinyvgg.flags --archive=~/pizza_steak.zip

Slurm, Kubernetes and spot machines send SIGTERM before they take a machine away. It ends training
after the current step: a checkpoint is saved, and the exit status is 75. In job scripts, the same
command starts and resumes the run:

python -m trainers.fit --flagfile=tinyvgg.flags --run_dir=runs/pizza --resume=auto

With TF_CONFIG or Slurm, several processes that run this command train one model together; the first
of them writes the run directory.
"""

from trainers import command
from trainers.configuration import FitConfig


def main(config: FitConfig) -> None:
    # Both import TensorFlow, for which --help must not wait.
    from trainers.hardware import clusters
    from trainers.training import loop

    print(loop.fit(config, clusters.from_environment(config)).summary())


if __name__ == "__main__":
    command.run(main, FitConfig)
