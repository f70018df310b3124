"""Commands on a disk that fails at every one of their operations, in turn.

PYTHONPATH=tests python tests/measurements/failing_disk.py --command=fit --fault=full

After each fault the same command runs again, undisturbed: it must end as if nothing had happened.
"""

import collections
import errno
import os
import pathlib
import shutil
import tempfile
import time

import faults
from absl import app, flags
from small_runs import assert_same_run, layout, run_command, train_and_test, write_backbone

from pizza_steak import kept

FAULTS = {
    "full": (errno.ENOSPC, True),
    "read-only": (errno.EROFS, True),
    "error": (errno.EIO, False),
    "files": (errno.EMFILE, False),
    "kill": (0, False),
}
SMALL = ["--image_size=32", "--batch_size=8", "--filters=4", "--learning_rate=0.01", "--seed=7"]
COMMANDS = {
    "fit": ("trainers", "fit", [*SMALL, "--archive=../shades", "--data_dir=data", "--run_dir=run",
                         "--epochs=2", "--checkpoint_every=2", "--resume=auto"]),
    "head": ("trainers", "fit", [*SMALL[:2], *SMALL[3:], "--archive=../shades", "--data_dir=data",
                                 "--run_dir=run", "--model=../small.keras", "--epochs=2",
                                 "--resume=auto"]),
    "evaluate": ("trainers", "evaluate", ["--run_dir=../run", "--data_dir=../data"]),
    "export": ("trainers", "export", ["--run_dir=../run", "--data_dir=../data", "--output=model",
                            "--overwrite"]),
    "report": ("trainers", "report", ["--runs=../run", "--output=report.html"]),
    "sweep": ("tuning", "sweep", [*SMALL, "--archive=../shades", "--data_dir=../data",
                         "--sweep_dir=sweep", "--tuner=random", "--max_trials=2", "--max_epochs=1",
                         "--min_epochs=1", "--finalists=1", "--final_epochs=1"]),
}  # fmt: skip
_COMMAND = flags.DEFINE_enum("command", "fit", COMMANDS, "The command.")
_FAULT = flags.DEFINE_enum("fault", "full", FAULTS, "The fault.")
_EVERY = flags.DEFINE_integer("every", 1, "Which operations: each, each second, and so on.")
_FIRST = flags.DEFINE_integer("first", 1, "The first of them.")


def main(argv):
    package, command, arguments = COMMANDS[_COMMAND.value]
    number, lasting = FAULTS[_FAULT.value]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        for file, content in layout(train_and_test("dark", "light")).items():
            path = folder / "shades" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        write_backbone(folder / "small.keras")
        if command != "fit":
            (folder / "first").mkdir()
            fit = [*COMMANDS["fit"][2], "--run_dir=../run", "--data_dir=../data"]
            assert run_command(*fit, cwd=folder / "first")[0] == 0

        def run(under, **fault):
            under.mkdir(exist_ok=True)
            return faults.run(under, package, command, *arguments, **fault)

        whole = folder / "whole"
        expected = run(whole)
        assert expected.status == 0, expected.text
        print(f"{_COMMAND.value}: {expected.operations} operations", flush=True)
        outcomes, started = collections.Counter(), time.monotonic()
        for at in range(_FIRST.value, expected.operations + 1, _EVERY.value):
            under = folder / "under"
            ended = run(under, at=at, number=number, lasting=lasting)
            fault = fault_of(ended)
            again = run(under)
            if not fault and again.status:
                fault = f"again: {again.status} {again.text}"
            if not fault:
                fault = difference(under, whole)
            lines = [line for line in ended.text.splitlines() if line.startswith("error:")]
            kind = fault or {0: "ended well", 1: "one line"}.get(ended.status, "killed")
            outcomes[kind if not fault else "WRONG"] += 1
            if fault or os.environ.get("VERBOSE"):
                print(f"{at}: {kind} {lines}", flush=True)
            shutil.rmtree(under)
        print(f"{_FAULT.value}: {dict(outcomes)}, {time.monotonic() - started:.0f} s")


def fault_of(ended: faults.Ended) -> str | None:
    if "Traceback" in ended.text or ended.status not in (0, 1, -9):
        return f"status {ended.status}: {ended.text}"
    lines = [line for line in ended.text.splitlines() if line.startswith("error:")]
    if ended.status == 1 and len(lines) != 1:
        return f"{len(lines)} lines: {ended.text}"
    return None


def difference(under: pathlib.Path, whole: pathlib.Path) -> str | None:
    """Returns how two folders differ in what a command has left there."""
    runs = {
        path.parent.relative_to(root): path.parent
        for root in (whole,)
        for path in root.rglob("model.keras")
    }
    for name in runs:
        try:
            assert_same_run(under / name, whole / name)
        except (AssertionError, OSError) as error:
            return f"{name}: {error}"
    if damaged := [path for path, intact in kept.verify(under).items() if not intact]:
        return f"damaged {damaged}"
    names = [
        {str(p.relative_to(root)) for p in root.rglob("*") if stays(p)} for root in (whole, under)
    ]
    if names[0] != names[1]:
        return f"files {names[0] ^ names[1]}"
    return None


def stays(path: pathlib.Path) -> bool:
    # TensorBoard's and Keras Tuner's names differ from run to run; a trial tried twice is counted.
    return not any(part in ("tensorboard", "downloads") for part in path.parts) and not (
        path.name.endswith((".lock", ".starts"))
    )


if __name__ == "__main__":
    app.run(main)
