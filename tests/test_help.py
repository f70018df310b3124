"""`--help` of every command: one screen of 80 columns, at once; and what wrong flags are told."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from pizza_steak.__main__ import COMMANDS
from pizza_steak.configuration import InspectConfig, PreparedConfig
from pizza_steak.flags import define_flags, fields, flag
from pizza_steak.help import help_of, suggestions
from trainers.configuration import (
    AverageConfig,
    BenchmarkConfig,
    ChapterConfig,
    DataServiceConfig,
    EvaluateConfig,
    ExportConfig,
    FitConfig,
    PredictConfig,
    ReportConfig,
)
from tuning.configuration import LearningRateConfig, SweepConfig

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {
    "pizza_steak.inspect": InspectConfig,
    "pizza_steak.prepared": PreparedConfig,
    "trainers.benchmark": BenchmarkConfig,
    "trainers.chapter": ChapterConfig,
    "trainers.data_service": DataServiceConfig,
    "trainers.evaluate": EvaluateConfig,
    "trainers.export": ExportConfig,
    "trainers.average": AverageConfig,
    "trainers.fit": FitConfig,
    "trainers.predict": PredictConfig,
    "trainers.report": ReportConfig,
    "tuning.learning_rate": LearningRateConfig,
    "tuning.sweep": SweepConfig,
}


def doc_of(name: str) -> str:
    module = importlib.import_module(name)
    return module.__doc__ or importlib.import_module(f"{name}.__main__").__doc__


def shown(text: str) -> list[str]:
    return re.findall(r"^  --(?:\[no\])?(\w+)", text, re.M)


def text_of(name: str, text: str) -> str:
    """Returns the help of one flag, in one line."""
    (entry,) = re.findall(rf"^  --(?:\[no\])?{name}\b(.*(?:\n {{26}}.*)*)", text, re.M)
    return " ".join(entry.split())


FULL = help_of(FitConfig, doc_of("trainers.fit"), full=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_help_imports_neither_tensorflow_nor_tfds(name):
    command = [sys.executable, "-X", "importtime", "-m", name, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == help_of(CONFIGS[name], doc_of(name), full=False) + "\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "absl.flags" in imported
    assert not imported & {"tensorflow", "tensorflow_datasets", "keras"}


def test_these_are_all_commands():
    assert {*CONFIGS} == {*COMMANDS.values()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("full", [False, True])
def test_help_fits_80_columns_and_begins_with_what_the_command_does(name, full):
    lines = help_of(CONFIGS[name], doc_of(name), full).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines[0] == doc_of(name).splitlines()[0]
    assert any(line.startswith(f"python -m {name}") for line in lines)


@pytest.mark.parametrize("name", CONFIGS)
def test_helpfull_shows_every_flag_once_with_its_whole_help(name):
    text = help_of(CONFIGS[name], doc_of(name), full=True)
    named = [field for _, field in fields(CONFIGS[name])]
    assert shown(text) == [*(field.name for field in named), "flagfile"]
    for field in named:
        assert text_of(field.name, text).startswith(field.metadata["help"])
    assert doc_of(name).strip() in text


@pytest.mark.parametrize("name", CONFIGS)
def test_help_shows_the_common_flags_and_how_many_more_there_are(name):
    text = help_of(CONFIGS[name], doc_of(name), full=False)
    common = [field.name for _, field in fields(CONFIGS[name]) if field.metadata["common"]]
    every = [field.name for _, field in fields(CONFIGS[name])]
    assert shown(text) == [*(common or every), "flagfile"]
    if common:
        assert text.endswith(f"--helpfull shows {len(every) - len(common)} more flags.")
    else:
        assert text == help_of(CONFIGS[name], doc_of(name), full=True)


def test_help_of_fit_is_one_screen():
    text = help_of(FitConfig, doc_of("trainers.fit"), full=False)
    assert len(text.splitlines()) <= 45
    assert 12 <= len(shown(text)) <= 18


@pytest.mark.parametrize(
    "name, default",
    [
        ("rotation_range", "0"),
        ("learning_rate", "0.001"),
        ("zca_epsilon", "1e-06"),
        ("epochs", "5"),
        ("dataset", "pizza_steak/photos"),
        ("antialias", "on"),
        ("color_mode", "rgb"),
    ],
)
def test_a_default_is_written_as_its_value(name, default):
    assert re.search(rf"[(; ]default: {re.escape(default)}\)$", text_of(name, FULL))


@pytest.mark.parametrize("name", ["overwrite", "horizontal_flip", "archive", "mixup"])
def test_a_flag_that_is_off_has_no_default(name):
    assert "default" not in text_of(name, FULL)


@pytest.mark.parametrize("name", ["filters", "image_size", "batch_size", "rescale", "trainable"])
def test_help_says_what_is_used_without_a_flag_that_has_no_value(name):
    assert "by default" in text_of(name, FULL)


@pytest.mark.parametrize("name", ["color_mode", "interpolation", "decoded_cache", "class_weight"])
def test_every_choice_is_named(name):
    (field,) = (field for _, field in fields(FitConfig) if field.name == name)
    for choice in field.metadata["choices"]:
        assert choice in text_of(name, FULL)


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("lr", "learning_rate"),
        ("epoch", "epochs"),
        ("num-epochs", "epochs"),
        ("flip", "horizontal_flip vertical_flip"),
        ("flip_horizontal", "horizontal_flip"),
        ("size", "image_size"),
        ("imgsz", "image_size"),
        ("batch", "batch_size"),
        ("batch-size", "batch_size"),
        ("top", "trainable"),
        ("gpus", "devices"),
        ("patience", "early_stopping_patience"),
        ("learnig_rate", "learning_rate"),
        ("rotaton_range", "rotation_range"),
        ("nofollow_link", "follow_links"),
        ("flagfiles", "flagfile"),
        ("xyzzy", ""),
    ],
)
def test_a_wrong_flag_is_told_the_right_one(wrong, right):
    assert suggestions(FitConfig, wrong) == [f"--{name}" for name in right.split()]


def test_no_other_word_of_a_flag_is_a_flag_or_a_word_of_another():
    for config in CONFIGS.values():
        values = flags.FlagValues()
        define_flags(config, values)
        aliases = [alias for _, field in fields(config) for alias in field.metadata["aliases"]]
        assert len({*aliases}) == len(aliases)
        assert not {*aliases} & {*values}


def test_a_flag_has_other_words():
    assert flag(1, "Help.", aliases="one two").metadata["aliases"] == ["one", "two"]


@pytest.mark.parametrize("config", [EvaluateConfig, ExportConfig, PredictConfig])
def test_who_names_the_model_of_a_run_is_told_its_folder(config):
    assert suggestions(config, "model") == ["--run_dir"]
