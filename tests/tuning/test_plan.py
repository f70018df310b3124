"""The plan of a sweep: what its flags come to, and what is refused before anything is written."""

import dataclasses
import itertools
import pathlib
import shlex

import keras_tuner
import numpy as np
import pytest
from small_runs import layout, parse_flags, snapshot, train_and_test, write_backbone

from pizza_steak import atomic
from pizza_steak.errors import UserError
from pizza_steak.flags import to_flags
from trainers import data as run_data
from tuning.configuration import SweepConfig
from tuning.pages import table
from tuning.trials import images
from tuning.trials.plan import Plan

CLASSES = {"dark": 20, "light": 20}
FOLDERS = {f"train/{name}": count for name, count in CLASSES.items()}
VALIDATION = {"val/dark": 5, "val/light": 5}
TEST = {"test/dark": 6, "test/light": 6}


@pytest.fixture
def make_plan(small_flags, tmp_path):
    """`make_plan(*flags)`: the plan of a sweep in tmp_path/sweep, on the small pictures."""

    def make(*flags: str) -> Plan:
        argv = [*small_flags[:3], f"--sweep_dir={tmp_path}/sweep", *flags]
        return Plan.make(parse_flags(*argv, config=SweepConfig))

    return make


@pytest.fixture
def refused(make_plan, tmp_path):
    """`refused(*flags)`: the one line that refuses them; nothing is written."""

    def refuse(*flags: str) -> str:
        before = snapshot(tmp_path)
        with pytest.raises(UserError) as caught:
            make_plan(*flags)
        assert snapshot(tmp_path) == before
        (line,) = str(caught.value).splitlines()
        return line

    return refuse


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--validation_split=none"], "chosen by"),
        (["--test_split=final"], "'final'"),
        (["--optimizer=adam,adamant"], "'adamant'"),
        (["--model=tinyvgg,tinyvg"], "tinyvg'"),
        (["--model=nowhere/small.keras"], "nowhere/small.keras: no such file"),
        (["--warmup_epochs=0,20"], "warmup_epochs 20: expected fewer than --epochs=20"),
        (["--mixup=none,0.2", "--class_weight=balanced"], "class_weight"),
        (
            ["--validation_fold=1/4"],
            "validation_fold 1/4: a sweep chooses the folds of its finalists itself; leave it out",
        ),
        (
            ["--tuner=grid", "--first_trials=tinyvgg"],
            "first_trials: a grid has an order of its own; pass another --tuner",
        ),
        (
            ["--tuner=hyperband", "--prune=median"],
            "prune median: hyperband stops trials itself; pass another --tuner",
        ),
        (
            ["--min_epochs=5", "--max_epochs=4"],
            "min_epochs 5: expected at most --max_epochs=4",
        ),
    ],
)
def test_what_a_sweep_cannot_do_with_is_told_before_it_begins(refused, flags, said):
    assert said in refused(*flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--model=tinyvgg,resnet50"],
        ["--model=resnet50,tinyvgg", "--trainable=head,all", "--weights=none,imagenet"],
        ["--model=resnet50", "--head_epochs=0,2", "--fine_tuning_rate=1e-5,1e-4"],
        ["--model=tinyvgg,conv3_pool", "--blocks=0:4", "--optimizer=sgd,adamw"],
        ["--blocks=2:8", "--padding=valid,same", "--image_size=32,64"],  # Some do not fit.
    ],
)
def test_values_that_go_with_some_of_the_others_may_be_searched(make_plan, flags):
    assert make_plan(*flags).finals


# Which images.


