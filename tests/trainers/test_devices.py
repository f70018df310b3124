"""What a run is computed with: what is chosen, refused and said; and each precision trains."""

import json
import pathlib

import keras
import numpy as np
import pytest
from absl import flags
from small_runs import fit, fit_and_stop, parse_flags, plan_of, run_command

from pizza_steak import cores
from pizza_steak.errors import UserError
from trainers import data as run_data
from trainers import setup
from trainers.configuration import DataConfig, DevicesConfig
from trainers.hardware import devices
from trainers.models import networks
from trainers.runs import run_directory

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "float64")


@pytest.fixture(autouse=True)
def dtype_policy():
    """Leaves the policy to the tests after as it was."""
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "asked, message",
    [
        (
            ["--devices=2"],
            "devices 2: expected a number from 1 to 1, .*--cpu_devices",
        ),
        (["--devices=0"], "devices 0: expected"),
        (["--devices=0,0"], "devices 0,0: expected .* each once"),
        (["--devices=0,1"], "devices 0,1: expected"),
        (["--batch_size=8", "--batch_size_per_replica=4"], "expected one of the two"),
    ],
)
def test_what_there_is_not_is_refused(small_flags, tmp_path, asked, message):
    given = [flag for flag in small_flags if not flag.startswith("--batch_size")]
    with pytest.raises(UserError, match=message):
        fit(*given, *asked, f"--run_dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(cores.count() < 2, reason="needs two cores")
def test_a_run_is_held_to_some_cores_and_may_be_resumed_with_others(small_flags, tmp_path):
    flags = [*small_flags, "--epochs=1", f"--run_dir={tmp_path}/run"]
    status, stdout, stderr = run_command(*flags, "--threads=1")
    assert (status, stderr) == (0, "")
    assert plan_of(stdout)["devices"] == "CPU, 1 core"
    assert "threads" not in (tmp_path / "run/run.flags").read_text()


@pytest.mark.parametrize("command", ["fit", "benchmark"])
def test_more_cores_than_there_are_are_refused(archive, tmp_path, command):
    status, stdout, stderr = run_command(
        f"--archive={archive}", "--threads=100000", command=command, cwd=tmp_path
    )
    assert (status, stdout) == (1, "")
    (line,) = stderr.splitlines()
    assert "threads 100000: expected at most the number of cores, " in line
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "data, replicas, batch_size",
    [
        (DataConfig(), 4, 32),
        (DataConfig(batch_size=6), 4, 6),
        (DataConfig(batch_size_per_replica=6), 4, 24),
        (DataConfig(batch_size_per_replica=6), 1, 6),
    ],
)
def test_a_batch_is_that_of_all_replicas(data, replicas, batch_size):
    assert run_data.with_batch_size(data, replicas).batch_size == batch_size


def test_a_cpu_computes_in_float32_and_without_xla_unless_it_is_asked_to():
    chosen = devices.choose(DevicesConfig())
    assert (chosen.strategy, chosen.devices) == ("none", ("CPU:0",))
    assert (chosen.precision, chosen.jit_compile) == ("float32", False)
    asked = devices.choose(DevicesConfig(precision="mixed_bfloat16", jit_compile="on"))
    assert (asked.precision, asked.jit_compile) == ("mixed_bfloat16", True)


