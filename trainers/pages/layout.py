"""Renders HTML pages of one file, which work without scripts, network or other files."""

import base64
import pathlib
from typing import Any

import jinja2

from pizza_steak.text_width import printable


def render(template: pathlib.Path, **values: Any) -> str:
    """Returns the page of a template.

    Args:
      template: A Jinja template, which may extend templates in its folder and `layout.html.jinja`.
      **values: The values of the template; texts are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, pathlib.Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)


def _finalized(value: Any) -> Any:
    is_markup = hasattr(value, "__html__")  # Its values have been finalized.
    return printable(value, keep="\n\t") if isinstance(value, str) and not is_markup else value


def data_uri(content: bytes, kind: str) -> str:
    """Returns an image as a data URI.

    Args:
      content: The content of the file.
      kind: The subtype of its MIME type: "png", "svg+xml".
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
