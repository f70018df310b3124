"""Suggests a learning rate for a model, after a short training in which the rate grows.

python -m tuning.learning_rate --flagfile=tinyvgg.flags --archive=~/pizza_steak.zip

It takes the flags of trainers.fit that say which pictures, which model and how it is trained.
Nothing is kept of the training but a figure (--plot).
"""

from trainers import command
from tuning.configuration import LearningRateConfig


def main(config: LearningRateConfig) -> None:
    from tuning import learning_rate_finder  # Imports TensorFlow, which --help must not wait for.

    print(learning_rate_finder.run(config).summary())


if __name__ == "__main__":
    command.run(main, LearningRateConfig)