@pytest.mark.parametrize(
    "counts, asked",
    [
        (CLASSES, []),
        (CLASSES, ["--validation_split=0.3", "--test_split=0.3"]),
        (CLASSES, ["--train_split=0.3"]),
        (CLASSES, ["--train_split=train[:80%]"]),
        (CLASSES, ["--test_split=train[80%:]"]),
        (CLASSES, ["--train_split=train[:80%]", "--test_split=train[80%:]"]),
        (FOLDERS | VALIDATION, []),
        (FOLDERS | VALIDATION, ["--test_split=train[:20%]", "--validation_split=0.1"]),
        (FOLDERS | VALIDATION, ["--validation_split=0.2", "--test_split=validation"]),
        (FOLDERS | TEST, []),
        (FOLDERS | TEST, ["--test_split=0.2"]),
        (FOLDERS | TEST, ["--validation_split=test", "--test_split=0.2"]),
        (FOLDERS | TEST, ["--train_split=train[:80%]", "--validation_split=train[80%:]"]),
        (FOLDERS | VALIDATION | TEST, []),
        (FOLDERS | VALIDATION | TEST, ["--validation_split=0.2"]),
        (FOLDERS | VALIDATION | TEST, ["--train_split=train+validation", "--validation_split=0.2"]),
    ],
)
def test_the_best_is_tested_on_what_no_trial_has_seen(make_plan, make_archive, counts, asked):
    plan = make_plan(f"--archive={make_archive(layout(counts))}", *asked)
    trials = plan.data
    best = run_data.load(images.final_flags(plan.space.fit_config({}).data, trials))
    seen = {*trials.rows["train"], *trials.rows["validation"]}
    assert sorted(trials.rows["test"]) == sorted(best.rows["test"])
    assert not seen & {*best.rows["test"]}
    assert seen <= {*best.rows["train"]}
    assert not {*best.rows["train"]} & {*best.rows["test"]}
    assert len(best.rows["train"]) == len({*best.rows["train"]})


SEEN = "a test needs images that no trial has trained on"
CHOSE = "a test needs images that have chosen nothing"
TRAINED = "trials are chosen by images that they have not trained on"


@pytest.mark.parametrize(
    "counts, asked, shared, reason",
    [
        (
            CLASSES,
            ["--train_split=train", "--test_split=train[80%:]"],
            "--test_split: 8 of its 8 images are in the train split too (train[80%:], train less "
            "validation)",
            SEEN,
        ),
        (
            FOLDERS | TEST,
            ["--train_split=train+test"],
            "--test_split: 12 of its 12 images are in the train split too (test, train+test less "
            "validation)",
            SEEN,
        ),
        (
            FOLDERS | TEST,
            ["--train_split=train", "--test_split=train[80%:]+test"],
            "--test_split: 8 of its 20 images are in the train split too (train[80%:]+test, train "
            "less validation)",
            SEEN,
        ),
        (
            CLASSES,
            ["--validation_split=train[:10%]", "--test_split=train[:20%]"],
            "--test_split: 4 of its 8 images are in the validation split too (train[:20%], "
            "train[:10%])",
            CHOSE,
        ),
        (
            FOLDERS | TEST,
            ["--validation_split=test"],
            "--test_split: 12 of its 12 images are in the validation split too (test, test)",
            CHOSE,
        ),
        (
            FOLDERS | VALIDATION,
            ["--test_split=validation"],
            "--test_split: 10 of its 10 images are in the validation split too (validation, "
            "validation)",
            CHOSE,
        ),
        (
            FOLDERS | TEST,
            ["--train_split=train", "--validation_split=train[:10%]"],
            "--validation_split: 4 of its 4 images are in the train split too (train[:10%], train)",
            TRAINED,
        ),
        (
            FOLDERS | VALIDATION | TEST,
            ["--train_split=train+validation"],
            "--validation_split: 10 of its 10 images are in the train split too (validation, "
            "train+validation)",
            TRAINED,
        ),
    ],
)
def test_images_that_are_in_two_splits_are_counted_and_refused(
    refused, make_archive, counts, asked, shared, reason
):
    line = refused(f"--archive={make_archive(layout(counts))}", *asked)
    flag, _ = shared.split(":", 1)
    assert line == f"{shared}; {reason}: pass another {flag}"


