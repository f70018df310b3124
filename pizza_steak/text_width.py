"""Texts of other people for terminals, pages and spreadsheets, and their width in any script."""

import re
import unicodedata

# Control characters (C0, DEL, C1), marks that change the direction of letters, separators of lines
# and paragraphs, and halves of surrogate pairs, which stand for bytes that are no text.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# A spreadsheet program computes a cell that begins so (OWASP, "CSV Injection").
_FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def printable(text: str, keep: str = "") -> str:
    """Returns a text without characters that steer a terminal or hide what it says.

    They are escaped as in Python: ESC is \\x1b. Names of files and classes may have them.

    Args:
      text: The text.
      keep: Such characters that stay, such as line breaks between names that have none.
    """

    def escaped(found: re.Match[str]) -> str:
        letter = found[0]
        return letter if letter in keep else letter.encode("unicode_escape").decode()

    return _UNSAFE.sub(escaped, text)


def spreadsheet_cell(text: str) -> str:
    """Returns a text for a cell of a CSV file, which no spreadsheet program computes.

    It is `printable`: Python's csv module does not quote a carriage return, after which a row would
    begin. A text that could be a formula gets an apostrophe in front.
    """
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULAS) else text


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
