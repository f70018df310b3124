"""`trainers.benchmark`: what its stages work on, and what is made of their figures."""

import collections
import dataclasses
import io
import json
import mmap
import pathlib
import statistics

import numpy as np
import pytest
import small_runs
import tensorflow as tf
from PIL import Image
from small_runs import layout, run_command, snapshot, train_and_test

from pizza_steak.errors import UserError
from trainers.configuration import CHAPTERS_AUGMENTATION, BenchmarkConfig
from trainers.throughput import measurement, stages
from trainers.throughput.measurement import Measurement
from trainers.throughput.stages import (
    COLD,
    COLD_PAGES,
    END_TO_END,
    INPUT,
    ON_HOST,
    OURS,
    PEERS,
    SERVICE,
    STEP,
    WARM,
)

COMMAND = {"command": "benchmark"}
# Of 24 images to train on, 4 are cut out to validate on.
TRAIN, ALL, BATCH_SIZE, PASSES = 20, 36, 7, 2
SMALL = ["--image_size=32", "--filters=2", "--convolutions=1", f"--batch_size={BATCH_SIZE}"]
SMALL += [f"--passes={PASSES}", "--repeats=1"]

# SciPy's, of ImageDataGenerator's own import.
pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")


def parse_flags(*argv: str) -> BenchmarkConfig:
    return small_runs.parse_flags(*SMALL, *argv, config=BenchmarkConfig)


def counted(stage: stages.Stage, setting: stages.Setting) -> list[int]:
    counts = []
    stage(setting, counts.append)
    return counts


@pytest.fixture(scope="module")
def setting(archive, tmp_path_factory):
    config = parse_flags(f"--archive={archive}")
    return stages.prepare(config, tmp_path_factory.mktemp("setting"), peers=True)


@dataclasses.dataclass
class CountedPictures:
    """Pictures that remember which rows were asked for."""

    pictures: object
    seen: collections.Counter

    def __getattr__(self, name):
        return getattr(self.pictures, name)

    def gather(self, rows):
        tf.py_function(lambda rows: self.seen.update(rows.numpy().tolist()), [rows], [])
        return self.pictures.gather(rows)


# -- What the stages work on.


@pytest.mark.parametrize(
    "name, pictures",
    [
        ("archive to records", ALL),
        ("records read", ALL),
        ("decode only", ALL),
        (COLD, TRAIN),
        ("decoded array made", ALL),
        (WARM, PASSES * TRAIN),
        (ON_HOST, PASSES * TRAIN),
        ("warm + augmentation on the device", PASSES * TRAIN),
        (INPUT, PASSES * TRAIN),
        (STEP, TRAIN),
        (END_TO_END, TRAIN),
        *((name, TRAIN) for name in PEERS),
    ],
)
def test_a_stage_counts_each_picture_once(name, pictures, setting):
    counts = counted((OURS | PEERS)[name], setting)
    assert sum(counts) == pictures
    assert len(counts) > 1  # The clock starts with the first.


@pytest.mark.parametrize(
    "name, epochs",
    [
        (WARM, PASSES),
        (ON_HOST, PASSES),
        ("warm + augmentation on the device", PASSES),
        (INPUT, PASSES),
        (END_TO_END, 1),
    ],
)
def test_a_stage_reads_what_it_counts(name, epochs, setting):
    seen = collections.Counter()

    def watched(data):
        return dataclasses.replace(data, pictures=CountedPictures(data.pictures, seen))

    watching = dataclasses.replace(setting, data=watched(setting.data), few=watched(setting.few))
    counted(OURS[name], watching)
    assert seen == dict.fromkeys(setting.data.rows["train"].tolist(), epochs)


def has_cold_pages(folder: pathlib.Path) -> bool:
    """Whether the system drops pages of files in a folder."""
    path = folder / "pages.npy"
    np.save(path, np.zeros(2**20, np.uint8))
    dropped = stages.drop_pages(np.asarray(np.load(path, mmap_mode="r")))
    path.unlink()
    return dropped


