"""`python -m tuning.learning_rate`: what a curve tells, and a whole test on small pictures."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image
from small_runs import fit, layout, parse_flags, run_command, snapshot

from pizza_steak.errors import UserError
from tuning import learning_rate_finder
from tuning.configuration import LearningRateConfig

RATES = np.geomspace(1e-5, 1, 200)
COMMAND = {"command": "learning_rate", "package": "tuning"}


def run(*argv):
    """The range test of a command line, in this process."""
    return learning_rate_finder.run(parse_flags(*argv, config=LearningRateConfig))


def falling(around, rates=RATES, noise=0.05, seed=0):
    """Losses that fall from 2.3 to 1.1 within a decade around a learning rate."""
    fallen = 1 / (1 + np.exp(-5 * np.log10(rates / around)))
    return 2.3 - 1.2 * fallen + np.random.default_rng(seed).normal(0, noise, len(rates))


# What a curve tells.


@pytest.mark.parametrize("around", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("seed", range(3))
def test_the_suggestion_is_where_the_loss_falls(around, seed):
    found = learning_rate_finder.observe(RATES, falling(around, seed=seed))
    assert around / 2 < found.suggestion < around * 3
    assert found.suggestion < RATES[found.least]


def test_a_single_lucky_batch_changes_little():
    losses = falling(1e-3)
    losses[150:153] = 0.2
    assert 5e-4 < learning_rate_finder.observe(RATES, losses).suggestion < 3e-3


@pytest.mark.parametrize("steps", [60, 200, 1000])
def test_the_number_of_steps_changes_little(steps):
    rates = np.geomspace(1e-5, 1, steps)
    found = learning_rate_finder.observe(rates, falling(1e-3, rates))
    assert 5e-4 < found.suggestion < 3e-3


def test_a_constant_loss_is_smoothed_to_itself():
    found = learning_rate_finder.observe(RATES, np.full(200, 0.7))
    np.testing.assert_allclose(found.smoothed, 0.7)
    assert found.suggestion is None


@pytest.mark.parametrize("end", [math.nan, math.inf, 1e9])
def test_no_step_is_made_after_the_loss_has_diverged(end):
    rest = itertools.repeat(end)
    found = learning_rate_finder.observe(RATES, itertools.chain(falling(1e-3)[:150], rest))
    assert found.diverged_at == pytest.approx(RATES[150], rel=0.1)
    assert found.suggestion == learning_rate_finder.observe(RATES, falling(1e-3)).suggestion
    assert np.isfinite(found.losses).all()
    assert f"diverges at {found.diverged_at:.2g}" in found.summary()


def test_a_loss_near_0_may_scatter_without_having_diverged():
    losses = np.geomspace(0.7, 1e-6, 200) * np.random.default_rng(0).uniform(0.1, 20, 200)
    assert learning_rate_finder.observe(RATES, losses).diverged_at is None


@pytest.mark.parametrize("seed", range(20))
def test_noise_that_does_not_fall_suggests_nothing(seed):
    losses = np.random.default_rng(seed).normal(0.7, 0.05, len(RATES))
    assert learning_rate_finder.observe(RATES, losses).suggestion is None


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([math.nan], id="no number at first"),
        pytest.param([0.7, 90.0], id="diverges at once"),
        pytest.param([0.7 + 0.01 * step for step in range(200)], id="rises"),
    ],
)
def test_a_loss_that_never_falls_suggests_nothing(losses, tmp_path):
    found = learning_rate_finder.observe(RATES, losses)
    assert found.suggestion is None
    assert "never falls" in found.summary()
    learning_rate_finder.draw(found, "nothing", tmp_path / "rate.png")


# A whole test.


@pytest.fixture(scope="module")
def rate_flags(small_flags):
    """The flags of a range test of a second, but for --plot."""
    return [flag for flag in small_flags if flag != "--notensorboard"] + ["--steps=60"]


@pytest.fixture(scope="module")
def finished(rate_flags, tmp_path_factory):
    """A range test, and the folder of its figure."""
    folder = tmp_path_factory.mktemp("figures")
    return run(*rate_flags, f"--plot={folder}/rate.png"), folder


def losses_of(*argv):
    config = parse_flags(*argv, config=LearningRateConfig)
    asked = config.range_test
    rates = np.geomspace(asked.lowest, asked.highest, asked.steps)
    return np.array([*learning_rate_finder.train(config, rates)])


def test_it_suggests_a_rate_and_leaves_nothing_but_a_figure(finished):
    found, folder = finished
    assert found.rates[[0, -1]] == pytest.approx([1e-5, 1])
    assert 1e-5 < found.suggestion < found.rates[found.least]
    assert f"--learning_rate={found.suggestion:g}" in found.summary()
    assert [*snapshot(folder)] == ["rate.png"]
    with Image.open(folder / "rate.png") as image:
        assert np.asarray(image).std() > 0


def test_the_same_seed_gives_the_same_losses_whatever_the_rate_of_the_run(finished, rate_flags):
    found, _ = finished
    unused = ["--learning_rate=7", "--learning_rate_schedule=cosine", "--epochs=1"]
    unused += ["--warmup_epochs=0.5"]
    again = losses_of(*rate_flags, *unused)
    np.testing.assert_array_equal(again[: len(found.losses)], found.losses)


def test_another_seed_gives_other_losses(finished, rate_flags):
    found, _ = finished
    assert losses_of(*rate_flags, "--steps=10", "--seed=43")[0] != found.losses[0]


def test_steps_beyond_an_epoch_take_the_next_ones_batches(rate_flags):
    # At rates of next to nothing an epoch has the loss of the first weights, in whatever order.
    losses = losses_of(*rate_flags, "--steps=12", "--lowest=1e-12", "--highest=1e-11")
    epochs = losses.reshape(4, 3)  # 24 pictures, 8 a step.
    np.testing.assert_allclose(epochs.mean(axis=1), losses.mean(), rtol=1e-4)
    assert len({*epochs[:, 0]}) == 4


def test_it_trains_on_the_images_that_fit_trains_on(rate_flags, tmp_path):
    flags = [flag for flag in rate_flags if "_split" not in flag and "steps" not in flag]
    flags += ["--batch_size=100"]  # A step is an epoch.
    rates = ["--steps=10", "--lowest=1e-12", "--highest=1e-11"]
    trained = fit(*flags, "--epochs=1", f"--run_dir={tmp_path}/run").values["history"]["loss"]
    np.testing.assert_allclose(losses_of(*flags, *rates), trained[0], rtol=1e-4)
    on_all = losses_of(*flags, *rates, "--validation_split=none")
    assert abs(on_all[0] - trained[0]) > 1e-3 * trained[0]


def test_augmentation_and_class_weights_are_those_of_the_flags(make_archive, rate_flags):
    counts = {"train/dark": 18, "train/light": 6, "test/dark": 1, "test/light": 1}
    flags = [*rate_flags, f"--archive={make_archive(layout(counts))}", "--steps=10"]
    asked = ([], ["--vertical_flip"], ["--class_weight=balanced"])
    assert len({losses_of(*flags, *more)[0] for more in asked}) == 3


def test_without_a_fall_there_is_a_figure_and_one_line_that_says_so(rate_flags, tmp_path):
    rates = ["--lowest=1e-12", "--highest=1e-10", "--steps=20"]
    with pytest.raises(UserError, match="the loss never falls") as caught:
        run(*rate_flags, *rates, f"--plot={tmp_path}/rate.png")
    assert len(str(caught.value).splitlines()) == 1
    assert [*snapshot(tmp_path)] == ["rate.png"]


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--lowest=0.1", "--highest=0.1"], "lowest 0.1"),
        (["--lowest=0"], "lowest 0"),
        (["--plot=/nowhere/rate.png"], "/nowhere/rate.png"),
    ],
)
def test_wrong_values_are_named_before_anything_is_read(flags, named):
    with pytest.raises(UserError, match=named) as caught:
        run("--archive=/nowhere.zip", *flags)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["--steps=9", "--lowest=low", "food.zip"])
def test_wrong_flags_exit_with_status_2_and_one_line(argument):
    status, stdout, stderr = run_command(argument, **COMMAND)
    (line,) = stderr.splitlines()
    assert (status, stdout) == (2, "")
    assert line.startswith("error: ")
