"""Progress bars: on a terminal and in a notebook, none in a pipe."""

import sys
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Without ipywidgets, tqdm warns and draws text.
    from tqdm.auto import tqdm


def bar(total: int, desc: str | None = None) -> Any:
    """Returns tqdm's progress bar for a number of images."""
    if "ipykernel" in sys.modules:
        # A notebook's streams are no terminals, and what goes to stderr looks like an error.
        return tqdm(total=total, desc=desc, unit=" images", file=sys.stdout)
    return tqdm(total=total, desc=desc, unit=" images", disable=None)
