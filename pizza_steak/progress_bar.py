"""Progress bars: on a terminal and in a notebook, none in a pipe."""

import sys
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Without ipywidgets, tqdm warns and draws text.
    from tqdm.auto import tqdm


def progress_bar(total: int, desc: str | None = None) -> Any:
    """Returns tqdm's progress bar for a number of images."""
    options: dict[str, Any] = {"disable": None}
    if _in_notebook():
        # A notebook's streams are no terminals, what goes to stderr looks like an error there, and
        # the bar stays in the file.
        options = {"file": sys.stdout, "delay": 1.0}
    return tqdm(total=total, desc=desc, unit=" images", **options)


def _in_notebook() -> bool:
    # IPython's shell of a notebook has a kernel; that of a terminal has none.
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
