"""From the points of the search space to the flags of runs, and to models."""

import dataclasses
import itertools

import keras
import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine.trial import Trial, TrialStatus
from small_runs import parse_flags

from pizza_steak.errors import UserError
from pizza_steak.flags import to_flags
from trainers import data as run_data
from tuning.configuration import SpaceConfig, SweepConfig
from tuning.space.search_space import SearchSpace

NAMES = {field.name for field in dataclasses.fields(SpaceConfig)}
CONVOLUTIONAL = {
    *("filters", "convolutions", "kernel_size", "padding", "pool_size", "global_pooling")
}


@pytest.fixture(scope="module")
def data(small_flags):
    return run_data.load(parse_flags(*small_flags).data)


@pytest.fixture(scope="module")
def make_space(data, small_flags):
    """`make_space(*flags)`: the space of a sweep over the small pictures."""
    own = [flag for flag in small_flags if "data_dir" in flag or "archive" in flag]

    def make(*flags: str) -> SearchSpace:
        return SearchSpace(parse_flags(*own, *flags, config=SweepConfig), data)

    return make


def declared(space: SearchSpace) -> keras_tuner.HyperParameters:
    hp = keras_tuner.HyperParameters()
    space.declare_hyperparameters(hp)
    return hp


def points(space: SearchSpace, count: int) -> list[keras_tuner.HyperParameters]:
    """Random points, as Keras Tuner draws them."""
    oracle = keras_tuner.oracles.RandomSearchOracle(
        "val_loss", hyperparameters=declared(space), seed=7
    )
    drawn = []
    for _ in range(count):
        hp = oracle.get_space()
        hp.values = oracle.populate_space("")["values"]
        drawn.append(hp)
    return drawn


def active(values) -> set[str]:
    """The settings that mean something beside these."""
    names = {*NAMES}
    if not values["blocks"]:
        names -= CONVOLUTIONAL
    if values["blocks"] < 2:
        names -= {"filter_growth"}
    if not values["dense_layers"]:
        names -= {"dense_units"}
    if values["optimizer"] != "adamw":
        names -= {"weight_decay"}
    return names


@pytest.mark.parametrize(
    "flags", [[], ["--blocks=0,1,3"], ["--blocks=0:2", "--dense_layers=0:2", "--optimizer=adamw"]]
)
def test_a_point_has_a_value_for_each_setting_that_means_something(make_space, flags):
    drawn = points(make_space(*flags), 100)
    for hp in drawn:
        assert hp.values.keys() == active(hp.values)
    for name in ("blocks", "dense_layers"):
        assert len({hp.values[name] for hp in drawn}) > 1


@pytest.mark.parametrize("blocks, conditional", [("0", CONVOLUTIONAL), ("1", {"filter_growth"})])
def test_what_no_value_of_another_setting_gives_a_meaning_has_no_value(
    make_space, blocks, conditional
):
    for hp in points(make_space(f"--blocks={blocks}"), 20):
        assert not hp.values.keys() & conditional


def test_only_the_head_of_a_backbone_is_searched(make_space):
    of_blocks = {*CONVOLUTIONAL, "blocks", "filter_growth"}
    space = make_space("--model=resnet50,tinyvgg", "--blocks=0:2", "--dense_layers=0,1")
    drawn = [hp.values for hp in points(space, 60)]
    assert {values["model"] for values in drawn} == {"resnet50", "tinyvgg"}
    for values in drawn:
        if values["model"] == "tinyvgg":
            assert values.keys() == active(values)
        else:
            assert values.keys() == active({**values, "blocks": 0}) - of_blocks
            assert space.fit_config(values).model.filters is None
    assert not space.has_heads_only
    assert make_space("--model=resnet50,vgg16").has_heads_only


def test_nothing_of_a_function_of_the_users_is_searched_but_its_training(make_space):
    of_network = {*CONVOLUTIONAL, "blocks", "filter_growth"}
    of_network |= {"dense_layers", "dense_units", "dropout", "batch_normalization"}
    space = make_space("--model=my_models.py:build")
    for hp in points(space, 20):
        assert not hp.values.keys() & of_network
        assert "learning_rate" in hp.values
    assert not space.has_heads_only


def test_a_weight_decay_is_searched_for_every_optimizer_where_none_is_adamw(make_space):
    for hp in points(make_space("--optimizer=sgd,rmsprop"), 20):
        assert 1e-4 <= hp.values["weight_decay"] <= 1e-1


