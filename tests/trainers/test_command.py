"""`python -m trainers.fit`: what it answers to wrong flags and wrong input."""

import signal

import pytest
from small_runs import fit, layout, parse_flags, run_command, snapshot, train_and_test

from pizza_steak.errors import UserError
from trainers.runs import run_directory


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument, named",
    [
        ("--epochs=many", "epochs"),
        ("--color_mode=cmyk", "color_mode"),
        ("--precision=float8", "precision"),
        ("--optimizer=adamant", "'adamant'"),
        ("--test_fraction=1.5", "--test_fraction=1.5: expected a fraction"),
        ("--seed=4294967296", "seed"),
        ("--devices=2.0", "devices"),
        ("--learnig_rate=1", "learnig_rate"),
        ("--flagfile=/nowhere/tinyvgg.flags", "/nowhere/tinyvgg.flags"),
        ("food.zip", "did you mean --archive=food.zip?"),
        (
            "--archive=part-1.zip part-2.zip",
            "quote a pattern of several archives: --archive='",
        ),
        ("--lr=0.1", "did you mean --learning_rate?"),
        ("--flagfile=tinyvg", "tinyvgg"),
    ],
)
def test_wrong_flags_exit_with_status_2_and_one_line(argument, named):
    status, stdout, stderr = run_command(*argument.split())
    (line,) = stderr.splitlines()
    assert (status, stdout) == (2, "")
    assert line.startswith("error: ")
    assert named in line


# Flags, and what the message has to name. "{run}", "{archive}" and the like are filled in.
BAD_INPUT = {
    "no such archive": ("--archive=/nowhere/food.zip", "/nowhere/food.zip: no such file"),
    "archive is no zip": ("--archive={no_zip}", "not a zip"),
    "archive is truncated": ("--archive={truncated}", "truncated"),
    "no class folders": ("--archive={flat}", "no class folders"),
    "one class only": ("--archive={one_class}", "one class only, 'dark'"),
    "class missing in test": (
        "--archive={no_light_test}",
        "in train/ but not in test/: light; add",
    ),
    "no test split": (
        "--archive={no_test} --test_split=test --validation_split=0.2",
        "has only train (24 images); pass --test_split=0.15 to cut 15 % out of train",
    ),
    "bad pictures": ("--archive={bad}", "train/dark/a.jpg"),
    "nothing but bad pictures": ("--archive={bad_test} --on_bad_image=skip", "test"),
    "unknown split": ("--train_split=training", "'training'"),
    "malformed split": ("--validation_split=test[:50%", "'test[:50%'"),
    "empty split": ("--train_split=train[:0]", "holds no images"),
    "fractions that leave nothing": (
        "--validation_split=0.5 --test_split=0.5",
        "--validation_split=0.5 and --test_split=0.5: leave nothing to train on",
    ),
    "fraction of more than all": ("--train_split=80", "--train_split=80: expected a fraction"),
    "no fraction": ("--test_fraction=1.5", "--test_fraction=1.5: expected a fraction"),
    "nothing to cut": (
        "--train_split=test --validation_split=0.2",
        "--validation_split: no images of train are left",
    ),
    "backward split": ("--train_split=train[5:2]", "train[5:2]"),
    "unknown model": ("--model=vgg", "'vgg'"),
    "unknown optimizer": ("--optimizer=adamant", "'adamant'"),
    "abstract optimizer": ("--optimizer=optimizer", "'optimizer'"),
    "optimizer around another": ("--optimizer=LossScaleOptimizer", "'LossScaleOptimizer'"),
    "pictures too small": ("--image_size=4", "4 x 4"),
    "archive with too long a name": (f"--archive={'x' * 300}", "xxx"),
    "run_dir with too long a name": (f"--run_dir={'x' * 300}", "xxx"),
    "run_dir under a file": ("--run_dir={here}/file/run", "{here}/file"),
    "run_dir is a file": ("--run_dir={here}/file", "is a file"),
    "run_dir holds a run": ("--run_dir={here}/run", "--overwrite"),
    "run_dir holds other files": ("--run_dir={here}/files", "not a run"),
    "run_dir to overwrite is no run": ("--run_dir={here}/files --overwrite", "not a run"),
    "too few images for three splits": (
        "--archive={two_each} --validation_split=0.15",
        "--validation_split: 15 % of train comes to no image",
    ),
    "early stopping without validation": (
        "--validation_split=none --early_stopping_patience=1",
        "early_stopping_patience: watches the validation loss",
    ),
    "plateaus without validation": (
        "--validation_split=none --reduce_lr_patience=1",
        "reduce_lr_patience: watches the validation loss",
    ),
    "a learning rate of two minds": (
        "--learning_rate_schedule=cosine --reduce_lr_patience=1",
        "--learning_rate_schedule=cosine sets at every step",
    ),
    "a warm-up of two minds": (
        "--warmup_epochs=1 --reduce_lr_patience=1",
        "--warmup_epochs=1.0 sets at every step",
    ),
    "a warm-up without an end": (
        "--warmup_epochs=4 --epochs=4",
        "warmup_epochs 4: expected fewer than --epochs=4",
    ),
    "class weights of mixed images": (
        "--cutmix=1 --class_weight=balanced",
        "class_weight: weights an image by its class, but --cutmix",
    ),
    "XLA without random numbers": (
        "--mixup=0.2 --jit_compile=on",
        "jit_compile: XLA cannot draw the random numbers of --mixup",
    ),
    "nothing to resume": ("--resume", "no run to resume"),
    "another run than is there": ("--run_dir={here}/run --resume=auto --epochs=9", "--epochs=9"),
    "resumed with another flag": ("--run_dir={here}/run --resume --epochs=9", "--epochs=9"),
    "resumed with one flag less": ("--run_dir={here}/weighted --resume", "class_weight"),
}
IN_PROCESSES_OF_THEIR_OWN = (
    "no such archive",
    "bad pictures",
    "too few images for three splits",
    "run_dir holds a run",
)


