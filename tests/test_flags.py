"""The numbers that flags take: those that cannot be meant are refused before anything is done."""

import pathlib

import pytest
from absl import flags
from small_runs import parse_flags, run_command, snapshot
from test_help import CONFIGS

from pizza_steak.flags import Numbers, fields, kind_of
from tuning.configuration import SweepConfig


def kind(field) -> object:
    """The type of a flag's numbers; in a sweep, a flag that takes ranges has it elsewhere."""
    parse = field.metadata.get("parse")
    return parse.keywords["kind"] if parse else kind_of(field)


NUMERIC = {
    (command, field.name): kind(field)
    for command, config in CONFIGS.items()
    for _, field in fields(config)
    if kind(field) in (int, float, Numbers)
}


@pytest.mark.parametrize("command, name", NUMERIC)
def test_a_number_has_an_end(command, name):
    refused = ["nan", "inf", "-inf", "NaN", "Infinity", "1e400", "", " ", "ten", "0x", "--"]
    # More digits than Python converts; and what int32 or float32 does not hold.
    refused += ["9" * 5000, str(2**31 if NUMERIC[command, name] is int else 10**39)]
    if NUMERIC[command, name] is int:
        refused += ["1.5", "1e3", "2.0"]
    if NUMERIC[command, name] == Numbers or CONFIGS[command] is SweepConfig:
        refused += ["0.1,nan", "inf,1", "1,,2", "1,"]
    for value in refused:
        with pytest.raises(flags.Error) as caught:
            parse_flags(f"--{name}={value}", *required(command), config=CONFIGS[command])
        assert name in str(caught.value)
        assert "required" not in str(caught.value)


def required(command: str) -> list[str]:
    return ["--archive=food.zip"] if command == "pizza_steak.inspect" else []


@pytest.mark.parametrize(
    "flag",
    [
        *("--seed=4294967296", "--rescale=nan", "--rescale=0", "--rotation_range=nan"),
        *("--image_size=1000000", "--image_size=10.5", "--image_size=9,9,9", "--devices=2.0"),
        *("--devices=0,1.5", "--zoom_range=0.5,1,2", "--brightness_range=0.5", "--blocks=100000"),
        *("--precision=float8", "--epochs=1e3", "--cpu_devices=100000", "--batch_size=99999999999"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(flag):
    with pytest.raises(flags.Error, match=flag.split("=")[0]):
        parse_flags(flag)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, flag",
    [
        ("trainers.fit", "--rescale=nan"),
        ("trainers.fit", "--optimizer=adam,adma"),
        ("tuning.sweep", "--optimizer=adam,adma"),
        ("tuning.sweep", "--learning_rate=0:inf"),
        ("tuning.learning_rate", "--highest=inf"),
        ("pizza_steak.inspect", "--image_size=1000000"),
    ],
)
def test_it_exits_with_status_2_before_anything_is_done(command, flag, archive, tmp_path):
    package, module = command.split(".")
    argv = [f"--archive={archive}", f"--data_dir={tmp_path}/data", flag]
    status, stdout, stderr = run_command(*argv, package=package, command=module, cwd=tmp_path)
    (line,) = stderr.splitlines()
    assert (status, stdout) == (2, "")
    assert line.startswith("error: ")
    assert flag.split("=")[0].strip("-") in line
    assert snapshot(pathlib.Path(tmp_path)) == {}
