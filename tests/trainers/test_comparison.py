"""The chapter's seven models: their flagfiles, and the command that compares them."""

import dataclasses
import json

import pytest
from PIL import Image
from small_runs import SIZE, fit, parse_flags, run_command, snapshot

from pizza_steak import flagfile
from pizza_steak.errors import UserError
from trainers.configuration import (
    ChapterConfig,
    ChapterDataConfig,
    ComparisonConfig,
    FitConfig,
    ModelConfig,
    OptimisationConfig,
)
from trainers.models import networks
from trainers.models.networks import sizes_of
from trainers.runs import scores
from trainers.training import comparison

FLAGFILES = {
    "model_1": "tinyvgg",
    "model_2": "playground",
    "model_3": "dense",
    "model_4": "conv3",
    "model_5": "conv3_pool",
    "model_6": "conv3_pool_augmented",
    "model_7": "tinyvgg_augmented",
}


@pytest.fixture
def chapter(archive, tmp_path):
    """`chapter(**of_comparison)`: flags of a chapter of a second, in `tmp_path`."""

    def configure(**chosen) -> ChapterConfig:
        return ChapterConfig(
            data=ChapterDataConfig(
                archive=str(archive), data_dir=f"{tmp_path}/data", image_size=SIZE
            ),
            optimisation=OptimisationConfig(epochs=2),
            chapter=ComparisonConfig(run_dir=f"{tmp_path}/chapter", **chosen),
        )

    return configure


@pytest.mark.parametrize("name", FLAGFILES)
def test_each_model_has_a_flagfile_that_says_the_same(name):
    flagfile = parse_flags(f"--flagfile={FLAGFILES[name]}")
    # Which is what no batch size and no image size come to.
    data = ChapterDataConfig(batch_size=32, image_size=224)
    config = comparison.fit_config(ChapterConfig(data=data), name)
    assert sizes_of(flagfile.model) == sizes_of(config.model)
    assert dataclasses.replace(flagfile, model=ModelConfig()) == dataclasses.replace(
        config, model=ModelConfig()
    )


@pytest.mark.parametrize("name", FLAGFILES.values())
def test_a_flagfile_with_another_model_trains_that_model(name):
    parameters = {"tinyvgg": 31_101, "conv3": 477_341}
    for model, expected in parameters.items():
        config = parse_flags(f"--flagfile={name}", f"--model={model}").model
        assert networks.build(config, (224, 224, 3), "ab").model.count_params() == expected


def test_every_flagfile_of_a_model_is_one_of_the_chapter():
    assert {*FLAGFILES.values()} <= {*flagfile.names(FitConfig)}


@pytest.mark.parametrize("name", ["playground", "dense", "conv3", "conv3_pool_augmented"])
def test_flagfiles_train(small_flags, tmp_path, name):
    own = [
        flag for flag in small_flags if flag.split("=")[0] not in ("--filters", "--convolutions")
    ]
    result = fit(f"--flagfile={name}", *own, f"--run_dir={tmp_path}/run", "--epochs=1")
    assert result.values["model"] == name.removesuffix("_augmented")


def test_the_chapter_is_trained_once_and_compared(chapter, tmp_path, capsys):
    config = chapter(only=("model_5", "model_2"))
    table = comparison.train_chapter(config)
    runs = tmp_path / "chapter"
    compared = json.loads((runs / "comparison.json").read_text())["runs"]
    assert list(compared) == ["model_2", "model_5"]
    for name, row in compared.items():
        result = json.loads((runs / name / "result.json").read_text())
        assert row["val_accuracy"] == result["history"]["val_accuracy"]
        assert row["parameters"] == result["parameters"]
        assert f"{row['parameters']:,}" in table
        assert scores.test_accuracy_text(result) in table
    assert "the test images also chose the best epochs" in table
    with Image.open(runs / "comparison.png") as image:
        image.load()

    assert table.endswith(f"figure saved to {runs / 'comparison.png'}")

    before = snapshot(runs)
    capsys.readouterr()
    assert comparison.train_chapter(config) == table
    assert "val_loss" not in capsys.readouterr().out
    after = snapshot(runs)
    assert {name: after[name] for name in before if not name.startswith("comparison")} == {
        name: content for name, content in before.items() if not name.startswith("comparison")
    }


def test_a_chapter_with_other_flags_is_not_mixed_with_the_one_that_is_there(chapter):
    comparison.train_chapter(chapter(only=("model_2",)))
    other = dataclasses.replace(
        chapter(only=("model_2",)), optimisation=OptimisationConfig(epochs=3)
    )
    with pytest.raises(UserError, match="started with other flags"):
        comparison.train_chapter(other)


def test_a_model_that_is_not_of_the_chapter_is_named(chapter, tmp_path):
    with pytest.raises(UserError, match="only 'model_8': unknown; expected some of model_1,"):
        comparison.train_chapter(chapter(only=("model_1", "model_8")))
    assert not (tmp_path / "chapter").exists()


@pytest.mark.parametrize(
    ("accuracy", "val_accuracy", "words"),
    [
        ([0.5, 0.51], [0.5, 0.5], "no better than chance"),
        ([0.8, 0.97], [0.75, 0.74], "overfits"),
        ([0.6, 0.7], [0.7, 0.8], "still underfits"),
        ([0.8, 0.85], [0.8, 0.84], "fits"),
    ],
)
def test_the_gap_in_words(accuracy, val_accuracy, words):
    result = {
        "model": "dense",
        "classes": ["pizza", "steak"],
        "parameters": 9,
        "history": {"accuracy": accuracy, "val_accuracy": val_accuracy},
        "fit_seconds": 1.0,
        "test_accuracy": 0.5,
    }
    row = comparison.compare(result, augmented=False)
    assert row["fit"] == words
    assert row["gap"] == pytest.approx(accuracy[-1] - val_accuracy[-1])


@pytest.mark.slow
def test_the_command_prints_the_table(archive, tmp_path):
    status, stdout, stderr = run_command(
        f"--archive={archive}",
        f"--data_dir={tmp_path}/data",
        f"--image_size={SIZE}",
        "--epochs=1",
        "--only=model_2",
        f"--run_dir={tmp_path}/chapter",
        command="chapter",
        fresh=True,
    )
    assert (status, stderr) == (0, "")
    assert "playground" in stdout
    assert "baselines: " in stdout
