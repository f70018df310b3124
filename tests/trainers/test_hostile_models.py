"""A model.keras of another person runs no code and reads no other file; one line says why not."""

import base64
import json
import os
import pathlib
import pickle
import zipfile
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from small_runs import time_limit

from pizza_steak.errors import UserError
from trainers.configuration import ModelConfig
from trainers.models import saved_networks
from trainers.runs import run_directory

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
SHAPE = [None, 8, 8, 3]


def members_of(path: pathlib.Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def write(path: pathlib.Path, members: dict[Any, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for member, content in members.items():
            file.writestr(member, content)


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    """The model.keras of a run: a small network."""
    layers = [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.fixture
def marker(tmp_path) -> pathlib.Path:
    """What hostile code would write."""
    return tmp_path / "written by hostile code"


def refusal(path: pathlib.Path) -> str:
    """The one line of the error, the same from both ways into a model."""
    with time_limit(60), pytest.raises(UserError) as caught:
        saved_networks.load_model(run_directory.Run(path.parent))
    line = str(caught.value)
    assert line.startswith(f"model {path}: ")
    assert "\n" not in line
    with time_limit(60), pytest.raises(UserError):
        config = ModelConfig(model=str(path))
        saved_networks.image_size(config)
        saved_networks.build(config, (8, 8, 3), ("a", "b"))
    return line


# Code in config.json: the published attacks on Keras's safe mode, by their kind.


def with_layer(path: pathlib.Path, layer: dict[str, Any]) -> None:
    """Makes the network an input and a layer."""
    first = {"class_name": "InputLayer", "module": "keras.layers", "config": {"batch_shape": SHAPE}}
    config = {"name": "net", "layers": [first, {"registered_name": None, **layer}]}
    network = {"module": "keras", "class_name": "Sequential", "config": config}
    write(path, {**members_of(path), CONFIG: json.dumps(network).encode()})


def lambda_layer(function: Any, **arguments: Any) -> dict[str, Any]:
    config = {"name": "hostile", "function": function, "arguments": arguments}
    return {"module": "keras.layers", "class_name": "Lambda", "config": config}


def function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


class Pickled:
    def __init__(self, marker: pathlib.Path):
        self._marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self._marker),)


def bytecode(marker: pathlib.Path) -> dict[str, Any]:
    layer = keras.layers.Lambda(lambda x, mkdir=os.mkdir, path=str(marker): mkdir(path) or x)
    return keras.saving.serialize_keras_object(layer)


def python_lambda(marker: pathlib.Path) -> dict[str, Any]:
    code = f"lambda x: __import__('os').mkdir({str(marker)!r}) or x"
    marshalled = keras.src.utils.python_utils.func_dump(eval(code))
    value = {"code": marshalled[0], "defaults": None, "closure": None}
    return lambda_layer({"class_name": "__lambda__", "config": value})


def downloaded(marker: pathlib.Path) -> dict[str, Any]:
    """CVE-2025-8747: a function of Keras itself that writes files."""
    marker.with_name("served").write_text("print('hostile')")
    where = {"origin": marker.with_name("served").as_uri(), "cache_dir": str(marker.parent)}
    return lambda_layer(function("keras.utils", "get_file"), fname=marker.name, **where)


def unsafe_mode(marker: pathlib.Path) -> dict[str, Any]:
    """CVE-2025-9906: a function of Keras itself that ends the safe mode."""
    return lambda_layer(function("keras.config", "enable_unsafe_deserialization"))


def of_module(module: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config}


def pickled_module(marker: pathlib.Path) -> dict[str, Any]:
    """A layer that unpickles a module of PyTorch."""
    text = base64.b64encode(pickle.dumps(Pickled(marker))).decode()
    return of_module("keras.layers", "TorchModuleWrapper", {"module": text, "name": "hostile"})


def vocabulary(marker: pathlib.Path) -> dict[str, Any]:
    """CVE-2025-12058: a layer that reads any file."""
    return of_module("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"})


CODE = {
    "bytecode": bytecode,
    "lambda": python_lambda,
    "CVE-2024-3660, 2025-1550: a function of a module": lambda marker: lambda_layer(
        function("os", "mkdir"), mode=str(marker)
    ),
    "a class of a module": lambda marker: of_module(
        "subprocess", "Popen", {"args": ["mkdir", str(marker)]}
    ),
    "a class of Keras's own imports": lambda marker: of_module(
        "keras.src.saving.saving_lib", "pathlib", {}
    ),
    "a module that is imported": lambda marker: of_module("antigravity", "Layer", {}),
    "CVE-2025-8747": downloaded,
    "CVE-2025-9906": unsafe_mode,
    "CVE-2026-1462: a SavedModel": lambda marker: of_module(
        "keras.layers", "TFSMLayer", {"filepath": str(marker.parent), "name": "hostile"}
    ),
    "pickle": pickled_module,
    "CVE-2025-12058": vocabulary,
}


@pytest.mark.parametrize("kind", CODE)
def test_code_in_its_config_does_not_run(path, marker, kind):
    with_layer(path, CODE[kind](marker))
    refusal(path)
    assert not list(path.parent.rglob(marker.name))
    # Nor has it ended the safe mode for the next model.
    with_layer(path, python_lambda(marker))
    refusal(path)


# What is not as Keras writes it.


def test_a_network_as_keras_writes_it_is_loaded(path):
    assert saved_networks.load_model(run_directory.Run(path.parent)).output_shape == (None, 2)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_compressed_member_is_refused_before_it_is_inflated(path, method, name):
    members = members_of(path) | {name: bytes(20_000_000)}
    write(path, members, method)
    assert "its members are compressed; load it and save it again with Keras" in refusal(path)


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    "name", ["../model.py", "/tmp/model.py", "assets/a/b.txt", link("assets"), "model.weights.npz"]
)
def test_other_members_are_refused(path, name):
    write(path, {**members_of(path), name: b"/etc/passwd"})
    assert f"a zip of {CONFIG}, {METADATA}, {WEIGHTS}" in refusal(path)


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_member_is_named(path, missing):
    write(path, {name: data for name, data in members_of(path).items() if name != missing})
    assert missing in refusal(path)


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b"{}", b"null", b'{"config": 1e999}', b"\xff\xfe", b"9" * 5000, b""],
)
def test_a_config_that_is_none_is_refused(path, content):
    write(path, {**members_of(path), CONFIG: content})
    refusal(path)


