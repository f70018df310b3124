"""The images of a sweep: of its trials, of its finals, and of the final training."""

import dataclasses

import numpy as np

from pizza_steak import splits
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import DataConfig

# Each finalist is trained so many times more.
_MOST_FOLDS = 4


def final_flags(asked: DataConfig, data: run_data.Data) -> DataConfig:
    """Returns the data flags of the final training: all that trials were trained or validated on.

    Args:
      asked: The data flags of the trials.
      data: The images of the trials.
    """
    train = asked.train_split
    if train and splits.fraction(train):
        train = None
    if data.splits["validation"] in (asked.validation_split, "validation"):
        train = f"{train or 'train'}+{data.splits['validation']}"
    return dataclasses.replace(asked, train_split=train, validation_split="none")


def check(asked: DataConfig, data: run_data.Data) -> None:
    """Checks that nothing is trained on what validates it, or tested on what it has seen.

    Args:
      asked: The data flags of the trials.
      data: The images of the trials.

    Raises:
      UserError: Two splits share images, or the final test would use others than the flags say.
    """
    for one, other, reason in (
        ("test", "train", "a test needs images that no trial has trained on"),
        ("test", "validation", "a test needs images that have chosen nothing"),
        ("validation", "train", "trials are chosen by images that they have not trained on"),
    ):
        if count := int(np.isin(data.rows[one], data.rows[other]).sum()):
            raise UserError(
                f"--{one}_split: {count:,} of its {len(data.rows[one]):,} images are in the "
                f"{other} split too ({data.splits[one]}, {data.splits[other]}); {reason}: pass "
                f"another --{one}_split"
            )
    final = run_data.open_splits(final_flags(asked, data)).rows
    readable = np.setdiff1d(final["test"], [*data.pictures.bad])
    same_test = np.array_equal(np.sort(data.rows["test"]), readable)
    seen = np.isin(final["test"], final["train"]).any()
    if not same_test or seen or len(np.unique(final["train"])) < len(final["train"]):
        raise UserError(
            "--train_split, --validation_split and --test_split: the best model would not be "
            "tested on the images that the trials leave for it; pass all three as split strings, "
            "or none of them"
        )


def folds(asked: DataConfig, data: run_data.Data) -> list[int]:
    """Returns the number of validation images of each fold.

    The first fold is the validation split. The others are parts of the training images of about
    the same size, at most four; together all images validate once.

    Args:
      asked: The data flags of the trials.
      data: The images of the trials.
    """
    train, validation = len(data.rows["train"]), len(data.rows["validation"])
    count = min(_MOST_FOLDS, max(1, round(train / validation)))
    # The parts are cut before unreadable images are left out.
    rows, labels = run_data.open_splits(asked).rows["train"], data.records.labels
    parts = splits.parts(labels[rows], data.records.digests[rows], count)
    readable = parts[np.isin(rows, data.rows["train"])]
    return [validation, *np.bincount(readable, minlength=count).tolist()]


def fold_flags(asked: DataConfig, fold: int, count: int) -> DataConfig:
    """Returns the data flags of a fold.

    Args:
      asked: The data flags of the trials.
      fold: The fold; 0 is the validation split.
      count: The number of folds, with the first.
    """
    return dataclasses.replace(asked, validation_fold=f"{fold}/{count - 1}" if fold else None)
