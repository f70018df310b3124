"""From the points of the search space to the flags of runs, and to models."""

import csv
import dataclasses
import io
import json
import math
import types
import typing
from typing import Any

import keras
import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine.trial import Trial, TrialStatus
from small_runs import parse_flags

from pizza_steak.errors import UserError
from pizza_steak.flags import Numbers, fields, to_flags
from trainers import setup
from trainers.configuration import FitConfig
from trainers.models import networks
from tuning.configuration import SEARCHED, SEARCHED_WITHOUT_BACKBONE, SweepConfig
from tuning.pages import table
from tuning.space.search_space import SearchSpace

CONVOLUTIONAL = {
    *("filters", "convolutions", "kernel_size", "padding", "pool_size", "global_pooling")
}
# Ranges of all settings of a network built here, and of some of its training.
LARGE = [
    *("--blocks=0:3", "--kernel_size=3,5", "--pool_size=1,2", "--dense_layers=0:2"),
    *("--optimizer=adam,adamw", "--ema=none,0.9,0.99", "--clip_norm=none,1"),
    *("--batch_normalization=false,true", "--global_pooling=true,false", "--padding=valid,same"),
    *("--image_size=32,48..64", "--batch_size=16,32", "--antialias=false,true", "--rescale=0.5,1"),
    *("--rotation_range=0:20", "--width_shift_range=0,0.1", "--zoom_range=0,0.8..1.2"),
]


@pytest.fixture(scope="module")
def make_space(small_flags):
    """`make_space(*flags)`: the space of a sweep over the small pictures."""
    known = ("--archive", "--data_dir", "--image_size")
    own = [flag for flag in small_flags if flag.startswith(known)]

    def make(*flags: str) -> SearchSpace:
        return SearchSpace(parse_flags(*own, *flags, config=SweepConfig))

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


def active(space: SearchSpace, values) -> set[str]:
    """The settings that mean something beside these."""
    names = {*space.ranges}
    if not values["blocks"]:
        names -= CONVOLUTIONAL
    if values["blocks"] < 2:
        names -= {"filter_growth"}
    if not values["dense_layers"]:
        names -= {"dense_units"}
    if values["optimizer"] != "adamw":
        names -= {"weight_decay"}
    return names


def flags_of(config: FitConfig) -> dict[str, Any]:
    """All flags of a run by their names."""
    return {field.name: getattr(getattr(config, c), field.name) for c, field in fields(FitConfig)}


@pytest.mark.parametrize(
    "flags", [[], ["--blocks=0,1,3"], ["--blocks=0:2", "--dense_layers=0:2"], LARGE]
)
def test_a_point_has_a_value_for_each_setting_that_means_something(make_space, flags):
    space = make_space(*flags)
    drawn = points(space, 100)
    for hp in drawn:
        assert hp.values.keys() == active(space, hp.values)
    for name in ("blocks", "dense_layers"):
        assert len({hp.values[name] for hp in drawn}) > 1


@pytest.mark.parametrize(
    "flags, conditional",
    [
        (["--blocks=0"], CONVOLUTIONAL | {"filter_growth"}),
        (["--blocks=1"], {"filter_growth"}),
        (["--dense_layers=0"], {"dense_units"}),
    ],
)
def test_what_no_value_of_another_setting_gives_a_meaning_has_no_value(
    make_space, flags, conditional
):
    for hp in points(make_space("--kernel_size=3,5", "--pool_size=1,2", *flags), 20):
        assert not hp.values.keys() & conditional


def test_only_the_head_of_a_backbone_is_searched(make_space):
    of_blocks = {*CONVOLUTIONAL, "blocks", "filter_growth"}
    space = make_space("--model=resnet50,tinyvgg", "--blocks=0:2", "--dense_layers=0,1")
    drawn = [hp.values for hp in points(space, 60)]
    assert {values["model"] for values in drawn} == {"resnet50", "tinyvgg"}
    for values in drawn:
        if values["model"] == "tinyvgg":
            assert values.keys() == active(space, values)
        else:
            assert values.keys() == active(space, {**values, "blocks": 0}) - of_blocks
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
        assert 1e-3 <= hp.values["weight_decay"] <= 1e-1


