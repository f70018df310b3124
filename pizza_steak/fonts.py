"""Chooses fonts for texts in any script; Matplotlib's own has Latin, Greek, Cyrillic and a few."""

import contextlib
import functools
import unicodedata
from collections.abc import Iterable

import matplotlib
from absl import logging
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

# The first words of the Unicode names of letters that fonts for Chinese, Japanese and Korean have.
_CJK = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO", "FULLWIDTH"}
_NAMED = 10  # Letters in a warning.


def fit(figure: Figure) -> None:
    """Gives the texts of a figure fonts that have their letters; warns of letters that none has."""
    texts = figure.findobj(Text)
    if others := _others(_letters(text.get_text() for text in texts)):
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *others])


def file_for(texts: Iterable[str]) -> str:
    """Returns the font file that has the most letters of some texts; warns of those it lacks."""
    letters = _letters(texts)
    families = [*matplotlib.rcParams["font.family"], *_others(letters)]
    # The first one if several have as many.
    return _file(min(families, key=lambda family: len(_without(family, letters))))


def _letters(texts: Iterable[str]) -> frozenset[str]:
    """Returns the characters that are drawn."""
    return frozenset(
        letter
        for letter in set().union(*texts)
        if letter.isprintable() and not letter.isspace() and not "\ufe00" <= letter <= "\ufe0f"
    )


def _others(letters: frozenset[str]) -> tuple[str, ...]:
    """Returns the font families to draw some letters with, besides Matplotlib's default."""
    return _families(_without(matplotlib.rcParams["font.family"][0], letters))


@functools.cache  # A warning once is enough.
def _families(missing: frozenset[str]) -> tuple[str, ...]:
    chosen: list[str] = []
    while missing:
        best = min(_installed(), key=lambda family: len(_without(family, missing)))
        left = _without(best, missing)
        if left == missing:
            logging.warning(
                "no installed font has %s (%s), so figures show boxes; install one, on Debian and "
                "Ubuntu: apt install %s",
                "".join(sorted(missing)[:_NAMED]),
                ", ".join(sorted(set(map(_script, missing)))),
                " ".join(sorted(set(map(_package, missing)))),
            )
            break
        chosen.append(best)
        missing = left
    return tuple(chosen)


def _installed() -> list[str]:
    """Returns the families that have a regular font, those without serifs first."""
    listed = {str(entry.fname) for entry in font_manager.fontManager.ttflist}
    # Matplotlib keeps a list of the fonts that were there when it was used first.
    for path in set(font_manager.findSystemFonts()) - listed:
        with contextlib.suppress(OSError, RuntimeError):  # Not a font that FreeType reads.
            font_manager.fontManager.addfont(path)
    families = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if (entry.weight, entry.style) == (400, "normal")
        # It has a box for every character.
        and "lastresort" not in entry.name.replace(" ", "").lower()
    }
    return sorted(families, key=lambda family: ("sans" not in family.lower(), family))


def _without(family: str, letters: frozenset[str]) -> frozenset[str]:
    """Returns the letters that the regular font of a family lacks."""
    font = font_manager.get_font(_file(family))
    return frozenset(letter for letter in letters if not font.get_char_index(ord(letter)))


@functools.cache
def _file(family: str) -> str:
    return font_manager.findfont(font_manager.FontProperties(family=[family]))


def _script(letter: str) -> str:
    """Returns the script of a letter, such as "CJK" or "THAI"; "symbols" for a symbol."""
    if _is_symbol(letter):
        return "symbols"
    return unicodedata.name(letter, "unnamed").split()[0]


def _package(letter: str) -> str:
    if _is_symbol(letter):
        return "fonts-symbola"
    return "fonts-noto-cjk" if _script(letter) in _CJK else "fonts-noto-core"


def _is_symbol(letter: str) -> bool:
    return unicodedata.category(letter).startswith("S")
