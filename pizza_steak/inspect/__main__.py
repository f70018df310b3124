"""Inspects an archive of class folders before training.

python -m pizza_steak.inspect --archive=food4.zip --grid=grid.png
"""

# This folder has no __init__.py: a regular package of this name would shadow the standard library's
# module when Python starts in pizza_steak/.

from pizza_steak import command
from pizza_steak.configuration import InspectConfig


def main(config: InspectConfig) -> None:
    from pizza_steak import inspection  # Imports Matplotlib, which --help must not wait for.

    command.show(inspection.report(config))


if __name__ == "__main__":
    command.run(main, InspectConfig)