def test_a_network_too_large_for_any_memory_is_refused(path):
    dense = of_module("keras.layers", "Dense", {"units": 2**62, "name": "hostile"})
    with_layer(path, dense)
    refusal(path)


@pytest.mark.parametrize("content", [b"", b"PK", pickle.dumps(1), b"\x89HDF\r\n\x1a\n" + bytes(99)])
def test_what_is_no_zip_is_refused(path, content):
    path.write_bytes(content)
    refusal(path)


def test_a_pipe_is_refused(path):
    path.unlink()
    os.mkfifo(path)
    refusal(path)


# Its weights: HDF5 can take them from any other file.


def external_dataset(file: h5py.File, victim: pathlib.Path) -> None:
    kernel = file["layers/dense/vars/0"]
    shape, kind = kernel.shape, kernel.dtype
    del file["layers/dense/vars/0"]
    file.create_dataset(
        "layers/dense/vars/0", shape, kind, external=[(str(victim), 0, h5py.h5f.UNLIMITED)]
    )


def virtual_dataset(file: h5py.File, victim: pathlib.Path) -> None:
    kernel = file["layers/dense/vars/0"]
    layout = h5py.VirtualLayout(kernel.shape, kernel.dtype)
    layout[:] = h5py.VirtualSource(victim, "layers/dense/vars/0", shape=kernel.shape)
    del file["layers/dense/vars/0"]
    file.create_virtual_dataset("layers/dense/vars/0", layout)


def linked(name: str, target: str | None = None):
    def change(file: h5py.File, victim: pathlib.Path) -> None:
        del file[name]
        file[name] = h5py.ExternalLink(victim, target or name)

    return change


def soft_link(file: h5py.File, victim: pathlib.Path) -> None:
    file.move("layers/dense", "elsewhere")
    file["layers/dense"] = h5py.SoftLink("/elsewhere")


def within_itself(file: h5py.File, victim: pathlib.Path) -> None:
    file["layers/dense/again"] = file["layers"]


def doubled(file: h5py.File, victim: pathlib.Path) -> None:
    group = file
    for number in range(64):  # 2 ** 64 paths.
        below = group.create_group(f"{number}")
        group["again"] = below
        group = below


def never_written(file: h5py.File, victim: pathlib.Path) -> None:
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", (2**28,), np.float32, chunks=(2**20,))


def inflated(file: h5py.File, victim: pathlib.Path) -> None:
    del file["layers/dense/vars/0"]
    zeros = np.zeros(2**24, np.float32)
    file.create_dataset("layers/dense/vars/0", data=zeros, chunks=(2**20,), compression="gzip")


def texts(file: h5py.File, victim: pathlib.Path) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars/0"] = ["text"] * 6


WEIGHTS_OF_OTHERS = {
    "CVE-2026-1669: external dataset": external_dataset,
    "virtual dataset": virtual_dataset,
    "external link": linked("layers/dense/vars/0"),
    "external link to a group": linked("layers/dense"),
    "external link on the way": linked("layers"),
    "soft link": soft_link,
    "group within itself": within_itself,
    "many paths": doubled,
    "CVE-2026-0897: shape bomb": never_written,
    "compressed": inflated,
    "texts": texts,
}


@pytest.mark.parametrize("kind", WEIGHTS_OF_OTHERS)
def test_weights_that_are_not_plain_arrays_are_refused(path, tmp_path, kind):
    members = members_of(path)
    victim, weights = tmp_path / "victim.h5", tmp_path / "weights.h5"
    for file in (victim, weights):
        file.write_bytes(members[WEIGHTS])
    with h5py.File(weights, "r+") as file:
        WEIGHTS_OF_OTHERS[kind](file, victim)
    write(path, {**members, WEIGHTS: weights.read_bytes()})
    assert "its weights " in refusal(path)
