"""Measures what lies between an archive and a training step, and Keras's own ways beside it.

python -m trainers.benchmark --archive=food4.zip
python -m trainers.benchmark --flagfile=tinyvgg.flags --json=benchmark.json --plot=benchmark.png

archive to records                read, checked, and written as TFDS keeps it; of an --archive only
records read                      each picture's bytes, by its row
decode only                       the same, through TensorFlow's decoder: the floor
decode + resize (cold)            into the array on the disk, as in a first run
warm                              shuffled batches out of that array
warm + augmentation on the host   as --augment_on=host; the chapter's if the flags ask for none
warm + augmentation in the model  as --augment_on=device
training step                     Keras's own, on one batch again and again
training end to end               Keras's fit, augmented if the flags ask for that

The peers are ImageDataGenerator and image_dataset_from_directory, plain and with the same
augmentation or Keras's layers for it, on files in class folders. Every figure is the median of
turns in which each stage had one go, beside the least, the most and the processor's time.
"""

from trainers import command
from trainers.configuration import BenchmarkConfig


def main(config: BenchmarkConfig) -> None:
    # Imports TensorFlow, which --help must not wait for.
    from trainers.throughput import measurement

    print(measurement.measure(config).summary())
    if config.measuring.plot:
        print(f"\nfigure saved to {config.measuring.plot}")


if __name__ == "__main__":
    command.run(main, BenchmarkConfig)
