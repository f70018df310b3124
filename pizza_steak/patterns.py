"""Finds the paths that match a shell pattern of the user's."""

import glob
import os
import pathlib


def matches(
    pattern: pathlib.Path, *, recursive: bool = False, follow_links: bool = True
) -> set[pathlib.Path]:
    """Returns the paths that match a pattern; folders that exist by their very name are none.

    Args:
      pattern: The pattern.
      recursive: Whether `**` stands for any folders.
      follow_links: Whether it also stands for links to folders.
    """
    literal = next(path for path in (pattern, *pattern.parents) if os.path.lexists(path))
    if literal == pattern:
        return {pattern}
    rest = pattern.relative_to(literal)
    if follow_links or not recursive or "**" not in rest.parts:
        return {literal / n for n in glob.glob(str(rest), root_dir=literal, recursive=recursive)}
    first = rest.parts.index("**")
    tops = matches(literal.joinpath(*rest.parts[:first]))
    return {
        path
        for top in tops
        for path in top.glob(str(pathlib.Path(*rest.parts[first:])))
        if not any(part.startswith(".") for part in path.relative_to(top).parts)
    }
