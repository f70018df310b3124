"""Which flags may change when a run is resumed, and between the processes of a cluster."""

import pathlib
import re
import shlex

import pytest
from small_runs import parse_flags

from pizza_steak.errors import UserError
from trainers.configuration import FitConfig
from trainers.runs import identity
from trainers.runs.run_directory import Run, plan

HERE = pathlib.Path.cwd()
FLAGS = ["--seed=7", "--classes=dark,light", "--nofollow_links", "--image_size=224"]


@pytest.fixture
def run_flags(tmp_path) -> pathlib.Path:
    """The run.flags of a run with `FLAGS` and relative paths that was started and not finished."""
    run = plan(parse_flags(*FLAGS, "--archive=food.zip", f"--run_dir={tmp_path}/run"))
    run.create("", {})
    return run.path / "run.flags"


def resume(run_flags: pathlib.Path, *flags: str) -> None:
    where = ["--archive=food.zip", f"--run_dir={run_flags.parent}", "--resume"]
    assert plan(parse_flags(*FLAGS, *where, *flags)).resumed


def edit(run_flags: pathlib.Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, run_flags.read_text(), flags=re.MULTILINE)
    assert count
    run_flags.write_text(text)


def test_a_run_with_other_comments_is_resumed(run_flags):
    edit(run_flags, "^# .*", "# Reworded.")
    resume(run_flags)


def test_a_run_may_go_on_without_unreadable_images(run_flags):
    resume(run_flags, "--on_bad_image=skip")
    Run(run_flags.parent).set_on_bad_image("skip")
    for how in ("fail", "skip"):
        resume(run_flags, f"--on_bad_image={how}")
    assert Run(run_flags.parent).config.data.on_bad_image == "skip"


def test_a_flag_that_run_flags_does_not_have_counts_as_its_default(run_flags):
    edit(run_flags, "^--fill_mode=nearest\n", "")
    resume(run_flags)
    with pytest.raises(UserError, match=r"\(--fill_mode=nearest, now --fill_mode=wrap\)"):
        resume(run_flags, "--fill_mode=wrap")


@pytest.mark.parametrize(
    "flag, told",
    [
        ("--seed=8", "--seed=7, now --seed=8"),
        ("--filters=3", "no --filters, now --filters=3"),
        ("--follow_links", "--nofollow_links, now --follow_links"),
        ("--classes=light,dark", "--classes=dark,light, now --classes=light,dark"),
        ("--image_size=224,96", "--image_size=224, now --image_size=224,96"),
        ("--learning_rate=0.0010000001", "--learning_rate=0.001, now --learning_rate=0.0010000001"),
        ("--archive=/other.zip", f"--archive={HERE}/food.zip, now --archive=/other.zip"),
    ],
)  # fmt: skip
def test_a_run_is_not_resumed_with_another_value_and_both_are_named(run_flags, flag, told):
    with pytest.raises(UserError) as caught:
        resume(run_flags, flag)
    assert f"was started with other flags ({told}); " in str(caught.value)
    assert str(caught.value).endswith(f"--flagfile={run_flags}")


def test_the_same_value_may_be_written_in_another_way(run_flags):
    resume(run_flags, "--learning_rate=1e-3", "--seed=07", "--archive=./food.zip")


@pytest.mark.parametrize(
    "flag",
    [
        "--checkpoint_every=60s",
        "--cluster_timeout=5",
        "--data_service=grpc://localhost:5050",
        "--resume=auto",
        "--overwrite",
    ],
)
def test_flags_that_are_not_the_identity_may_change(run_flags, flag):
    resume(run_flags, flag)


def test_a_flag_that_does_not_exist_any_more_is_named_in_one_line(run_flags):
    edit(run_flags, r"\Z", "--flux_capacitor=1\n")
    with pytest.raises(UserError) as caught:
        resume(run_flags)
    assert str(caught.value).startswith(f"{run_flags}: --flux_capacitor is not a flag of this ")
    assert "\n" not in str(caught.value)


def test_the_flagfile_of_a_run_gives_its_identity(run_flags):
    config = identity.read(FitConfig, run_flags)
    assert not identity.changes(config, parse_flags(*FLAGS, "--archive=food.zip"))
    assert config == parse_flags(*FLAGS, f"--archive={pathlib.Path('food.zip').absolute()}")


def test_what_only_the_user_may_set_has_its_default_in_the_flagfile_of_a_run(run_flags):
    before = identity.read(FitConfig, run_flags)
    lines = ["--data_dir=/home/me", "--data_service=grpc://192.0.2.1:1", "--callback=a.py:b"]
    lines += ["--run_dir=/home/me", "--overwrite", "--resume", "--code=a.py"]
    run_flags.write_text("\n".join([run_flags.read_text(), *lines]))
    assert identity.read(FitConfig, run_flags) == before


@pytest.mark.parametrize("line", ["--flagfile=/dev/zero", "--undefok=wings", "rest: 5", "--seed 5"])
def test_the_flagfile_of_a_run_has_plain_lines_only(run_flags, line):
    run_flags.write_text(f"{run_flags.read_text()}\n{line}\n")
    with pytest.raises(UserError) as caught:
        identity.read(FitConfig, run_flags)
    assert str(caught.value).startswith(f"{run_flags}: has a line that is not --name=value; ")


def test_the_command_to_resume_has_what_the_flagfile_of_a_run_does_not_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--archive=food.zip", "--data_dir=data", "--model=own.py:build", "--seed=7"]
    run = plan(parse_flags(*flags, "--run_dir=run"))
    assert "data_dir" not in run.flags
    run.create("", {})
    _, _, _, *typed = shlex.split(run.command_to_resume)
    assert typed == [
        f"--flagfile={tmp_path}/run/run.flags",
        f"--data_dir={tmp_path}/data",
        "--model=own.py:build",
        f"--run_dir={tmp_path}/run",
        "--resume",
    ]
    assert plan(parse_flags(*typed)).resumed


def test_processes_of_a_cluster_may_differ_in_paths_and_devices_alone():
    chiefs = parse_flags("--archive=a.zip", "--devices=2", "--run_dir=a", "--overwrite")
    own = parse_flags("--data_dir=b", "--decoded_cache=none", "--cluster_timeout=5")
    assert identity.differences_from_chief(chiefs, own) == ""
    other = parse_flags("--checkpoint_every=5", "--notensorboard")
    assert identity.differences_from_chief(chiefs, other) == (
        "--checkpoint_every=epoch, here --checkpoint_every=5, --tensorboard, here --notensorboard"
    )
