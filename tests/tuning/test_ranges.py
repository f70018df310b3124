"""What the flags of a search space can say."""

import pytest
from absl import flags
from small_runs import parse_flags

from tuning.configuration import SweepConfig
from tuning.space import ranges
from tuning.space.ranges import Range


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
    ],
)
def test_a_range_is_a_value_several_or_two_ends(text, kind, expected):
    found = ranges.parse(text, kind)
    assert found == expected
    numbers = (*found.values, found.low, found.high, found.step)
    assert {type(number) for number in numbers if number is not None} == {kind}


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
    ],
)
def test_what_is_no_range_is_told(text, kind, limits, said):
    with pytest.raises(ValueError) as caught:
        ranges.parse(text, kind, **limits)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "flag", ["--filters=8,a", "--filters=0:8", "--dropout=0:2", "--padding=full", "--blocks=4:1"]
)
def test_a_flag_that_is_no_range_is_refused_by_name(flag):
    with pytest.raises(flags.Error, match=flag.split("=")[0].strip("-")):
        parse_flags(flag, config=SweepConfig)
