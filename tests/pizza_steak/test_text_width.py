"""Names of other people on a terminal and in a spreadsheet."""

import pytest

from pizza_steak.text_width import printable, spreadsheet_cell


@pytest.mark.parametrize(
    "text",
    [
        "steak",
        "寿司",
        "\u06a9\u062a\u200c\u0647\u0627",
        "café",
        "cafe\u0301",
        "👩\u200d🍳",
        "a\\x1bb",
        "",
    ],
)
def test_text_in_any_script_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nerror: b", r"a\nerror: b"),
        ("a\rb\x08\x7f", r"a\rb\x08\x7f"),
        ("a\x9b2Jb\x85", r"a\x9b2Jb\x85"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\u2066a\u2069\u200f\u061c", r"\u2066a\u2069\u200f\u061c"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("\udcff.jpg", r"\udcff.jpg"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown
    shown.encode()


def test_line_breaks_may_be_kept():
    assert printable("a\n\x1bb\n", keep="\n") == "a\n\\x1bb\n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "\uff20"])
def test_a_formula_becomes_a_text(start):
    assert spreadsheet_cell(f"{start}cmd|' /C calc'!A0") == f"'{start}cmd|' /C calc'!A0"


@pytest.mark.parametrize("start", ["\t", "\r", "\n", "a\r\n", "a\x0b", "a\x85", "a\u2028"])
def test_no_cell_begins_a_line_with_a_formula(start):
    text = spreadsheet_cell(f"{start}=1+1")
    assert text.splitlines() == [text] and not text.startswith(tuple("=\t"))


@pytest.mark.parametrize("text", ["a=b", "1-2.jpg", "a/@eaDir", "'=1", "", "0.5"])
def test_other_cells_stay(text):
    assert spreadsheet_cell(text) == text
