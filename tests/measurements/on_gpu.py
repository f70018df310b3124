"""What only a GPU can show: correctness first, then speed; about ten minutes.

python tests/measurements/on_gpu.py
python tests/measurements/on_gpu.py --only=numbers,speed --out=/tmp/gpu --network=lite0.keras

Each check runs commands of this package, and says what it found; a check that fails does not end
the others. The output of all commands is in --out. Ends with status 1 if any check failed.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from absl import app, flags

_OUT = flags.DEFINE_string("out", "on_gpu", "Folder for runs and output.")
_ONLY = flags.DEFINE_list("only", None, "Checks to run; by default all.")
_ARCHIVE = flags.DEFINE_string("archive", None, "Images; by default the rendered sample.")
_NETWORK = flags.DEFINE_string("network", None, "A pretrained network to fine-tune.")
_DEVICE = flags.DEFINE_string("devices", "gpu", "Another --devices, to try this program on a CPU.")

CHECKS: dict[str, Callable[[], str]] = {}
# TF32 has 10 bits of float32's 23, so numbers are compared without it.
_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0"}
_HALF = ("mixed_bfloat16", "mixed_float16")


def check(function: Callable[[], str]) -> Callable[[], str]:
    CHECKS[function.__name__] = function
    return function


def main(argv):
    out().mkdir(parents=True, exist_ok=True)
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        print(subprocess.run(query, capture_output=True, text=True).stdout.strip(), flush=True)
    failed = 0
    for name in _ONLY.value or CHECKS:
        start = time.monotonic()
        try:
            text = CHECKS[name]()
        except (AssertionError, subprocess.SubprocessError, OSError, LookupError) as error:
            failed += 1
            text = f"FAILED: {type(error).__name__}: {str(error)[-2000:]}"
        print(f"{name} ({time.monotonic() - start:.0f} s): {text}", flush=True)
    sys.exit(1 if failed else 0)


# Correctness.


@check
def table() -> str:
    """The table says half precision, XLA and augmentation on the device; nothing warns."""
    text = fit("table", "tinyvgg_augmented", "--epochs=1")
    rows = dict(re.findall(r"^(\w+) +(.*(?:\n {12}.*)*)", text, re.MULTILINE))
    told = " | ".join(
        " ".join(rows.get(name, f"no row {name}").split())
        for name in ("devices", "augmented", "precision", "jit_compile")
    )
    assert _DEVICE.value == "cpu" or rows["precision"].startswith(_HALF), told
    assert _DEVICE.value == "cpu" or rows["jit_compile"].startswith("on"), told
    assert _DEVICE.value == "cpu" or "on the device" in rows["augmented"], told
    assert "warning" not in text, text
    return told


@check
def numbers() -> str:
    """Float32 has the losses of the processor, with XLA and without, augmented on either side."""
    options = ("--epochs=2", "--precision=float32", "--rotation_range=20", "--horizontal_flip")
    fit("cpu", "tinyvgg", *options, "--devices=cpu", "--augment_on=host")
    found = {}
    for name, more in {
        "XLA": ("--jit_compile=on",),
        "without XLA": ("--jit_compile=off",),
        "augmented on the host": ("--augment_on=host",),
        "images on the device": ("--data_on_device",),
    }.items():
        fit("gpu", "tinyvgg", *options, *more, environment=_FLOAT32)
        found[name] = difference("gpu", "cpu")
    assert max(found.values()) < 1e-3, found
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())


@check
def deterministic() -> str:
    """Two runs have the same bits, and a run that was killed has them too."""
    options = ("--deterministic", "--epochs=3", "--checkpoint_every=5", "--resume=auto")
    fit("whole", "tinyvgg", *options)
    fit("again", "tinyvgg", *options)
    kills = 0
    for seconds in (12, 9, 10):  # A start takes some seconds.
        process = start("killed", "tinyvgg", *options)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    fit("killed", "tinyvgg", *options)
    assert difference("again", "whole") == difference("killed", "whole") == 0
    return f"the same, also after {kills} kills"


@check
def beside() -> str:
    """A finished run is evaluated beside a training on the same card."""
    fit("first", "tinyvgg", "--epochs=1")
    training = start("beside", "tinyvgg", "--epochs=40")
    time.sleep(12)
    try:
        assert training.poll() is None, "the training ended early"
        memory = used_memory()
        run("evaluate", f"--run_dir={out() / 'first'}", f"--data_dir={out() / 'data'}")
    finally:
        training.kill()
        training.wait()
    return f"evaluated; {memory} taken by the training"


@check
def exports() -> str:
    """Exports of a half precision run are those of the Keras model."""
    fit("exported", "tinyvgg", "--epochs=1")
    told = []
    for kind in ("saved_model", "litert"):
        arguments = [f"--run_dir={out() / 'exported'}", f"--format={kind}", "--overwrite"]
        text = run("export", *arguments, f"--data_dir={out() / 'data'}")
        told.append(f"{kind} {text.split('differ by at most ')[1].split()[0]}")
    return ", ".join(told)


@check
def fastest() -> str:
    """Which precision is faster."""
    text = fit("fastest", "tinyvgg", "--epochs=1", "--precision=fastest", "--batch_size=64")
    return " ".join(re.search(r"^precision +(.*(?:\n {12}.*)*)", text, re.MULTILINE)[1].split())


# Speed.


@check
def executions() -> str:
    """Steps of a small network, one or many in a call."""
    found = []
    for steps in ("1", "auto", "1", "auto"):
        small = ("--image_size=32", "--batch_size=8", "--epochs=10")
        fit("steps", "tinyvgg", *small, f"--steps_per_execution={steps}")
        result = json.loads((out() / "steps" / "result.json").read_text())
        ends = result["epoch_end_seconds"]
        found.append(f"{steps} {(ends[-1] - ends[1]) / (len(ends) - 2):.2f} s an epoch")
    return ", ".join(found)


@check
def speed() -> str:
    """TinyVGG at 224: the step, its input, both, ImageDataGenerator."""
    told = []
    for batch_size in (32, 256):
        for more in ((), ("--data_on_device",)):
            text = benchmark(
                "tinyvgg_augmented",
                *("--image_size=224", f"--batch_size={batch_size}", "--images=2048", *more),
                "--only=training,ImageDataGenerator + augmentation",
            )
            told.append(f"batch {batch_size} {' '.join(more)}\n{text}")
    return "\n".join(told)


@check
def fine_tuning() -> str:
    """A pretrained network is fine-tuned: images/s of its step and of all."""
    if not _NETWORK.value:
        return "not run: pass --network"
    network = (f"--model={_NETWORK.value}", "--trainable=all", "--learning_rate=0.0001")
    return "\n" + benchmark("tinyvgg", *network, "--only=training", "--nopeers")


# Commands.


def out() -> pathlib.Path:
    return pathlib.Path(_OUT.value).absolute()


def images() -> list[str]:
    archive = _ARCHIVE.value
    return [f"--archive={archive}"] if archive else ["--dataset=pizza_steak/sample"]


def arguments(flagfile: str, *more: str) -> list[str]:
    own = [f"--flagfile={flagfile}", *images(), f"--data_dir={out() / 'data'}"]
    return [*own, f"--devices={_DEVICE.value}", *more]


def fit(name: str, flagfile: str, *more: str, **options) -> str:
    """The output of a training in a folder of its own."""
    resumes = "--resume=auto" in more
    if resumes and name != "killed":
        shutil.rmtree(out() / name, ignore_errors=True)
    return run(
        "fit",
        *arguments(flagfile, f"--run_dir={out() / name}", *more),
        *([] if resumes else ["--overwrite"]),
        **options,
    )


def start(name: str, flagfile: str, *more: str) -> subprocess.Popen:
    given = arguments(flagfile, f"--run_dir={out() / name}", *more)
    given += [] if "--resume=auto" in more else ["--overwrite"]
    return subprocess.Popen(
        [sys.executable, "-m", "trainers.fit", *given],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def benchmark(flagfile: str, *more: str) -> str:
    json_file = out() / f"benchmark-{time.time_ns()}.json"
    return run("benchmark", *arguments(flagfile, *more), f"--json={json_file}", timeout=300)


def run(command: str, *given: str, environment=None, timeout: float = 240) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", f"trainers.{command}", *given],
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    with (out() / "log").open("a") as log:
        log.write(f"$ {command} {' '.join(given)}\n{ended.stdout}\n")
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def difference(one: str, other: str) -> float:
    """The largest difference of the losses of two runs."""
    histories = [
        json.loads((out() / name / "result.json").read_text())["history"] for name in (one, other)
    ]
    return max(
        abs(a - b)
        for name in ("loss", "val_loss")
        for a, b in zip(*(history[name] for history in histories), strict=True)
    )


def used_memory() -> str:
    if not (smi := shutil.which("nvidia-smi")):
        return "unknown memory"
    query = [smi, "--query-gpu=memory.used", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    app.run(main)
