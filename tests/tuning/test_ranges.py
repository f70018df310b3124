"""What the flags of a search space can say."""

import json

import numpy as np
import pytest
from absl import flags
from small_runs import parse_flags

from pizza_steak.flags import Numbers
from tuning.configuration import SweepConfig
from tuning.space import ranges
from tuning.space.ranges import Range

OPTIONAL = {"optional": True}
# Ranges of every kind: the text, the kind, and the other arguments of `parse`.
RANGES = [
    ("3", int, {}),
    ("32,8,16", int, {}),
    ("none,8", int, OPTIONAL),
    ("1:4", int, {}),
    ("16:256:16", int, {}),
    ("8:64:log", int, {}),
    ("0.1", float, {}),
    ("0,1e-5,0.05", float, {}),
    ("none", float, OPTIONAL),
    ("0.99,none", float, OPTIONAL),
    ("-0.5:0.5", float, {}),
    ("0:0.5:0.1", float, {}),
    ("1e-4:1e-2:log", float, {}),
    ("0,10", Numbers, {}),
    ("0,0.1", Numbers, {}),
    ("0.8..1.2", Numbers, {}),
    ("0,0.8..1.2", Numbers, {}),
    ("none,0.8..1.2,1..2", Numbers, OPTIONAL),
    ("32..48,64", Numbers, {}),
    ("0:4", Numbers, {}),
    ("0:0.5", Numbers, {}),
    ("32:64:16", Numbers, {}),
    ("false", bool, {}),
    ("true,false", bool, {}),
    ("adam", str, {}),
    ("none,linear", str, {}),
    ("valid,same", str, {"choices": ("valid", "same")}),
]


@pytest.mark.parametrize(
    "text, kind, expected",
    [
        ("3", int, Range((3,))),
        ("32,8,16", int, Range((32, 8, 16))),
        ("1,2", float, Range((1.0, 2.0))),
        ("1e-3", float, Range((0.001,))),
        ("true", bool, Range((True,))),
        ("false,true", bool, Range((False, True))),
        ("adam,sgd", str, Range(("adam", "sgd"))),
        ("1:4", int, Range(low=1, high=4)),
        ("0:0.5", float, Range(low=0.0, high=0.5)),
        ("16:256:16", int, Range(low=16, high=256, step=16)),
        ("0:0.5:0.1", float, Range(low=0.0, high=0.5, step=0.1)),
        ("8:64:log", int, Range(low=8, high=64, log=True)),
        ("1e-4:1e-2:log", float, Range(low=1e-4, high=1e-2, log=True)),
        # Whole numbers stay whole where a flag takes both, unless one of them has a point.
        ("0,10", Numbers, Range((0, 10))),
        ("0,0.5,2", Numbers, Range((0.0, 0.5, 2.0))),
        ("0:4", Numbers, Range(low=0, high=4)),
        ("0:0.5", Numbers, Range(low=0.0, high=0.5)),
        ("1:4:0.5", Numbers, Range(low=1.0, high=4.0, step=0.5)),
        ("32:64:16", Numbers, Range(low=32, high=64, step=16)),
    ],
)
def test_a_range_is_a_value_several_or_two_ends(text, kind, expected):
    found = ranges.parse(text, kind)
    assert found == expected
    numbers, others = (
        [*one.values, *(end for end in (one.low, one.high, one.step) if end is not None)]
        for one in (found, expected)
    )
    assert [type(number) for number in numbers] == [type(number) for number in others]
    assert len({type(number) for number in numbers}) == 1


@pytest.mark.parametrize(
    "text, kind, optional, expected",
    [
        ("none", float, True, [None]),
        ("none,0.2", float, True, [None, 0.2]),
        ("0.99,none", float, True, [0.99, None]),
        ("none,1,16", int, True, [None, 1, 16]),
        ("0.8..1.2", Numbers, False, [(0.8, 1.2)]),
        ("0,0.8..1.2", Numbers, False, [0, (0.8, 1.2)]),
        ("none,0.8..1.2", Numbers, True, [None, (0.8, 1.2)]),
        ("32..48,64", Numbers, False, [(32, 48), 64]),
        ("none", str, False, ["none"]),
    ],
)
def test_a_value_is_none_or_a_pair_where_the_flag_takes_it(text, kind, optional, expected):
    found = ranges.parse(text, kind, optional=optional)
    assert [found.flag_value(value) for value in found.values] == expected
    assert len({type(value) for value in found.values}) == 1  # As Keras Tuner wants it.


def values_within(found: Range) -> list:
    """Values of a range; of two ends these and one between them."""
    if found.values:
        return list(found.values)
    middle = found.low + (found.step or (found.high - found.low) / 2)
    return [found.low, type(found.low)(round(middle, 6)), found.high]


