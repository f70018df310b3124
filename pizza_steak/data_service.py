"""TensorFlow's tf.data service: batches made by other processes, in the order that they have here.

A service is a dispatcher, which hands out steps, and workers, which make a batch of each:
https://www.tensorflow.org/api_docs/python/tf/data/experimental/service
Its own promises are weak: batches come in any order, and those that a worker held when it died do
not come at all. But a batch is a function of its step, so whoever reads can put batches in order,
and make the ones that are missing: with a service training is faster, and nothing else.
"""

import concurrent.futures
import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from pizza_steak.errors import UserError
from pizza_steak.records import Records

# Seconds to wait for an answer, or for a batch.
_PATIENCE = 60.0
# Bytes of batches that wait for an earlier one; then that is taken for lost.
_WAITING = 2**30
# Milliseconds until a dispatcher gives a silent worker up, and between its looks at them.
_WORKER_TIMEOUT, _WORKER_CHECK = 20_000, 5_000
# Milliseconds that one call of a worker waits for a dispatcher; then it calls again, or stops.
_DISPATCHER_TIMEOUT = 10_000

_service = tf.data.experimental.service


@contextlib.contextmanager
def serve(
    *, dispatcher: str | None = None, workers: int = 1, port: int = 0, host: str | None = None
) -> Iterator[str]:
    """Runs workers within the block, and a dispatcher, unless they are for one elsewhere.

    Args:
      dispatcher: Address host:port of that one.
      workers: How many; each takes any free port.
      port: That of the dispatcher here, 0 for any free one.
      host: Name or address under which others reach this machine; by default localhost or, for a
        dispatcher elsewhere, the address that this machine has there.

    Returns:
      The dispatcher's address, for `input_pipeline.batches`.

    Raises:
      UserError: The port is taken, or the dispatcher elsewhere does not answer.
    """
    servers = []
    try:
        if dispatcher is None:
            host = host or "localhost"
            servers.append(_dispatcher(port))
            dispatcher = f"{host}:{servers[0].target.rpartition(':')[2]}"
            reached_at = servers[0].target.partition("://")[2]
        else:
            host = host or _address_towards(dispatcher)
            reached_at = dispatcher
        for _ in range(workers):
            config = _service.WorkerConfig(
                reached_at,
                worker_address=f"{host}:%port%",
                dispatcher_timeout_ms=_DISPATCHER_TIMEOUT,
            )
            servers.append(_service.WorkerServer(config))
        yield f"grpc://{dispatcher}"
    finally:
        for server in reversed(servers):
            server.stop()


def _dispatcher(port: int) -> tf.data.experimental.service.DispatchServer:
    config = _service.DispatcherConfig(
        port=port, worker_timeout_ms=_WORKER_TIMEOUT, job_gc_check_interval_ms=_WORKER_CHECK
    )
    try:
        # gRPC would share a port that another process listens on.
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
    except OSError as error:
        raise UserError(f"port {port}: {error.strerror}; pass another --port") from error
    return _service.DispatchServer(config)


def _address_towards(dispatcher: str) -> str:
    """The address of this machine in the network of a dispatcher, once that can be reached."""
    host, _, port = dispatcher.rpartition(":")
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                return connection.getsockname()[0]
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"dispatcher {dispatcher}: cannot be reached ({error}); expected "
                    "python -m trainers.data_service there"
                ) from error
        time.sleep(1)


def check(address: str, records: Records) -> None:
    """Sees to it that a service answers, and that each of its workers can read the records.

    Raises:
      UserError: It does not, or one of them cannot.
    """
    row = np.zeros(1, np.int64)

    def read_by_each_worker() -> None:
        reading = tf.data.Dataset.range(1).map(lambda step: records.read_in_graph(row))
        list(reading.apply(_service.distribute(_service.ShardingPolicy.OFF, address)))

    try:
        _within(_PATIENCE, read_by_each_worker)
    except concurrent.futures.TimeoutError as error:
        raise UserError(
            f"data_service {address}: no answer within {_PATIENCE:.0f} s; expected a dispatcher "
            "with workers there: python -m trainers.data_service"
        ) from error
    except tf.errors.OpError as error:
        raise UserError(
            f"data_service {address}: a worker cannot read the records ({_reason(error)}); "
            f"expected to find {records.folder} on each of them, such as in a --data_dir on "
            "storage that they share"
        ) from error


def map_steps(
    steps: tf.data.Dataset, load: Callable[[tf.Tensor], Any], address: str
) -> tf.data.Dataset:
    """`steps.map(load)`, the same elements in the same order, with `load` run by a service.

    What the service does not deliver, because a worker died, is loaded here. Where it does not
    answer any more, or fails, there is a warning, and the rest is loaded here.

    Args:
      steps: A `tf.data.Dataset.range`, which can be gone through more than once.
      load: Of TensorFlow's operations alone, and a function of the step alone.
      address: Of the service, grpc://host:port.
    """

    def loaded_there() -> Iterator[tuple[np.int64, Any]]:
        # DYNAMIC gives every step to one worker. Pixels are not worth compressing.
        kind = _service.distribute(_service.ShardingPolicy.DYNAMIC, address, compression=None)
        numbered = steps.map(lambda step: (step, load(step)), num_parallel_calls=tf.data.AUTOTUNE)
        yield from numbered.apply(kind).as_numpy_iterator()

    def loaded_here(skipped: int, count: int = -1) -> tf.data.Dataset:
        return steps.skip(skipped).take(count).map(load, num_parallel_calls=os.cpu_count())

    def in_order() -> Iterator[Any]:
        arriving, waiting = loaded_there(), {}
        for index, step in enumerate(steps.as_numpy_iterator()):
            while step not in waiting and _size(waiting) < _WAITING:
                try:
                    arrived = _within(_PATIENCE, lambda: next(arriving, None))
                except (concurrent.futures.TimeoutError, tf.errors.OpError) as error:
                    logging.warning(
                        "data_service %s: %s; going on without it",
                        address,
                        _reason(error) or f"no batch within {_PATIENCE:.0f} s",
                    )
                    arrived = None
                if arrived is None:
                    yield from loaded_here(index).as_numpy_iterator()
                    return
                if arrived[0] >= step:  # Else it was taken for lost.
                    waiting[arrived[0]] = arrived[1]
            if step in waiting:
                yield waiting.pop(step)
            else:
                yield from loaded_here(index, 1).as_numpy_iterator()

    spec = loaded_here(0).element_spec
    count = tf.data.experimental.assert_cardinality(steps.cardinality())
    return tf.data.Dataset.from_generator(in_order, output_signature=spec).apply(count)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call gives or raises; TimeoutError where that takes longer, while it goes on."""
    outcome = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon, for which nothing waits: the calls of a service that is not there take an hour.
    threading.Thread(target=run, daemon=True).start()
    return outcome.result(seconds)


def _size(arrays: Any) -> int:
    """The bytes of arrays in any structure."""
    return sum(array.nbytes for array in tf.nest.flatten(arrays))


def _reason(error: Exception) -> str:
    """What an error of TensorFlow says, in one line."""
    message = getattr(error, "message", None) or str(error)
    return " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message, flags=re.DOTALL).split())
