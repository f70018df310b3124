"""Tells how good a finished run's model is, on any split or archive of its classes.

python -m trainers.evaluate --run_dir=runs/tinyvgg --split='test[:50%]'
"""

from trainers import command
from trainers.configuration import EvaluateConfig
from trainers.hardware import devices


def main(config: EvaluateConfig) -> None:
    from trainers.runs import run_directory  # Imports TFDS, which --help must not wait for.

    run = run_directory.open_run(config.evaluation.run_dir)
    devices.prepare(run.config.devices)
    from trainers.finished import evaluation

    outcome = evaluation.evaluate(run, config)
    print(outcome.summary())
    print(f"\nfigures in {outcome.write(config.evaluation)}")


if __name__ == "__main__":
    command.run(main, EvaluateConfig)
