"""Texts in any script: the fonts they are drawn in, their width, and how they are shortened."""

import logging

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from pizza_steak import figures, fonts
from pizza_steak.text_width import padded, text_width

# Greek, Cyrillic, Arabic and Georgian are in Matplotlib's own font; these are in no font of it but
# STIX, which comes with it too.
ONLY_IN_STIX = "ᶁᶎ"


@pytest.fixture
def warnings(caplog):
    """`warnings()`: the warnings so far, as lines; each letter is warned of again."""
    fonts._families.cache_clear()
    with caplog.at_level(logging.WARNING, logger="absl"):
        yield lambda: caplog.messages


@pytest.fixture
def only_bundled(monkeypatch):
    """No font but those that come with Matplotlib."""
    entries = [e for e in font_manager.fontManager.ttflist if "mpl-data" in str(e.fname)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])


def families(text: str) -> list[str]:
    """The families that a title is drawn in."""
    figure = Figure()
    title = figure.subplots().set_title(text)
    fonts.fit(figure)
    return title.get_fontfamily()


@pytest.mark.parametrize("text", ["pizza", "Ελλάς", "борщ", "بيتزا", "é\n\t", "a\ufe0f"])
def test_what_the_own_font_has_is_drawn_in_it(warnings, text):
    assert families(text) == ["sans-serif"]
    assert warnings() == []


@pytest.mark.parametrize("text", [ONLY_IN_STIX, f"pizza {ONLY_IN_STIX}"])
def test_other_letters_are_drawn_in_a_font_that_has_them(only_bundled, warnings, text):
    assert families(text) == ["sans-serif", "STIXGeneral"]
    assert warnings() == []


@pytest.mark.parametrize(
    "text, named, package",
    [
        ("寿司", "司寿 (CJK)", "fonts-noto-cjk"),
        ("すし", "しす (HIRAGANA)", "fonts-noto-cjk"),
        ("김치", "김치 (HANGUL)", "fonts-noto-cjk"),
        ("ผัดไทย", "(THAI)", "fonts-noto-core"),
        ("🍕", "🍕 (symbols)", "fonts-symbola"),
        ("寿ผ", "(CJK, THAI)", "fonts-noto-cjk fonts-noto-core"),
    ],
)
def test_letters_that_no_font_has_are_one_line_that_says_what_to_install(
    only_bundled, warnings, tmp_path, text, named, package
):
    image = np.zeros((4, 4, 3), np.uint8)
    for name in ("a.png", "b.svg"):  # A second figure has nothing new to say.
        figures.picture_grid([image], [f"pizza {text}"], tmp_path / name)
    (line,) = warnings()
    assert named in line
    assert line.endswith(f"apt install {package}")


def test_a_font_that_was_installed_since_is_found(only_bundled, monkeypatch, warnings):
    (stix,) = (
        e
        for e in font_manager.fontManager.ttflist
        if e.name == "STIXGeneral" and (e.weight, e.style) == (400, "normal")
    )
    others = [e for e in font_manager.fontManager.ttflist if e.name != "STIXGeneral"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(stix.fname)])
    assert families(ONLY_IN_STIX)[1:] == ["STIXGeneral"]


def test_the_font_file_is_the_one_with_the_most_letters(only_bundled, warnings):
    assert fonts.file_for(["pizza 寿司"]).endswith("DejaVuSans.ttf")
    assert fonts.file_for([f"pi {ONLY_IN_STIX}"]).endswith("STIXGeneral.ttf")


def test_wide_letters_take_two_columns():
    assert [text_width(text) for text in ("pizza", "寿司", "é", "e\N{COMBINING ACUTE ACCENT}")] == [
        5,
        4,
        1,
        1,
    ]
    assert padded("寿司", 6) == "寿司  "


def test_a_long_line_keeps_its_beginning_and_its_end():
    line = f"predicted {'a' * 60} (79 %)"
    short = figures.shortened(line)
    assert text_width(short) == 28
    assert short.startswith("predicted aa")
    assert short.endswith("a (79 %)")
    assert figures.shortened("a" * 28) == "a" * 28
    assert text_width(figures.shortened("寿" * 40)) <= 28


def test_images_keep_their_aspect_ratio_and_rows_are_as_high_as_they_need(tmp_path):
    def height(*shapes) -> int:
        images = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
        figures.picture_grid(images, [], tmp_path / "a.png", columns=1)
        with Image.open(tmp_path / "a.png") as image:
            return image.height

    wide = (10, 40)
    assert height(wide, wide) < height(wide, (10, 10)) < height((10, 10), (10, 10))


def test_images_may_be_one_pixel_wide_or_high(tmp_path):
    shapes = [(1, 40, 3), (40, 1, 3), (1, 1, 3), (1, 5, 1), (5, 5, 1), (4, 4, 4)]
    images = [np.full(shape, 200, np.uint8) for shape in shapes]
    (axes,) = figures.draw_grid(images, []).axes
    assert [drawn.get_array().shape[:2] for drawn in axes.images] == [s[:2] for s in shapes]
    figures.picture_grid(images, [], tmp_path / "a.png")