def test_points_are_within_the_ranges_and_a_fixed_setting_is_fixed(make_space):
    space = make_space("--filters=8,32", "--kernel_size=5", "--dropout=0:0.5:0.25", "--blocks=2:3")
    drawn = [hp.values for hp in points(space, 200)]
    assert {values["filters"] for values in drawn} == {8, 32}
    assert {values["kernel_size"] for values in drawn} == {5}
    assert {values["dropout"] for values in drawn} == {0.0, 0.25, 0.5}
    assert {values["blocks"] for values in drawn} == {2, 3}
    rates = sorted(values["learning_rate"] for values in drawn)
    assert 1e-4 <= rates[0] <= rates[-1] <= 1e-2
    assert rates[100] == pytest.approx(1e-3, rel=0.5)  # The middle, by the logarithm.


def test_a_point_is_the_flags_of_a_run(make_space, tmp_path):
    space = make_space("--blocks=0:3", "--max_epochs=7", "--seed=5", "--augment_on=device")
    flagfile = tmp_path / "run.flags"
    for hp in points(space, 200):
        config = space.fit_config(hp.values, run_dir="runs/a")
        flagfile.write_text(to_flags(config))
        assert parse_flags(f"--flagfile={flagfile}") == config
        found = {**vars(config.model), **vars(config.optimisation)}
        for name in hp.values.keys() & found.keys():
            value = hp.values[name]
            is_float = isinstance(value, float)
            assert found[name] == (pytest.approx(value, rel=1e-5) if is_float else value)
        assert (found["epochs"], found["seed"]) == (7, 5)
        augmentation = config.augmentation
        assert augmentation.augment_on == "device"
        assert augmentation.horizontal_flip == (hp.values["augmentation"] != "none")
        assert bool(augmentation.rotation_range) == (hp.values["augmentation"] == "chapter")


def test_a_point_is_the_same_run_wherever_it_is_trained(make_space):
    """Also where Keras Tuner's messages have brought it."""
    space = make_space("--blocks=0:3", "--filter_growth=1.1,1.7", "--batch_normalization=true")
    for hp in points(space, 200):
        trial = Trial(hp, trial_id="1", status=TrialStatus.RUNNING)
        values = Trial.from_proto(trial.to_proto()).hyperparameters.values
        assert space.fit_config(values) == space.fit_config(hp.values)
        assert space.settings(values) == space.settings(hp.values)
        for name in ("batch_normalization", "global_pooling"):
            assert isinstance(space.settings(values).get(name, True), bool)


def test_a_point_that_does_not_fit_the_pictures_is_one_that_cannot_be_built(make_space, data):
    flags = ["--blocks=0:3", "--filters=2", "--convolutions=1", "--padding=valid", "--pool_size=2"]
    config = parse_flags(*flags, "--dense_layers=0", "--augmentation=none", config=SweepConfig)
    space = SearchSpace(config, dataclasses.replace(data, image_shape=(9, 12, 3)))
    built = {True: 0, False: 0}
    for hp in itertools.islice(points(space, 40), 6):
        fits = space.fits(hp.values)
        built[fits] += 1
        if fits:
            model = space.build(hp.copy())
            assert isinstance(model, keras.Model)
            assert model.compiled
        else:
            with pytest.raises(UserError, match="do not fit images of 9 x 12 pixels"):
                space.build(hp.copy())
    assert min(built.values()) > 1


def test_models_of_points_have_what_the_points_say(make_space):
    space = make_space(
        "--blocks=2",
        "--convolutions=1",
        "--filters=3",
        "--filter_growth=2",
        "--dense_layers=1",
        "--dense_units=5",
        "--batch_normalization=true",
        "--optimizer=sgd",
        "--learning_rate=0.125",
        "--label_smoothing=0.1",
    )
    model = space.build(declared(space))
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [3, 6]
    assert model.layers[-1].input.shape[-1] == 5
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert model.optimizer.learning_rate.numpy() == 0.125
    assert model.loss.label_smoothing == 0.1


def test_a_model_of_a_point_has_the_seed_and_the_precision_of_the_flags(make_space):
    def build(*flags: str) -> keras.Model:
        space = make_space("--filters=2", *flags)
        return space.build(declared(space))

    first, second, other = build(), build(), build("--seed=7")
    for weight, same in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])
    try:
        half = build("--precision=mixed_bfloat16")
        assert half.layers[-2].compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