@pytest.fixture(scope="module")
def archives(make_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("no_archives")
    dark_and_light = train_and_test("dark", "light")
    sound = layout(dark_and_light)
    no_picture = {f"{name}/a.jpg": b"no picture" for name in dark_and_light}
    train = {name: file for name, file in sound.items() if name.startswith("train")}
    (folder / "no_zip").write_bytes(b"no zip")
    (folder / "truncated").write_bytes(make_archive(sound).read_bytes()[:-100])
    return {
        "no_zip": folder / "no_zip",
        "truncated": folder / "truncated",
        "flat": make_archive({"a.png": sound["train/dark/00.png"]}),
        "one_class": make_archive({name: file for name, file in sound.items() if "dark" in name}),
        "no_light_test": make_archive(train | {"test/dark/a.png": sound["test/dark/00.png"]}),
        "no_test": make_archive(train),
        "two_each": make_archive(layout({"dark": 2, "light": 2})),
        "bad": make_archive(sound | no_picture),
        "bad_test": make_archive(
            train | {name: file for name, file in no_picture.items() if name.startswith("test")}
        ),
    }


@pytest.fixture
def bad_input(request, archives, small_flags, tmp_path):
    """Flags that cannot be followed in `tmp_path`, and what the message has to say."""
    (tmp_path / "file").write_text("")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").write_text("")
    for name, flag in (("run", "--epochs=4"), ("weighted", "--class_weight=balanced")):
        run_directory.plan(parse_flags(*small_flags, f"--run_dir={tmp_path}/{name}", flag)).create(
            "", {}
        )
    argv, message = (text.format(here=tmp_path, **archives) for text in BAD_INPUT[request.param])
    return [*small_flags, f"--run_dir={tmp_path}/new", *argv.split()], message


@pytest.mark.parametrize("bad_input", BAD_INPUT, indirect=True)
def test_bad_input_is_one_line_and_leaves_nothing(bad_input, tmp_path):
    argv, message = bad_input
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as caught:
        fit(*argv)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("bad_input", IN_PROCESSES_OF_THEIR_OWN, indirect=True)
def test_bad_input_exits_with_status_1_and_one_line(bad_input, tmp_path):
    argv, message = bad_input
    before = snapshot(tmp_path)
    status, _, stderr = run_command(*argv)
    (line,) = stderr.splitlines()
    assert status == 1
    assert line.startswith("error: ")
    assert message in line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "flag",
    ["--train_split=training", "--test_split=2", "--model=vgg", "--optimizer=adamant",
     "--image_size=4"],
)  # fmt: skip
def test_what_needs_no_images_is_checked_before_they_are_prepared(small_flags, tmp_path, flag):
    with pytest.raises(UserError):
        fit(*small_flags, f"--data_dir={tmp_path}/data", f"--run_dir={tmp_path}/run", flag)
    assert snapshot(tmp_path) == {}


