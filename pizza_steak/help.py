"""Writes the help of a command, and suggests the right flag for a wrong one.

`--help` shows the common flags, each with the first sentence of its help; `--helpfull` shows all.
A configuration without common flags has few, and both show all of them.
"""

import dataclasses
import difflib
import textwrap
import typing
from typing import Any

from pizza_steak import flagfile
from pizza_steak.flags import fields, flags_by_concern

_WIDTH = 80
_COLUMN = 26  # Where the text of a flag begins.
_TYPED = "Flags are typed --name=value, switches --name or --noname; later ones win."
_MOST = 4  # Suggestions.


def help_of(config: type, doc: str, full: bool) -> str:
    """Returns the help of a command, in lines of at most 80 columns.

    Args:
      config: The configuration of the command.
      doc: The docstring of its module: what the command does, then paragraphs of which those that
        begin with "python -m" are examples.
      full: Whether to show all flags, and all paragraphs.
    """
    hidden = 0
    groups = []
    for concern, group in flags_by_concern(config):
        shown = [field for field in group if full or field.metadata["common"]]
        hidden += len(group) - len(shown)
        if shown:
            groups.append((concern.removesuffix("."), shown))
    if not groups:
        return help_of(config, doc, full=True)
    first, *paragraphs = doc.strip().split("\n\n")
    if hidden:
        paragraphs = [text for text in paragraphs if text.startswith("python -m ")]
    lines = [*"\n\n".join([first, *paragraphs]).split("\n"), ""]
    for heading, shown in groups:
        lines += textwrap.wrap(f"{heading}:", _WIDTH)
        for field in shown:
            lines += _entry(_typed(field), _text(field, full=not hidden))
        lines.append("")
    lines.append("Flags from a file:")
    known = ", ".join(flagfile.names(config))
    lines += _entry(
        "--flagfile", f"A file of flags, or one of {known}." if known else "A file of flags."
    )
    lines += ["", _TYPED]
    if hidden:
        lines.append(f"--helpfull shows {hidden} more flags.")
    return "\n".join(lines)


def _typed(field: dataclasses.Field) -> str:
    switch = bool in (typing.get_args(field.type) or (field.type,))
    return f"--[no]{field.name}" if switch else f"--{field.name}"


def _text(field: dataclasses.Field, full: bool) -> str:
    """Returns the help of a flag, or its first sentence, with its choices and its default."""
    text = field.metadata["help"]
    if not full:
        text = text.partition(". ")[0].removesuffix(".") + "."
    choices = [choice for choice in field.metadata["choices"] if choice not in text]
    notes = []
    if choices:
        notes.append("one of " + ", ".join(field.metadata["choices"]))
    if default := _default(field.default):
        notes.append(f"default: {default}")
    return f"{text} ({'; '.join(notes)})" if notes else text


def _default(value: Any) -> str:
    """Returns a default as help shows it; "" for none, and for a switch that is off."""
    if isinstance(value, bool):
        return "on" if value else ""
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value in (None, ()) else str(value)


def _entry(name: str, text: str) -> list[str]:
    start, indent = f"  {name}  ", " " * _COLUMN
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if len(start) > _COLUMN:
        return [start.rstrip(), *lines]
    return [start.ljust(_COLUMN) + lines[0].lstrip(), *lines[1:]]


def suggestions(config: type, wrong: str) -> list[str]:
    """Returns the flags that may be meant by a wrong name, the likeliest first.

    They are those that the wrong name is another word for, else those that have its parts, else the
    one that is spelled alike.
    """
    word = wrong.replace("-", "_").lower()
    ordered = sorted(
        (field for _, field in fields(config)), key=lambda field: not field.metadata["common"]
    )
    names = [*(field.name for field in ordered), "flagfile", "help", "helpfull"]
    aliases = {alias: field.name for field in ordered for alias in field.metadata["aliases"]}
    words = aliases | {name: name for name in names}
    if word in words:
        found = [words[word]]
    elif not (found := [name for name in names if {*word.split("_")} <= {*name.split("_")}]):
        found = [words[near] for near in difflib.get_close_matches(word, words, 1, cutoff=0.7)]
    return [f"--{name}" for name in found[:_MOST]]
