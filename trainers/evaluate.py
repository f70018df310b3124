"""Evaluates a finished run on a split, or on another archive.

python -m trainers.evaluate --run_dir=runs/tinyvgg --split='test[:50%]'
"""

from trainers import command
from trainers.configuration import EvaluateConfig
from trainers.hardware import devices


def main(config: EvaluateConfig) -> None:
    # Imports TFDS, for which --help must not wait.
    from trainers.runs import run_directory

    run = run_directory.named_run(config.evaluation.run_dir)
    devices.prepare(devices.one_device(run.config.devices))
    from trainers.finished import evaluation

    outcome = evaluation.evaluate(run, config)
    command.show(outcome.summary())
    command.show(f"\nfigures saved to {outcome.write(config.evaluation)}")
    if config.evaluation.activation_maps:
        command.show(f"figure saved to {config.evaluation.activation_maps}")


if __name__ == "__main__":
    command.run(main, EvaluateConfig)