def test_points_are_within_the_ranges_and_a_fixed_setting_is_fixed(make_space):
    space = make_space("--filters=8,32", "--kernel_size=5", "--dropout=0:0.5:0.25", "--blocks=2:3")
    drawn = [hp.values for hp in points(space, 200)]
    assert {values["filters"] for values in drawn} == {8, 32}
    assert {values["kernel_size"] for values in drawn} == {5}
    assert {values["dropout"] for values in drawn} == {0.0, 0.25, 0.5}
    assert {values["blocks"] for values in drawn} == {2, 3}
    rates = sorted(values["learning_rate"] for values in drawn)
    assert 3e-4 <= rates[0] <= rates[-1] <= 1e-2
    middle = math.sqrt(3e-4 * 1e-2)  # By the logarithm.
    assert rates[100] == pytest.approx(middle, rel=0.5)


# What is searched.


def test_by_default_the_ranges_that_help_are_searched(make_space):
    space = make_space()
    expected = {**SEARCHED, **SEARCHED_WITHOUT_BACKBONE, "model": "tinyvgg", "image_size": "32"}
    parse = {
        field.name: field.metadata["parse"]
        for _, field in fields(SweepConfig)
        if "parse" in field.metadata
    }
    assert space.ranges == {name: parse[name](text) for name, text in expected.items()}
    several = {name for name, text in expected.items() if set(str(text)) & set(",:")}
    assert set(space.searched) == several


def test_no_augmentation_is_searched_by_default_for_trained_networks_alone(make_space):
    known = {field.name for field in dataclasses.fields(FitConfig().augmentation)}
    without = {*known, *SEARCHED_WITHOUT_BACKBONE}
    for models in ("resnet50", "resnet50,vgg16", "my_models.py:build"):
        assert not make_space(f"--model={models}").ranges.keys() & without
    both = make_space("--model=resnet50,tinyvgg")
    assert SEARCHED_WITHOUT_BACKBONE.keys() <= both.ranges.keys()
    assert {*SEARCHED} <= make_space("--model=resnet50").ranges.keys()


@pytest.mark.parametrize(
    "flags",
    [
        {"horizontal_flip": "false,true", "mixup": "none,0.2"},  # As for networks built here.
        {"dropout": "0.0:0.5", "label_smoothing": "0.0,0.05,0.1"},  # As it is anyway.
        {"rotation_range": "0.0,10.0", "antialias": "true,false", "batch_size": "32,64"},
        {"color_mode": "rgb,grayscale", "trainable": "head,all", "ema": "none,0.9"},
    ],
)
def test_what_is_given_is_searched_even_if_it_is_a_default(make_space, flags):
    space = make_space("--model=resnet50", *(f"--{name}={text}" for name, text in flags.items()))
    assert flags.keys() <= set(space.searched)
    assert {name: str(space.ranges[name]) for name in flags} == flags


@pytest.mark.parametrize(
    "flag, name, value",
    [
        ("--dropout=0", "dropout", 0.0),
        ("--zoom_range=0", "zoom_range", 0),
        ("--nohorizontal_flip", "horizontal_flip", False),
        ("--mixup=none", "mixup", None),
        ("--ema=none", "ema", None),
        ("--padding=valid", "padding", "valid"),
        ("--nobatch_normalization", "batch_normalization", False),
        ("--weight_decay=none", "weight_decay", None),
    ],
)
def test_one_value_takes_a_setting_out_of_the_search_also_if_it_is_the_default_of_fit(
    make_space, flag, name, value
):
    space = make_space(flag)
    assert name not in space.searched
    found = {flags_of(space.fit_config(hp.values))[name] for hp in points(space, 20)}
    assert found == {value}


# Any flag of a run may be a range.

OF_ALL_TRIALS = {
    *("epochs", "early_stopping_patience", "class_weight", "seed"),
    *("augment_on", "augmentation_cycle"),
}
OF_IMAGES = {
    *("image_size", "aspect_ratio", "color_mode", "interpolation", "antialias", "exif"),
    "batch_size",
}
MAY_BE_RANGES = [
    (concern, field)
    for concern, field in fields(FitConfig)
    if (concern == "data" and field.name in OF_IMAGES)
    or (
        concern in ("augmentation", "normalization", "model", "optimisation")
        and field.name not in OF_ALL_TRIALS
    )
]


# Settings that only networks with trained weights have.
OF_TRAINED = {"weights", "features", "trainable", "head_epochs", "fine_tuning_rate"}


