"""Clusters: several processes, on one machine or many, that train one model together.

All processes run the same command, and each takes its replicas' shares of every batch. The first is
the chief: only it reads and writes the run directory, and it tells the others what they need to
know. TensorFlow's coordination service notices processes that die or fall silent, and passes on the
reason. The service has no public interface; only this module uses it.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
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

# Seconds after which a silent process counts as dead, and between two rounds of an `Agreement`.
_SILENCE, _AGREEING = 30.0, 1.0
# The most calls between two rounds, because calls may suddenly become slower.
_MOST_CALLS = 100
# The numbers of a Slurm step and of its job choose the first port of its tasks on a node.
_SLURM_PORTS = range(10_000, 30_000)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a cluster.

    Attributes:
      addresses: The address host:port of each process, the chief's first.
      index: The index of this process.
      timeout: Seconds to wait for the other processes at the start, and for a silent process.
    """

    addresses: tuple[str, ...]
    index: int
    timeout: float

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def name(self, index: int) -> str:
        """Returns the name of a process, for messages."""
        title = f"worker {index}" if index else "the chief"
        return f"{title} ({self.addresses[index]})"

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """The strategy over the devices of all processes: their visible GPUs, or else their CPUs.

        The first access waits for all processes.

        Raises:
          UserError: Some process has not come in time, or the port of this process is in use.
        """
        return _strategy(self)

    def from_chief(self, make: Callable[[], Any]) -> Any:
        """Calls `make` in the chief, and returns its result in all processes; it is pickled."""
        content = pickle.dumps(make()) if self.is_chief else b""
        size = int(self._sum(tf.constant(len(content), tf.int64)))
        words = np.zeros(-(-size // 8), np.int64)
        words.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
        # The others add zeros. Unpickling is safe: whoever reaches these ports can do worse.
        return pickle.loads(self._sum(tf.constant(words)).tobytes()[:size])

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Returns each number summed over all processes: float32, with the same bits in each."""
        return self._sum(tf.constant(numbers, tf.float32)).tolist()

    def rows_of_all(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of all processes, those of the chief first; all have the same number."""
        all_rows = np.zeros_like(rows, shape=(len(self.addresses), *rows.shape))
        all_rows[self.index] = rows
        return self._sum(tf.constant(all_rows)).reshape(-1, *rows.shape[1:])

    def union(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the distinct numbers of all processes, int64 from 0 on, of shape (N,)."""
        most = self.rows_of_all(np.array([len(numbers)])).max()
        # Never empty: TensorFlow 2.21 crashes at the sum of empty tensors.
        padded = np.full(most + 1, -1)
        padded[: len(numbers)] = numbers
        return np.setdiff1d(self.rows_of_all(padded), [-1])

    def _sum(self, tensor: tf.Tensor) -> Any:
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, tensor, axis=None).numpy()

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Ends the other processes if the block fails here, and this one if it fails there.

        Raises:
          UserError: Another process has ended or is silent; names it and its reason.
        """
        try:
            yield
        except preemption.PreemptedError:  # All processes have agreed to end.
            raise
        except BaseException as error:
            if _is_of_others(error):
                reason = self._reason(str(error))
                self._tell(reason)
                raise UserError(reason) from error
            own = isinstance(error, UserError)
            text = str(error) if own else f"{type(error).__name__}; see its output"
            self._tell(f"{self.name(self.index)} has ended: {text}")
            raise

    def _tell(self, reason: str) -> None:
        """Makes the other processes fail at what they wait for, with this reason."""
        with contextlib.suppress(tf.errors.OpError):  # The chief may be gone, or know already.
            text = json.dumps(" ".join(reason.split()))
            context.context().report_error_to_cluster(tf.errors.ABORTED, text)

    def _reason(self, message: str) -> str:
        """Returns why other processes have ended, from TensorFlow's message."""
        if told := re.search(r'Error reported from \S+ ("(?:[^"\\]|\\.)*")', message):
            return json.loads(told[1])
        return (
            f"{self.missing(message)} has ended or does not answer; its output says why. Start all "
            "processes again, with --resume=auto to resume"
        )

    def missing(self, message: str) -> str:
        """Returns the names of missing processes, from TensorFlow's message and open ports.

        A process that has ended may have ended others since; only the first ones are named.
        """
        task = r"/job:worker/\S*task:(\d+)"
        missing = [int(index) for index in re.findall(f"^{task}$", message, re.MULTILINE)]
        if not missing and not self.is_chief and "CoordinationService/Heartbeat" in message:
            missing = [0]  # The chief answers heartbeats.
        if not missing:
            gone = self._unreachable()
            suspected = gone or {*range(len(self.addresses))} - {self.index}
            called = [int(index) for index in re.findall(f"remote target {task}", message)]
            called = [index for index in called if index in suspected]
            missing = called[:1] or ([0] if 0 in gone else sorted(gone))
        return ", ".join(map(self.name, missing)) or "another process"

    def _unreachable(self) -> set[int]:
        """Returns the indices of the other processes that do not listen at their port."""

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
    """Returns whether TensorFlow failed because of another process."""
    if isinstance(error, (tf.errors.AbortedError, tf.errors.UnavailableError)):
        return True
    reason = str(error) if isinstance(error, tf.errors.OpError) else ""
    return re.search("is aborted|[Cc]oordination|[Hh]eartbeat", reason) is not None


class Agreement:
    """Tells all processes what any of them wants, at the same step, about once a second.

    Each kind of step needs its own: the time of its steps sets how many pass between two rounds.

    Args:
      cluster: The processes; None for a lone process, which gets what it wants at every call.
    """

    def __init__(self, cluster: Cluster | None):
        self._cluster = cluster
        self._calls, self._due = 0, 1
        self._asked_at = time.monotonic()

    def reached(self, *wanted: bool, now: bool = False) -> tuple[bool, ...]:
        """Returns what any process wants, or False at a call between two rounds.

        All processes must call it at the same steps.

        Args:
          wanted: What this process wants.
          now: Make a round at this call in any case.
        """
        if self._cluster is None:
            return wanted
        self._calls += 1
        if self._calls < self._due and not now:
            return (False,) * len(wanted)
        seconds = time.monotonic() - self._asked_at
        *counts, seconds = self._cluster.sum([*wanted, seconds / self._calls])
        # From the sum, which is the same in all processes, as this number must be.
        self._due = int(_AGREEING * len(self._cluster.addresses) / max(seconds, 1e-6))
        self._due = min(max(1, self._due), _MOST_CALLS)
        self._calls, self._asked_at = 0, time.monotonic()
        return tuple(count > 0 for count in counts)


def from_environment(config: FitConfig) -> Cluster | None:
    """Returns the cluster that TF_CONFIG or a Slurm step's variables name; None for one process.

    Raises:
      UserError: TF_CONFIG cannot be parsed, Slurm does not say where its tasks are, or the flags
        ask for several processes and nothing names them.
    """
    asked = config.devices.strategy
    if asked not in ("auto", "multi_worker"):
        return None
    addresses, index = _of_tf_config() or _of_slurm() or ((), 0)
    if len(addresses) > 1:
        return Cluster(addresses, index, timeout=config.cluster.cluster_timeout)
    if asked == "multi_worker":
        raise UserError(
            "strategy multi_worker: nothing names other processes; expected two or more in the "
            "variable TF_CONFIG, or several tasks of one srun"
        )
    return None


def _of_tf_config() -> tuple[tuple[str, ...], int] | None:
    """Returns the addresses and the index from TF_CONFIG.

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
            f"TF_CONFIG {text}: cannot be parsed ({error}); expected "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, '
            "with another index in each process"
        ) from error
    return addresses, index + (len(jobs.get("chief", ())) if kind == "worker" else 0)


def _of_slurm() -> tuple[tuple[str, ...], int] | None:
    """Returns the addresses of the tasks of this Slurm step, and the index of this process.

    TensorFlow's SlurmClusterResolver (2.21) sorts hosts by name, but Slurm numbers tasks in the
    order of its node list, where node9 comes before node10. It also needs an NVIDIA driver.
    """
    step = os.environ
    if int(step.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return None
    hosts = slurm_cluster_resolver.expand_hostlist(step["SLURM_STEP_NODELIST"])
    counts = slurm_cluster_resolver.expand_tasks_per_node(step["SLURM_STEP_TASKS_PER_NODE"])
    distribution = step.get("SLURM_DISTRIBUTION", "block")
    if max(counts) > 1 and distribution.startswith(("cyclic", "plane", "arbitrary")):
        raise UserError(
            f"SLURM_DISTRIBUTION {distribution}: the node of each task is not known; expected "
            "srun --distribution=block, or one task per node"
        )
    # Steps and jobs that share a node need different ports.
    number = int(step.get("SLURM_JOB_ID", 0)) * 31 + int(step.get("SLURM_STEP_ID", 0))
    first = _SLURM_PORTS[number * 64 % len(_SLURM_PORTS)]
    places = zip(hosts, counts, strict=True)
    addresses = tuple(f"{host}:{first + i}" for host, count in places for i in range(count))
    return addresses, int(step["SLURM_PROCID"])


@functools.cache
def _strategy(cluster: Cluster) -> tf.distribute.Strategy:
    """Returns the one strategy of this process: variables of one cannot be used in another."""
    logger = tf.get_logger()
    logger.setLevel(
        max(logger.level, logging.WARNING)
    )  # It logs devices, and each sum of a tensor.
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
    # Without it, the chief waits for the others after that, without a timeout.
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
            "the same command there, and an address that can be reached from here "
            "(--cluster_timeout waits longer)"
        ) from error
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())
        port = "; expected a free port" if "gRPC server" in reason else ""
        raise UserError(
            f"{cluster.name(cluster.index)}: cannot take part ({reason}){port}"
        ) from error
    with cluster.ending_together():
        _check_same_devices(cluster, strategy.extended.worker_devices)
    return strategy


def _check_same_devices(cluster: Cluster, names: Sequence[str]) -> None:
    """Checks that this process has the devices that the chief has; otherwise both would hang.

    Args:
      cluster: The processes.
      names: TensorFlow's names of the devices of this process.

    Raises:
      UserError: The devices differ.
    """
    kinds = [tf.DeviceSpec.from_string(name).device_type for name in names]
    mine = f"{len(kinds)} {kinds[0]}"
    if cluster.is_chief:
        context.context().set_config_key_value("devices", mine)
        return
    chiefs = context.context().get_config_key_value("devices", int(cluster.timeout * 1000))
    if chiefs != mine:
        raise UserError(
            f"devices {mine}: the chief has {chiefs}; expected as many of the same kind in every "
            "process (--devices)"
        )


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keeps Ctrl-C and SIGTERM working while TensorFlow waits for the other processes.

    Ctrl-C ends the process at once. SIGTERM waits until the others have come or are late, because
    TensorFlow installs a handler of its own that does nothing.
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
