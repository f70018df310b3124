"""Suggests a learning rate: it grows during a short training.

python -m tuning.learning_rate --flagfile=tinyvgg.flags --archive=food.zip

It takes the flags of trainers.fit for the images, the model and its training,
and writes nothing but a figure (--plot).
"""

from trainers import command
from tuning.configuration import LearningRateConfig


def main(config: LearningRateConfig) -> None:
    # Imports TensorFlow, for which --help must not wait.
    from tuning import learning_rate_finder

    command.show(learning_rate_finder.run(config).summary())
    command.show(f"figure saved to {config.range_test.plot}")


if __name__ == "__main__":
    command.run(main, LearningRateConfig)