@pytest.mark.parametrize("text, kind, options", RANGES)
def test_a_value_and_its_flag_are_each_others_inverse(text, kind, options):
    found = ranges.parse(text, kind, **options)
    for value in values_within(found):
        flag_value = found.flag_value(value)
        assert found.value_of(flag_value) == value
        assert type(found.value_of(flag_value)) is type(value)
        assert found.flag_value(json.loads(json.dumps(value))) == flag_value
        assert found.flag_value(found.value_of(flag_value)) == flag_value


@pytest.mark.parametrize("text, kind, options", RANGES)
def test_the_text_of_a_range_says_the_same_range(text, kind, options):
    found = ranges.parse(text, kind, **options)
    again = ranges.parse(str(found), kind, **options)
    assert again == found
    assert [*map(type, values_within(again))] == [*map(type, values_within(found))]


@pytest.mark.parametrize(
    "text, kind, options, outside",
    [
        ("8,16", int, {}, [4, 12, 17, None]),
        ("1:4", int, {}, [0, 5, None]),
        ("0.0:0.5", float, {}, [-0.1, 0.6, None]),
        ("none,0.2", float, OPTIONAL, [0.0, 0.1]),
        ("none,0.8..1.2", Numbers, OPTIONAL, [0.8, (0.8, 1.1), (0.8, 1.2, 1.3)]),
        ("0.0:0.5", Numbers, {}, [(0.1, 0.2), 1]),
        ("false", bool, {}, [True]),
        ("adam,sgd", str, {}, ["adamw", None]),
    ],
)
def test_what_a_range_does_not_hold_is_told_with_what_it_holds(text, kind, options, outside):
    found = ranges.parse(text, kind, **options)
    for value in outside:
        with pytest.raises(ValueError, match=f"^expected some of {text}$"):
            found.value_of(value)


@pytest.mark.parametrize(
    "text, kind",
    [("1000000:2000000", int), ("0:0.12345678", float), ("0:1:0.123456789", float)],
)
def test_the_text_of_a_range_has_all_its_digits(text, kind):
    found = ranges.parse(text, kind)
    assert ranges.parse(str(found), kind) == found


def test_the_text_of_a_range_says_whether_its_numbers_are_whole():
    found = ranges.parse("1.0:2.0", Numbers)
    assert type(ranges.parse(str(found), Numbers).low) is float


@pytest.mark.parametrize(
    "text, kind, outside",
    [
        ("16:256:16", int, 20),
        ("0.0:0.5:0.25", float, 0.3),
        ("0.1:0.5:0.2", float, 0.2),
        ("0:4", Numbers, 1.5),
        ("1:4", int, 1.5),
    ],
)
def test_what_lies_between_the_values_of_a_range_is_not_in_it(text, kind, outside):
    with pytest.raises(ValueError, match=f"^expected some of {text}$"):
        ranges.parse(text, kind).value_of(outside)


def test_a_listed_number_keeps_its_digits():
    found = ranges.parse("0.00392156862745098", float)
    assert found.flag_value(found.values[0]) == 0.00392156862745098
    assert found.value_of(0.00392156862745098) == found.values[0]


@pytest.mark.parametrize(
    "text, kind",
    [("0.00392156862745098,1", float), ("0,0.1,0.2", float), ("0,0.1", Numbers), ("8,16", int)],
)
def test_a_listed_number_that_has_been_rounded_is_the_nearest_of_the_list(text, kind):
    found = ranges.parse(text, kind)
    for value in found.values:  # Keras Tuner's messages hold float32.
        for rounded in (float(np.float32(value)), float(f"{value:.6g}")):
            assert found.flag_value(rounded) == value
            assert type(found.flag_value(rounded)) is type(value)


def test_a_random_number_has_six_digits_in_its_flag():
    found = ranges.parse("1e-4:1e-2:log", float)
    assert found.flag_value(0.00123456789) == 0.00123457
    assert found.value_of(0.00123457) == 0.00123457


@pytest.mark.parametrize(
    "text, kind, least, most",
    [
        ("32,8,16", int, 8, 32),
        ("1:4", int, 1, 4),
        ("0:0.5", float, 0.0, 0.5),
        ("false,true", bool, False, True),
        ("sgd,adam", str, "sgd", "adam"),  # Words have the order in which they are given.
    ],
)
def test_the_ends_of_a_range(text, kind, least, most):
    assert (ranges.parse(text, kind).least, ranges.parse(text, kind).most) == (least, most)