@pytest.mark.parametrize(
    "counts, asked",
    [
        (CLASSES, ["--validation_split=train[80%:]"]),
        (FOLDERS | TEST, ["--validation_split=train[80%:]"]),
        (FOLDERS | VALIDATION, ["--test_split=train[:20%]"]),
        (CLASSES, ["--train_split=train[:80%]", "--validation_split=train[80%:]"]),
        (
            CLASSES,
            ["--train_split=train[:80%]", "--validation_split=train[80%:]", "--test_split=0.2"],
        ),
    ],
)
def test_splits_that_leave_no_fair_test_are_told_before_a_sweep_begins(
    refused, make_archive, counts, asked
):
    line = refused(f"--archive={make_archive(layout(counts))}", *asked)
    assert "pass all three as split strings, or none" in line


# The folds of the finalists.


def with_copies() -> dict[str, bytes]:
    """Files of two classes, a third of which have the bytes of others, of either class."""
    files = layout({"dark": 24, "light": 24})
    names = sorted(files)
    return files | {
        f"{other}/copy{number:02}.png": files[names[number]]
        for other in ("dark", "light")
        for number in range(0, 48, 4)
    }


@pytest.mark.parametrize(
    "files, asked, count",
    [
        (layout(CLASSES), [], 5),
        (layout(CLASSES), ["--validation_fraction=0.3"], 3),
        (layout(CLASSES), ["--validation_split=0.5"], 2),
        (layout(CLASSES), ["--train_split=0.3"], 3),
        (with_copies(), [], 5),
        (layout(FOLDERS | TEST), [], 5),
        (layout(FOLDERS | VALIDATION), ["--test_split=0.2"], 4),
        (layout(FOLDERS | VALIDATION | TEST), [], 5),
        (layout(FOLDERS | VALIDATION | TEST), ["--train_split=train[:50%]"], 3),
    ],
)
def test_each_image_validates_once_over_all_folds(make_plan, make_archive, files, asked, count):
    plan = make_plan(f"--archive={make_archive(files)}", *asked)
    flags = plan.space.fit_config({}).data
    sizes = images.folds(flags, plan.data)
    assert len(sizes) == count
    folds = [run_data.load(images.fold_flags(flags, number, count)) for number in range(count)]
    rows, hashes = plan.data.rows, plan.data.records.digests
    seen = sorted([*rows["train"], *rows["validation"]])
    validating = [fold.rows["validation"] for fold in folds]
    assert sizes == [len(fold) for fold in validating]
    assert sorted(np.concatenate(validating)) == seen
    for fold in folds:
        assert sorted([*fold.rows["train"], *fold.rows["validation"]]) == seen
        assert not {*fold.rows["test"]} & {*seen}
        np.testing.assert_array_equal(fold.rows["test"], rows["test"])
    for purpose in ("train", "validation"):
        np.testing.assert_array_equal(folds[0].rows[purpose], rows[purpose])
    contents = [{tuple(one) for one in hashes[fold]} for fold in validating]
    assert not any(a & b for a, b in itertools.combinations(contents, 2))
    if len(np.unique(hashes, axis=0)) == len(hashes):
        assert max(sizes[1:]) <= min(sizes[1:]) + 2


def test_folds_hold_as_many_images_of_each_class(make_plan, make_archive):
    plan = make_plan(f"--archive={make_archive(layout({'dark': 100, 'light': 40}))}")
    flags = plan.space.fit_config({}).data
    count = len(images.folds(flags, plan.data))
    for number in range(1, count):
        dark, light = run_data.load(images.fold_flags(flags, number, count)).counts("validation")
        assert abs(dark - 70 / 4) <= 1
        assert abs(light - 28 / 4) <= 1


def test_finals_are_as_large_as_their_folds(make_plan):
    plan = make_plan("--validation_fraction=0.25", "--finalists=2")
    assert plan.finals.images == images.folds(plan.space.fit_config({}).data, plan.data)
    assert (plan.finals.count, plan.finals.epochs) == (2, 20)


