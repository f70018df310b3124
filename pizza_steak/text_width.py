"""Measures and pads texts in columns of a terminal, in any script."""

import unicodedata


def text_width(text: str) -> int:
    """Returns the columns of a text: two for a wide letter, such as those of Chinese, none for a
    letter that is drawn over the one before it.
    """
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def padded(text: str, width: int) -> str:
    """Returns a text with spaces after it, up to a number of columns."""
    return text + " " * (width - text_width(text))
