"""Features of a frozen backbone, computed once: a head that is trained on them is the same."""

import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_runs import (
    IN_FLOAT64,
    ROOT,
    UNEVEN,
    assert_same_numbers,
    assert_same_run,
    fit,
    fit_and_stop,
    layout,
    parse_flags,
    pictures,
    result_of,
    rows,
    start_command,
    train_and_test,
    write_backbone,
)

from pizza_steak import input_pipeline, preparations
from pizza_steak.errors import UserError
from trainers import setup
from trainers.runs import checkpoint
from trainers.runs.checkpoint import Progress
from trainers.training import kept_features

AUGMENTED = ("--rotation_range=20", "--horizontal_flip")


def fit_whole(*flags: str):
    """The result of a run that computes the whole network in each step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup.Setup, "has_fixed_features", lambda self, stage: False)
        return fit(*flags)


def predictions(run_dir: pathlib.Path) -> np.ndarray:
    images = np.concatenate([pictures("test/dark", 6), pictures("test/light", 6)])
    return keras.models.load_model(run_dir / "model.keras").predict(images, verbose=0)


def assert_same_training(kept, whole):
    """The same history, test and predictions, but for rounding."""
    for name, values in whole.values["history"].items():
        np.testing.assert_allclose(kept.values["history"][name], values, rtol=1e-5)
    assert kept.values["test_loss"] == pytest.approx(whole.values["test_loss"], rel=1e-5)
    np.testing.assert_allclose(predictions(kept.run_dir), predictions(whole.run_dir), atol=1e-5)


def kept(*flags: str) -> tuple[setup.Setup, kept_features.KeptFeatures]:
    ready = setup.prepare(parse_flags(*flags))
    return ready, kept_features.keep(ready)


def stored(data_dir: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each array of features, by its folder."""
    found = data_dir.rglob("features-*/features.npy")
    return {p.parent.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


# The same as computed whole.


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), id="plain"),
        pytest.param(("--augmentation_cycle=2", *AUGMENTED), id="augmented"),
        pytest.param(("--precision=mixed_float16", "--dense_layers=1"), id="mixed_float16"),
    ],
)
def test_a_head_trained_on_kept_features_is_that_of_the_whole_network(head_flags, tmp_path, flags):
    flags = [*head_flags, "--class_weight=balanced", *flags]
    whole = fit_whole(*flags, f"--run_dir={tmp_path}/whole")
    assert not stored(tmp_path)
    assert_same_training(fit(*flags, f"--run_dir={tmp_path}/kept"), whole)


def test_features_are_those_that_the_network_predicts(head_flags):
    ready, (data, augment) = kept(*head_flags)
    assert augment is None
    images = ready.data.pictures.gather(tf.constant(ready.data.rows["test"])).numpy()
    expected = ready.network.features.predict(images, verbose=0)
    ((features, labels),) = data.batches("test", 12)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels, ready.data.labels("test"))


def test_epochs_use_the_versions_of_an_image_in_turn(head_flags):
    flags = [*head_flags, "--augmentation_cycle=2", *AUGMENTED]
    ready, (data, augment) = kept(*flags)
    options = {"seed": 42, "shuffle": False, "epochs": 4}
    features = [f.numpy() for f, _ in data.batches("train", 24, augment=augment, **options)]
    images = [i for i, _ in ready.data.batches("train", 24, augment=ready.augment, **options)]
    for first, third, other in ((0, 2, 1), (1, 3, 2)):
        np.testing.assert_array_equal(images[first], images[third])
        np.testing.assert_array_equal(features[first], features[third])
        assert (features[first] != features[other]).any(axis=1).all()
    expected = [ready.network.features.predict(batch, verbose=0) for batch in images]
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    # The first versions are those of the epochs without a cycle.
    seeds = input_pipeline.example_seeds(42, 1, tf.constant(ready.data.rows["train"]))
    once = setup.prepare(parse_flags(*head_flags, *AUGMENTED)).augmentation
    originals = ready.data.pictures.gather(tf.constant(ready.data.rows["train"]))
    np.testing.assert_array_equal(once.examples(originals, seeds), images[1])


def test_a_cycle_of_one_augments_each_image_once(head_flags):
    _, (data, augment) = kept(*head_flags, "--augmentation_cycle=1", *AUGMENTED)
    first, second = (
        f.numpy() for f, _ in data.batches("train", 24, seed=42, augment=augment, epochs=2)
    )
    np.testing.assert_array_equal(first, second)
    plain = next(iter(data.batches("train", 24)))[0].numpy()
    assert (first != plain).any(axis=1).all()


def test_validation_images_are_not_augmented(head_flags):
    plain, augmented = (
        kept(*head_flags, *flags)[1].data for flags in ((), ("--augmentation_cycle=2", *AUGMENTED))
    )
    for one, other in zip(
        plain.batches("validation", 5), augmented.batches("validation", 5), strict=True
    ):
        np.testing.assert_array_equal(one[0], other[0])