def two_or_more(concern: str, field: dataclasses.Field) -> dict[str, Any]:
    """Values of a flag, by the words for them in a range."""
    # Without the other flags that have no default, a network has its own values.
    may_be_none = field.default is None and concern in ("augmentation", "optimisation")
    optional = {"none": None} if may_be_none else {}
    kinds = set(typing.get_args(field.type) or (field.type,)) - {types.NoneType}
    least, most = field.metadata["limits"]
    start = 0 if least is None else math.ceil(least)
    if field.metadata["choices"]:
        return {word: word for word in field.metadata["choices"]}
    if kinds == {bool}:
        return {"false": False, "true": True}
    if kinds == {int}:
        return {**optional, **{str(start + n): start + n for n in (0, 1)}}
    if kinds == {float}:
        start, end = (0.25, most) if most else (start + 0.5, start + 1.5)
        return {**optional, str(start): start, str(end): float(end)}
    if kinds == set(typing.get_args(Numbers)):
        one = {} if field.name == "brightness_range" else {"2": 2}
        return {**optional, **one, "3..5": (3, 5)}
    assert kinds == {str}
    words = ("none", "imagenet") if field.name == "weights" else ("all", "2")
    return {word: word for word in words}


@pytest.mark.parametrize(
    "concern, field", [pytest.param(*found, id=found[1].name) for found in MAY_BE_RANGES]
)
def test_each_flag_of_a_run_may_be_a_range(make_space, concern, field):
    expected = two_or_more(concern, field)
    others = ["--model=resnet50"] if field.name in OF_TRAINED else []
    others += ["--head_epochs=1"] if field.name == "fine_tuning_rate" else []
    space = make_space(*others, f"--{field.name}={','.join(expected)}")
    assert len(expected) > 1
    assert field.name in space.searched
    values = declared(space).values
    found = [
        flags_of(space.fit_config({**values, field.name: value}))[field.name]
        for value in space.ranges[field.name].values
    ]
    assert found == [*expected.values()]


@pytest.mark.parametrize(
    "flag, name, expected",
    [
        ("--image_size=32,48", "image_size", {32, 48}),
        ("--image_size=32..48,64", "image_size", {(32, 48), 64}),
        ("--batch_size=16,32", "batch_size", {16, 32}),
        ("--brightness_range=none,0.8..1.2", "brightness_range", {None, (0.8, 1.2)}),
        ("--mixup=none,0.2", "mixup", {None, 0.2}),
        ("--ema=none,0.99", "ema", {None, 0.99}),
        ("--clip_norm=none,1", "clip_norm", {None, 1.0}),
        ("--antialias=false,true", "antialias", {False, True}),
        ("--antialias", "antialias", {True}),
        ("--noantialias", "antialias", {False}),
        ("--horizontal_flip", "horizontal_flip", {True}),
        ("--nohorizontal_flip", "horizontal_flip", {False}),
        ("--horizontal_flip=true,false", "horizontal_flip", {False, True}),
        ("--learning_rate_schedule=constant,cosine", "learning_rate_schedule", None),
        ("--rotation_range=0:20:10", "rotation_range", {0.0, 10.0, 20.0}),
        ("--zoom_range=0,0.8..1.2", "zoom_range", {0, (0.8, 1.2)}),
        ("--rand_augment=1:3", "rand_augment", {1, 2, 3}),
        ("--model=resnet50 --head_epochs=0,2", "head_epochs", {0, 2}),
        ("--model=resnet50 --weights=none,imagenet", "weights", {"none", "imagenet"}),
    ],
)
def test_the_runs_have_the_values_of_the_range(make_space, tmp_path, flag, name, expected):
    space = make_space(*flag.split())
    found = set()
    flagfile = tmp_path / "all.flags"
    for hp in points(space, 40):
        config = space.fit_config(hp.values, run_dir="runs/a")
        flagfile.write_text(to_flags(config))
        assert parse_flags(f"--flagfile={flagfile}") == config
        found.add(flags_of(config)[name])
    assert found == (expected or {"constant", "cosine"})
    assert {type(value) for value in found} == {type(value) for value in expected or {""}}


def test_a_range_of_degrees_gives_degrees_between_its_ends(make_space):
    space = make_space("--rotation_range=0:20")
    found = [space.fit_config(hp.values).augmentation.rotation_range for hp in points(space, 50)]
    assert 0 <= min(found) < 5 and 15 < max(found) <= 20
    assert len({*found}) == 50


# Points and runs.


@pytest.mark.parametrize("flags", [[], LARGE])
def test_a_point_is_the_flags_of_a_run(make_space, tmp_path, flags):
    space = make_space(*flags, "--max_epochs=7", "--seed=5", "--augment_on=device")
    flagfile = tmp_path / "all.flags"
    for hp in points(space, 100):
        config = space.fit_config(hp.values, run_dir="runs/a")
        flagfile.write_text(to_flags(config))
        assert parse_flags(f"--flagfile={flagfile}") == config
        found = flags_of(config)
        for name, value in hp.values.items():
            expected = space.ranges[name].flag_value(value)
            is_float = isinstance(value, float)
            assert found[name] == (pytest.approx(value, rel=1e-5) if is_float else expected)
        assert (found["epochs"], found["seed"], found["augment_on"]) == (7, 5, "device")


