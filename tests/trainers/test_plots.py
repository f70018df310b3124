"""The figures of a run: what they say, read from their text."""

import matplotlib.text
import numpy as np
import pytest
from matplotlib.figure import Figure

from pizza_steak import figures
from trainers.pages import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    saved: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.append(figure))
    return saved


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def matrix_of(count: int, images: int) -> np.ndarray:
    matrix = np.eye(count, dtype=int) * images
    matrix[0, 1] = 3
    return matrix


@pytest.mark.parametrize(
    "count, images, has_numbers, has_names",
    [
        (2, 1000, True, True),
        (30, 250, True, True),
        (60, 100_000, False, True),
        (200, 50, False, True),
        (1000, 50, False, False),
    ],
)
def test_a_confusion_matrix_has_the_numbers_and_names_that_can_be_read(
    drawn, tmp_path, count, images, has_numbers, has_names
):
    names = [f"class_{number}" for number in range(count)]
    plots.confusion_matrix(matrix_of(count, images), names, tmp_path / "a.png")
    found = texts(drawn[0])
    assert ("3" in found and f"{images:,}" in found) == has_numbers
    assert ("class_1" in found) == has_names
    assert "share of the true class" in found
    assert f"{count * images + 3:,} images\neach row is shaded by its shares" in found
    sizes = [text.get_fontsize() for text in drawn[0].findobj(matplotlib.text.Text)]
    assert min(sizes) >= 5


@pytest.mark.parametrize("count", [2, 30])
def test_texts_of_a_confusion_matrix_are_within_the_figure(drawn, tmp_path, count):
    names = [f"a rather long name of class {number}" for number in range(count)]
    plots.confusion_matrix(matrix_of(count, 50), names, tmp_path / "a.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text


HISTORY = {"loss": [0.9, 0.8], "accuracy": [0.5, 0.7], "val_loss": [0.9, 0.8]}
HISTORY["val_accuracy"] = [0.5, 0.6]


def test_curves_have_the_line_of_always_answering_the_largest_class(drawn, tmp_path):
    plots.curves(HISTORY, tmp_path / "a.png")
    assert not any("always" in text for text in texts(drawn[0]))
    largest = {"largest_class": "piz$za", "largest_class_share": 0.625}
    plots.curves(HISTORY, tmp_path / "a.png", largest)
    loss, accuracy = drawn[1].axes
    (line,) = (line for line in accuracy.lines if "always" in line.get_label())
    assert line.get_label() == r"always answering piz\$za (0.62)"
    assert set(line.get_ydata()) == {0.625}
    assert not any("always" in line.get_label() for line in loss.lines)


def test_a_comparison_of_one_epoch_has_a_bar_for_each_run(drawn, tmp_path):
    one = {"val_loss": [0.5], "val_accuracy": [0.75]}
    plots.comparison({"model_1": one, "model_2": one}, tmp_path / "a.png")
    plots.comparison({"model_1": one, "model_2": HISTORY}, tmp_path / "a.png")
    bars, curves = drawn
    for axes in bars.axes:
        assert len(axes.patches) == 2
        assert not axes.lines
        assert axes.get_title().endswith("after one epoch")
    assert {"model_1", "model_2", "0.750", "0.500"} <= set(texts(bars))
    for axes in curves.axes:
        assert not axes.patches
        assert len(axes.lines) == 2
