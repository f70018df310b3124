"""The learning rate range test: a short training in which the rate grows, and what it tells.

Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks" (2015), section 3.3. That
the rate grows by a factor, and not by a term, and that the test ends where the loss diverges, is
Sylvain Gugger's version of it, "How Do You Find A Good Learning Rate" (2018).
"""

import dataclasses
import math

import numpy as np

# Decades of the learning rate that the smoothed loss remembers: ten steps of the default forty a
# decade, which takes four fifths off the scatter of the batches, and shifts the curve by less than
# a factor of two. In decades, so that more --steps make it smoother and shift it no further.
_MEMORY = 0.25
# Decades of a straight line that follows the smoothed loss. The difference of two steps, as is
# common, would find the steepest piece of noise.
_LINE = 1.0
# Of its least, and no less than the loss before training.
_DIVERGED = 4.0
# In standard deviations of the smoothed loss; of a loss of mere noise one in 500 falls so far.
_LEAST_FALL = 8.0


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """How the loss went while the learning rate grew, S steps long.

    Attributes:
      rates: Learning rate of each step, float array of shape (S,).
      losses: Loss of each step's batch before the step, of shape (S,); all are finite.
      smoothed: Their exponential mean, corrected for its start at 0 as Adam's, of shape (S,).
      diverged_at: The learning rate at which the loss was no number any more, or above four times
        its least; None where it never was.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    diverged_at: float | None

    @property
    def least(self) -> int:
        """The step at which the smoothed loss is least."""
        return int(self.smoothed.argmin())

    @property
    def steepest(self) -> int | None:
        """The step, up to `least`, around which the smoothed loss falls fastest; None if it never
        falls by more than noise would.

        The loss falls fastest by the logarithm of the learning rate, along a straight line that is
        fitted to the smoothed loss of half a decade before and after: the point of the steepest
        descent, as the `steep` of fastai's lr_find and Lightning's Tuner.lr_find take it from the
        difference of two steps. The learning rate of the least loss itself would be too high: there
        growing already undoes what training gains.
        """
        decade = _steps_of(1.0, self.rates)
        start, least = math.ceil(_MEMORY * decade), self.least
        if least <= start:
            return None
        # The median difference of two normal variables is 0.95 of their standard deviation.
        scatter = np.median(np.abs(np.diff(self.losses[: least + 1])))
        scatter *= math.sqrt((1 - _decay(self.rates)) / (1 + _decay(self.rates)))
        if self.smoothed[start] - self.smoothed[least] <= _LEAST_FALL * scatter:
            return None
        half = self._half_line
        slopes = np.correlate(self.smoothed, np.arange(-half, half + 1), "valid")
        return half + int(slopes[: least - half + 1].argmin())

    @property
    def suggested(self) -> float | None:
        """The learning rate of `steepest`, to two digits."""
        return None if self.steepest is None else float(f"{self.rates[self.steepest]:.2g}")

    def summary(self) -> str:
        """The suggestion, and why, for people."""
        diverged = "" if self.diverged_at is None else f" and diverges at {self.diverged_at:.2g}"
        if self.suggested is None:
            return (
                f"the loss never falls while the learning rate grows from {self.rates[0]:.2g}"
                f"{diverged or f' to {self.rates[-1]:.2g}'}"
            )
        return (
            f"suggested --learning_rate={self.suggested:g}: there the smoothed loss falls fastest; "
            f"it is least at {self.rates[self.least]:.2g}{diverged}"
        )

    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """Rates and losses of the straight line through `steepest`."""
        steps = np.arange(self.steepest - self._half_line, self.steepest + self._half_line + 1)
        return self.rates[steps], np.polyval(np.polyfit(steps, self.smoothed[steps], 1), steps)

    @property
    def _half_line(self) -> int:
        # Where little comes before the least loss, half of that: as much may come after it.
        return min(round(_LINE * _steps_of(1.0, self.rates) / 2), self.least // 2)
