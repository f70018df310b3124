"""What a test accuracy is worth: its interval, and what one answer for all images would have."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def interval(correct: int, count: int) -> list[float]:
    """Returns the 95 % interval of a share of `count` images (Wilson, 1927): [low, high]."""
    from scipy import stats  # Takes half a second, and the report page does without.

    return [*map(float, stats.binomtest(correct, count).proportion_ci(0.95, "wilson"))]


def largest_class(labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Returns "largest_class", the name of the most frequent one, and "largest_class_share"."""
    counts = np.bincount(labels, minlength=len(classes))
    return {
        "largest_class": classes[int(counts.argmax())],
        "largest_class_share": float(counts.max() / counts.sum()),
    }


def by_class(confusion_matrix: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns "images" and "accuracy" of each class; the accuracy is None without images.

    Args:
      confusion_matrix: Numbers of images by true class (rows) and predicted class, shape (C, C).
      classes: The class names.
    """
    return {
        name: {
            "images": int(row.sum()),
            "accuracy": float(row[label] / row.sum()) if row.sum() else None,
        }
        for label, (name, row) in enumerate(zip(classes, confusion_matrix, strict=True))
    }


def accuracy_text(accuracy: float, bounds: Sequence[float] | None, images: int | None) -> str:
    """Returns an accuracy with its interval, such as "0.667 (0.50 to 0.80, 36 images)"."""
    if bounds is None:  # A run of an older version.
        return f"{accuracy:.3f}"
    low, high = bounds
    return f"{accuracy:.3f} ({low:.2f} to {high:.2f}, {images:,} images)"


def test_accuracy_text(result: Mapping[str, Any]) -> str:
    """Returns the test accuracy of a result.json with its interval."""
    bounds, images = result.get("test_accuracy_interval"), result.get("test_images")
    return accuracy_text(result["test_accuracy"], bounds, images)


def test_cautions(result: Mapping[str, Any], chosen: str = "the best epoch") -> list[str]:
    """Returns what to know about the test accuracy of a result.json, line by line.

    Args:
      result: What it says.
      chosen: What was chosen by the test images, if anything was.
    """
    lines = []
    if result.get("test_images_chose_the_model"):
        lines.append(f"these images also chose {chosen}: expect less on new ones")
    if "test_accuracy_interval" in result:
        lines += not_learned(result, result["test_accuracy_interval"])
    return lines


def not_learned(values: Mapping[str, Any], bounds: Sequence[float]) -> list[str]:
    """Returns a line if the accuracy may be that of one answer for all images.

    Args:
      values: Has what `largest_class` returns.
      bounds: The interval of the accuracy.
    """
    name, share = values["largest_class"], values["largest_class_share"]
    if bounds[0] > share:
        return []
    return [f"has not learned: always answering {name!r} is right for {share:.3f}"]
