"""Keras Tuner's chief, which has the oracle, and its workers, which run trials, over gRPC.

Keras Tuner's environment variables set each role: KERASTUNER_TUNER_ID (a name with "chief" in it,
or any other for a worker), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT. This module adds that
workers send heartbeats, that the chief does not wait for dead workers, and that both survive when
the other is away for a while.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial, TrialStatus

# Private, so pinned to Keras Tuner 1.4: its public server waits for dead workers.
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_chief, oracle_client

from pizza_steak.errors import UserError
from tuning.search import oracles, processes

_HEARTBEAT_SECONDS = 5.0
_CHIEF = "chief"
_VARIABLES = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def role() -> str | None:
    """Returns the role that the environment sets: "chief", "worker", or None for a lone process.

    Raises:
      UserError: Some of the variables are missing.
    """
    tuner_id = os.environ.get("KERASTUNER_TUNER_ID")
    if tuner_id is None:
        return None
    if missing := [name for name in _VARIABLES if not os.environ.get(name)]:
        raise UserError(
            f"KERASTUNER_TUNER_ID is set and {missing[0]} is not; expected both, or neither"
        )
    return _CHIEF if _CHIEF in tuner_id else "worker"


def chief_address() -> str:
    """Returns the address of the chief, from the environment."""
    return ":".join(os.environ[name] for name in _VARIABLES)


@contextmanager
def serving(oracle: oracles.Durable, address: str) -> Iterator[int]:
    """Serves an oracle to workers within the block, and yields the port.

    Raises:
      UserError: It is not possible to listen at the address.
    """
    # One thread, as in Keras Tuner's chief: it serves one worker after the other.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    servicer = oracle_chief.OracleServicer(oracle)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise UserError(
            f"chief {address}: cannot listen there; expected an address of this machine and a free "
            "port"
        ) from error
    server.start()
    try:
        yield port
    finally:
        server.stop(grace=1).wait()


def wait_for_workers(
    oracle: oracles.Durable, own: Sequence[tuple[str, processes.Process]] = ()
) -> None:
    """Waits until the search has ended.

    Args:
      oracle: The oracle of the chief.
      own: Workers that this process has started, with their ids.

    Raises:
      UserError: This process has started workers, and all of them have died.
    """
    living = dict(own)
    while not oracle.finished:
        time.sleep(0.2)
        for lost in oracle.take_back_lost():
            print(f"{lost}: silent; its trial goes to another worker", flush=True)
        for tuner_id, process in list(living.items()):
            if process.alive:
                continue
            del living[tuner_id]
            if reason := process.wait():
                print(f"{tuner_id}: {reason}; its trial goes to another worker", flush=True)
            oracle.take_back(tuner_id)
        if own and not living and not oracle.finished:
            raise UserError("workers: all have died; run the same command to resume")


class Tuner(BaseTuner):
    """Asks an oracle for trials, and runs them.

    Args:
      oracle: The oracle; for a worker, an oracle with the objective of the chief's.
      folder: The folder of the search.
      run_trial: Called with a trial; returns its metrics, or raises
        `keras_tuner.errors.FailedTrialError`.
      worker: The name of this worker.
      address: The address of the chief, for a worker.
    """

    def __init__(
        self,
        oracle: oracles.Durable,
        folder: str | os.PathLike[str],
        run_trial: Callable[[Trial], dict[str, float]],
        worker: str,
        address: str | None = None,
    ):
        super().__init__(oracle, directory=folder, project_name="oracle")
        self.tuner_id = worker
        self._run_trial = run_trial
        self._idle = False
        if address:
            self.oracle = _Client(oracle, address, worker)

    def pre_create_trial(self):
        if self._idle:
            time.sleep(1)
        self._idle = True

    def on_trial_begin(self, trial):
        self._idle = False

    def run_trial(self, trial):
        with self._heartbeats(trial.trial_id):
            return self._run_trial(trial)

    def _try_run_and_update_trial(self, trial):
        # Keras Tuner's method prints a traceback, and takes every bug for a failed trial.
        try:
            self._run_and_update_trial(trial)
            trial.status = TrialStatus.COMPLETED
        except keras_tuner.errors.FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, str(error)

    def on_trial_end(self, trial):
        self.oracle.end_trial(trial)

    @contextmanager
    def _heartbeats(self, trial_id: str) -> Iterator[None]:
        ended = threading.Event()

        def beat():
            while not ended.wait(_HEARTBEAT_SECONDS):
                self.oracle.get_trial(trial_id)

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            ended.set()


class _Client(oracle_client.OracleClient):
    """Keras Tuner's client, for a chief that may be killed and started again at any moment."""

    def __init__(self, oracle: keras_tuner.Oracle, address: str, worker: str):
        # Keras Tuner reads them from the environment, in forked workers too.
        ip, _, port = address.rpartition(":")
        os.environ.update(dict(zip(_VARIABLES, (ip, port), strict=True)))
        os.environ["KERASTUNER_TUNER_ID"] = worker
        super().__init__(oracle)
        # Keras Tuner's channel retries after up to two minutes when the chief was away for long.
        options = [("grpc.max_reconnect_backoff_ms", 1000)]
        channel = grpc.insecure_channel(address, options=options)
        self.stub = protos.get_service_grpc().OracleStub(channel)

    def create_trial(self, tuner_id):
        return _patiently(super().create_trial, tuner_id)

    def update_trial(self, trial_id, metrics, step=0):
        return _patiently(super().update_trial, trial_id, metrics, step)

    def get_trial(self, trial_id):
        return _patiently(super().get_trial, trial_id)

    def end_trial(self, trial):
        return _patiently(super().end_trial, trial)


def _patiently(call: Callable, *arguments: Any) -> Any:
    """Repeats a call while the chief is away; all calls may be repeated."""
    while True:
        try:
            return call(*arguments)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(1)
