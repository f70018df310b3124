"""Training through a dispatcher and two workers, in processes of their own, on loopback."""

import io
import os
import socket
import subprocess
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf
from small_runs import assert_same_run, fit, fit_and_stop, layout, parse_flags, start_command

from pizza_steak import data_service, decoding, decoding_in_graph, records
from pizza_steak.errors import UserError, quoted
from trainers import data as run_data
from trainers.models import preprocessing

pytestmark = pytest.mark.slow

AUGMENTED = ("--rotation_range=20", "--zoom_range=0.2", "--brightness_range=0.8,1.2")
NOWHERE = "grpc://localhost:1"


def start(*flags: str, **options) -> subprocess.Popen:
    return start_command(*flags, command="data_service", **options)


def stop(processes: Sequence[subprocess.Popen]) -> list[tuple[str, str, int]]:
    """Stops them as Slurm and Kubernetes do: the rest of stdout and stderr, and exit statuses."""
    for process in processes:
        process.terminate()
    return [(*process.communicate(timeout=60), process.returncode) for process in processes]


@pytest.fixture(scope="module")
def workers():
    """Two workers of a dispatcher, with its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = f"grpc://localhost:{port}"
    processes = [start(f"--port={port}", "--workers=0", "--host=localhost", fresh=True)]
    processes += [start(f"--dispatcher=localhost:{port}") for _ in range(2)]
    try:
        for process in processes:
            assert f"--data_service={address}\n" in process.stdout.readline()
            assert "open on all addresses of this machine" in process.stdout.readline()
        yield address, processes[1:]
        alive = [process for process in processes if process.poll() is None]
        assert stop(alive) == [("stopped\n", "", 0)] * len(alive)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def service(workers):
    return workers[0]


def test_batches_are_the_same_in_the_same_order(service, make_archive, tmp_path, caplog):
    folders = ("train/a", "train/b", "test/a", "test/b")
    names = [f"{folder}/{number}.jpg" for folder in folders for number in range(9)]
    flags = [f"--archive={make_archive(names)}", f"--data_dir={tmp_path}", "--image_size=20,30"]
    flags.append("--validation_split=none")
    config = parse_flags(*flags, *AUGMENTED)
    augment = preprocessing.augmentation_of(config.augmentation, seed=1).in_pipeline
    local, remote = (
        run_data.load(parse_flags(*flags, flag).data).batches(
            "train", 4, class_weight={1: 0.7}, seed=1, shuffle=True, epochs=2, augment=augment
        )
        for flag in ("--decoded_cache=none", f"--data_service={service}")
    )
    assert remote.element_spec == local.element_spec
    assert len(remote) == len(local) == 10
    for expected, found in zip(local.as_numpy_iterator(), remote.as_numpy_iterator(), strict=True):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
    assert not caplog.text


@pytest.mark.parametrize("on_bad_image", ["fail", "skip"])
def test_unreadable_images_are_known_before(service, make_archive, tmp_path, on_bad_image):
    names = [f"{folder}/{number}.jpg" for folder in ("a", "b") for number in range(9)]
    archive = make_archive(names, as_zip=False)
    (archive / "a" / "3.jpg").write_bytes(b"no image")
    flags = [f"--archive={archive}", f"--data_dir={tmp_path}", "--image_size=20"]
    flags += [f"--on_bad_image={on_bad_image}", "--test_split=train", "--validation_split=train"]
    config = parse_flags(*flags, "--train_split=train", f"--data_service={service}").data
    if on_bad_image == "fail":
        with pytest.raises(UserError, match=r"1 image cannot be decoded: .*a/3\.jpg"):
            run_data.load(config)
    else:
        data = run_data.load(config)
        assert len(data.rows["train"]) == 17
        assert sum(len(labels) for _, labels in data.batches("train", 4)) == 17


def test_a_run_does_not_go_on_with_another_order(service, small_flags, make_archive, tmp_path):
    files = layout({"train/dark": 8, "train/light": 8, "test/dark": 4, "test/light": 4})
    archive = make_archive(files | {"train/dark/03.png": b"no image"})
    flags = [*small_flags, f"--archive={archive}", "--on_bad_image=skip", "--epochs=2"]
    flags.append(f"--run_dir={tmp_path}/run")
    fit_and_stop(*flags, "--decoded_cache=none", epoch=1)
    with pytest.raises(UserError, match="started with 16 training images, now 15: without --data"):
        fit(*flags, "--decoded_cache=none", "--resume", f"--data_service={service}")
    fit(*flags, "--decoded_cache=none", "--resume")


def test_an_image_that_is_damaged_later_is_named(service, make_archive, tmp_path):
    names = [f"{folder}/{number}.jpg" for folder in ("a", "b") for number in range(9)]
    flags = [f"--archive={make_archive(names)}", f"--data_dir={tmp_path}", "--image_size=20"]
    flags += [f"--{purpose}_split=train" for purpose in ("train", "validation", "test")]
    data = run_data.load(parse_flags(*flags, f"--data_service={service}").data)
    prepared = data.records
    (file,) = prepared.folder.glob("*tfrecord*")
    encoded = prepared.encoded(np.array([5]))[0]
    content = file.read_bytes()
    file.write_bytes(content.replace(encoded, bytes(len(encoded))))
    with pytest.raises(tf.errors.OpError) as caught:
        list(data.batches("train", 4))
    line = str(quoted(caught.value))
    assert line.startswith(f"1 image cannot be decoded: {prepared.filenames[5]} (")


def slow(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A step, some milliseconds later, and the threads of the process that it was loaded by."""
    noise = tf.sort(tf.random.stateless_uniform([100_000], tf.stack([step, 0])))
    with tf.control_dependencies([noise]):
        return tf.identity(step), tf.io.matching_files("/proc/self/task/*")


