"""Several runs side by side: the chapter's seven models, trained and compared."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from pizza_steak.atomic import atomic_path
from pizza_steak.errors import UserError
from trainers.configuration import (
    CHAPTERS_AUGMENTATION,
    AugmentationConfig,
    ChapterConfig,
    DataConfig,
    FitConfig,
    ModelConfig,
    RunConfig,
)
from trainers.pages import plots
from trainers.runs import scores
from trainers.training import loop

# The network of each of the chapter's models, and whether its training images are augmented.
CHAPTER = {
    "model_1": ("tinyvgg", False),
    "model_2": ("playground", False),
    "model_3": ("dense", False),
    "model_4": ("conv3", False),
    "model_5": ("conv3_pool", False),
    "model_6": ("conv3_pool", True),
    "model_7": ("tinyvgg", True),
}
# Validation accuracies in the chapter, on the photographs of pizza and steak. The first is from
# Bossard et al., "Food-101 - Mining Discriminative Components with Random Forests", 2014, for all
# 101 classes.
BASELINES = {
    "random forest of the data set's authors (101 classes)": 0.5076,
    "chapter's model_1": 0.81,
    "chapter's model_2": 0.50,
    "chapter's model_3": 0.70,
}
# The fields of result.json that a comparison keeps.
_TEST = (
    "test_accuracy",
    "test_accuracy_interval",
    "test_images",
    "test_images_chose_the_model",
)


def train_chapter(config: ChapterConfig) -> str:
    """Trains the chapter's models that are not trained yet, and compares all of them.

    Each has a run directory under `run_dir`, beside comparison.json and comparison.png.

    Returns:
      The comparison, as a table.

    Raises:
      UserError: `only` names an unknown model, or a run of other flags exists.
    """
    if config.data.validation_split == "none":
        raise UserError(
            "validation_split 'none': models are compared by their validation; expected a split"
        )
    folder = pathlib.Path(config.chapter.run_dir).expanduser()
    results = {}
    for name in _asked(config.chapter.only):
        network, augmented = CHAPTER[name]
        print(f"\n{name}: {_described(network, augmented)}", flush=True)
        keras.utils.clear_session()
        run = RunConfig(str(folder / name), resume="auto")
        results[name] = loop.fit(dataclasses.replace(fit_config(config, name), run=run)).values
    rows = {name: compare(values, CHAPTER[name][1]) for name, values in results.items()}
    with atomic_path(folder / "comparison.json") as temporary:
        temporary.write_text(
            json.dumps({"runs": rows, "baselines": BASELINES}, indent=2) + "\n", encoding="utf-8"
        )
    histories = {name: values["history"] for name, values in results.items()}
    plots.comparison(histories, folder / "comparison.png")
    return (
        f"\n{_table(rows)}\n\nresults saved to {folder}\n"
        f"figure saved to {folder / 'comparison.png'}"
    )


def fit_config(config: ChapterConfig, name: str) -> FitConfig:
    """Returns the flags of `trainers.fit` for a model of the chapter, those of its flagfile."""
    network, augmented = CHAPTER[name]
    return FitConfig(
        data=DataConfig(**vars(config.data)),
        augmentation=CHAPTERS_AUGMENTATION if augmented else AugmentationConfig(),
        model=ModelConfig(network),
        optimisation=config.optimisation,
        devices=config.devices,
    )


def compare(result: Mapping[str, Any], augmented: bool) -> dict[str, Any]:
    """Returns a run's row of the comparison.

    Args:
      result: The content of its result.json.
      augmented: Whether its training images are augmented.

    Returns:
      "network", "augmented", "parameters", "accuracy" and "val_accuracy" (lists by epoch), "gap"
      (training accuracy minus validation accuracy in the last epoch), "fit" (the gap in words),
      "seconds", and the numbers of the test.
    """
    history = result["history"]
    gap = history["accuracy"][-1] - history["val_accuracy"][-1]
    chance = 1 / len(result["classes"])
    if history["val_accuracy"][-1] < chance + 0.05:
        fit = "no better than chance"
    elif gap > 0.05:
        fit = "overfits"
    elif gap < -0.02:
        fit = "still underfits"
    else:
        fit = "fits"
    return {
        "network": result["model"],
        "augmented": augmented,
        "parameters": result["parameters"],
        "accuracy": history["accuracy"],
        "val_accuracy": history["val_accuracy"],
        "gap": gap,
        "fit": fit,
        "seconds": result["fit_seconds"],
        **{name: result.get(name) for name in _TEST},
    }


def _asked(only: tuple[str, ...] | None) -> tuple[str, ...]:
    if unknown := [name for name in only or () if name not in CHAPTER]:
        raise UserError(f"only {unknown[0]!r}: unknown; expected some of {', '.join(CHAPTER)}")
    return tuple(name for name in CHAPTER if only is None or name in only)


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the comparison as text; of many epochs it shows the first two and the last two."""
    lines = []
    accuracies = ("training accuracy", "validation accuracy", "test accuracy")
    cells = [("", "network", "parameters", *accuracies, "gap", "seconds", "in words")]
    for name, row in rows.items():
        cells.append(
            (
                name,
                _described(row["network"], row["augmented"]),
                f"{row['parameters']:,}",
                _by_epoch(row["accuracy"]),
                _by_epoch(row["val_accuracy"]),
                scores.test_accuracy_text(row),
                f"{row['gap']:+.2f}",
                f"{row['seconds']:.0f}",
                row["fit"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        aligned = [
            f"{cell:>{width}}" if index in (2, 6, 7) else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    best = max(rows, key=lambda name: np.max(rows[name]["val_accuracy"]))
    lines.append(f"\nbest: {best}, validation accuracy {max(rows[best]['val_accuracy']):.4f}")
    if any(row["test_images_chose_the_model"] for row in rows.values()):
        lines.append("the test images also chose the best epochs: expect less on new ones")
    known = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in BASELINES.items())
    lines.append(f"baselines: {known}")
    return "\n".join(lines)


def _described(network: str, augmented: bool) -> str:
    return f"{network}, augmented" if augmented else network


def _by_epoch(values: list[float]) -> str:
    shown = [f"{value:.3f}" for value in values]
    return " ".join(shown if len(shown) <= 6 else [*shown[:2], "...", *shown[-2:]])