def test_a_run_to_resume_if_there_is_one_needs_a_place(small_flags):
    with pytest.raises(UserError, match="run_dir: missing; expected the directory to look into"):
        fit(*small_flags, "--resume=auto")


def test_an_unknown_dataset_is_named_beside_the_known(tmp_path):
    with pytest.raises(UserError, match=r"'pizza_steak/chips': unknown; .*pizza_steak/sample"):
        fit("--dataset=pizza_steak/chips", f"--run_dir={tmp_path}/run")
    assert snapshot(tmp_path) == {}


def test_every_bad_picture_is_named(archives, small_flags, tmp_path):
    with pytest.raises(UserError) as caught:
        fit(*small_flags, f"--archive={archives['bad']}", f"--run_dir={tmp_path}/run")
    for folder in train_and_test("dark", "light"):
        assert f"{folder}/a.jpg" in str(caught.value)


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_its_epoch_and_step(small_flags, tmp_path):
    status, _, stderr = run_command(
        *small_flags, f"--run_dir={tmp_path}/run", "--optimizer=sgd", "--learning_rate=1e30"
    )
    (line,) = stderr.splitlines()
    assert status == 1
    assert line.startswith("error: loss became nan in epoch 1, by step 2; ")
    assert "--learning_rate" in line
    assert not (tmp_path / "run" / "model.keras").exists()


def test_a_validation_loss_that_is_no_number_ends_the_run(make_archive, small_flags, tmp_path):
    archive = make_archive(layout(train_and_test("dark", "light", "middle")))
    one_step = ["--batch_size=64", "--epochs=1", "--optimizer=sgd", "--learning_rate=1e38"]
    with pytest.raises(UserError, match="loss became nan in epoch 1"):
        fit(*small_flags, f"--archive={archive}", f"--run_dir={tmp_path}/run", *one_step)
    assert not (tmp_path / "run" / "model.keras").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "wait",
    ["threading.Event().wait()", "os.read(os.pipe()[0], 1)", "subprocess.call(['sleep', '99'])"],
)
def test_ctrl_c_that_another_thread_gets_ends_what_the_command_waits_for(start_python, wait):
    process = start_python(
        "import os, signal, subprocess, threading, time; from trainers import command;"
        "from trainers.configuration import ReportConfig;"
        "get = lambda: (time.sleep(0.5), signal.raise_signal(signal.SIGINT));"
        f"main = lambda config: (threading.Thread(target=get).start(), {wait});"
        "command.run(main, ReportConfig)"
    )
    assert process.communicate(timeout=30) == ("", "interrupted\n")
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.slow
@pytest.mark.parametrize(
    "main, status, message",
    [
        ("print('a line')", 128 + signal.SIGPIPE, ""),
        ("os.kill(os.getpid(), signal.SIGINT)", 128 + signal.SIGINT, "interrupted\n"),
    ],
)
def test_a_reader_that_leaves_and_ctrl_c_end_a_command_without_a_traceback(
    start_python, main, status, message
):
    process = start_python(
        "import os, select, signal; from trainers import command;"
        "from trainers.configuration import ReportConfig;"
        # It waits until the reader has left.
        "poll = select.poll(); poll.register(1, 0); poll.poll();"
        f"command.run(lambda config: {main}, ReportConfig)"
    )
    process.stdout.close()
    assert process.stderr.read() == message
    assert process.wait() == status