def test_pages_of_the_array_leave_the_memory_and_come_back(setting):
    array = setting.data.pictures.array
    expected = array.copy()
    if not has_cold_pages(setting.folder):
        pytest.skip("a file system in memory, or no Linux")
    assert stages.drop_pages(array)
    assert resident_bytes(array) == 0
    assert sum(counted(OURS[COLD_PAGES], setting)) == TRAIN
    np.testing.assert_array_equal(array, expected)


def resident_bytes(array: np.ndarray) -> int:
    """How much of a mapped array is in the memory of this process."""
    start = f"\n{array.ctypes.data & -mmap.PAGESIZE:x}-"
    _, found, after = pathlib.Path("/proc/self/smaps").read_text().partition(start)
    assert found
    return 1024 * int(after.partition("\nRss:")[2].split()[0])


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_only_a_mapped_array_has_pages_to_drop(cache, archive, tmp_path):
    config = parse_flags(f"--archive={archive}", f"--decoded_cache={cache}")
    setting = stages.prepare(config, tmp_path, peers=False)
    assert counted(OURS[COLD_PAGES], setting) == []


@pytest.mark.parametrize("name", [STEP, END_TO_END])
def test_training_makes_the_steps_that_it_counts(name, setting):
    before = int(setting.model.optimizer.iterations)
    counts = counted(OURS[name], setting)
    assert int(setting.model.optimizer.iterations) - before == 3
    assert sum(counts) == TRAIN


def test_the_peers_read_the_training_pictures(setting):
    rows = setting.data.rows["train"]
    encoded = setting.data.records.read(tf.constant(rows)).numpy()
    expected = collections.Counter(zip(setting.data.labels("train"), encoded, strict=True))
    files = [path for path in setting.class_folders.rglob("*") if path.is_file()]
    found = collections.Counter((int(path.parent.name), path.read_bytes()) for path in files)
    assert found == expected


def test_slow_stages_take_no_more_pictures_than_the_flags_say(archive, tmp_path):
    config = parse_flags(f"--archive={archive}", "--images=16")
    setting = stages.prepare(config, tmp_path, peers=True)
    for name in (END_TO_END, "ImageDataGenerator"):
        assert sum(counted((OURS | PEERS)[name], setting)) == 16
    assert sum(counted(OURS[WARM], setting)) == PASSES * TRAIN


def test_the_augmented_stages_do_what_the_flags_ask_for(archive, tmp_path):
    dark = parse_flags(f"--archive={archive}", "--brightness_range=0,0")
    setting = stages.prepare(dark, tmp_path, peers=True)
    images, _ = next(iter(setting.batches()))
    assert np.any(images)
    draws = setting.augmentation.draw(tf.zeros((len(images), 2), tf.int64))
    assert not np.any(setting.vary(images, draws))
    assert not np.any(next(iter(setting.shuffled(setting.few, augment=setting.ready.augment)))[0])


def test_without_such_flags_they_do_what_the_chapter_does(setting):
    images, _ = next(iter(setting.batches()))
    assert setting.ranges == CHAPTERS_AUGMENTATION
    draws = setting.augmentation.draw(tf.zeros((len(images), 2), tf.int64))
    assert not np.array_equal(setting.vary(images, draws), images)
    assert setting.ready.augment is None
    for batch, _ in setting.shuffled(setting.few):  # Training has none, as the flags say.
        for picture in batch.numpy():
            assert (setting.data.pictures.array == picture).all(axis=(1, 2, 3)).any()