def test_the_sizes_of_folds_do_not_count_unreadable_images(make_plan, make_archive):
    files = layout({"dark": 40, "light": 40})
    files |= {f"dark/bad{number}.png": f"no image {number}".encode() for number in range(15)}
    plan = make_plan(f"--archive={make_archive(files)}", "--on_bad_image=skip")
    flags = plan.space.fit_config({}).data
    sizes = images.folds(flags, plan.data)
    folds = [
        run_data.load(images.fold_flags(flags, number, len(sizes))) for number in range(len(sizes))
    ]
    assert sizes == [len(fold.rows["validation"]) for fold in folds]


# What is tried first.

# A space that holds the chapter's model_1.
OF_THE_CHAPTER = [
    *("--filters=10,20", "--filter_growth=1,2", "--blocks=2:3", "--convolutions=2"),
    *("--padding=valid,same", "--global_pooling=false,true", "--batch_normalization=false,true"),
    *("--optimizer=adam,adamw", "--learning_rate=1e-4:1e-2:log"),
    "--learning_rate_schedule=constant,cosine",
]


def values_of(space, **values) -> dict:
    """The first point of a space, with other values of some settings."""
    hp = keras_tuner.HyperParameters()
    space.declare_hyperparameters(hp)
    return hp.values | values


@pytest.mark.parametrize("name", ["tinyvgg", "tinyvgg.flags"])
def test_a_flagfile_is_tried_first_by_its_name(make_plan, name):
    (point,) = make_plan(*OF_THE_CHAPTER, f"--first_trials={name}").first
    assert (point["filters"], point["blocks"], point["padding"]) == (10, 2, "valid")
    assert (point["optimizer"], point["learning_rate"]) == ("adam", 0.001)
    assert (point["mixup"], point["brightness_range"], point["dropout"]) == ("none", "none", 0.0)
    assert not {"weight_decay", "dense_units"} & point.keys()


def test_flagfiles_are_tried_first_by_their_paths_in_their_order(make_plan, tmp_path):
    space = make_plan(*OF_THE_CHAPTER).space
    paths = []
    for filters, flip in ((20, True), (10, False)):
        values = values_of(space, filters=filters, horizontal_flip=flip, blocks=3)
        paths.append(tmp_path / f"{filters}.flags")
        paths[-1].write_text(to_flags(space.fit_config(values | {"learning_rate": 0.005})))
    first = make_plan(*OF_THE_CHAPTER, f"--first_trials={paths[0]},{paths[1]}").first
    assert [(point["filters"], point["horizontal_flip"]) for point in first] == [
        (20, True),
        (10, False),
    ]
    assert {point["learning_rate"] for point in first} == {0.005}
    assert {point["blocks"] for point in first} == {3}


def rows_of(space, scores) -> list[table.Row]:
    """Trials with so many filters and these scores."""
    return [
        table.Row(
            trial=str(number),
            status="completed",
            objective=score,
            epochs=1,
            seconds=1.0,
            ended_after=1.0,
            settings=space.settings(values_of(space, filters=number)),
        )
        for number, score in enumerate(scores, 1)
    ]


@pytest.mark.parametrize("objective", ["val_accuracy", "val_loss"])
def test_the_best_ten_trials_of_a_table_are_tried_first(make_plan, tmp_path, objective):
    fixed = [
        *("--optimizer=adam", "--blocks=2", "--filters=1:20", "--learning_rate=0.01"),
        *("--filter_growth=2", "--convolutions=1", "--dense_layers=0", "--dropout=0"),
        *("--label_smoothing=0", "--horizontal_flip", "--zoom_range=0", "--width_shift_range=0"),
        *("--height_shift_range=0", "--rotation_range=0", "--brightness_range=none"),
        *("--mixup=none", "--ema=none"),
    ]
    space = make_plan(*fixed).space
    worse = 0.01 if objective == "val_loss" else -0.01
    scores = [0.5 + worse * ((7 * n) % 13) for n in range(13)]  # A permutation.
    trials = rows_of(space, [*scores, *[0.5 - 10 * worse] * 4])
    for number, changes in {
        13: {"finalist": "0000", "fold": 1},
        14: {"status": "pruned"},
        15: {"status": "failed", "objective": None},
        16: {"status": "running", "objective": None},
    }.items():
        trials[number] = dataclasses.replace(trials[number], **changes)
    path = tmp_path / "trials.csv"
    path.write_text(table.to_csv(trials, objective, list(space.ranges)))
    first = make_plan(*fixed, f"--first_trials={path}").first
    by_score = sorted(range(13), key=lambda n: scores[n], reverse=objective == "val_accuracy")
    assert [point["filters"] for point in first] == [n + 1 for n in by_score[:10]]
    assert {point["learning_rate"] for point in first} == {0.01}


