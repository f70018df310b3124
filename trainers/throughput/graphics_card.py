"""How busy a GPU is, as nvidia-smi says."""

import os
import shutil
import statistics
import subprocess

from trainers.configuration import DevicesConfig
from trainers.hardware import gpus

_MILLISECONDS = 100


class Watch:
    """Asks nvidia-smi ten times a second about the GPUs of this process, within `with` blocks.

    Args:
      config: The flags of the devices; None to watch nothing.
    """

    def __init__(self, config: DevicesConfig | None):
        numbers = [gpu.number for gpu in gpus.take(config)] if config else []
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")  # Its names mean the same to nvidia-smi.
        self._ids = [seen.split(",")[number] if seen else str(number) for number in numbers]
        self._command = shutil.which("nvidia-smi") if numbers else None
        self._utilization: list[float] = []
        self._mebibytes: list[float] = []

    def __enter__(self) -> None:
        if self._command:
            self._process = subprocess.Popen(
                [
                    self._command,
                    f"--id={','.join(self._ids)}",
                    "--query-gpu=utilization.gpu,memory.used",
                    "--format=csv,noheader,nounits",
                    f"--loop-ms={_MILLISECONDS}",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )

    def __exit__(self, *error: object) -> None:
        if self._command:
            self._process.terminate()
            for line in self._process.communicate()[0].splitlines():
                try:
                    busy, used = map(float, line.split(","))
                except ValueError:  # Such as [N/A], or a line that was cut off.
                    continue
                self._utilization.append(busy)
                self._mebibytes.append(used)

    @property
    def summary(self) -> str | None:
        """The mean use and the largest memory, as text; None if nothing is known."""
        if not self._utilization:
            return None
        return (
            f"In training end to end a GPU was busy {statistics.mean(self._utilization):.0f} % of "
            f"the time, with at most {max(self._mebibytes):,.0f} MiB of its memory taken."
        )
