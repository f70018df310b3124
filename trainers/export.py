"""Exports the model of a finished run for use without Keras.

python -m trainers.export --run_dir=runs/tinyvgg --format=saved_model
"""

from trainers import command
from trainers.configuration import ExportConfig
from trainers.hardware import devices


def main(config: ExportConfig) -> None:
    # Imports TFDS, for which --help must not wait.
    from trainers.runs import run_directory

    run = run_directory.named_run(config.artifact.run_dir)
    devices.prepare(devices.one_device(run.config.devices))
    from trainers.finished import exporting

    command.show(exporting.export(run, config.artifact).summary())


if __name__ == "__main__":
    command.run(main, ExportConfig, gpus=False)
