"""Lists prepared datasets, removes some, and finds damaged files.

python -m pizza_steak.prepared
python -m pizza_steak.prepared --unused_for=30d
python -m pizza_steak.prepared --verify

A prepared dataset is its records and its decoded images.
"""

from pizza_steak import command, preparations
from pizza_steak.configuration import PreparedConfig, seconds


def main(config: PreparedConfig) -> None:
    removal = config.removal
    command.show(
        preparations.report(
            data_dir=removal.data_dir,
            remove=removal.remove,
            unused_for=seconds(removal.unused_for),
        )
    )
    if removal.verify:
        print(preparations.verified(removal.data_dir))


if __name__ == "__main__":
    command.run(main, PreparedConfig)