@pytest.mark.parametrize(
    "flags, faster", [("avx2 amx_bf16", True), ("avx512_bf16", True), ("avx512f", False)]
)
def test_a_processor_with_instructions_for_bfloat16_is_told_of(monkeypatch, flags, faster):
    read = pathlib.Path.read_text

    def read_text(path, *arguments, **options):
        told = path == pathlib.Path("/proc/cpuinfo")
        return f"flags : {flags}\n" if told else read(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    chosen = devices.choose(DevicesConfig())
    assert chosen.precision == "float32"
    assert ("--precision=fastest tries bfloat16" in chosen.precision_reason) == faster


def test_the_table_says_what_was_asked_for_and_why(small_flags, tmp_path, capsys):
    argv = [*small_flags, "--epochs=1"]

    def table(*flags: str) -> dict[str, str]:
        fit(*argv, f"--run_dir={tmp_path}/{len(flags)}", *flags)
        lines = capsys.readouterr().out.splitlines()
        return dict(line.split(None, 1) for line in lines if line.split()[1:])

    usual = table()
    assert usual["devices"].startswith("CPU, ")
    assert not {"strategy", "jit_compile", "oneDNN"} & usual.keys()
    # The table tells only those processors of bfloat16 that have it.
    assert ("precision" in usual) == ("bf16" in pathlib.Path("/proc/cpuinfo").read_text())

    table = table("--precision=float32", "--strategy=none", "--jit_compile=off")
    assert "learning rate 0.01, batch size 8," in table["training"]
    assert table["strategy"] == "none, 1 replica on CPU:0"
    assert table["precision"] == "float32 (as asked)"
    assert table["jit_compile"] == "off (as asked)"
    assert "--precision=float32\n" in (tmp_path / "3" / "run.flags").read_text()


@pytest.mark.slow
def test_the_table_and_environment_json_say_what_keras_makes_of_xla(small_flags, tmp_path):
    # Keras turns XLA off with --deterministic. In a process of its own, which is deterministic.
    argv = [*small_flags, f"--run_dir={tmp_path}/run", "--epochs=1"]
    status, stdout, stderr = run_command(*argv, "--jit_compile=on", "--deterministic")
    assert status == 0, stderr
    assert "\njit_compile off (Keras turns it off with --deterministic)\n" in stdout
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["jit_compile"] is False


def test_a_run_of_other_devices_is_used_on_one(small_flags, tmp_path):
    # As for one that was trained on a machine with eight of them.
    values = parse_flags("--strategy=mirrored", "--devices=0,7", "--cpu_devices=8").devices
    assert devices.choose(devices.one_device(values)).devices == ("CPU:0",)


def test_one_replica_trains_as_no_strategy(small_flags, tmp_path):
    none, mirrored = (
        fit(
            *small_flags, f"--run_dir={tmp_path}/{strategy}", f"--strategy={strategy}", "--epochs=2"
        )
        for strategy in ("none", "mirrored")
    )
    for name, values in none.values["history"].items():
        np.testing.assert_allclose(mirrored.values["history"][name], values, rtol=1e-5)


def test_an_unknown_strategy_is_a_wrong_flag():
    with pytest.raises(flags.Error, match="strategy"):
        parse_flags("--strategy=multi")


# Precision.


@pytest.fixture(scope="module")
def data(small_flags):
    """Dark and light pictures of 24 x 24 pixels, less than which conv3_pool does not take."""
    return run_data.load(parse_flags(*small_flags, "--image_size=24").data)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", networks.SIZES)
def test_every_model_learns_in_every_precision(small_flags, data, model, precision):
    given = [*small_flags, "--filters=2", "--learning_rate=0.001", f"--model={model}"]
    given += ["--image_size=24", "--seed=2", f"--precision={precision}"]
    network = setup.prepare(parse_flags(*given), load=lambda _: data).model
    # All of the pictures, again and again.
    history = network.fit(
        data.batches("train", 24).repeat(), steps_per_epoch=1, epochs=3, verbose=0
    )
    losses = history.history["loss"]
    assert losses[-1] < losses[0]
    assert network.layers[-2].compute_dtype == precision.removeprefix("mixed_")


@pytest.fixture(scope="module")
def accuracy(sample_records, tmp_path_factory):
    """`accuracy(precision)`: of a small TinyVGG on all of pizza_steak/sample."""

    def train(precision: str) -> float:
        folder = tmp_path_factory.mktemp("sample")
        return fit(
            "--dataset=pizza_steak/sample",
            f"--data_dir={sample_records.folder.parents[2]}",
            f"--run_dir={folder}/run",
            "--train_split=train",
            "--validation_split=train+test",  # 320 pictures: an 80th would be a point and more.
            "--test_split=train+test",
            "--image_size=24",
            "--batch_size=16",
            "--learning_rate=0.002",
            "--learning_rate_schedule=cosine",
            "--epochs=5",
            "--notensorboard",
            f"--precision={precision}",
        ).values["test_accuracy"]

    return train


@pytest.fixture(scope="module")
def in_float32(accuracy):
    """The accuracy in float32."""
    return accuracy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS[1:3])
def test_half_precision_ends_within_two_points_of_float32(accuracy, in_float32, precision):
    assert in_float32 > 0.75
    assert accuracy(precision) == pytest.approx(in_float32, abs=0.02)


def test_a_backup_has_the_scale_of_the_loss(small_flags, tmp_path):
    def backup(*stops: int) -> dict[str, np.ndarray]:
        """All of it, of a run that was stopped after these epochs."""
        run_dir = tmp_path / "-".join(map(str, stops))
        given = [*small_flags, "--precision=mixed_float16", "--dropout=0.2", f"--run_dir={run_dir}"]
        for number, epoch in enumerate(stops):
            fit_and_stop(*given, *(["--resume"] if number else []), epoch=epoch)
        with np.load(run_directory.Run(run_dir).backup / "latest.npz") as file:
            return {name: file[name] for name in file.files if name.startswith("variables/")}

    whole, resumed = backup(2), backup(1, 2)
    assert whole.keys() == resumed.keys()
    # The scale, and the steps since it has changed.
    assert {2**15, 6} <= {value.item() for value in whole.values() if value.shape == ()}
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)
