"""The job files, as far as they can be run without a cluster."""

import json
import os
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from small_runs import ROOT, parse_flags

from trainers.hardware import clusters

pytestmark = pytest.mark.slow
SBATCH = sorted(ROOT.glob("*/jobs/*.sbatch"))
MANIFESTS = sorted(ROOT.glob("*/jobs/*.yaml"))

# Two tasks on this machine, with the variables that Slurm gives them.
SRUN = """#!/bin/bash
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2
for rank in 0 1; do SLURM_PROCID=$rank "$@" & tasks+=($!); done
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
"""


@pytest.fixture
def run_bash(tmp_path):
    """`run_bash(*argv, programs, **environment)`: a bash that finds these programs first."""

    def run(*argv, programs: dict[str, str], **environment: str) -> subprocess.CompletedProcess:
        for name, text in programs.items():
            program = tmp_path / name
            program.write_text(text)
            program.chmod(0o755)
        python = os.path.dirname(sys.executable)
        path = f"{tmp_path}:{python}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", *map(str, argv)],
            env=os.environ | {"PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.name)
def test_a_slurm_script_is_sound_bash(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True).stderr == b""


def test_fit_trains_as_slurm_would_start_it(run_bash, small_flags, tmp_path):
    flags = [*small_flags, f"--run_dir={tmp_path}/run", "--epochs=1"]
    job = str(os.getpid())  # Its ports follow from it.
    ended = run_bash("trainers/jobs/fit.sbatch", *flags, programs={"srun": SRUN}, SLURM_JOB_ID=job)
    assert (ended.returncode, ended.stderr) == (0, "")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(environment["cluster"]["addresses"]) == 2
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    "status, requeued", [(75, "requeue 7\n"), (143, "requeue 7\n"), (1, ""), (0, "")]
)
def test_fit_is_queued_again_when_it_was_preempted(run_bash, status, requeued):
    programs = {"srun": f"#!/bin/bash\nexit {status}\n", "scontrol": '#!/bin/bash\necho "$@"\n'}
    ended = run_bash("trainers/jobs/fit.sbatch", programs=programs, SLURM_JOB_ID="7")
    assert (ended.returncode, ended.stdout) == (status, requeued)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_valid(path):
    for manifest in yaml.safe_load_all(path.read_text()):
        assert kubernetes_validate.validate(manifest, "1.33", strict=True) == "1.33"


def test_fit_on_kubernetes_tells_each_pod_of_all(run_bash, monkeypatch):
    service, job = yaml.safe_load_all((ROOT / "trainers/jobs/fit.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    count, port = job["spec"]["completions"], service["spec"]["ports"][0]["port"]
    program = '#!/bin/bash\necho "$TF_CONFIG"\necho "$@" >&2\n'
    for index in range(count):
        ended = run_bash(
            "-c",
            *container["args"],
            programs={"python": program},
            JOB_COMPLETION_INDEX=str(index),
            **values,
        )
        monkeypatch.setenv("TF_CONFIG", ended.stdout)
        _, _, *flags = ended.stderr.split()
        flags = [flag for flag in flags if not re.match("--flagfile", flag)]
        cluster = clusters.from_environment(parse_flags(*flags))
        # A pod of a Job is named for it, and reached under the name of its Service.
        name, subdomain = job["metadata"]["name"], job["spec"]["template"]["spec"]["subdomain"]
        assert subdomain == service["metadata"]["name"]
        assert cluster.addresses == tuple(f"{name}-{i}.{subdomain}:{port}" for i in range(count))
        assert cluster.index == index
