"""Keras callbacks of the user's, from the functions that --callback names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from pizza_steak.errors import UserError
from trainers import user_code


def load(texts: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Imports the functions that the values of --callback name.

    Raises:
      UserError: There is no such function, or its import fails.
    """
    return {text: user_code.load("callback", text) for text in texts}


def make(functions: Mapping[str, Callable[[], Any]]) -> list[keras.callbacks.Callback]:
    """Calls the functions that `load` returned.

    Raises:
      UserError: One raises an exception, or returns something else than callbacks.
    """
    made: list[keras.callbacks.Callback] = []
    for text, function in functions.items():
        returned = user_code.call("callback", text, function)
        several = list(returned) if isinstance(returned, list | tuple) else [returned]
        for one in several:
            if not isinstance(one, keras.callbacks.Callback):
                raise UserError(
                    f"callback {text}: the function returned {type(one).__name__}; expected a "
                    "keras.callbacks.Callback or a list of them"
                )
        made += several
    return made


def act_on_steps(callbacks: Sequence[keras.callbacks.Callback]) -> bool:
    """Returns whether any of the callbacks does something at training steps."""
    names = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    # LambdaCallback has its functions as attributes.
    return any(
        name in vars(callback)
        or getattr(type(callback), name) is not getattr(keras.callbacks.Callback, name)
        for callback in callbacks
        for name in names
    )
