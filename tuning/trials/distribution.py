"""A sweep in several processes: a chief, which has the oracle, and workers, which run trials.

Keras Tuner's environment variables set the role of a process on a cluster: KERASTUNER_TUNER_ID (a
name with "chief" in it, or any other for a worker), KERASTUNER_ORACLE_IP and
KERASTUNER_ORACLE_PORT. The processes talk over gRPC.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

import grpc
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from pizza_steak.errors import UserError
from tuning.trials import engine, processes

_HEARTBEAT_SECONDS = 5.0
_CHIEF = "chief"
_VARIABLES = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def role() -> str | None:
    """Returns the role that the environment sets: "chief", "worker", or None for a lone process.

    Raises:
      UserError: The process has a name, and the address of the chief is missing.
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


@contextlib.contextmanager
def private_address() -> Iterator[str]:
    """Yields an address that only processes of this user on this machine can connect to."""
    # The folder's mode is 700. Sockets have short paths, so it is not in the sweep's folder.
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        yield f"unix:{folder}/oracle"


@contextlib.contextmanager
def serving(oracle: engine.Durable, address: str) -> Iterator[None]:
    """Serves an oracle to workers within the block.

    Raises:
      UserError: It is not possible to listen at the address.
    """
    # One thread, as in Keras Tuner's chief: it serves one worker after the other.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    engine.add_to_server(oracle, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise UserError(
            f"chief {address}: cannot listen there; expected an address of this machine and a free "
            "port"
        ) from error
    server.start()
    try:
        yield
    finally:
        server.stop(grace=1).wait()


def wait_for_workers(
    oracle: engine.Durable, own: Sequence[tuple[str, processes.Process]] = ()
) -> None:
    """Waits until the sweep has ended.

    Args:
      oracle: The oracle of the chief.
      own: Workers that this process has started, with their ids.

    Raises:
      UserError: This process has started workers, and all of them have died.
      Exception: What a worker's call raised here.
    """
    living = dict(own)
    while not oracle.finished:
        time.sleep(0.2)
        _check(oracle)
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
    _check(oracle)


def _check(oracle: engine.Durable) -> None:
    if oracle.error:
        raise oracle.error


def work(
    oracle: engine.Durable | engine.Client,
    worker: str,
    run: Callable[[Trial, threading.Event], dict[str, float]],
) -> None:
    """Runs trials until there are no more.

    Args:
      oracle: The oracle, or the client of a chief that has it.
      worker: The name of this worker.
      run: Called with a trial, and with an event that is set when nobody wants the trial any more;
        returns its metrics, or raises `keras_tuner.errors.FailedTrialError` or
        `processes.StoppedError`.

    Raises:
      UserError: The chief does not answer.
    """
    with contextlib.suppress(engine.EndedError):
        while (trial := oracle.create_trial(worker)).status != TrialStatus.STOPPED:
            if trial.status == TrialStatus.IDLE:
                time.sleep(1)
                continue
            try:
                with _heartbeats(oracle, trial.trial_id) as unwanted:
                    metrics = run(trial, unwanted)
                oracle.update_trial(trial.trial_id, metrics)
                trial.status = TrialStatus.COMPLETED
            except keras_tuner.errors.FailedTrialError as error:
                trial.status, trial.message = TrialStatus.FAILED, str(error)
            except processes.StoppedError:
                continue
            oracle.end_trial(trial)


@contextlib.contextmanager
def _heartbeats(oracle: engine.Durable | engine.Client, trial_id: str) -> Iterator[threading.Event]:
    """Tells the oracle that a trial runs; yields an event that says that it need not."""
    ended, unwanted = threading.Event(), threading.Event()

    def beat():
        while not ended.wait(_HEARTBEAT_SECONDS):
            try:
                wanted = oracle.get_trial(trial_id).status == TrialStatus.RUNNING
            except (engine.EndedError, UserError):  # The next call says why.
                wanted = False
            if not wanted:
                unwanted.set()
                return

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield unwanted
    finally:
        ended.set()
