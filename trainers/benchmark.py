"""Times every stage from an archive to a training step, and Keras's own ways for comparison.

python -m trainers.benchmark --archive=food4.zip
python -m trainers.benchmark --flagfile=tinyvgg.flags --json=benchmark.json --plot=benchmark.png

archive to records                reads, checks and writes TFDS records; with --archive only
records read                      reads each image's bytes by its row
decode only                       also decodes with TensorFlow's decoder: the floor
decode + resize (cold)            fills the array on disk, as in a first run
warm                              makes shuffled batches from that array
warm + augmentation on the host   as with --augment_on=host; the chapter's by default
warm + augmentation in the model  as with --augment_on=device
training step                     Keras's own, on the same batch again and again
training end to end               Keras's fit, augmented if the flags ask for it

The peers are ImageDataGenerator and image_dataset_from_directory, plain and with the same
augmentation or Keras's layers for it, on files in class folders. The stages take turns; each figure
is the median of its turns, beside the least, the most and the CPU time.
"""

from trainers import command
from trainers.configuration import BenchmarkConfig


def main(config: BenchmarkConfig) -> None:
    # Imports TensorFlow, for which --help must not wait.
    from trainers.throughput import measurement

    print(measurement.measure(config).summary())


if __name__ == "__main__":
    command.run(main, BenchmarkConfig)