def test_unreadable_images_are_left_out(make_archive, head_flags, tmp_path):
    files = layout(train_and_test("dark", "light"))
    files |= {"train/dark/05.png": b"no image", "test/light/02.png": b"no image"}
    flags = [*head_flags, f"--archive={make_archive(files)}", "--on_bad_image=skip"]
    flags += ["--epochs=2", "--augmentation_cycle=2", *AUGMENTED]
    whole = fit_whole(*flags, f"--run_dir={tmp_path}/whole")
    assert_same_training(fit(*flags, f"--run_dir={tmp_path}/kept"), whole)


# Computed once.


def test_features_are_computed_once_for_all_that_determines_them(head_flags, tmp_path):
    backbone = write_backbone(tmp_path / "own.keras", size=None)
    data_dir = tmp_path / "data"
    flags = [*head_flags, f"--data_dir={data_dir}", f"--model={backbone}", "--image_size=16"]
    kept(*flags)
    first = stored(data_dir)
    assert len(first) == 1
    for same in (
        ("--dense_layers=1", "--seed=1", "--learning_rate=1"),
        ("--batch_size=4", "--head_epochs=2", "--dropout=0"),
        ("--validation_split=train[:50%]", "--classes=light,dark"),
    ):
        kept(*flags, *same)
        assert stored(data_dir) == first

    cycle = ("--augmentation_cycle=2", *AUGMENTED)
    others = [
        ("--image_size=20",),
        ("--interpolation=nearest",),
        ("--precision=mixed_bfloat16",),
        ("--features=dropped",),
        cycle,
        (*cycle, "--seed=1"),
        (*cycle, "--rotation_range=10"),
        (*cycle, "--augmentation_cycle=3"),
        (*cycle, "--train_split=train[:50%]"),
    ]
    for number, other in enumerate(others, 2):
        kept(*flags, *other)
        assert len(stored(data_dir)) == number
    write_backbone(backbone, seed=2, size=None)
    kept(*flags)
    assert len(stored(data_dir)) == len(others) + 2
    assert first.items() <= stored(data_dir).items()


KEEP = """
import sys
sys.path.insert(0, "tests")
from small_runs import parse_flags
from trainers import setup
from trainers.training import kept_features
ready = setup.prepare(parse_flags(*sys.argv[1:]))
def computed(*arguments, computed=kept_features._computed):
    print("computed", flush=True)
    yield from computed(*arguments)
kept_features._computed = computed
wait()
print(float(sum(f.numpy().sum() for f, _ in kept_features.keep(ready).data.batches("train", 24))))
"""


@pytest.mark.slow
def test_processes_that_start_at_once_compute_features_once(head_flags, run_at_once, tmp_path):
    outputs = [
        output.split() for output in run_at_once(2, KEEP, *head_flags, f"--data_dir={tmp_path}")
    ]
    assert [words.count("computed") for words in outputs] in ([0, 1], [1, 0])
    assert outputs[0][-1] == outputs[1][-1]
    assert len(stored(tmp_path)) == 1


@pytest.mark.parametrize("where", ["memory", "none", "read-only"])
def test_where_features_are_kept_changes_nothing(head_flags, tmp_path, monkeypatch, where):
    flags = [*head_flags, f"--data_dir={tmp_path}/data", "--epochs=2"]
    expected = fit(*flags, f"--data_dir={tmp_path}/other", f"--run_dir={tmp_path}/expected")
    if where == "read-only":
        # A test may run as root, who can write everywhere.
        access = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: "data" not in path.parts and access(path, mode)
        )
    else:
        flags.append(f"--decoded_cache={where}")
    result = fit(*flags, f"--run_dir={tmp_path}/run")
    assert result.values["history"] == expected.values["history"]
    assert not stored(tmp_path / "data")


def test_prepared_lists_and_removes_features(head_flags, tmp_path):
    ready, _ = kept(*head_flags, f"--data_dir={tmp_path}")
    (size,) = [path.stat().st_size for path in tmp_path.rglob("features.npy")]
    home = preparations.home(tmp_path)
    (before,) = preparations.prepared(home)
    assert before.bytes > size > 36 * ready.network.features.output_shape[-1] * 4
    preparations.report(data_dir=str(tmp_path), remove=[before.name])
    assert not stored(tmp_path)
    assert not preparations.prepared(home)


# Stopped and resumed.

TWO_STAGES = ("--head_epochs=2", "--reduce_lr_patience=1")
EVERYTHING = (
    *("--head_epochs=2", "--epochs=4", "--ema=0.8", "--optimizer=rmsprop", "--clip_norm=1"),
    *("--early_stopping_patience=1", "--fine_tuning_rate=0.05", "--augmentation_cycle=2"),
    *("--learning_rate_schedule=cosine", "--warmup_epochs=0.5", "--dense_layers=1", *AUGMENTED),
)
KINDS = {
    "head": (),
    "head and ema": ("--ema=0.8", "--optimizer=sgd"),
    "two stages": TWO_STAGES,
    "everything": EVERYTHING,
}


@pytest.fixture(scope="module")
def whole_run(head_flags, tmp_path_factory):
    """`whole_run(kind)`: the directory of a run that was never stopped."""
    made = {}

    def run(kind: str) -> pathlib.Path:
        if kind not in made:
            run_dir = tmp_path_factory.mktemp("whole") / "run"
            fit(*head_flags, *KINDS[kind], f"--run_dir={run_dir}")
            made[kind] = run_dir
        return made[kind]

    return run