SPACES = [
    [],
    LARGE,
    ["--model=resnet50,tinyvgg", "--dropout=0:0.5:0.1", "--filter_growth=1:2"],
    ["--model=resnet50", "--weights=none,imagenet", "--trainable=head,all", "--head_epochs=0,2"],
]


@pytest.mark.parametrize("flags", SPACES)
def test_the_point_of_a_run_is_the_one_that_it_was_made_from(make_space, flags):
    space = make_space(*flags)
    for hp in points(space, 100):
        config = space.fit_config(hp.values)
        found = space.point(config)
        assert found.keys() == hp.values.keys()
        for name, value in hp.values.items():
            is_float = isinstance(value, float)
            assert found[name] == (pytest.approx(value, rel=1e-5) if is_float else value)
            if space.ranges[name].kind is not bool:
                assert type(found[name]) is type(value)
        assert space.fit_config(found) == config
        assert space.point(space.fit_config(found)) == found


def written_and_read(space: SearchSpace, settings: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows of trials.csv with these settings."""
    trials = [
        table.Row(str(number), "completed", 0.5, 1, 1.0, 1.0, one)
        for number, one in enumerate(settings)
    ]
    text = table.to_csv(trials, "val_accuracy", list(space.ranges))
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("flags", SPACES)
def test_the_point_of_a_row_is_the_one_of_its_trial(make_space, flags):
    space = make_space(*flags)
    drawn = [hp.values for hp in points(space, 100)]
    loaded = [json.loads(json.dumps(values)) for values in drawn]  # As a resumed sweep has them.
    for written in (drawn, loaded):
        rows = written_and_read(space, [space.settings(values) for values in written])
        for values, row in zip(drawn, rows, strict=True):
            found = space.point_of_row(row)
            assert found.keys() == values.keys()
            assert space.fit_config(found) == space.fit_config(values)


@pytest.mark.parametrize(
    "flags, run, said",
    [
        ([], "--filters=5", "--filters=5: expected some of 16,32,48"),
        ([], "--dropout=0.6", "--dropout=0.6: expected some of 0.0:0.5"),
        ([], "--mixup=0.3", "--mixup=0.3: expected some of none,0.2"),
        ([], "--learning_rate=0.1", "--learning_rate=0.1: expected some of 0.0003:0.01:log"),
        ([], "--optimizer=sgd", "--optimizer=sgd: expected some of adamw"),
        ([], "--brightness_range=0.5,1.5", "--brightness_range=0.5,1.5: expected some of none,0.8"),
        ([], "--nobatch_normalization", "--nobatch_normalization: expected some of true"),
        (["--blocks=3:4"], "--filters=16", "--blocks=2: expected some of 3:4"),
        (["--image_size=32,48"], "--image_size=64", "--image_size=64: expected some of 32,48"),
        (["--ema=0.9,0.99"], "--filters=16", "no --ema: expected some of 0.9,0.99"),
    ],
)
def test_a_run_outside_the_space_is_told_with_its_flag(make_space, flags, run, said):
    space = make_space(*flags)
    inside = flags_of(space.fit_config(declared(space).values))
    known = ("filters", "optimizer", "learning_rate", "padding", "label_smoothing", "weight_decay")
    known += ("batch_normalization", "global_pooling", "learning_rate_schedule", "filter_growth")
    argv = [f"--{name}={inside[name]}" for name in known]
    size = [] if any("image_size" in flag for flag in flags) else ["--image_size=32"]
    with pytest.raises(ValueError) as caught:
        space.point(setup.resolved(parse_flags(*argv, *size, run)))
    assert str(caught.value).startswith(said)


def test_a_row_outside_the_space_is_told_with_its_setting(make_space):
    space, other = make_space("--filters=8,16", "--kernel_size=3,5"), make_space("--filters=4")
    (row,) = written_and_read(other, [other.settings(declared(other).values)])
    with pytest.raises(ValueError, match=r"^filters 4: expected some of 8,16$"):
        space.point_of_row(row)
    with pytest.raises(ValueError, match=r"^no kernel_size$"):
        space.point_of_row(row | {"filters": "16"})
    with pytest.raises(ValueError, match=r"^filters many: 'many': expected a whole number"):
        space.point_of_row(row | {"filters": "many"})


def test_flags_of_the_images_that_the_sweep_fixes_may_be_others_in_a_run(make_space):
    space = make_space("--image_size=48", "--batch_size=16", "--antialias=false,true")
    values = declared(space).values
    config = space.fit_config(values)
    other = dataclasses.replace(config.data, image_size=64, batch_size=32, exif="ignore")
    assert space.point(dataclasses.replace(config, data=other)) == values


def test_keras_tuner_knows_a_point_again(make_space):
    space = make_space("--learning_rate=1e-3", "--weight_decay=0.01", "--dropout=0")
    for hp in points(space, 20):
        oracle = keras_tuner.oracles.RandomSearchOracle("val_loss", hyperparameters=hp)
        trial = Trial(hp, trial_id="0", status=TrialStatus.RUNNING)
        oracle._record_values(trial)
        assert oracle._duplicate(space.point(space.fit_config(hp.values)))


@pytest.mark.parametrize(
    "flags",
    [
        ["--model=runs/base.keras"],
        ["--model=my_models.py:build"],
        ["--model=tinyvgg,runs/base.keras"],
        ["--model=resnet50", "--weights=imagenet,base.weights.h5"],
    ],
)
def test_the_point_of_a_run_with_a_relative_path_is_found(make_space, flags):
    space = make_space(*flags)
    for hp in points(space, 10):
        config = space.fit_config(hp.values)
        assert space.fit_config(space.point(config)) == config


@pytest.mark.parametrize(
    "flag, name, own",
    [
        ("--filters=16,10", "filters", 10),
        ("--blocks=2,3", "blocks", 2),
        ("--dense_layers=1,0", "dense_layers", 0),
    ],
)
def test_the_point_of_a_run_with_the_networks_own_sizes_is_found(make_space, flag, name, own):
    space = make_space("--model=tinyvgg", flag)
    config = space.fit_config(declared(space).values | {name: own})
    model = dataclasses.replace(config.model, **{name: None})
    assert space.point(dataclasses.replace(config, model=model))[name] == own


def test_the_point_of_a_run_with_the_usual_head_is_found(make_space):
    space = make_space("--model=resnet50", "--dense_layers=0,1", "--weight_decay=none")
    flags = ["--model=resnet50", "--optimizer=adamw", "--learning_rate_schedule=cosine"]
    assert space.point(setup.resolved(parse_flags(*flags)))["dense_layers"] == 0


ALL_OF_TRAINED = [
    *("--weights=none,imagenet", "--features=a,b", "--trainable=head,all", "--head_epochs=0,2"),
    "--fine_tuning_rate=1e-5,1e-4",
]


def test_what_only_trained_networks_have_is_not_searched_for_others(make_space):
    space = make_space("--model=resnet50,tinyvgg", *ALL_OF_TRAINED)
    assert {*space.searched} >= OF_TRAINED
    for hp in points(space, 40):
        config = space.fit_config(hp.values)
        if hp.values["model"] == "tinyvgg":
            assert not hp.values.keys() & OF_TRAINED
            networks.check(config.model, (32, 32, 3))
            assert not config.optimisation.head_epochs
        else:
            assert hp.values.keys() >= OF_TRAINED - {"fine_tuning_rate", "head_epochs"}
            assert ("head_epochs" in hp.values) == (hp.values["trainable"] != "head")


@pytest.mark.parametrize("model", ["tinyvgg", "tinyvgg,conv3_pool", "my_models.py:build"])
def test_what_no_network_of_a_sweep_has_is_not_searched(make_space, model):
    space = make_space(f"--model={model}", *ALL_OF_TRAINED)
    assert not {*space.searched} & OF_TRAINED
    for hp in points(space, 10):
        assert not hp.values.keys() & OF_TRAINED


def test_a_fine_tuning_rate_is_searched_only_beside_head_epochs(make_space):
    space = make_space("--model=resnet50", "--head_epochs=0,2", "--fine_tuning_rate=1e-5,1e-4")
    for hp in points(space, 40):
        assert ("fine_tuning_rate" in hp.values) == bool(hp.values["head_epochs"])


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


def test_a_point_that_does_not_fit_the_pictures_is_one_that_cannot_be_built(make_space):
    space = make_space(
        *("--blocks=0:3", "--filters=2", "--convolutions=1", "--padding=valid", "--pool_size=2"),
        *("--dense_layers=0", "--image_size=9..12", "--mixup=none", "--ema=none"),
    )
    built = {True: 0, False: 0}
    for hp in points(space, 40):
        fits = space.fits(hp.values)
        if built[fits] == 3:
            continue
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
