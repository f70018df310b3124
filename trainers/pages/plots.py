"""Draws the figures of a run directory and of the benchmark."""

import io
import pathlib
from collections.abc import Container, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from pizza_steak import figures, fonts
from pizza_steak.text_width import text_width
from trainers.runs import run_directory

# Okabe and Ito's palette, which color-blind people can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_TRAIN, _VALIDATION = _COLORS[:2]
# Lengths of strokes and gaps, in points; without any, the line is solid.
_DASHES = ((), (5, 2.5), (1.5, 2))
_OURS, _PEERS = _COLORS[:2]
# Its lightness rises from end to end, so that color-blind people can read it.
_HEAT_COLORS = colormaps["viridis"]
_LEAST_POINTS = 5  # Smaller letters cannot be read.
_HEAT = 0.6  # The weight of heat maps over images.


def curves(
    history: Mapping[str, Sequence[float]],
    path: pathlib.Path,
    largest: Mapping[str, Any] | None = None,
) -> None:
    """Draws loss and accuracy by epoch, for training and validation, and marks the best epoch.

    Args:
      history: A list with a number per epoch, by Keras's names.
      path: The PNG to write.
      largest: What `scores.largest_class` returns for the validation images, to draw the accuracy
        of always answering that class.
    """
    epochs = np.arange(1, len(history["loss"]) + 1)
    kept = run_directory.kept_epoch(history) + 1
    word = "best" if "val_loss" in history else "last"
    figure = Figure(figsize=(10, 4))
    # In fractions of the figure: to find them takes as long as to draw.
    margins = {"left": 0.06, "right": 0.99, "bottom": 0.13, "top": 0.92, "wspace": 0.15}
    pair = figure.subplots(1, 2, gridspec_kw=margins)
    for axes, metric in zip(pair, ("loss", "accuracy"), strict=True):
        for name, color, label in (
            (metric, _TRAIN, "training"),
            (f"val_{metric}", _VALIDATION, "validation"),
        ):
            if values := history.get(name):
                marker = _marker(epochs)
                axes.plot(epochs, values, color=color, label=label, marker=marker, markersize=4)
        if largest and metric == "accuracy":
            name = figures.shortened(str(largest["largest_class"]))
            share = largest["largest_class_share"]
            label = f"always answering {name} ({share:.2f})".replace("$", r"\$")
            axes.axhline(share, color="black", linestyle="--", linewidth=1, label=label)
        axes.axvline(kept, color="0.5", linestyle=":", label=f"{word} epoch ({kept})")
        axes.set(title=metric.capitalize(), xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        axes.grid(color="0.9")
        axes.legend()
    figures.save(figure, path)


def _marker(epochs: Sized) -> str | None:
    """Returns the marker of each epoch; one epoch gives no line, and many markers would overlap."""
    return "o" if len(epochs) <= 30 else None


def comparison(histories: Mapping[str, Mapping[str, Sequence[float]]], path: pathlib.Path) -> None:
    """Draws the validation loss and accuracy of several runs by epoch.

    Args:
      histories: By the run's name, a list with a number per epoch, by Keras's names.
      path: The PNG to write.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    # Points of one epoch, all above each other, could hardly be told apart.
    bars = all(len(history["val_loss"]) == 1 for history in histories.values())
    for axes, metric in zip(figure.subplots(1, 2), ("val_loss", "val_accuracy"), strict=True):
        title = metric.replace("val_", "Validation ")
        values = [history[metric] for history in histories.values()]
        if bars:
            _bars(axes, list(histories), [value for (value,) in values])
        else:
            _overlay(axes, values)
        axes.set(title=f"{title} after one epoch" if bars else title)
    if not bars:
        axes.legend(axes.lines, histories, loc="center left", bbox_to_anchor=(1, 0.5))
    figures.save(figure, path)


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float]) -> None:
    drawn = axes.barh(range(len(names)), values, color=_COLORS[0])
    axes.bar_label(drawn, fmt="%.3f", padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def overlay_svg(curves: Sequence[Sequence[float]]) -> bytes:
    """Draws a metric of several runs by epoch, each in its `line_style`, without a legend.

    Args:
      curves: For each run, a number per epoch; may be empty.

    Returns:
      An SVG document.
    """
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    _overlay(figure.subplots(), curves)
    return svg(figure)


def svg(figure: Figure) -> bytes:
    """Returns a figure as an SVG document."""
    file = io.BytesIO()
    fonts.fit(figure)
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def line_style(index: int) -> tuple[str, tuple[float, ...]]:
    """Returns the color and the dashes, in points, of a run; no two of 21 runs are alike."""
    # Three dashes and seven colors: neighbours differ in both.
    return _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]


def _overlay(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    for index, values in enumerate(curves):
        color, dashes = line_style(index)
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            color=color,
            linestyle=(0, dashes) if dashes else "-",
            marker=_marker(values),
            markersize=4,
        )
    longest = max([1, *map(len, curves)])
    axes.set(xlabel="epoch", xlim=(0.5, longest + 0.5) if longest <= 10 else (None, None))
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.grid(color="0.9")


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], path: pathlib.Path) -> None:
    """Draws how often each true class (row) is predicted as each class (column).

    A cell is shaded by its share of the row, and has its number if that can be read. Names are left
    out if there are too many to be read.

    Args:
      matrix: Numbers of images, int of shape (C, C).
      classes: C class names.
      path: The PNG to write.
    """
    count = len(classes)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(2.5, min(0.42 * count, 20))  # Inches of the matrix.
    points = 72 * side / count  # Of a cell.
    heading, size = max(10, 0.9 * side), min(10, 0.8 * points)
    named = size >= _LEAST_POINTS
    names = [figures.shortened(name) for name in classes] if named else []
    # A letter is about 0.6 as wide as high.
    longest = max(map(text_width, names), default=0) * 0.6 * size
    margin = (longest + 3 * heading) / 72
    figure = Figure(figsize=(side + margin + 1.3, side + margin + 0.7), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    form = PercentFormatter(1, symbol=" %")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=30, pad=0.03, format=form)
    bar.set_label("share of the true class", fontsize=heading)
    title = f"{matrix.sum():,} images\neach row is shaded by its shares"
    axes.set_title(title, fontsize=heading)
    by = "" if named else " (by its number, from 0)"
    axes.set_xlabel(f"predicted class{by}", fontsize=heading)
    axes.set_ylabel(f"true class{by}", fontsize=heading)
    if named:
        # Matplotlib would read a formula between dollar signs.
        names = [name.replace("$", r"\$") for name in names]
        rotation = 0 if longest <= points else 90
        axes.set_xticks(range(count), names, rotation=rotation, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    # The longest number fills 0.9 of a cell.
    size = min(11, 0.9 * points / (0.65 * len(f"{matrix.max():,}")))
    if size >= _LEAST_POINTS:
        for (row, column), number in np.ndenumerate(matrix):
            if number or count <= 10:  # Many zeros hide the rest.
                color = "white" if shares[row, column] > 0.6 else "black"
                axes.text(
                    column,
                    row,
                    f"{number:,}",
                    color=color,
                    ha="center",
                    va="center",
                    fontsize=size,
                    in_layout=False,  # Or the layout measures each of them.
                )
    figures.save(figure, path)


def augmentation(images: np.ndarray, versions: np.ndarray, path: pathlib.Path) -> None:
    """Draws images, a row each, beside their augmented versions.

    Args:
      images: uint8 of shape (N, H, W, C).
      versions: uint8 of shape (N, V, H, W, C).
      path: The PNG to write.
    """
    columns = np.concatenate([images[:, np.newaxis], versions], axis=1)
    captions = ["original", *(f"epoch {number + 1}" for number in range(versions.shape[1]))]
    figures.picture_grid(np.concatenate(columns), captions, path, columns=len(captions))


def activation_maps(
    images: np.ndarray, maps: np.ndarray, captions: Sequence[str], path: pathlib.Path
) -> None:
    """Draws images, each beside its heat map.

    Args:
      images: uint8 of shape (N, H, W, C).
      maps: The activation maps, of shape (N, H, W), 0 to 1.
      captions: A text for each image.
      path: The file to write.
    """
    pairs = zip(images, heat_maps(images, maps), strict=True)
    cells = [cell for pair in pairs for cell in pair]
    texts = [text for caption in captions for text in (caption, "")]
    label = "Grad-CAM of the predicted class (1: the largest value of each image)"
    figures.picture_grid(cells, texts, path, scale=(ScalarMappable(cmap=_HEAT_COLORS), label))


def heat_maps(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Returns activation maps as colors, over gray versions of their images.

    Args:
      images: uint8 of shape (N, H, W, C).
      maps: The activation maps, of shape (N, H, W), 0 to 1.

    Returns:
      uint8 of shape (N, H, W, 3).
    """
    gray = images[..., :3].mean(axis=-1, keepdims=True)  # Without alpha.
    heat = _HEAT_COLORS(maps, bytes=True)[..., :3]
    return np.round((1 - _HEAT) * gray + _HEAT * heat).astype(np.uint8)


def throughput(
    speeds: Mapping[str, Sequence[float]], peers: Container[str], path: pathlib.Path
) -> None:
    """Draws images per second on a log scale: bars to the median, lines from least to most.

    Args:
      speeds: The speed of each repeat, by the name of the row, from top to bottom.
      peers: The names of rows that are not this package's.
      path: The PNG to write.
    """
    figure = Figure(figsize=(9, 1.1 + 0.34 * len(speeds)), layout="constrained")
    axes = figure.subplots()
    for place, (name, repeats) in enumerate(speeds.items()):
        median, least, most = np.median(repeats), min(repeats), max(repeats)
        axes.barh(place, median, color=_PEERS if name in peers else _OURS)
        axes.hlines(place, least, most, color="black")
        axes.annotate(
            f"{median:,.0f}", (most, place), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(speeds)), speeds)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="images per second (log scale)")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    kinds = [Patch(color=_OURS, label="this package"), Patch(color=_PEERS, label="Keras alone")]
    figure.legend(handles=kinds, loc="outside upper right", ncols=2, frameon=False)
    figures.save(figure, path)