@pytest.mark.parametrize(
    "kind, epoch, step, backed_up, saved",
    [
        ("head", 2, 2, True, Progress(1, 2)),
        ("head and ema", 3, None, True, Progress(3)),
        ("two stages", 2, None, False, Progress(1, 3)),
        ("two stages", 4, None, True, Progress(4)),
        ("everything", 2, None, True, Progress(2)),
        ("everything", 3, 2, True, Progress(2, 2)),
    ],
)
def test_a_run_stopped_anywhere_goes_on(
    head_flags, whole_run, tmp_path, kind, epoch, step, backed_up, saved
):
    whole = whole_run(kind)
    flags = [*head_flags, *KINDS[kind], f"--run_dir={tmp_path}/run", "--checkpoint_every=1"]
    fit_and_stop(*flags, epoch=epoch, step=step, backed_up=backed_up)
    assert checkpoint.read(tmp_path / "run/backup").progress == saved
    resumed = fit(*flags, "--resume").values
    assert_same_run(tmp_path / "run", whole)
    expected = result_of(whole)
    for name in ("history", "test_accuracy", "test_loss"):
        assert resumed[name] == expected[name]


def test_the_learning_rate_is_logged_in_both_stages(whole_run):
    history = result_of(whole_run("two stages"))["history"]
    assert [len(values) for values in history.values()] == [4] * 5
    assert history["learning_rate"][:3] == pytest.approx([0.01, 0.01, 0.001])


def test_early_stopping_begins_after_the_head_is_trained(head_flags, tmp_path):
    flags = [*head_flags, f"--run_dir={tmp_path}/run", "--head_epochs=3", "--epochs=9"]
    flags += ["--learning_rate=0", "--early_stopping_patience=2", "--dropout=0"]
    fit_and_stop(*flags, epoch=5)
    assert len(rows(fit(*flags, "--resume").run_dir)) == 3 + 3


def test_the_saved_model_is_the_best_of_both_stages(head_flags, tmp_path):
    flags = [*head_flags, "--head_epochs=2", "--learning_rate=0.1"]
    for rate, best_in_head in ((3, True), (0.003, False)):
        run_dir = tmp_path / str(rate)
        result = fit(*flags, f"--fine_tuning_rate={rate}", f"--run_dir={run_dir}").values
        losses = result["history"]["val_loss"]
        assert (losses.index(min(losses)) < 2) == best_in_head
        assert result["test_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_the_second_stage_begins_with_the_head_of_the_first(head_flags, tmp_path):
    flags = [*head_flags, "--head_epochs=3", "--dropout=0"]
    head = fit(*head_flags, "--epochs=3", "--dropout=0", f"--run_dir={tmp_path}/head").values
    both = fit(*flags, "--fine_tuning_rate=0", f"--run_dir={tmp_path}/both").values
    for name, values in head["history"].items():
        np.testing.assert_array_equal(both["history"][name][:3], values)
    losses = both["history"]["val_loss"]
    assert losses[3] == pytest.approx(losses[2], rel=1e-5)


def test_a_run_is_not_resumed_with_other_weights_of_its_backbone(head_flags, tmp_path):
    backbone = write_backbone(tmp_path / "own.keras")
    flags = [*head_flags, f"--model={backbone}", f"--run_dir={tmp_path}/run"]
    fit_and_stop(*flags, epoch=1)
    write_backbone(backbone, seed=2)
    with pytest.raises(UserError, match="the weights of --model have changed") as caught:
        fit(*flags, "--resume")
    assert len(str(caught.value).splitlines()) == 1


def test_a_resumed_run_may_have_lost_its_features(head_flags, whole_run, tmp_path):
    flags = [*head_flags, f"--data_dir={tmp_path}/data", f"--run_dir={tmp_path}/run"]
    fit_and_stop(*flags, epoch=2)
    for folder in (tmp_path / "data").rglob("features-*"):
        shutil.rmtree(folder)
    fit(*flags, "--resume")
    assert_same_run(tmp_path / "run", whole_run("head"))


# Several devices.

FIT = """
import json, sys
sys.path.insert(0, "tests")
from small_runs import fit
for flags in json.loads(sys.argv[1]):
    fit(*flags)
"""


@pytest.mark.slow
def test_replicas_train_a_head_with_the_numbers_of_one_device(make_archive, head_flags, tmp_path):
    archive = make_archive(layout(UNEVEN))
    flags = [*head_flags, *IN_FLOAT64, f"--archive={archive}", "--augmentation_cycle=2"]
    flags += ["--epochs=3", "--head_epochs=2", "--dropout=0"]
    two = [*flags, "--cpu_devices=2", f"--data_dir={tmp_path}/data", f"--run_dir={tmp_path}/two"]
    process = start_command(json.dumps([two]), code=FIT, cwd=ROOT)
    fit(*flags, f"--run_dir={tmp_path}/one")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_same_numbers(tmp_path / "two", tmp_path / "one", 1e-9)