def test_tensorflows_own_decoder_is_given_no_webp(make_archive, tmp_path):
    file = io.BytesIO()
    frame = Image.new("RGB", (40, 40))
    frame.save(file, "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 40), "red")])
    files = layout(train_and_test("dark", "light")) | {"train/dark/moving.webp": file.getvalue()}
    config = parse_flags(f"--archive={make_archive(files)}")
    setting = stages.prepare(config, tmp_path, peers=True)
    assert sum(counted(OURS["records read"], setting)) == ALL + 1
    for name, count in (("decode only", ALL), ("image_dataset_from_directory", TRAIN)):
        assert sum(counted((OURS | PEERS)[name], setting)) == count


def test_a_bad_picture_is_not_counted(make_archive, tmp_path):
    files = layout(train_and_test("dark", "light")) | {"train/dark/bad.jpg": b"no picture"}
    argv = [f"--archive={make_archive(files)}", "--on_bad_image=skip", "--nopeers"]
    setting = stages.prepare(parse_flags(*argv), tmp_path, peers=False)
    for name in ("records read", "decode only", "decoded array made"):
        assert sum(counted(OURS[name], setting)) == ALL


# -- What is made of their figures.


def test_the_clock_runs_from_the_first_call(monkeypatch):
    seconds = iter([(5.0, 2.0), (9.0, 3.0)])
    monkeypatch.setattr(measurement, "_clocks", lambda: next(seconds))

    def stage(setting, done):
        done(32)
        done(32)
        done(8)

    assert measurement.timed(stage, None) == Measurement(40, seconds=4.0, cpu_seconds=1.0)


def test_a_stage_with_nothing_to_do_has_no_figures():
    assert measurement.timed(lambda setting, done: None, None) is None


def turns(*speeds: float) -> list[Measurement]:
    return [Measurement(100, 100 / speed, 1.0) for speed in speeds]


def test_ratios_are_of_the_same_turn():
    measured = {END_TO_END: turns(90, 10, 45), STEP: turns(100, 20, 50)}
    report = measurement.report_of(measured, {}, 32)
    assert report.ratios == {f"{END_TO_END} / {STEP}": pytest.approx(0.9)}


def test_a_row_has_median_and_spread():
    (row,) = measurement.report_of({WARM: turns(40, 10, 20)}, {}, 32).rows
    assert (row.min, row.images_per_second, row.max) == pytest.approx((10, 20, 40))
    assert row.turns == pytest.approx([40, 10, 20])
    assert (row.repeats, row.cpu_seconds_per_1000) == (3, pytest.approx(10))


@pytest.mark.parametrize(
    "speeds, expected",
    [
        ({INPUT: [900, 450], STEP: [90, 45]}, ["The training step", "of 10.0", "GPU"]),
        ({INPUT: [90, 45], STEP: [180, 90]}, ["The input", "of 2.0", "--decoded_cache"]),
        ({WARM: [900], INPUT: [30], STEP: [90]}, ["The input", "of 3.0", "--augment_on=device"]),
        ({WARM: [45], INPUT: [30], STEP: [90]}, ["The input", "of 3.0", "--decoded_cache"]),
        (
            {INPUT: [900], STEP: [90], END_TO_END: [72]},
            ["80%", "takes 444.44 ms", "in memory 355.56 ms", "input 35.56 ms"],
        ),
    ],
)
def test_the_verdict_names_the_slower_side(speeds, expected):
    verdict = measurement.verdict(speeds, 32)
    assert [text for text in expected if text not in verdict] == []


def test_without_figures_of_both_sides_there_is_no_verdict():
    assert measurement.verdict({WARM: [900], INPUT: [90]}, 32) is None
    assert measurement.verdict({STEP: [900], WARM: [90]}, 32) is None


# -- The command.


@pytest.fixture(scope="module")
def measured(archive, tmp_path_factory):
    """A whole benchmark: its folder, its report and its files' names."""
    folder = tmp_path_factory.mktemp("measured")
    argv = [f"--archive={archive}", f"--data_dir={folder}/data_dir", "--repeats=2"]
    argv += [f"--json={folder}/figures.json", f"--plot={folder}/figures.png"]
    return folder, measurement.measure(parse_flags(*argv))


def test_every_stage_has_a_row(measured):
    folder, report = measured
    figures = json.loads((folder / "figures.json").read_text())
    assert [row["name"] for row in figures["rows"]] == [
        name
        for name in (*OURS, *PEERS)
        if name != SERVICE  # Of which nothing was said.
        and (name != COLD_PAGES or has_cold_pages(folder))
    ]
    for row in figures["rows"]:
        assert 0 < row["min"] <= row["images_per_second"] <= row["max"]
        assert row["cpu_seconds_per_1000"] > 0
        assert row["repeats"] == len(row["turns"]) == 2
        assert f"\n{row['name']}  " in report.summary()


def test_the_ratios_are_those_of_their_rows(measured):
    folder, _ = measured
    figures = json.loads((folder / "figures.json").read_text())
    turns = {row["name"]: row["turns"] for row in figures["rows"]}
    assert len(figures["ratios"]) == 5 + has_cold_pages(folder)
    for name, ratio in figures["ratios"].items():
        pairs = zip(*(turns[row] for row in name.split(" / ")), strict=True)
        assert ratio == pytest.approx(statistics.median(a / b for a, b in pairs))


def test_a_report_is_compared_with_an_earlier_one(measured, archive, tmp_path):
    folder, before = measured
    argv = [f"--archive={archive}", "--only=warm,records read", "--nopeers"]
    report = measurement.measure(parse_flags(*argv, f"--compare={folder}/figures.json"))
    earlier = {row.name: row.images_per_second for row in before.rows}
    assert report.compared == {
        row.name: pytest.approx(row.images_per_second / earlier[row.name]) for row in report.rows
    }
    assert len(report.compared) == 4
    for name, ratio in report.compared.items():
        line = next(line for line in report.summary().splitlines() if line.startswith(f"{name}  "))
        assert line.endswith(f"{ratio:8.2f}")


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"rows": 3}', '{"rows": [{"name": 1}]}'])
def test_what_is_no_earlier_report_is_refused_first(archive, tmp_path, text):
    file = tmp_path / "figures.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=rf"compare {file}: .*expected a file that --json wrote"):
        measurement.measure(parse_flags(f"--archive={archive}", f"--compare={file}"))


