"""Times every stage from the archive to the training step.

python -m trainers.benchmark --archive=food4.zip
python -m trainers.benchmark --flagfile=tinyvgg.flags --plot=benchmark.png
python -m trainers.benchmark --growth --archive=food4.zip

archive to records                an --archive is read, checked and written
records read                      the bytes of each image
decode only                       the same, with TensorFlow's decoder
decode + resize (cold)            into the array on the disk, as in a first run
warm                              shuffled batches from that array
cold pages                        the same, from the disk (on Linux)
warm + augmentation on the host   --augment_on=host
warm + augmentation on the device --augment_on=device
training input                    the batches that the training takes
training step                     on images in memory, not augmented
training end to end               Keras's fit

Augmentation is the chapter's if the flags ask for none; the training is
augmented only if they ask for it. The peers are ImageDataGenerator and
image_dataset_from_directory, plain and with the same augmentation or Keras's
layers for it, on files in class folders. The stages take turns; every figure is
the median of a stage's turns, beside the least, the most and the processor's
time.

--growth measures steps at 1, 10 and 100 times the images instead, each once and
in a process of its own: time should grow as the number of images does, and
memory should not. Memory is that of the process alone, above its imports; the
prepared files that it maps are shared by all processes.
"""

from trainers import command
from trainers.configuration import BenchmarkConfig


def main(config: BenchmarkConfig) -> None:
    # These import TensorFlow, which --help must not wait for.
    from trainers.throughput import growth, measurement

    measured = growth if config.measuring.growth else measurement
    command.show(measured.measure(config).summary())
    if config.measuring.plot:
        command.show(f"\nfigure saved to {config.measuring.plot}")


if __name__ == "__main__":
    command.run(main, BenchmarkConfig)
