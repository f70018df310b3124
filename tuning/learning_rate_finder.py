"""The learning rate range test: a short training with a growing rate, and the rate it suggests.

From Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks" (2015), section 3.3.
The rate grows by a constant factor, and the test ends when the loss diverges, as in Sylvain Gugger,
"How Do You Find A Good Learning Rate" (2018).
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from matplotlib.figure import Figure

from pizza_steak import figures
from pizza_steak.errors import UserError
from trainers import setup
from trainers.pages import plots
from tuning.configuration import LearningRateConfig, RangeTestConfig

# The memory of the smoothed loss, in decades of the learning rate: by default ten steps. It removes
# four fifths of the scatter between batches and shifts the curve by less than a factor of two. In
# decades, so that more --steps smooth more and shift no further.
_MEMORY = 0.25
# The length in decades of the line that is fitted to the smoothed loss. The difference of two steps
# would find the steepest piece of noise.
_LINE = 1.0
# The smoothed loss has diverged above its first value and above this many times its least value.
_DIVERGED = 4.0
# In standard deviations of the smoothed loss: one curve of pure noise in 500 falls so far.
_LEAST_FALL = 8.0


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The losses of a range test.

    Attributes:
      rates: Learning rates of the N planned steps, of shape (N,).
      losses: Loss of each step's batch, before the step, of shape (S,); S is less than N if the
        loss diverged. All are finite.
      smoothed: Exponential mean of the losses, with Adam's bias correction, of shape (S,).
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray

    @property
    def diverged_at(self) -> float | None:
        """The learning rate of the last step if the loss diverged; None if all steps were taken."""
        steps = len(self.losses)
        return float(self.rates[max(steps - 1, 0)]) if steps < len(self.rates) else None

    @property
    def least(self) -> int:
        """The step with the least smoothed loss."""
        return int(self.smoothed.argmin())

    @property
    def steepest(self) -> int | None:
        """The step, up to `least`, at which the smoothed loss falls fastest; None for mere noise.

        A straight line is fitted to half a decade before and after each step; the steepest slope
        over the logarithm of the learning rate wins. fastai's lr_find ("steep") and Lightning's
        Tuner.lr_find use the same rule with the slope of two or three steps. The rate of the least
        loss is too high: there, the loss is about to rise.
        """
        first = math.ceil(_memory(self.rates))
        if len(self.losses) <= first or self.least <= first:
            return None
        # Half of the differences of two normal variables are above 0.95 standard deviations.
        scatter = np.median(np.abs(np.diff(self.losses[: self.least + 1])))
        scatter /= math.sqrt(2 * _memory(self.rates) - 1)  # Of the mean.
        rounding = 1e-6 * self.smoothed[first]
        fall = self.smoothed[first] - self.smoothed[self.least]
        if fall <= _LEAST_FALL * scatter + rounding:
            return None
        half = self._half_line
        slopes = np.correlate(self.smoothed, np.arange(-half, half + 1), "valid")
        return half + int(slopes[: self.least - half + 1].argmin())

    @property
    def suggestion(self) -> float | None:
        """The learning rate at `steepest`, to two digits."""
        return None if self.steepest is None else float(f"{self.rates[self.steepest]:.2g}")

    @property
    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """Learning rates and losses of the line at `steepest`."""
        steepest = self.steepest
        assert steepest is not None  # Without a suggestion there is no line.
        around = np.arange(steepest - self._half_line, steepest + self._half_line + 1)
        return self.rates[around], np.polyval(np.polyfit(around, self.smoothed[around], 1), around)

    def summary(self) -> str:
        """Returns the suggestion in one line."""
        if self.suggestion is None:
            end = "" if self.diverged_at is None else f"; it diverges at {self.diverged_at:.2g}"
            return (
                "the loss never falls as the learning rate grows from "
                f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}{end}"
            )
        end = "" if self.diverged_at is None else f" and diverges at {self.diverged_at:.2g}"
        return (
            f"suggested --learning_rate={self.suggestion:g}: there the smoothed loss falls "
            f"fastest; it is least at {self.rates[self.least]:.2g}{end}"
        )

    @property
    def _half_line(self) -> int:
        """Steps of the line to either side; fewer if the loss is least early."""
        half = round(_LINE / 2 * _steps_a_decade(self.rates))
        return max(min(half, self.least // 2), 1)


def run(config: LearningRateConfig) -> RangeTest:
    """Runs the range test that the flags describe, and draws it.

    It ignores the learning rate of `config.optimisation` and its schedule.

    Raises:
      UserError: The user has to change something; or the loss never falls, which is drawn too.
    """
    asked = config.range_test
    rates = _rates(asked)
    plot = pathlib.Path(asked.plot).expanduser()
    if not plot.parent.is_dir():
        raise UserError(f"plot {plot}: cannot be written; expected a file in an existing folder")
    found = observe(rates, train(config, rates))
    draw(found, f"{config.model.model}, {config.optimisation.optimizer}", plot)
    if found.suggestion is None:
        raise UserError(
            f"{found.summary()}; see {plot}, and try another --lowest, --highest or more --steps"
        )
    return found


def observe(rates: np.ndarray, losses: Iterable[float]) -> RangeTest:
    """Smooths losses as they come, and stops once they diverge.

    Args:
      rates: Learning rates that grow by a constant factor, of shape (N,).
      losses: N losses, which may become infinite or NaN.
    """
    decay = 1 - 1 / _memory(rates)
    kept, smoothed, mean = [], [], 0.0
    for step, loss in enumerate(losses, start=1):
        if not math.isfinite(loss):
            break
        mean = decay * mean + (1 - decay) * loss
        kept.append(loss)
        smoothed.append(mean / (1 - decay**step))
        if smoothed[-1] > max(_DIVERGED * min(smoothed), smoothed[0]):
            break
    return RangeTest(rates, np.array(kept), np.array(smoothed))


def draw(found: RangeTest, title: str, path: pathlib.Path) -> None:
    """Draws the loss of each batch and the smoothed loss by learning rate, and the suggestion.

    Raises:
      UserError: The file cannot be written.
    """
    smooth_color, suggestion_color, end_color = (plots.line_style(index)[0] for index in (0, 1, 6))
    rates, losses, smoothed = found.rates[: len(found.losses)], found.losses, found.smoothed
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="0.75", linewidth=1, label="each batch")
    axes.plot(rates, smoothed, color=smooth_color, linewidth=2, label="smoothed")
    if found.suggestion is not None:
        label = f"falls fastest at {found.suggestion:g}: suggested"
        axes.plot(*found.line, color=suggestion_color, linewidth=2, label=label)
        axes.axvline(found.suggestion, color=suggestion_color, linestyle=":")
        label = f"least at {rates[found.least]:.2g}"
        axes.plot(rates[found.least], smoothed[found.least], "o", color=smooth_color, label=label)
    if found.diverged_at is not None:
        label = f"diverges at {found.diverged_at:.2g}"
        axes.axvline(found.diverged_at, color=end_color, linestyle="--", label=label)
    axes.set(
        title=title,
        xscale="log",
        xlim=(found.rates[0], found.rates[-1]),
        xlabel="learning rate (log scale)",
        ylabel="training loss",
    )
    if len(losses):  # Single batches and the divergence may lie far outside.
        low, first = losses.min(), smoothed[0]
        axes.set_ylim(low - 0.05 * (first - low), min(losses.max(), 2 * first - low) + 0.05)
    axes.grid(color="0.9")
    axes.legend()
    figures.save(figure, path)


def _rates(asked: RangeTestConfig) -> np.ndarray:
    if not 0 < asked.lowest < asked.highest:
        raise UserError(
            f"lowest {asked.lowest:g}: expected a learning rate above 0 and below "
            f"--highest={asked.highest:g}"
        )
    return np.geomspace(asked.lowest, asked.highest, asked.steps)


def _steps_a_decade(rates: np.ndarray) -> float:
    return 1 / math.log10(rates[1] / rates[0])


def _memory(rates: np.ndarray) -> float:
    """Returns the memory of the smoothed loss in steps: each step replaces 1 / memory of it."""
    return max(_MEMORY * _steps_a_decade(rates), 1.0)


def train(config: LearningRateConfig, rates: np.ndarray) -> Iterator[float]:
    """Trains one step at each learning rate, and yields the loss of its batch before the step."""
    # With a schedule, the optimizer's learning rate could not be set.
    optimisation = dataclasses.replace(
        config.optimisation, learning_rate_schedule="constant", warmup_epochs=0.0
    )
    ready = setup.prepare(dataclasses.replace(config, optimisation=optimisation))
    data, model = ready.data, ready.model
    batches = data.batches(
        "train",
        ready.config.data.batch_size,
        class_weight=data.class_weight(optimisation.class_weight),
        seed=optimisation.seed,
        shuffle=True,
        epochs=math.ceil(len(rates) / ready.steps("train")),
        augment=ready.augment,
    )
    for rate, batch in zip(rates, batches, strict=False):
        model.optimizer.learning_rate = rate
        model.reset_metrics()  # Or the loss would be the mean over all steps so far.
        logs = model.train_on_batch(*batch, return_dict=True)
        yield float(logs["loss"])
