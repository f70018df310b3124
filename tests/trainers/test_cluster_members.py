"""Who the processes of a cluster are, as TF_CONFIG and Slurm tell, and which of them is gone."""

import json
import os
from collections.abc import Callable

import pytest
from small_runs import parse_flags

from pizza_steak.errors import UserError
from trainers.hardware import clusters

# As TensorFlow says it, of three processes the second of which died or fell silent.
REFUSED = (
    "Collective ops is aborted by: failed to connect to all addresses\nAdditional GRPC error "
    "information from remote target /job:worker/replica:0/task:{} while calling "
    "/tensorflow.WorkerService/CompleteInstance:\n:UNKNOWN:Error received from peer"
)
UNHEALTHY = (
    "Collective ops is aborted by: The following tasks are unhealthy (stopped sending heartbeats)"
    ":\n/job:worker/replica:0/task:{}\nThe tasks have crashed"
)
NO_HEARTBEAT = (
    "Collective ops is aborted by: Deadline Exceeded\n\nRPC: "
    "/tensorflow.CoordinationService/Heartbeat\nThe error could be from a previous operation."
)


@pytest.mark.parametrize(
    "message, gone, name",
    [
        (REFUSED.format(1), {1}, "worker 1 (b:1)"),
        # The chief has ended since, because of it.
        (REFUSED.format(1), {0, 1}, "worker 1 (b:1)"),
        (REFUSED.format(0), {0}, "the chief (a:1)"),
        ("Connection reset by peer", {0, 1}, "the chief (a:1)"),
        ("Connection reset by peer", {1}, "worker 1 (b:1)"),
        (UNHEALTHY.format(1), set(), "worker 1 (b:1)"),
        (UNHEALTHY.format(1), {0}, "worker 1 (b:1)"),
        (NO_HEARTBEAT, set(), "the chief (a:1)"),
        ("Connection reset by peer", set(), "another process"),
    ],
)
def test_the_process_that_is_gone_is_named(monkeypatch, message, gone, name):
    monkeypatch.setattr(clusters.Cluster, "_unreachable", lambda self: gone)
    assert clusters.Cluster(("a:1", "b:1", "c:1"), 2, 60).missing(message) == name


@pytest.mark.parametrize("message", [NO_HEARTBEAT, REFUSED.format(0)])
@pytest.mark.parametrize("gone, name", [({2}, "worker 2 (c:1)"), (set(), "another process")])
def test_the_chief_does_not_name_itself(monkeypatch, message, gone, name):
    monkeypatch.setattr(clusters.Cluster, "_unreachable", lambda self: gone)
    assert clusters.Cluster(("a:1", "b:1", "c:1"), 0, 60).missing(message) == name


@pytest.fixture
def told(monkeypatch) -> Callable[..., clusters.Cluster | None]:
    """`told(*flags, **environment)`: the processes that a command finds."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TF_CONFIG"))]:
        monkeypatch.delenv(name)

    def find(*flags: str, **environment: str) -> clusters.Cluster | None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return clusters.from_environment(parse_flags(*flags))

    return find


STEP = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[9-10],login",
    "SLURM_STEP_TASKS_PER_NODE": "2,1(x2)",
    "SLURM_JOB_ID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
}


def tf_config(index: int = 0, kind: str = "worker", **jobs: list[str]) -> str:
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    "config, expected",
    [
        (tf_config(1, worker=["a:1", "b:2"]), (("a:1", "b:2"), 1)),
        (tf_config(1, worker=["b:2", "c:3"], chief=["a:1"]), (("a:1", "b:2", "c:3"), 2)),
        (tf_config(0, "chief", worker=["b:2"], chief=["a:1"]), (("a:1", "b:2"), 0)),
    ],
)
def test_tf_config_names_the_processes_the_chief_first(told, config, expected):
    cluster = told("--cluster_timeout=7", TF_CONFIG=config)
    assert (cluster.addresses, cluster.index) == expected
    assert cluster.timeout == 7


@pytest.mark.parametrize("config", ["", "{}", tf_config(worker=["a:1"])])
def test_one_process_is_no_cluster(told, config):
    assert told(TF_CONFIG=config) is None


def test_other_strategies_leave_tf_config_alone(told):
    assert told("--strategy=mirrored", TF_CONFIG=tf_config(worker=["a:1", "b:2"])) is None


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        tf_config(2, worker=["a:1", "b:2"]),
        tf_config(-1, worker=["a:1", "b:2"]),
        tf_config(0, "chief", worker=["a:1", "b:2"]),
        tf_config(0, worker=["a:1", "a:1"]),
        tf_config(0, worker=["a", "b:2"]),
        tf_config(0, worker=["a:1"], ps=["b:2"]),
        json.dumps({"cluster": {"worker": ["a:1", "b:2"]}}),
    ],
)
def test_a_damaged_tf_config_is_refused(told, config):
    with pytest.raises(UserError, match=r"TF_CONFIG .*: cannot be parsed .*; expected"):
        told(TF_CONFIG=config)


@pytest.mark.parametrize("config", ["", tf_config(worker=["a:1"])])
def test_multi_worker_wants_to_be_told_of_others(told, config):
    with pytest.raises(UserError, match=r"strategy multi_worker: nothing names .*TF_CONFIG"):
        told("--strategy=multi_worker", TF_CONFIG=config)


def test_slurm_numbers_tasks_along_its_list_of_nodes(told):
    cluster = told(**STEP, SLURM_DISTRIBUTION="block:cyclic")
    assert cluster.addresses == ("gpu9:15952", "gpu9:15953", "gpu10:15952", "login:15952")
    assert cluster.index == 2
    assert told(SLURM_STEP_NUM_TASKS="1") is None


def test_slurm_steps_have_ports_of_their_own(told):
    steps = [
        told(**STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).addresses
        for job in range(1000, 1008)
        for step in range(4)
    ]
    assert len({address for addresses in steps for address in addresses}) == 32 * 4


def test_where_slurm_put_the_tasks_has_to_be_known(told):
    with pytest.raises(UserError, match=r"SLURM_DISTRIBUTION cyclic: .*--distribution=block"):
        told(**STEP, SLURM_DISTRIBUTION="cyclic")
    one_a_node = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}
    cluster = told(**STEP | one_a_node, SLURM_DISTRIBUTION="cyclic")
    assert cluster.addresses == ("gpu9:15952", "gpu10:15952", "login:15952")