@pytest.mark.parametrize(
    "text, kind, limits, said",
    [
        ("8,a", int, {}, "'a': expected a whole number, several"),
        ("", int, {}, "'': expected a whole number"),
        ("8,,16", int, {}, "'': expected a whole number"),
        ("1.5", int, {}, "'1.5': expected a whole number"),
        ("fast", float, {}, "'fast': expected a number, several"),
        ("1:", int, {}, "'': expected a whole number"),
        ("1:8:lin", int, {}, "'lin': expected a whole number"),
        ("1:2:3:4", int, {}, "'3:4': expected a whole number"),
        ("8,8", int, {}, "8,8: expected each value once"),
        ("1,1.0", float, {}, "1,1.0: expected each value once"),
        ("8:1", int, {}, "8:1: expected the smaller number first"),
        ("8:8", int, {}, "8:8: expected the smaller number first"),
        ("0:1:log", float, {}, "0:1:log: expected numbers above 0 with log"),
        ("1:8:0", int, {}, "1:8:0: expected a step above 0"),
        ("1:8:-1", int, {}, "1:8:-1: expected a step above 0"),
        ("0,1", int, {"minimum": 1}, "0,1: expected at least 1"),
        ("-1:1", float, {"minimum": 0}, "-1:1: expected at least 0"),
        ("0:2", float, {"maximum": 1}, "0:2: expected at most 1"),
        ("nan", float, {}, "'nan': expected a number"),
        ("0:inf", float, {}, "'inf': expected a number"),
        ("yes", bool, {}, "yes: expected true, false or true,false"),
        ("true:false", bool, {}, "true:false: expected true, false or true,false"),
        ("full", str, {"choices": ("valid", "same")}, "full: expected some of valid,same"),
        ("valid:same", str, {"choices": ("valid", "same")}, "valid:same: expected some of"),
        ("none", float, {}, "'none': expected a number"),
        ("none:1", float, OPTIONAL, "'none': expected a number"),
        ("none,none", float, OPTIONAL, "none,none: expected each value once"),
        ("none,2", float, {**OPTIONAL, "maximum": 1}, "none,2: expected at most 1"),
        ("none,valid", str, {"choices": ("valid", "same")}, "none: expected some of valid,same"),
        ("0.8..", Numbers, {}, "'': expected a number"),
        ("0.8..a", Numbers, {}, "'a': expected a number"),
        ("0.8..1.2", float, {}, "'0.8..1.2': expected a number"),
        ("32..48", int, {}, "'32..48': expected a whole number"),
        ("0.8..1.2:2", Numbers, {}, "'0.8..1.2': expected a number"),
        ("0.8..1.2,0.8..1.2", Numbers, {}, "0.8..1.2,0.8..1.2: expected each value once"),
        ("-1..1,2", Numbers, {"minimum": 0}, "-1..1,2: expected at least 0"),
        ("0..0.5,2..3", Numbers, {"maximum": 1}, "0..0.5,2..3: expected at most 1"),
    ],
)
def test_what_is_no_range_is_told(text, kind, limits, said):
    with pytest.raises(ValueError) as caught:
        ranges.parse(text, kind, **limits)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "flag",
    [
        *("--filters=8,a", "--filters=0:8", "--dropout=0:2", "--padding=full", "--blocks=4:1"),
        *("--dropout=none,0.2", "--mixup=none,0.05", "--brightness_range=none,1"),
        *("--image_size=32:40000", "--image_size=16.5:32", "--image_size=32..64,1..2..3"),
        *("--filters=8:9999999999", "--zoom_range=1..2..3", "--rescale=0,1", "--dropout=0,inf"),
        "--brightness_range=0.8,1.2",  # As in fit; here 0.8..1.2.
        *("--learning_rate=nan", "--rotation_range=0:nan", "--filters=8," + "9" * 400),
        *("--antialias=no,yes", "--color_mode=rgb,cmyk", "--image_size=0,32", "--batch_size=0"),
        *("--rotation_range=10:-10", "--trainable=head,0", "--rescale=small"),
    ],
)
def test_a_flag_that_is_no_range_is_refused_by_name(flag):
    with pytest.raises(flags.Error, match=flag.split("=")[0].strip("-")):
        parse_flags(flag, config=SweepConfig)


@pytest.mark.parametrize(
    "flag",
    [
        *("--filters=none,16", "--blocks=none,3", "--dense_layers=none,1", "--dense_units=none"),
        *("--rescale=none,0.5", "--image_size=none,32", "--batch_size=none,32"),
        *("--trainable=none,head", "--learning_rate=none,0.1", "--zoom_range=none,0.1"),
    ],
)
def test_none_is_refused_where_it_would_be_another_value(flag):
    """Without these flags a network has its own values, or the flag has a default."""
    with pytest.raises(flags.Error, match=flag.split("=")[0].strip("-")) as caught:
        parse_flags(flag, config=SweepConfig)
    assert "'none': expected" in str(caught.value)


@pytest.mark.parametrize("flag", ["weights", "features"])
def test_none_is_a_text_like_any_other_where_a_flag_takes_texts(flag):
    space = parse_flags(f"--{flag}=none,imagenet", config=SweepConfig).space
    found = type(space).__dataclass_fields__[flag].metadata["parse"](getattr(space, flag))
    assert [found.flag_value(value) for value in found.values] == ["none", "imagenet"]
