"""Several processes, on one machine or many, that train one model together.

Each has the same command and takes its replicas' shares of every batch. The first of them is the
chief: it alone reads and writes the run directory, and tells the others what they have to know.
TensorFlow's coordination service notices who dies or falls silent, and passes on why one has ended.
It has no public interface: what is used of it stands here.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pickle
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver
from tensorflow.python.eager import context

from pizza_steak.errors import UserError
from trainers.configuration import FitConfig
from trainers.hardware import preemption

# Seconds: what answers nothing for so long is gone, and how often an `Agreement` is sought.
_SILENCE, _AGREEING = 30.0, 1.0
# Between two agreements: calls may become slower all of a sudden.
_MOST_CALLS = 100
# The first port of a Slurm step's tasks on a node is one of these, by its number and its job's.
_SLURM_PORTS = range(10_000, 30_000)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes, and which of them this is.

    Attributes:
      addresses: Where others reach each, host:port, the chief's first.
      index: Which of them this one is.
      timeout: Seconds to wait for the others at first, and for one that is silent.
    """

    addresses: tuple[str, ...]
    index: int
    timeout: float

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def name(self, index: int) -> str:
        """One of them, for people."""
        title = f"worker {index}" if index else "the chief"
        return f"{title} ({self.addresses[index]})"

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """That of all their devices: of each the GPUs that it sees, else its CPU.

        Asked for first, it waits until all processes are there.

        Raises:
          UserError: Not all have come in time, or the port of this one is taken.
        """
        return _strategy(self)

    def from_chief(self, make: Callable[[], Any]) -> Any:
        """What `make` gives, which is called by the chief alone, for all that can be pickled."""
        content = pickle.dumps(make()) if self.is_chief else b""
        size = int(self._sum(tf.constant(len(content), tf.int64)))
        words = np.zeros(-(-size // 8), np.int64)
        words.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
        # The others add zeros. What reaches these ports can do worse than a pickle can.
        return pickle.loads(self._sum(tf.constant(words)).tobytes()[:size])

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Each number, summed over all processes: float32, and the same bits in all of them."""
        return self._sum(tf.constant(numbers, tf.float32)).tolist()

    def rows_of_all(self, rows: np.ndarray) -> np.ndarray:
        """The rows that each process has as many of, those of the chief first."""
        all_rows = np.zeros_like(rows, shape=(len(self.addresses), *rows.shape))
        all_rows[self.index] = rows
        return self._sum(tf.constant(all_rows)).reshape(-1, *rows.shape[1:])

    def _sum(self, tensor: tf.Tensor) -> Any:
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, tensor, axis=None).numpy()

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Ends the others where the block fails here, and tells in one line where it failed there.

        Raises:
          UserError: Another process has ended, or is silent.
        """
        try:
            yield
        except preemption.PreemptedError:  # Which all have agreed upon.
            raise
        except BaseException as error:
            if _is_of_others(error):
                reason = self._reason(str(error))
                self._tell(reason)
                raise UserError(reason) from error
            own = isinstance(error, UserError)
            text = str(error) if own else f"{type(error).__name__}; its own output tells more"
            self._tell(f"{self.name(self.index)} has ended: {text}")
            raise

    def _tell(self, reason: str) -> None:
        """Has the other processes fail at what they wait for, with this reason."""
        with contextlib.suppress(tf.errors.OpError):  # The chief may be gone, or have been told.
            text = json.dumps(" ".join(reason.split()))
            context.context().report_error_to_cluster(tf.errors.ABORTED, text)

    def _reason(self, message: str) -> str:
        """Why others have ended, by what TensorFlow says."""
        if told := re.search(r'Error reported from \S+ ("(?:[^"\\]|\\.)*")', message):
            return json.loads(told[1])
        return (
            f"{self.missing(message)} has ended or does not answer any more; its own output tells "
            "why. Start all of them again, with --resume=auto to go on"
        )

    def missing(self, message: str) -> str:
        """Who is not there, for people: by what TensorFlow says, and who listens at its port.

        Others may have ended since, because of that one.
        """
        task = r"/job:worker/\S*task:(\d+)"
        missing = [int(index) for index in re.findall(f"^{task}$", message, re.MULTILINE)]
        if not missing and not self.is_chief and "CoordinationService/Heartbeat" in message:
            missing = [0]  # Who would have answered it.
        if not missing:
            gone = self._unreachable()
            suspected = gone or {*range(len(self.addresses))} - {self.index}
            called = [int(index) for index in re.findall(f"remote target {task}", message)]
            called = [index for index in called if index in suspected]
            missing = called[:1] or ([0] if 0 in gone else sorted(gone))
        return ", ".join(map(self.name, missing)) or "another process"

    def _unreachable(self) -> set[int]:
        """Which of the processes listen at their port no more, or not yet."""

        def listens(address: str) -> bool:
            host, _, port = address.rpartition(":")
            try:
                with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                    return True
            except OSError:
                return False

        others = {i: address for i, address in enumerate(self.addresses) if i != self.index}
        with concurrent.futures.ThreadPoolExecutor(len(others)) as pool:
            listening = pool.map(listens, others.values())
        return {i for i, there in zip(others, listening, strict=True) if not there}


def _is_of_others(error: BaseException) -> bool:
    """Whether TensorFlow failed because of another process."""
    if isinstance(error, (tf.errors.AbortedError, tf.errors.UnavailableError)):
        return True
    reason = str(error) if isinstance(error, tf.errors.OpError) else ""
    return re.search("is aborted|[Cc]oordination|[Hh]eartbeat", reason) is not None


class Agreement:
    """Whether any process wants something, which all ask at the same step, about once a second.

    One for each kind of step: how often it is asked follows from how long they took.

    Args:
      cluster: The processes, None for this one alone, which is always asked.
    """

    def __init__(self, cluster: Cluster | None):
        self._cluster = cluster
        self._calls, self._due = 0, 1
        self._asked_at = time.monotonic()

    def reached(self, *wanted: bool, now: bool = False) -> tuple[bool, ...]:
        """What any process wants, or False where they are not asked at this call.

        To be called by all at the same steps.

        Args:
          wanted: By this one.
          now: Ask, whenever it was last done.
        """
        if self._cluster is None:
            return wanted
        self._calls += 1
        if self._calls < self._due and not now:
            return (False,) * len(wanted)
        seconds = time.monotonic() - self._asked_at
        *wanted, seconds = self._cluster.sum([*wanted, seconds / self._calls])
        # Of the sum, which all of them have, for the number has to be the same everywhere.
        self._due = int(_AGREEING * len(self._cluster.addresses) / max(seconds, 1e-6))
        self._due = min(max(1, self._due), _MOST_CALLS)
        self._calls, self._asked_at = 0, time.monotonic()
        return tuple(count > 0 for count in wanted)


def from_environment(config: FitConfig) -> Cluster | None:
    """The processes that TF_CONFIG, or the variables of a Slurm step, tell of; None for one alone.

    Raises:
      UserError: TF_CONFIG is damaged, or Slurm does not tell who is where; or several processes
        are asked for, and there is neither.
    """
    asked = config.devices.strategy
    if asked not in ("auto", "multi_worker"):
        return None
    addresses, index = _of_tf_config() or _of_slurm() or ((), 0)
    if len(addresses) > 1:
        return Cluster(addresses, index, timeout=config.cluster.cluster_timeout)
    if asked == "multi_worker":
        raise UserError(
            "strategy multi_worker: nothing tells of other processes; expected two or more in the "
            "variable TF_CONFIG, or several tasks of one srun"
        )
    return None


def _of_tf_config() -> tuple[tuple[str, ...], int] | None:
    """The addresses and the index that TF_CONFIG says.

    https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
    """
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
        jobs, task = config.get("cluster", {}), config.get("task", {})
        if not jobs:
            return None
        addresses = tuple(address for job in ("chief", "worker") for address in jobs.get(job, ()))
        kind, index = task["type"], int(task["index"])
        if set(jobs) - {"chief", "worker"} or len(jobs.get("chief", ())) > 1:
            raise ValueError(f"the jobs {', '.join(jobs)}")
        if not all(re.fullmatch(r".+:\d+", address) for address in addresses):
            raise ValueError(f"an address of {', '.join(addresses)}")
        if len(set(addresses)) < len(addresses) or not 0 <= index < len(jobs[kind]):
            raise ValueError(f"task {kind} {index} of {', '.join(addresses)}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"TF_CONFIG {text}: cannot be understood ({error}); expected "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, '
            "with another index for each"
        ) from error
    return addresses, index + (len(jobs.get("chief", ())) if kind == "worker" else 0)


def _of_slurm() -> tuple[tuple[str, ...], int] | None:
    """The addresses of the tasks of this Slurm step, and which of them this process is.

    TensorFlow's SlurmClusterResolver sorts hosts by their names, while Slurm numbers tasks along
    the list of nodes, in which node9 comes before node10; and it fails without an NVIDIA driver.
    """
    step = os.environ
    if int(step.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return None
    hosts = slurm_cluster_resolver.expand_hostlist(step["SLURM_STEP_NODELIST"])
    counts = slurm_cluster_resolver.expand_tasks_per_node(step["SLURM_STEP_TASKS_PER_NODE"])
    distribution = step.get("SLURM_DISTRIBUTION", "block")
    if max(counts) > 1 and distribution.startswith(("cyclic", "plane", "arbitrary")):
        raise UserError(
            f"SLURM_DISTRIBUTION {distribution}: not known which task is on which node; expected "
            "srun --distribution=block, or a task a node"
        )
    # Steps and jobs that share a node take ports of their own.
    number = int(step.get("SLURM_JOB_ID", 0)) * 31 + int(step.get("SLURM_STEP_ID", 0))
    first = _SLURM_PORTS[number * 64 % len(_SLURM_PORTS)]
    places = zip(hosts, counts, strict=True)
    addresses = tuple(f"{host}:{first + i}" for host, count in places for i in range(count))
    return addresses, int(step["SLURM_PROCID"])


@functools.cache
def _strategy(cluster: Cluster) -> tf.distribute.Strategy:
    """One for all of a process: what is made within one has no place in another."""
    tf.get_logger().setLevel("WARNING")  # Else it tells of devices, and of each tensor's sum.
    count, silence = len(cluster.addresses), min(_SILENCE, cluster.timeout / 2)
    service = context.context()
    service.configure_coordination_service(
        "standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(cluster.timeout * 1000),
        heartbeat_timeout_in_ms=int(silence * 1000),
        shutdown_barrier_timeout_in_ms=int(silence * 1000),
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=count)],
    )
    # Else the chief waits for the others after that, without a timeout.
    service.coordination_service.cluster_register_with_barrier = True
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
        rpc_layer="grpc",
    )
    try:
        with _signals_kept():
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except tf.errors.DeadlineExceededError as error:
        raise UserError(
            f"{cluster.missing(str(error))} has not come within {cluster.timeout:.0f} s; expected "
            "the same command there, and that its address can be reached from here "
            "(--cluster_timeout waits longer)"
        ) from error
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())
        port = "; expected a port that is free" if "gRPC server" in reason else ""
        raise UserError(
            f"{cluster.name(cluster.index)}: cannot take part ({reason}){port}"
        ) from error
    with cluster.ending_together():
        _check_same_devices(cluster, strategy.extended.worker_devices)
    return strategy


def _check_same_devices(cluster: Cluster, names: Sequence[str]) -> None:
    """Checks that this process computes with what the chief does: else both would wait for ever.

    Args:
      cluster: The processes.
      names: TensorFlow's, of the devices of this one.

    Raises:
      UserError: It does not.
    """
    kinds = [tf.DeviceSpec.from_string(name).device_type for name in names]
    mine = f"{len(kinds)} {kinds[0]}"
    if cluster.is_chief:
        context.context().set_config_key_value("devices", mine)
        return
    chiefs = context.context().get_config_key_value("devices", int(cluster.timeout * 1000))
    if chiefs != mine:
        raise UserError(
            f"devices {mine}: differ from the chief's, {chiefs}; expected as many of one kind in "
            "every process (--devices)"
        )


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keeps what TensorFlow takes from Python while it waits for the others: Ctrl-C and SIGTERM.

    The first ends the process at once. The second waits until the others are there, or have not
    come in time: TensorFlow has a handler of its own for it, which does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)
    terminated = signal.getsignal(signal.SIGTERM)
    with preemption.sigterm_kept():
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, interrupted)
            signal.signal(signal.SIGTERM, terminated)
