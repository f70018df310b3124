"""Makes one model that averages finished runs.

python -m trainers.average --runs=runs/a,runs/b,runs/c --run_dir=runs/average
python -m trainers.average --runs=runs/a --average_flips --run_dir=runs/flips
"""

from trainers import command
from trainers.configuration import AverageConfig
from trainers.hardware import devices


def main(config: AverageConfig) -> None:
    # Imports TFDS, for which --help must not wait.
    from trainers.runs import run_directory

    for run_dir in (config.averaging.runs or ())[:1]:
        devices.prepare(devices.one_device(run_directory.open_run(run_dir).config.devices))
    from trainers.finished import averaging
    from trainers.training import results

    made, result = averaging.average(config.averaging)
    asked = config.averaging
    command.show(results.FitResult(made, result, None, asked.data_dir, asked.code).summary())


if __name__ == "__main__":
    command.run(main, AverageConfig)
