"""Exports a finished run's model, to be used without Keras.

python -m trainers.export --run_dir=runs/tinyvgg --format=saved_model
"""

from trainers import command
from trainers.configuration import ExportConfig
from trainers.hardware import devices


def main(config: ExportConfig) -> None:
    from trainers.runs import run_directory  # Imports TFDS, which --help must not wait for.

    run = run_directory.open_run(config.artifact.run_dir)
    devices.prepare(run.config.devices)
    from trainers.finished import exporting

    print(exporting.export(run, config.artifact).summary())


if __name__ == "__main__":
    command.run(main, ExportConfig)
