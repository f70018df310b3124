"""Flags and dataclasses say the same, both ways."""

import collections
import math
import re

import pytest
from absl import flags
from small_runs import ROOT, parse_flags

from pizza_steak import decoded, decoding
from pizza_steak.flags import define_flags, fields, to_flags
from trainers import configuration as configs
from trainers.configuration import (
    DataConfig,
    DevicesConfig,
    FitConfig,
    ModelConfig,
    OptimisationConfig,
    RunConfig,
)

FIELDS = {field.name: field for _, field in fields(FitConfig)}


def test_names_are_unique_across_concerns():
    counts = collections.Counter(field.name for _, field in fields(FitConfig))
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_flag_with_its_help_and_default(name):
    values = flags.FlagValues()
    define_flags(FitConfig, values)
    default = values[name].default
    assert (tuple(default) if isinstance(default, list) else default) == FIELDS[name].default
    told, _, _ = values[name].help.partition(";\n    repeat this option")  # absl's own words.
    assert re.fullmatch(r"(?s)\S.{10,}\.", told)


def test_no_flags_give_the_defaults():
    assert parse_flags() == FitConfig()


@pytest.mark.parametrize(
    "config",
    [
        FitConfig(),
        FitConfig(
            data=DataConfig(
                archive="~/my food = 'pizza', #2.zip",
                data_dir="~/.cache",
                train_split="train[:80%] + test",
                test_split="test[50%:]",
            )
        ),
        FitConfig(model=ModelConfig(filters=1, kernel_size=7)),
        FitConfig(
            optimisation=OptimisationConfig(
                learning_rate=1e-05,
                class_weight="balanced",
                early_stopping_patience=0,
                reduce_lr_patience=3,
                seed=0,
            )
        ),
        FitConfig(optimisation=OptimisationConfig(learning_rate=0.1 + 0.2)),
        FitConfig(devices=DevicesConfig(precision="mixed_float16", jit_compile="off")),
        FitConfig(run=RunConfig(run_dir="a run", overwrite=True, resume=True, tensorboard=False)),
    ],
)
def test_a_flagfile_of_a_configuration_gives_it_back(config, tmp_path):
    flagfile = tmp_path / "all.flags"
    flagfile.write_text(to_flags(config))
    assert parse_flags(f"--flagfile={flagfile}") == config


@pytest.mark.parametrize(
    "argv, resume",
    [
        ([], False),
        (["--resume"], True),
        (["--resume=true"], True),
        (["--noresume"], False),
        (["--resume=auto"], "auto"),
        (["--resume=auto", "--resume"], True),
    ],
)
def test_resume_is_a_switch_that_may_be_auto(argv, resume):
    config = parse_flags(*argv)
    assert config.run.resume == resume
    assert parse_flags(*to_flags(config).splitlines()[-5:-1]).run.resume == resume


@pytest.mark.parametrize(
    "text, interval",
    [("epoch", (math.inf, math.inf)), ("500", (500, math.inf)), ("60s", (math.inf, 60))],
)
def test_checkpoints_are_made_every_so_many_steps_or_seconds(text, interval):
    assert configs.checkpoint_interval(text) == interval


@pytest.mark.parametrize(
    "flag",
    [
        "--batch_size=0",
        "--checkpoint_every=0",
        "--checkpoint_every=60m",
        "--resume=maybe",
        "--clip_norm=0",
        "--color_mode=cmyk",
        "--cutmix=1.5",
        "--data_service=localhost:5050",
        "--ema=1.1",
        "--epochs=0",
        "--filters=ten",
        "--image_size=-1",
        "--learning_rate=-0.1",
        "--mixup=0",
        "--seed=-1",
        "--warmup_epochs=-1",
    ],
)
def test_values_that_cannot_be_meant_are_refused(flag):
    with pytest.raises(flags.Error, match=flag.split("=")[0].strip("-")):
        parse_flags(flag)


@pytest.mark.parametrize(
    "name, implemented",
    [
        ("decoded_cache", decoded.CACHES),
        ("interpolation", decoding.INTERPOLATIONS),
        ("exif", decoding.EXIF),
    ],
)
def test_choices_are_what_the_library_implements(name, implemented):
    assert set(FIELDS[name].metadata["choices"]) == set(implemented)


def test_the_limit_of_pixels_is_that_of_the_library():
    assert FIELDS["max_pixels"].default == decoding.MAX_PIXELS
    assert FIELDS["max_pixels"].metadata["limits"] == (1, decoding.MOST_PIXELS)


def test_tinyvgg_flags_are_the_settings_of_the_chapter():
    config = parse_flags("--flagfile=tinyvgg.flags")
    assert config == FitConfig(
        data=DataConfig(
            dataset="pizza_steak/photos",
            train_split="train",
            validation_split="test",
            image_size=224,
            batch_size=32,
        ),
        model=ModelConfig("tinyvgg"),
        optimisation=OptimisationConfig(epochs=5, optimizer="adam", learning_rate=0.001, seed=42),
    )


def test_every_flag_of_tinyvgg_flags_stands_under_a_comment():
    paragraphs = (ROOT / "pizza_steak/flagfiles/tinyvgg.flags").read_text().strip().split("\n\n")
    assert [text for text in paragraphs if not text.startswith("# ")] == []
