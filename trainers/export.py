"""Exports a finished run's model, to be used without Keras.

python -m trainers.export --run_dir=runs/tinyvgg --format=saved_model
"""

from trainers import command, devices
from trainers.config import ExportConfig


def main(config: ExportConfig) -> None:
    from trainers import runs  # Imports TFDS, which --help must not wait for.

    run = runs.open_run(config.artifact.run_dir)
    devices.prepare(run.config.devices)
    from trainers import exporting

    print(exporting.export(run, config.artifact).summary())


if __name__ == "__main__":
    command.run(main, ExportConfig)
