"""Draws and writes figures of images."""

import io
import os
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from pizza_steak import fonts
from pizza_steak.atomic import output_file
from pizza_steak.errors import UserError
from pizza_steak.text_width import text_width

# Inches: the width of an image with its margin, this margin, the height of a line of a caption, and
# that of a color bar.
_CELL, _GAP, _LINE, _SCALE = 1.9, 0.1, 0.17, 0.6
LONGEST = 400  # Pixels of an image's longer side: more than a cell has.
_WARNINGS = threading.Lock()
_CHARACTERS = 28  # Of a caption line, in that width.
_END = 10  # Characters at the end of a line that is cut: a probability, or a file's suffix.


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 120) -> None:
    """Writes a figure atomically, in the format of the suffix; without a suffix as PNG.

    Raises:
      UserError: The file cannot be written, or the format is unknown.
    """
    suffix = os.path.splitext(path)[1]
    known = figure.canvas.get_supported_filetypes()
    if suffix and suffix[1:].lower() not in known:
        raise UserError(f"file {path}: unknown format; expected one of {', '.join(known)}")
    with output_file(path) as temporary:
        _write(figure, temporary, format=suffix[1:].lower() or "png", dpi=dpi)


def _write(figure: Figure, file: Any, **options: Any) -> None:
    fonts.fit(figure)
    with _WARNINGS, warnings.catch_warnings():  # The filters are those of the process.
        # It warns of letters that no font has, in one line for all of them.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, **options)


class ShownFigure(Figure):
    """A figure that a notebook shows, also where Matplotlib's pyplot is not imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        _write(self, file, format="png", dpi=100)
        return file.getvalue()


def picture_grid(
    images: Sequence[np.ndarray] | np.ndarray,
    captions: Sequence[str],
    path: str | os.PathLike[str],
    *,
    columns: int = 6,
    scale: tuple[ScalarMappable, str] | None = None,
) -> None:
    """Writes a file with the figure of `draw_grid`.

    Raises:
      UserError: As for `save`.
    """
    save(draw_grid(images, captions, columns=columns, scale=scale), path, dpi=100)


def draw_grid(
    images: Sequence[np.ndarray] | np.ndarray,
    captions: Sequence[str],
    *,
    columns: int = 6,
    scale: tuple[ScalarMappable, str] | None = None,
) -> Figure:
    """Draws images in rows, each under its caption.

    Args:
      images: N uint8 arrays of shape (H, W, C), 1, 3 or 4 channels; heights and widths may differ.
      captions: Texts of one or more lines, for the first images; the others have none.
      columns: Number of images in a row.
      scale: Colors and a label for a color bar below the images.
    """
    captions = [*captions, *[""] * (len(images) - len(captions))]
    rows = [slice(start, start + columns) for start in range(0, len(images), columns)]
    lines = [max(len(caption.splitlines()) for caption in captions[row]) for row in rows]
    # A row is as high as its images need, but a cell is never higher than wide.
    ratios = [min(max(i.shape[0] / i.shape[1] for i in images[row]), 1.0) for row in rows]
    ends = np.cumsum([_LINE * n + _CELL * r for r, n in zip(ratios, lines, strict=True)])
    width, height = _CELL * columns, ends[-1] + (_SCALE if scale else 0)
    figure = ShownFigure(figsize=(width, height))
    # One pair of axes in inches: a pair for each image takes ten times as long to lay out.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        space, middle = _CELL - _GAP, (column + 0.5) * _CELL
        side = min(space / image.shape[1], (_CELL * ratios[row] - _GAP) / image.shape[0])
        half, top = side * image.shape[1] / 2, ends[row] - _CELL * ratios[row]
        bottom = top + side * image.shape[0]
        extent = (middle - half, middle + half, bottom, top)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
        axes.text(
            middle,
            top - _GAP / 4,
            "\n".join(map(shortened, caption.splitlines())),
            ha="center",
            va="bottom",
            fontsize=8,
            parse_math=False,
        )
    axes.set(xlim=(0, width), ylim=(height, 0))
    if scale:
        colors, label = scale
        bar_axes = figure.add_axes((0.25, (_SCALE - 0.15) / height, 0.5, 0.1 / height))
        bar = figure.colorbar(colors, cax=bar_axes, orientation="horizontal")
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return figure


def shortened(line: str, width: int = _CHARACTERS) -> str:
    """Returns a line with dots in place of its middle, if it is wider than that many characters."""
    if text_width(line) <= width:
        return line
    start = line
    while text_width(start) + 1 + text_width(line[-_END:]) > width:
        start = start[:-1]
    return f"{start}…{line[-_END:]}"
