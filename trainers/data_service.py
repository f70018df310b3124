"""Starts a tf.data service, which decodes and augments images.

python -m trainers.data_service --port=5050

Ctrl-C or SIGTERM stops it. Whoever reaches its ports can make its processes
read and write files: keep the ports within a network that you trust.
"""

import contextlib
import dataclasses
import signal
import threading

from trainers import command
from trainers.configuration import DataServiceConfig


def main(config: DataServiceConfig) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        # Imports TensorFlow, for which --help must not wait.
        from pizza_steak.tensorflow_import import import_tensorflow

        import_tensorflow().config.set_visible_devices([], "GPU")  # They belong to the training.
        from pizza_steak import data_service

        with data_service.serve(**dataclasses.asdict(config.servers)) as address:
            print(f"{address} is ready; train with --data_service={address}", flush=True)
            threading.Event().wait()
    print("stopped")


if __name__ == "__main__":
    command.run(main, DataServiceConfig)
