"""Trials an hour of tuning.sweep and of Keras Tuner alone over ImageDataGenerator.

python tests/measurements/keras_tuner_alone.py --flagfile=sweep.flags \\
    --archive=pizza_steak_64px.zip --tuner=random --max_trials=6 --max_epochs=10

Both try the same settings for as many epochs, each in a process of its own, in turns; of the search
flags only --max_trials counts. The time is that of the trials: from the end of the imports to the
end of the last trial. With TF_ENABLE_ONEDNN_OPTS=0 in the environment Keras Tuner alone has what
TensorFlow does on a processor without AVX-512, and the sweep keeps what --onednn says.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import zipfile

from absl import app, flags

from pizza_steak import flagfile
from pizza_steak.flags import define_flags, from_flags
from tuning.configuration import SweepConfig

_AUGMENTATION = (
    *("rotation_range", "width_shift_range", "height_shift_range", "shear_range", "zoom_range"),
    *("horizontal_flip", "brightness_range"),
)
_ALONE = flags.DEFINE_bool("alone", False, "Run Keras Tuner alone, once, in this process.")
_TURNS = flags.DEFINE_integer("turns", 1, "How often each is run.")


def main(argv):
    config = from_flags(SweepConfig)
    if _ALONE.value:
        print(json.dumps(run_alone(config)))
        return
    ratios = []
    for _ in range(_TURNS.value):
        alone, ours = timed_alone(argv), timed_sweep(argv)
        ratios.append(alone["seconds"] / ours["seconds"])
        print(f"Keras Tuner alone {alone}\ntuning.sweep {ours}\nratio {ratios[-1]:.2f}", flush=True)


def timed_alone(argv) -> dict:
    command = [sys.executable, __file__, "--alone", *sys.argv[1:]]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def timed_sweep(argv) -> dict:
    environment = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    given = [flag for flag in sys.argv[1:] if not flag.startswith("--turns")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tuning.sweep", *given, f"--sweep_dir={folder}/sweep"]
        final = ["--finalists=1", "--final_epochs=1"]
        subprocess.run([*command, *final], check=True, env=environment)
        oracle = json.loads(pathlib.Path(folder, "sweep/oracle/oracle.json").read_text())
        outcomes = pathlib.Path(folder, "sweep/trials").glob("*.json")
        cpu_seconds = sum(json.loads(file.read_text())["cpu_seconds"] for file in outcomes)
        seconds = max(oracle["ended_after"].values())
        return {"seconds": round(seconds, 1), "fit_cpu_seconds": round(cpu_seconds, 1)}


def run_alone(config: SweepConfig) -> dict:
    """Loads images as the chapter does, and searches as Keras Tuner's guide does."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras_tuner
    import tensorflow as tf

    from trainers import data as run_data
    from tuning.space.search_space import SearchSpace

    space = SearchSpace(config)
    hp = keras_tuner.HyperParameters()
    space.declare_hyperparameters(hp)
    data = run_data.with_batch_size(space.fit_config(hp.values).data)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(config.data.archive) as archive:
            archive.extractall(folder)
        (train,) = pathlib.Path(folder).glob("**/train")

        def generator(augmentation: dict, subset: str):
            made = tf.keras.preprocessing.image.ImageDataGenerator(
                validation_split=0.2, **augmentation
            )
            return made.flow_from_directory(
                train,
                target_size=run_data.format_of(data).shape[:2],
                batch_size=data.batch_size,
                class_mode="binary",
                subset=subset,
                seed=config.trial.seed,
            )

        class Alone(keras_tuner.HyperModel):
            def build(self, hp):
                return space.build(hp)

            def fit(self, hp, model, **options):
                asked = vars(space.fit_config(hp.values).augmentation)
                augmentation = {name: asked[name] for name in _AUGMENTATION}
                return model.fit(
                    generator(augmentation, "training"),
                    validation_data=generator({}, "validation"),
                    epochs=config.trial.max_epochs,
                    verbose=2,
                    **options,
                )

        started, cpu = time.perf_counter(), time.process_time()
        tuner = keras_tuner.RandomSearch(
            Alone(),
            objective=config.search.objective,
            max_trials=config.search.max_trials,
            seed=config.trial.seed + 1,  # As the sweep has it.
            directory=folder,
            project_name="alone",
        )
        tuner.search()
        return {
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }


if __name__ == "__main__":
    define_flags(SweepConfig)
    app.run(main, flags_parser=lambda argv: flags.FLAGS(flagfile.expand(argv, SweepConfig)))