def seen(dataset: tf.data.Dataset) -> tuple[list[int], list[set[int]]]:
    steps, threads = zip(*dataset.as_numpy_iterator(), strict=True)
    return list(steps), [{int(os.path.basename(path)) for path in paths} for paths in threads]


def test_all_workers_take_part(workers):
    address, processes = workers
    steps, threads = seen(data_service.map_steps(tf.data.Dataset.range(5, 105), slow, address))
    assert steps == list(range(5, 105))
    counts = [sum(process.pid in by for by in threads) for process in processes]
    assert min(counts) > 0 and sum(counts) == 100


def test_a_run_goes_on_through_it_as_it_would_have_without(service, small_flags, tmp_path):
    flags = [*small_flags, *AUGMENTED, "--epochs=2"]
    fit(*flags, f"--run_dir={tmp_path}/here")
    fit_and_stop(*flags, f"--run_dir={tmp_path}/there", epoch=1)
    fit(*flags, f"--run_dir={tmp_path}/there", "--resume", f"--data_service={service}")
    assert_same_run(tmp_path / "there", tmp_path / "here")


def test_a_worker_without_the_records_is_told_of(service, make_records):
    prepared = make_records(["train/a/0.jpg", "train/b/0.jpg"])
    data_service.check(service, prepared)
    prepared.folder.rename(prepared.folder.with_name("elsewhere"))
    with pytest.raises(UserError, match="a worker cannot read the records") as caught:
        data_service.check(service, prepared)
    assert f"expected to find {prepared.folder} on each" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_port_that_another_listens_on_is_refused(service):
    port = service.rpartition(":")[2]
    with (
        pytest.raises(UserError, match=f"port {port}: .* pass another --port"),
        data_service.serve(port=int(port), host="localhost"),
    ):
        pass


@pytest.mark.parametrize("options", [{}, {"port": 5050}, {"workers": 2}])
def test_it_opens_no_port_unless_the_user_says_for_whom(options, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # Nothing may listen before.
    with pytest.raises(UserError, match="pass --host=localhost") as caught:
        data_service.serve(**options).__enter__()
    assert str(caught.value).startswith("host: missing; ")


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_pictures_that_are_kept_do_not_go_through_it(small_flags, tmp_path, cache):
    with pytest.raises(UserError, match=f"expected no --decoded_cache={cache} with it"):
        fit(*small_flags, f"--data_service={NOWHERE}", f"--decoded_cache={cache}")


def test_pictures_that_only_pillow_decodes_are_refused(make_archive, picture, tmp_path):
    files = layout({"train/dark": 2, "train/light": 2})
    for name, mode, kind in [("dark/9.gif", "P", "GIF"), ("light/9.webp", "RGB", "WEBP")]:
        file = io.BytesIO()
        picture(0, 24, 20).convert(mode).save(file, kind)
        files[f"train/{name}"] = file.getvalue()
    prepared = records.prepare(archive=make_archive(files), data_dir=tmp_path)
    rows = decoding_in_graph.for_pillow(prepared, decoding.Format((8, 8)))
    assert {prepared.filenames[row] for row in rows} == {"train/dark/9.gif", "train/light/9.webp"}
    flags = [f"--{purpose}_split=train" for purpose in ("train", "validation", "test")]
    flags += [f"--run_dir={tmp_path}/run", f"--data_service={NOWHERE}"]
    with pytest.raises(UserError) as caught:
        fit(f"--archive={make_archive(files)}", f"--data_dir={tmp_path}", *flags)
    assert f"cannot decode 2 images, the first is {prepared.filenames[rows[0]]}" in str(
        caught.value
    )
    assert len(str(caught.value).splitlines()) == 1


def test_without_an_answer_it_ends_in_time_with_one_line(small_flags, tmp_path, start_python):
    code = (
        "from pizza_steak import data_service; data_service._PATIENCE = 2;"
        "from trainers import command, configuration as c, fit; command.run(fit.main, c.FitConfig)"
    )
    process = start_python(
        code, *small_flags, f"--data_service={NOWHERE}", f"--run_dir={tmp_path}/run"
    )
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"{NOWHERE}: no answer within 2 s" in errors[0]
    assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_steps_of_a_worker_that_is_killed_are_loaded_here(workers, monkeypatch):
    address, (killed, _) = workers
    monkeypatch.setattr(data_service, "_WAITING", 20_000)
    monkeypatch.setattr(data_service, "_PATIENCE", 3)
    batches = iter(data_service.map_steps(tf.data.Dataset.range(200), slow, address))
    steps = [int(next(batches)[0]) for _ in range(10)]
    killed.kill()
    killed.wait()
    assert steps + [int(step) for step, _ in batches] == list(range(200))
