"""The images of the final training: all that the trials were trained and validated on."""

import dataclasses

import numpy as np

from pizza_steak import splits
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.configuration import DataConfig
from tuning.configuration import SweepConfig


def data_flags(config: SweepConfig, data: run_data.Data) -> DataConfig:
    """Returns the data flags of the final training.

    Args:
      config: The flags of the search.
      data: The images of the trials.
    """
    asked = DataConfig(**vars(config.data))
    train = asked.train_split
    if train and splits.fraction(train):
        train = None
    if data.splits["validation"] in (asked.validation_split, "validation"):
        train = f"{train or 'train'}+{data.splits['validation']}"
    return dataclasses.replace(asked, train_split=train, validation_split="none")


def check_same_test(config: SweepConfig, data: run_data.Data) -> None:
    """Checks that the final test uses images that neither a trial nor the final training has seen.

    Args:
      config: The flags of the search.
      data: The images of the trials.

    Raises:
      UserError: The final test would use others, and no flag asks for that.
    """
    final = run_data.load(data_flags(config, data))
    seen = np.concatenate([data.rows["train"], data.rows["validation"]])
    test, train = data.rows["test"], final.rows["train"]
    if (
        not np.array_equal(np.sort(test), np.sort(final.rows["test"]))
        or len(np.unique(train)) < len(train)
        or np.isin(test, train).sum() > np.isin(test, seen).sum()
    ):
        raise UserError(
            "--train_split, --validation_split and --test_split: the best model would not be "
            "tested on the images that the trials leave for it; pass all three as split strings, "
            "or none of them"
        )
