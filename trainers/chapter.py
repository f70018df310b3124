"""Trains the chapter's seven models, and compares them.

python -m trainers.chapter --archive=~/pizza_steak.zip
"""

from trainers import command
from trainers.configuration import ChapterConfig


def main(config: ChapterConfig) -> None:
    # Imports TensorFlow, for which --help must not wait.
    from trainers.training import comparison

    command.show(comparison.train_chapter(config))


if __name__ == "__main__":
    command.run(main, ChapterConfig)