def test_only_what_was_asked_for_is_left(measured):
    folder, _ = measured
    assert set(snapshot(folder)) == {"data_dir", "figures.json", "figures.png"}
    with Image.open(folder / "figures.png") as image:
        image.verify()


def test_a_dataset_keeps_its_records_and_nothing_else(sample_records):
    data_dir = sample_records.folder.parents[2]
    before = snapshot(data_dir)
    argv = ["--dataset=pizza_steak/sample", f"--data_dir={data_dir}", "--image_size=16,24"]
    report = measurement.measure(parse_flags(*argv, "--only=archive,decode", "--batch_size=64"))
    assert [row.name for row in report.rows] == ["decode only", COLD, "decoded array made"]
    assert snapshot(data_dir) == before


def test_only_takes_parts_of_names(archive):
    argv = [f"--archive={archive}", "--only=records,ImageData"]
    report = measurement.measure(parse_flags(*argv, "--nopeers"))
    assert [row.name for row in report.rows] == ["archive to records", "records read"]
    assert report.verdict is None


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--only=hot"], "only hot: in no name of a row; the names are archive to records,"),
        (["--only=ImageDataGenerator", "--nopeers"], "only ImageDataGenerator"),
        (["--json=/nowhere/figures.json"], "/nowhere/figures.json"),
        (["--plot=/"], "/: cannot be written"),
        (["--data_dir=/dev/null/data"], "data_dir: /dev/null/data"),
        (["--batch_size=24"], "batch_size 24: expected less than all 20"),
        (["--cval=3", "--rotation_range=9"], "cval=3"),
    ],
)
def test_bad_input_is_one_line(argv, message, archive):
    with pytest.raises(UserError) as caught:
        measurement.measure(parse_flags(f"--archive={archive}", *argv))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_flags_of_a_run_are_understood():
    config = parse_flags("--flagfile=tinyvgg.flags")
    assert (config.data.image_size, config.model.model) == (224, "tinyvgg")


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["--repeats=0", "--run_dir=run", "food.zip"])
def test_wrong_flags_exit_with_status_2(argument):
    status, stdout, stderr = run_command(argument, **COMMAND)
    assert (status, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")


@pytest.mark.slow
def test_held_to_one_core_and_profiled(archive, tmp_path):
    argv = [*SMALL, f"--archive={archive}", "--only=training", "--horizontal_flip", "--threads=1"]
    argv += [f"--profile={tmp_path}/profile", f"--json={tmp_path}/figures.json"]
    status, stdout, stderr = run_command(*argv, **COMMAND, fresh=True)
    assert (status, stderr) == (0, "")
    assert stdout.startswith("images  ")
    assert json.loads((tmp_path / "figures.json").read_text())["cores"] == 1
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
