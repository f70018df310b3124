"""HTML pages of one file, that need no script, no network and no file beside them."""

import base64
import pathlib
from typing import Any

import jinja2


def render(template: pathlib.Path, **values: Any) -> str:
    """The page that a template makes, which may extend those beside it and `layout.html.jinja`.

    Args:
      template: Of Jinja.
      **values: What it shows; texts are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, pathlib.Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)


def data_uri(content: bytes, kind: str) -> str:
    """An image as its own address.

    Args:
      content: The file.
      kind: Of image, as MIME types call it: "png", "svg+xml".
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
