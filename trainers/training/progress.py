"""What a training prints: a line after each epoch, and at a terminal a bar within the epoch."""

import statistics
import time

import keras
import tqdm

# Headings and formats of the metrics that have a column, where there are such metrics.
_COLUMNS = {
    "loss": ("  loss", "6.4f"),
    "accuracy": ("accuracy", "8.3f"),
    "val_loss": ("val_loss", "8.4f"),
    "val_accuracy": ("val_accuracy", "12.3f"),
    "learning_rate": ("     lr", "7.1e"),
}
_RECENT = 5


class EpochLines(keras.callbacks.Callback):
    """Prints a table with a line for each epoch, and the time that the others will take.

    The time left comes from epochs that are finished. The first one also traces and compiles the
    training step, so it counts only until there is a second one. While the head alone is trained,
    the time of the epochs after that is not known, and none is printed.

    Args:
      epochs: The number of epochs of the whole run.
      starts_within: Whether the first epoch is the rest of one that was interrupted.
    """

    def __init__(self, epochs: int, *, starts_within: bool = False):
        super().__init__()
        self._epochs = epochs
        self._starts_within = starts_within
        self._width = max(len("epoch"), 2 * len(str(epochs)) + 1)
        self._has_heading = False
        self._left = ""
        self._bar = tqdm.tqdm(disable=True)

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()

    def on_train_begin(self, logs=None):
        self._seconds = []
        self._since = time.perf_counter()
        self._left = ""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._bar = tqdm.tqdm(
            desc=f"epoch {epoch + 1}/{self._epochs}",
            total=self.params["steps"],
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            disable=None,
            dynamic_ncols=True,
            leave=False,
        )

    def on_train_batch_end(self, batch, logs=None):
        if not self._bar.disable:
            left = f", {self._left} left" if self._left else ""
            text = f"loss {logs['loss']:.4f}, accuracy {logs['accuracy']:.3f}{left}"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(batch + 1 - self._bar.n)

    def on_test_begin(self, logs=None):
        if not self._bar.disable:
            self._bar.set_postfix_str("validating")

    def on_epoch_end(self, epoch, logs=None):
        self.close()
        now = time.perf_counter()
        self._seconds.append(now - self._since)
        self._since = now
        self._left = self._time_left(epoch + 1)
        columns = {name: column for name, column in _COLUMNS.items() if name in logs}
        if not self._has_heading:
            self._has_heading = True
            headings = [heading for heading, _ in columns.values()]
            self._print("epoch".rjust(self._width), *headings, "seconds", "left")
        self._print(
            f"{epoch + 1}/{self._epochs}".rjust(self._width),
            *(format(logs[name], kind) for name, (_, kind) in columns.items()),
            format(self._seconds[-1], "7.1f"),
            self._left,
        )

    def on_train_end(self, logs=None):
        if self._epoch + 1 < self.params["epochs"]:
            self._print(f"stopped early, after epoch {self._epoch + 1} of {self._epochs}")

    def _print(self, *cells: str) -> None:
        print("  ".join(cells).rstrip(), flush=True)  # A log file is read while it grows.

    def _time_left(self, finished: int) -> str:
        """Returns the time of the epochs after `finished` ones; "" if it is not known."""
        if finished == self._epochs or self.params["epochs"] < self._epochs:
            return ""
        if known := self._seconds[1:][-_RECENT:]:
            return duration((self._epochs - finished) * statistics.median(known))
        if self._starts_within:
            return ""
        return f"under {duration((self._epochs - finished) * self._seconds[0])}"


def duration(seconds: float) -> str:
    """Returns a time in words, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
