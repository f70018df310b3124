"""Runs a command of training: prepares the devices, and tells a preemption from an error."""

import sys
from collections.abc import Callable
from typing import Any

from pizza_steak import command, cores
from pizza_steak.command import show  # noqa: F401  For the commands.
from pizza_steak.text_width import printable
from trainers.hardware import devices, preemption


def run(
    main: Callable[..., None], config: type, arguments: str | None = None, *, gpus: bool = True
) -> None:
    """Runs a command as `pizza_steak.command.run` does; exits with status 75 if it is preempted.

    Devices are prepared for every configuration that has them. Without them nothing is computed,
    and TensorFlow is not needed.
    """

    def call(values: Any, *rest: list[str]) -> None:
        try:
            if hasattr(values, "devices"):
                if values.devices.threads:
                    cores.hold_to(values.devices.threads)
                devices.prepare(values.devices)
            main(values, *rest)
        except preemption.PreemptedError as error:
            print(printable(f"preempted; {error}"), file=sys.stderr)
            sys.exit(preemption.EXIT_STATUS)

    command.run(call, config, arguments, gpus=gpus)