@pytest.mark.parametrize(
    "name, content, said",
    [
        (
            "nowhere.csv",
            None,
            "No such file or directory; expected the trials.csv of a sweep",
        ),
        ("nowhere", None, "no such file; expected a file, or one of "),
        ("a.flags", "--flux_capacitor=1\n", "--flux_capacitor is not a flag"),
        ("a.flags", "--filters=many\n", "filters"),
        (
            "a.flags",
            "--filters=30\n",
            "outside the search space: --filters=30: expected some of 10,20; extend that flag of "
            "the sweep",
        ),
        (
            "a.flags",
            "--optimizer=adamw\n",
            "outside the search space: no --weight_decay: expected some of 0.001:0.1:log; extend",
        ),
        ("a.csv", "status,val_accuracy,filters\ncompleted,0.5,30\n", "outside the search space: "),
        ("a.csv", "status,val_accuracy,filters\ncompleted,best,10\n", "best"),
        (
            "a.csv",
            "name,age\nx,1\n",
            "has no column 'status'; expected the trials.csv of a sweep",
        ),
        (
            "a.csv",
            "status,filters\ncompleted,10\n",
            "has no column 'val_loss'; expected the trials.csv of a sweep",
        ),
    ],
)
def test_what_cannot_be_tried_first_is_told_in_one_line(refused, tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    line = refused(*OF_THE_CHAPTER, f"--first_trials={path}")
    assert str(path) in line
    assert said in line


def test_a_network_is_the_same_by_its_relative_and_by_its_absolute_path(
    make_plan, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = write_backbone(tmp_path / "small.keras")
    flags = ["--weight_decay=none", "--learning_rate_schedule=constant", "--optimizer=adam"]
    for asked, tried in itertools.product(("small.keras", path), repeat=2):
        (tmp_path / "first.flags").write_text(f"--model={tried}\n")
        plan = make_plan(f"--model={asked}", "--first_trials=first.flags", *flags)
        assert [point["model"] for point in plan.first] == [str(path)]


def test_a_sweep_is_resumed_from_another_folder(make_plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_backbone(tmp_path / "small.keras")
    (tmp_path / "first.flags").write_text(f"--model={path}\n--optimizer=adamw\n")
    flags = ["--model=small.keras", "--weight_decay=none", "--first_trials=first.flags"]
    plan = make_plan(*flags, "--learning_rate_schedule=constant")
    plan.folder.start()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = Plan.make(parse_flags(*shlex.split(plan.command)[3:], config=SweepConfig))
    again.folder.start()
    assert again.first == plan.first
    assert again.space.fit_config(again.first[0]) == plan.space.fit_config(plan.first[0])


# The folder.


@pytest.fixture
def started(make_plan, tmp_path):
    """`started(*flags)`: starts a sweep of one trial, or resumes it; its sweep.flags."""

    def start(*flags: str) -> pathlib.Path:
        make_plan("--max_trials=1", *flags).folder.start()
        return tmp_path / "sweep" / "sweep.flags"

    return start


@pytest.mark.parametrize(
    "changed", ["--filters=2,4", "--tuner=grid", "--archive={other}", "--image_size=48"]
)
def test_another_sweep_in_the_same_folder_is_refused(started, make_archive, changed):
    folder = started().parent
    before = snapshot(folder)
    other = make_archive(layout(train_and_test("dark", "middle")), name="shades")
    changed = changed.format(other=other)
    with pytest.raises(UserError, match="was started with other flags") as caught:
        started(changed)
    assert changed in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(folder) == before


def test_other_pictures_under_the_same_name_are_refused(started, make_archive):
    files = layout(train_and_test("dark", "light"))
    archive = make_archive(files, as_zip=False)
    folder = started(f"--archive={archive}").parent
    started(f"--archive={archive}")
    before = snapshot(folder)
    (archive / "train/dark/00.png").write_bytes(files["train/dark/01.png"])
    with pytest.raises(UserError, match="the images have changed"):
        started(f"--archive={archive}")
    assert snapshot(folder) == before


def test_a_sweep_goes_on_with_other_flags_that_are_not_its_identity(started):
    before = started().read_text()
    others = ["--max_trials=9", "--time_budget=9", "--workers=2", "--worker_timeout=9"]
    others += ["--trial_timeout=9", "--finalists=1", "--final_epochs=9", "--final_models=2"]
    others += ["--average_flips", "--keep=2", "--notensorboard"]
    assert started(*others).read_text() == before


def test_a_sweep_goes_on_whatever_the_comments_and_new_flags_are(started):
    *lines, fingerprint = started().read_text().splitlines()
    old = ["# Reworded." if line.startswith("#") else line for line in lines]
    old.remove("--color_mode=rgb")
    flags = started()
    flags.write_text("\n".join([*old, fingerprint]))
    started()
    with pytest.raises(UserError, match=r"\(--color_mode=rgb, now --color_mode=grayscale\)"):
        started("--color_mode=grayscale")

    flags.write_text("\n".join([*old, "--flux_capacitor=1", fingerprint]))
    with pytest.raises(UserError, match=f"{flags}: --flux_capacitor is not a flag of this version"):
        started()


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_folder_of_other_files_is_refused(make_plan, tmp_path, more):
    (tmp_path / "best").mkdir()
    (tmp_path / "thesis.tex").write_text("")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="has files that do not belong to a sweep"):
        make_plan(f"--sweep_dir={tmp_path}", *more).folder.start()
    assert snapshot(tmp_path) == before


def test_what_a_sweep_killed_at_its_beginning_left_can_be_begun_again(make_plan, tmp_path):
    (tmp_path / f".{'0' * 32}.sweep.flags").write_text("--half")
    (tmp_path / "oracle").mkdir()  # By a worker that came before its chief.
    make_plan(f"--sweep_dir={tmp_path}").folder.start()
    assert (tmp_path / "sweep.flags").exists()


def test_two_sweeps_are_not_at_work_in_one_folder(make_plan):
    plan = make_plan()
    with (
        plan.folder.lock(),
        pytest.raises(UserError, match="another sweep is running there"),
        plan.folder.lock(),
    ):
        pass
    with plan.folder.lock():
        pass


def test_an_error_of_the_disk_while_the_folder_is_locked_is_not_one_of_the_folder(make_plan):
    folder = make_plan().folder
    with pytest.raises(OSError, match="No space left") as caught, folder.lock():
        raise OSError(28, "No space left on device")
    assert not isinstance(caught.value, UserError)
    with folder.lock():
        pass


def with_trials(folder: pathlib.Path, *, finished: bool) -> None:
    """Writes the files of a sweep that has come so far."""
    for name in ("trials/0000/run.flags", "trials/0000.json", "finals/0007/run.flags"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    for name in ("oracle/oracle.json", "best/run.flags", "members/seed-1/result.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for name in ("trials.csv", "best.flags", "sweep.html"):
        (folder / name).write_text("of the old sweep")
    if finished:
        (folder / "best/result.json").write_text("{}")


@pytest.mark.parametrize("more", [[], ["--max_trials=7", "--finalists=1"]])
def test_overwrite_resumes_an_unfinished_sweep_with_the_same_flags(started, more):
    folder = started().parent
    with_trials(folder, finished=False)
    before = snapshot(folder)
    started("--overwrite", *more)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "finished, more", [(True, []), (False, ["--filters=8"]), (True, ["--filters=8"])]
)
def test_overwrite_replaces_a_finished_sweep_and_one_with_other_flags(started, finished, more):
    folder = started().parent
    with_trials(folder, finished=finished)
    flags = started("--overwrite", *more)
    assert [path.name for path in folder.iterdir()] == ["sweep.flags"]
    assert ("--filters=8" in flags.read_text().splitlines()) == bool(more)


def test_overwrite_replaces_a_sweep_on_images_that_have_changed(started, make_archive):
    files = layout(train_and_test("dark", "light"))
    archive = make_archive(files, as_zip=False)
    folder = started(f"--archive={archive}").parent
    with_trials(folder, finished=False)
    (archive / "train/dark/00.png").write_bytes(files["train/dark/01.png"])
    started(f"--archive={archive}", "--overwrite")
    assert [path.name for path in folder.iterdir()] == ["sweep.flags"]


@pytest.mark.parametrize("run", ["trials/0000", "finals/0007"])
def test_a_sweep_is_not_replaced_while_a_worker_trains_in_it(started, run):
    folder = started().parent
    with_trials(folder, finished=True)
    with atomic.lock(folder / "trials/0000"), atomic.lock(folder / "finals/0007"):
        pass
    with atomic.lock(folder / run):
        before = snapshot(folder)
        for more in ([], ["--filters=8"]):
            with pytest.raises(UserError, match=f"a worker still trains {run[-4:]}; end it before"):
                started("--overwrite", *more)
        assert snapshot(folder) == before
    started("--overwrite")
    assert [path.name for path in folder.iterdir()] == ["sweep.flags"]


def test_a_sweep_that_a_worker_trains_in_is_resumed(started):
    folder = started().parent
    with_trials(folder, finished=False)
    with atomic.lock(folder / "trials/0000"):
        before = snapshot(folder)
        started("--overwrite")
        assert snapshot(folder) == before


# The command that resumes it.


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--max_trials=3", "--workers=2", "--time_budget=60", "--keep=1", "--notensorboard"],
        ["--finalists=1", "--final_models=3", "--average_flips", "--final_epochs=7"],
        ["--image_size=32,48..64", "--noantialias", "--batch_size=16,32", "--classes=light,dark"],
        ["--brightness_range=none,0.8..1.2", "--mixup=none", "--horizontal_flip", "--ema=0.9,0.99"],
        [*OF_THE_CHAPTER, "--first_trials=tinyvgg,tinyvgg.flags", "--model=tinyvgg,conv3_pool"],
        ["--tuner=hyperband", "--max_epochs=9", "--min_epochs=3", "--objective=val_loss"],
    ],
)
def test_the_command_resumes_the_sweep_and_replaces_nothing(make_plan, tmp_path, more):
    sweep_dir = f"--sweep_dir={tmp_path}/a sweep's folder"
    plan = make_plan(*more, sweep_dir, "--overwrite")
    plan.folder.start()
    with_trials(plan.folder.path, finished=False)
    before = snapshot(tmp_path)
    *program, flagfile, _ = shlex.split(plan.command)[:5]
    assert program == ["python", "-m", "tuning.sweep"]
    assert flagfile == f"--flagfile={plan.folder.flags}"
    config = parse_flags(*shlex.split(plan.command)[3:], config=SweepConfig)
    final = dataclasses.replace(plan.config.final, overwrite=False)
    assert config == dataclasses.replace(plan.config, final=final)
    again = Plan.make(config)
    again.folder.start()
    assert again.first == plan.first
    assert again.command == plan.command
    assert snapshot(tmp_path) == before
