"""Tries the networks of keras.applications as --model, with random weights and small images.

python tests/measurements/applications.py
python tests/measurements/applications.py efficientnetv2b0 resnet50

For each network, or those that are named: compares the preprocessing in the model with the original
`preprocess_input`; trains the head alone, and all layers; compares the saved models with those in
memory; exports to ONNX and LiteRT, which `trainers.export` compares with the saved model. Prints a
line per network, and ends with status 1 if one fails. Each network has a process of its own.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from small_runs import fit, layout

from trainers.configuration import ArtifactConfig, ModelConfig

# The smallest images, in pixels, that a network takes without its last layers; else 32.
_SIZES = {"inceptionresnetv2": 75, "inceptionv3": 75, "xception": 71}
_IMAGES = {"train/dark": 4, "train/light": 4, "test/dark": 2, "test/light": 2}
_TOLERANCE = 1e-4


def main(names):
    if len(names) == 2 and names[0] == "--one":
        print(_tried(names[1]))
        return 0
    from trainers.models import applications

    failed = []
    for name in names or sorted(applications.functions()):
        start = time.monotonic()
        process = subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False
        )
        output = process.stdout if process.returncode == 0 else process.stderr
        last = (output.splitlines() or [f"exit status {process.returncode}"])[-1]
        if not last.startswith("ok"):
            failed.append(name)
        print(f"{name:<18} {last} ({time.monotonic() - start:.0f} s)", flush=True)
    return 1 if failed else 0


def _tried(name):
    """Returns "ok" and some numbers, or what fails."""
    from trainers.finished import exporting
    from trainers.runs.run_directory import open_run

    size = _SIZES.get(name, 32)
    faults, numbers = [], []
    difference = _preprocessing_difference(name, size)
    if not difference <= _TOLERANCE:
        faults.append(f"preprocessing differs by {difference:.2g}")
    with tempfile.TemporaryDirectory() as folder:
        archive = pathlib.Path(folder, "shades")
        for path, content in layout(_IMAGES).items():
            (archive / path).parent.mkdir(parents=True, exist_ok=True)
            (archive / path).write_bytes(content)
        flags = [
            *(f"--archive={archive}", f"--data_dir={folder}/data", f"--model={name}"),
            *("--weights=none", f"--image_size={size}", "--batch_size=4", "--epochs=1"),
            *("--validation_split=test", "--notensorboard", "--optimizer=sgd"),
            "--learning_rate=1e-6",  # Random weights may be far from any that train.
        ]
        for trainable in ("head", "all"):
            run_dir = f"{folder}/{trainable}"
            result = fit(*flags, f"--trainable={trainable}", f"--run_dir={run_dir}").values
            trained = result["history"]["val_loss"][-1]
            tested = _test_loss(open_run(run_dir))
            if not np.isclose(trained, tested, rtol=1e-4):
                faults.append(f"{trainable}: loss {trained:.4f}, of the saved model {tested:.4f}")
        numbers.append(f"{result['parameters'] / 1e6:.1f} million parameters")
        for kind in ("onnx", "litert"):
            config = ArtifactConfig(run_dir=run_dir, format=kind, output=f"{folder}/model.{kind}")
            try:
                export = exporting.export(open_run(run_dir), config)
                numbers.append(f"{kind} {export.difference:.0e}")
            except Exception as error:
                text = str(error).splitlines()[0][:150]
                faults.append(f"{kind}: {type(error).__name__}: {text}")
            pathlib.Path(folder, f"model.{kind}").unlink(missing_ok=True)
    return "; ".join(faults) if faults else f"ok: {', '.join(numbers)}"


def _preprocessing_difference(name, size):
    """Returns the largest difference of the features to those of the original preprocessing.

    It is relative to the largest feature.
    """
    from trainers.models import applications

    config = ModelConfig(model=name, weights="none")
    model, _ = applications.build(config, (size, size, 3))
    module = sys.modules[applications.functions()[name].__module__]
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
    network = model.layers[-1]
    expected = np.asarray(network(module.preprocess_input(images.copy()), training=False))
    features = np.asarray(model(images, training=False))
    return float(np.abs(features - expected).max() / np.abs(expected).max())


def _test_loss(run):
    """Returns the loss of the saved model on the test images, which the run validated on."""
    from trainers import data as run_data
    from trainers.finished import loading, testing

    data = run_data.load(run.config.data)
    return testing.test(loading.load_model(run), data, "test", 4).loss


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
