"""Starts a tf.data service, which decodes and augments images.

python -m trainers.data_service --port=5050 --host=localhost

Ctrl-C or SIGTERM stops it. TensorFlow listens on all addresses of the machine,
whatever --host is. Whoever reaches the ports can make the processes read and
write files: keep the ports within a network that you trust.
"""

import contextlib
import dataclasses
import signal
import threading

from trainers import command
from trainers.configuration import DataServiceConfig

_OPEN = (
    "open on all addresses of this machine: the port of each dispatcher and worker; whoever "
    "reaches one can read and write your files"
)


def main(config: DataServiceConfig) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        # Imports TensorFlow, for which --help must not wait.
        from pizza_steak.tensorflow_import import import_tensorflow

        import_tensorflow()
        from pizza_steak import data_service

        with data_service.serve(**dataclasses.asdict(config.servers)) as address:
            print(f"{address} is ready; train with --data_service={address}")
            print(_OPEN, flush=True)
            threading.Event().wait()
    print("stopped")


if __name__ == "__main__":
    command.run(main, DataServiceConfig, gpus=False)
