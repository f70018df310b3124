"""Small generated pictures, archives and records of them, and the flags of a run."""

import gc
import io
import os
import pathlib
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping

import chromium
import numpy as np
import pytest
from PIL import Image
from small_runs import ROOT, SIZE, layout, start_command, train_and_test, write_backbone

from pizza_steak import control_groups, members

# As every command has them. TensorFlow is not imported yet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# What is prepared without a --data_dir; TFDS reads this when it is imported.
_data_dir = tempfile.TemporaryDirectory(prefix="tensorflow_datasets-")
os.environ["TFDS_DATA_DIR"] = _data_dir.name
# Until all tests are collected: the objects of imported packages stay, and to look for garbage
# among them takes seconds.
gc.disable()

Layout = Mapping[str, bytes] | Iterable[str]

# Files that take 20 s or more, the slowest first: pytest's workers take whole files, in this order.
SLOWEST = (
    "test_clusters",
    "test_training",
    "test_sweep",
    "test_trials",
    "test_average",
    "test_preprocessing",
    "test_data_service",
    "test_export",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    # One more than cores: tests wait for the processes that they start.
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def _picture(seed: int, width: int, height: int) -> Image.Image:
    """Coarse noise, enlarged: smooth enough for a JPEG, no two alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _jpeg(seed: int = 0, width: int = 24, height: int = 20) -> bytes:
    file = io.BytesIO()
    _picture(seed, width, height).save(file, "JPEG", quality=90)
    return file.getvalue()


def _write_folder(folder: pathlib.Path, files: Mapping[str, bytes]) -> pathlib.Path:
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _write_zip(path: pathlib.Path, files: Mapping[str, bytes]) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as zip_file:
        for name, content in files.items():
            zip_file.writestr(name, content)
    return path


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(seed, width, height)`: an RGB picture of Pillow's, another one for every seed."""
    return _picture


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """`jpeg(seed=0, width=24, height=20)`: a JPEG file, another one for every seed."""
    return _jpeg


@pytest.fixture(scope="session")
def make_archive(tmp_path_factory) -> Callable[..., pathlib.Path]:
    """`make_archive(layout, name="food", as_zip=True)`: a zip, or else a folder, in a new place.

    `layout` maps paths to contents, or lists paths, each of which gets a JPEG of its own.
    """

    def make(layout: Layout, name: str = "food", as_zip: bool = True) -> pathlib.Path:
        if not isinstance(layout, Mapping):
            layout = {path: _jpeg(seed) for seed, path in enumerate(layout)}
        parent = tmp_path_factory.mktemp("archive")
        if as_zip:
            return _write_zip(parent / f"{name}.zip", layout)
        return _write_folder(parent / name, layout)

    return make


@pytest.fixture(scope="session")
def make_records(make_archive, tmp_path_factory) -> Callable[..., object]:
    """`make_records(layout)`: the `Records` of such an archive, in a data_dir of their own."""

    def make(layout: Layout):
        from pizza_steak import records

        return records.prepare(
            archive=make_archive(layout), data_dir=tmp_path_factory.mktemp("data_dir")
        )

    return make


@pytest.fixture(scope="session")
def sample_records(tmp_path_factory):
    """The `Records` of pizza_steak/sample: 240 pictures to train on, 80 to test on."""
    from pizza_steak import records

    return records.prepare("pizza_steak/sample", data_dir=tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def archive(make_archive):
    """Dark and light pictures, 24 to train on and 12 to test on."""
    return make_archive(layout(train_and_test("dark", "light")), name="shades")


@pytest.fixture(scope="session")
def small_flags(archive, tmp_path_factory) -> list[str]:
    """The flags of a run of a second on `archive`, but for --run_dir; later flags come first."""
    return [
        f"--archive={archive}",
        f"--data_dir={tmp_path_factory.mktemp('data_dir')}",
        f"--image_size={SIZE}",
        "--filters=4",
        "--convolutions=1",
        "--batch_size=8",
        "--learning_rate=0.01",
        "--epochs=4",
        "--notensorboard",
        "--validation_split=test",
    ]


@pytest.fixture(scope="session")
def head_flags(small_flags, tmp_path_factory) -> list[str]:
    """The flags of such a run on a small backbone, but for --run_dir."""
    sizes = ("--filters", "--convolutions", "--image_size")
    path = write_backbone(tmp_path_factory.mktemp("backbone") / "small.keras")
    return [
        *(flag for flag in small_flags if not flag.startswith(sizes)),
        f"--model={path}",
        "--dropout=0.3",
    ]


@pytest.fixture
def start_python():
    """`start_python(code, *arguments, fresh=False)`: a `Popen` of it, with pipes.

    Unless it is fresh, it finds TensorFlow imported. It ends with the test.
    """
    processes = []

    def start(code: str, *arguments, **options) -> subprocess.Popen:
        options |= {"code": code, "cwd": ROOT, "stdin": subprocess.PIPE}
        process = start_command(*map(str, arguments), **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def run_at_once(start_python) -> Callable[..., list[str]]:
    """`run_at_once(count, code, *arguments)`: what each of so many processes prints.

    They wait for each other where `code` calls `wait()`.
    """
    wait = "def wait():\n    print(flush=True)\n    input()\n"

    def run(count: int, code: str, *arguments) -> list[str]:
        processes = [start_python(wait + code, *arguments) for _ in range(count)]
        for process in processes:
            process.stdout.readline()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        results = [process.communicate() for process in processes]
        assert not any(process.returncode for process in processes), results
        return [output for output, _ in results]

    return run


@pytest.fixture
def run_python(start_python) -> Callable[..., str]:
    """`run_python(code, *arguments, fresh=False)`: its output; fails with its errors."""

    def run(code: str, *arguments, **options) -> str:
        process = start_python(code, *arguments, **options)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        return output

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A page of a headless Chromium."""
    if chromium.EXECUTABLE is None:
        pytest.skip("no chromium on the PATH; Debian's package of that name has it")
    with chromium.page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def opened(monkeypatch):
    """The zips that were opened. Archives are remembered although they are new."""
    paths = []

    def open_file(path, original=members.open_file):
        paths.append(path)
        return original(path)

    monkeypatch.setattr(members, "open_file", open_file)
    monkeypatch.setattr(members, "TICK", 0)
    return paths


@pytest.fixture
def in_control_groups(tmp_path, monkeypatch):
    """`in_control_groups(own, files)`: what /proc/self/cgroup and /sys/fs/cgroup have."""

    def write(own: bytes, files: Mapping[str, bytes]) -> None:
        (tmp_path / "own").write_bytes(own)
        for name, content in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        monkeypatch.setattr(control_groups, "_OWN_CONTROL_GROUPS", tmp_path / "own")
        monkeypatch.setattr(control_groups, "_CONTROL_GROUPS", tmp_path / "groups")

    return write
