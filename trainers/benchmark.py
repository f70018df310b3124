"""Measures how fast pictures get from an archive into batches.

python -m trainers.benchmark --archive=food4.zip
"""

from trainers import command
from trainers.config import BenchmarkConfig


def main(config: BenchmarkConfig) -> None:
    from trainers import throughput  # Imports TensorFlow, which --help must not wait for.

    print(throughput.measure(config))


if __name__ == "__main__":
    command.run(main, BenchmarkConfig)
