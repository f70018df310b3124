"""The learning rate range test: a short training in which the rate grows, and what it tells.

Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks" (2015), section 3.3. That
the rate grows by a factor, not by a term, and that the test ends where the loss diverges, is the
form of Sylvain Gugger, "How Do You Find A Good Learning Rate" (2018).
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Iterator

import keras
import numpy as np
from matplotlib.figure import Figure

from pizza_steak import figures
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers.hardware import devices
from trainers.models import preprocessing
from trainers.pages import plots
from trainers.training import loop
from tuning.configuration import LearningRateConfig, RangeTestConfig

# Decades of the learning rate that the smoothed loss remembers: ten steps of the default's forty a
# decade. That takes off four fifths of the batches' scatter, and shifts the curve by less than a
# factor of two. In decades, so that with more --steps it is smoother and shifted no further.
_MEMORY = 0.25
# Decades of the straight line that is fitted to the smoothed loss. The difference of two steps
# would find the steepest piece of noise.
_LINE = 1.0
# Times the least: above that, and above the first, the smoothed loss has diverged.
_DIVERGED = 4.0
# In standard deviations of the smoothed loss: of mere noise, one curve in 500 seems to fall so far.
_LEAST_FALL = 8.0


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """How the loss went while the learning rate grew.

    Attributes:
      rates: Learning rates of the N steps that were planned, of shape (N,).
      losses: Loss of each step's batch, before the step, of shape (S,); S is less than N if the
        loss diverged. All are finite.
      smoothed: Their exponential mean, corrected for its start at 0 as Adam's, of shape (S,).
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray

    @property
    def diverged_at(self) -> float | None:
        """The learning rate after which there is no loss any more; None if all steps were made."""
        steps = len(self.losses)
        return float(self.rates[max(steps - 1, 0)]) if steps < len(self.rates) else None

    @property
    def least(self) -> int:
        """The step at which the smoothed loss is least."""
        return int(self.smoothed.argmin())

    @property
    def steepest(self) -> int | None:
        """The step, up to `least`, at which the smoothed loss falls fastest.

        That is where a straight line through half a decade before and after has the steepest slope
        by the logarithm of the learning rate. The rule is that of `steep` in fastai's lr_find and
        of Lightning's Tuner.lr_find, which take the slope of two or three steps. (At the least loss
        itself the rate is too high: some of what lower ones have gained is undone there already.)

        Returns:
          None if the loss never falls further than noise would.
        """
        first = math.ceil(_memory(self.rates))
        if len(self.losses) <= first or self.least <= first:
            return None
        # Half of all differences of two normal variables are above 0.95 standard deviations.
        scatter = np.median(np.abs(np.diff(self.losses[: self.least + 1])))
        scatter /= math.sqrt(2 * _memory(self.rates) - 1)  # What is left of it in the mean.
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
        """Learning rates and losses of the straight line at `steepest`."""
        around = np.arange(self.steepest - self._half_line, self.steepest + self._half_line + 1)
        return self.rates[around], np.polyval(np.polyfit(around, self.smoothed[around], 1), around)

    def summary(self) -> str:
        """What it tells, for people, on one line."""
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
        """Steps of the line to either side; fewer where the loss is least soon."""
        half = round(_LINE / 2 * _steps_a_decade(self.rates))
        return max(min(half, self.least // 2), 1)


def run(config: LearningRateConfig) -> RangeTest:
    """Makes the range test that the flags describe, and draws it.

    The learning rate of `config.optimisation` and its schedule are not used.

    Raises:
      UserError: For anything that the user can mend, or the loss never falls, which is drawn too.
    """
    asked = config.range_test
    rates = _rates(asked)
    plot = pathlib.Path(asked.plot).expanduser()
    if not plot.parent.is_dir():
        raise UserError(
            f"plot {plot}: cannot be written; expected a file in a folder that is there"
        )
    found = observe(rates, train(config, rates))
    draw(found, f"{config.model.model}, {config.optimisation.optimizer}", plot)
    if found.suggestion is None:
        raise UserError(
            f"{found.summary()}; see {plot}, and try another --lowest, --highest or more --steps"
        )
    return found


def observe(rates: np.ndarray, losses: Iterable[float]) -> RangeTest:
    """Smooths losses as they come, and takes no more of them once they diverge.

    Args:
      rates: Growing by a constant factor, of shape (N,).
      losses: N of them, or infinite or NaN from some step on.
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
    """Draws the loss by learning rate, each batch's and smoothed, and the suggestion.

    Raises:
      UserError: As `figures.save`.
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
    if len(losses):  # Single batches and the divergence may go far beyond.
        low, first = losses.min(), smoothed[0]
        axes.set_ylim(low - 0.05 * (first - low), min(losses.max(), 2 * first - low) + 0.05)
    axes.grid(color="0.9")
    axes.legend()
    figures.save(figure, path)


def _rates(asked: RangeTestConfig) -> np.ndarray:
    if not 0 < asked.lowest < asked.highest < math.inf:
        raise UserError(
            f"lowest {asked.lowest:g}: expected a learning rate above 0 and below "
            f"--highest={asked.highest:g}"
        )
    return np.geomspace(asked.lowest, asked.highest, asked.steps)


def _steps_a_decade(rates: np.ndarray) -> float:
    return 1 / math.log10(rates[1] / rates[0])


def _memory(rates: np.ndarray) -> float:
    """Steps that the smoothed loss remembers: at each, 1 / memory of it is forgotten."""
    return max(_MEMORY * _steps_a_decade(rates), 1.0)


def train(config: LearningRateConfig, rates: np.ndarray) -> Iterator[float]:
    """Trains one step at each learning rate; gives the loss of its batch, before the step."""
    # A schedule would hold the learning rate.
    optimisation = dataclasses.replace(config.optimisation, learning_rate_schedule="constant")
    chosen = devices.choose(config.devices)
    pictures = run_data.with_batch_size(config.data, chosen.replicas)
    config = dataclasses.replace(config, optimisation=optimisation, data=pictures)
    seed, batch_size = optimisation.seed, pictures.batch_size
    loop.check(config)
    data = run_data.load(config.data)
    keras.utils.set_random_seed(seed)
    chosen.set_precision()
    with chosen.scope():
        augmentation = preprocessing.augmentation_of(config.augmentation, seed)
    model = loop.compiled_model(config, data, chosen, augmentation)
    steps_an_epoch = math.ceil(len(data.rows["train"]) / batch_size)
    batches = data.batches(
        "train",
        batch_size,
        class_weight=loop.class_weight(optimisation, data),
        seed=seed,
        shuffle=True,
        epochs=math.ceil(len(rates) / steps_an_epoch),
        augment=augmentation.on_batches if augmentation else None,
    )
    for rate, batch in zip(rates, batches, strict=False):
        model.optimizer.learning_rate = rate
        model.reset_metrics()  # Else it is the mean loss of all steps.
        logs = model.train_on_batch(*batch, return_dict=True)
        yield float(logs["loss"])
