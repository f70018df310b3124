"""Trains a classifier on an archive of class folders.

python -m trainers.fit --flagfile=pretrained.flags --archive=~/holiday_pictures
python -m trainers.fit --archive=food.zip --image_size=64 --horizontal_flip
python -m trainers.fit --archive=food.zip --run_dir=runs/food --resume=auto

SIGTERM, which Slurm, Kubernetes and spot machines send before they take the
machine, ends training after the current step. Everything is saved, and the exit
status is 75. With --resume=auto a job script starts and resumes a run with the
same command.

Several processes train one model together if TF_CONFIG or Slurm names them:
start this command in each. The first one writes the run directory.
"""

from trainers import command
from trainers.configuration import FitConfig


def main(config: FitConfig) -> None:
    # They import TensorFlow, which --help must not wait for.
    from trainers.hardware import clusters
    from trainers.training import loop

    command.show(loop.fit(config, clusters.from_environment(config)).summary())


if __name__ == "__main__":
    command.run(main, FitConfig)
