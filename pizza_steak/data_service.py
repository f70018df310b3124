"""Makes batches in other processes by TensorFlow's tf.data service, in the same order.

A service is a dispatcher, which hands out steps, and workers, which make a batch for each step:
https://www.tensorflow.org/api_docs/python/tf/data/experimental/service
Batches arrive in any order, and the batches of a worker that dies are lost. But a batch is a
function of its step: the reader puts batches in order and makes missing ones itself. So a service
changes the speed of a training, and nothing else.
"""

import concurrent.futures
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from pizza_steak import cores
from pizza_steak.errors import UserError, told
from pizza_steak.records import Records

# Seconds to wait for an answer, or for a batch.
_PATIENCE = 60.0
# Bytes of batches that may wait for an earlier batch; then that batch counts as lost.
_WAITING = 2**30
# Milliseconds until a dispatcher gives up a silent worker, and between its checks of workers.
_WORKER_TIMEOUT, _WORKER_CHECK = 20_000, 5_000
# Milliseconds that a worker's call waits for the dispatcher, before it calls again or stops.
_DISPATCHER_TIMEOUT = 10_000

_service = tf.data.experimental.service


@contextlib.contextmanager
def serve(
    *, dispatcher: str | None = None, workers: int = 1, port: int = 0, host: str | None = None
) -> Iterator[str]:
    """Runs workers while the block runs, and a dispatcher unless the address of one is given.

    Args:
      dispatcher: Address host:port of a dispatcher on another machine.
      workers: Number of workers; each takes any free port.
      port: Port of the dispatcher here, 0 for any free port.
      host: Name or address under which others reach this machine; needed without `dispatcher`.
        By default this machine's address in the dispatcher's network.

    Yields:
      The dispatcher's address, for `input_pipeline.batches`.

    Raises:
      UserError: The host is missing, the port is in use, or the other dispatcher does not answer.
    """
    servers = []
    try:
        if dispatcher is None:
            if host is None:
                # TensorFlow 2.21 binds 0.0.0.0 and has no other credentials than "grpc".
                raise UserError(
                    "host: missing; TensorFlow's service listens on all addresses of this machine, "
                    "and whoever reaches its ports can read and write your files: pass "
                    "--host=localhost if no one else does, or this machine's name"
                )
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
        # gRPC would share a port with another process that listens on it.
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
    except OSError as error:
        raise UserError(f"port {port}: {told(error)}; pass another --port") from error
    return _service.DispatchServer(config)


def _address_towards(dispatcher: str) -> str:
    """Waits until a dispatcher can be reached; returns this machine's address in its network."""
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
    """Checks that a service answers and that each of its workers can read the records.

    Raises:
      UserError: The service does not answer, or a worker cannot read the records.
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
    steps: tf.data.Dataset,
    load: Callable[[tf.Tensor], Any],
    address: str,
    load_here: Callable[[tf.Tensor], Any] | None = None,
) -> tf.data.Dataset:
    """Returns `steps.map(load)`, the same elements in the same order, with `load` run by a service.

    Batches that are lost with a worker are loaded here. If the service fails or no longer answers,
    there is a warning, and all further batches are loaded here.

    If an image has become unreadable since it was checked, the service fails, and then what is
    loaded here: with an error that names the image, if `load_here` has one.

    Args:
      steps: A `tf.data.Dataset.range`; it is iterated over more than once.
      load: A function of the step only, made of TensorFlow operations only.
      address: Address of the service, grpc://host:port.
      load_here: Does the same with any operations; by default `load`.
    """

    def loaded_there() -> Iterator[tuple[np.int64, Any]]:
        # DYNAMIC gives every step to one worker. Pixels are not worth compressing.
        kind = _service.distribute(_service.ShardingPolicy.DYNAMIC, address, compression=None)
        numbered = steps.map(lambda step: (step, load(step)), num_parallel_calls=tf.data.AUTOTUNE)
        yield from numbered.apply(kind).as_numpy_iterator()

    def loaded_here(skipped: int, count: int = -1) -> tf.data.Dataset:
        batches = steps.skip(skipped).take(count)
        return batches.map(load_here or load, num_parallel_calls=cores.count())

    def in_order() -> Iterator[Any]:
        arriving = loaded_there()
        waiting: dict[int, Any] = {}
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
                if arrived[0] >= step:  # Else it counted as lost and was loaded here.
                    waiting[arrived[0]] = arrived[1]
            if step in waiting:
                yield waiting.pop(step)
            else:
                yield from loaded_here(index, 1).as_numpy_iterator()

    spec = loaded_here(0).element_spec
    count = tf.data.experimental.assert_cardinality(steps.cardinality())
    return tf.data.Dataset.from_generator(in_order, output_signature=spec).apply(count)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Returns or raises what a call does, or raises TimeoutError and lets the call run on."""
    outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon thread, so that Python can exit: calls to a missing service take an hour.
    threading.Thread(target=run, daemon=True).start()
    return outcome.result(seconds)


def _size(arrays: Any) -> int:
    """Returns the size in bytes of all arrays in a nested structure."""
    return sum(array.nbytes for array in tf.nest.flatten(arrays))


def _reason(error: Exception) -> str:
    """Returns the message of a TensorFlow error in one line."""
    message = getattr(error, "message", None) or str(error)
    return " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", message, flags=re.DOTALL).split())