def calibration(bins: Sequence[Mapping[str, float]], error: float, path: pathlib.Path) -> None:
    """Draws the accuracy of predictions by their probability (a reliability diagram).

    Args:
      bins: For each range "from" and "to" of probability, the mean "confidence" and "accuracy" of
        its images, and their number "images".
      error: The expected calibration error.
      path: The PNG to write.
    """
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ranges = {
        "x": [row["from"] for row in bins],
        "width": [row["to"] - row["from"] for row in bins],
        "align": "edge",
        "color": _COLORS[5],
        "edgecolor": "white",
    }
    confidences, accuracies = ([row[name] for row in bins] for name in ("confidence", "accuracy"))
    upper.bar(height=accuracies, label="accuracy of each range", **ranges)
    upper.plot(confidences, accuracies, "o", color=_COLORS[1], label="at its mean probability")
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", label="calibrated")
    upper.set(
        title=f"Expected calibration error {error:.3f}",
        ylabel="accuracy",
        xlim=(bins[0]["from"], 1),
        ylim=(0, 1.02),
    )
    lower.bar(height=[row["images"] for row in bins], **ranges)
    lower.set(xlabel="probability of the predicted class", ylabel="images")
    lower.yaxis.get_major_locator().set_params(integer=True)
    for axes in (upper, lower):
        axes.set_axisbelow(True)
        axes.grid(color="0.9")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figures.save(figure, path)
