"""The files of examples/cluster: manifests against schemas, scripts by shellcheck and with Slurm's commands stood in for.

The schema of a pod and of a volume claim is Kubernetes' own (``kubernetes-validate``). That of a RayJob is in no package
index: ``RAY_JOB`` has the fields of KubeRay's Go types (ray-operator/apis/ray/v1 and the release notes of 1.5.1) that
are used here.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from burnish.recipe.schema import load_recipe

CLUSTER = Path(__file__).parents[1] / "examples" / "cluster"
KUBERNETES = "1.34"

WHOLE, TEXT, YES_OR_NO, TEXTS = (
    {"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "boolean"},
    {"type": "object", "additionalProperties": {"type": "string"}},
)  # fmt: skip


def record(required: list[str], **fields: Any) -> dict[str, Any]:
    """Return the schema of an object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": required, "properties": fields}


RAY_JOB = record(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    # A name of RFC 1123 with room for what KubeRay appends: it refuses more than 47 characters.
    metadata=record(["name"], name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}),
    spec=record(
        ["rayClusterSpec", "entrypoint"],
        entrypoint=TEXT, entrypointNumCpus={"type": "number"}, entrypointNumGpus={"type": "number"},
        backoffLimit=WHOLE, shutdownAfterJobFinishes=YES_OR_NO, ttlSecondsAfterFinished=WHOLE,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        rayClusterSpec=record(
            ["headGroupSpec"],
            rayVersion=TEXT, authOptions=record(["mode"], mode={"enum": ["token", "disabled"]}),
            headGroupSpec=record(["rayStartParams", "template"], rayStartParams=TEXTS, template={"type": "object"}),
            workerGroupSpecs={
                "type": "array",
                "items": record(
                    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                    groupName=TEXT, replicas=WHOLE, minReplicas=WHOLE, maxReplicas=WHOLE, rayStartParams=TEXTS,
                    template={"type": "object"},
                ),
            },
        ),
    ),
)  # fmt: skip


def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the volume claim and the RayJob."""
    claim, job = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8"))
    return claim, job


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the head group and the worker groups."""
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def check_job(job: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError unless the RayJob and each of its pods match their schemas."""
    jsonschema.Draft202012Validator(RAY_JOB).validate(job)
    for group in groups(job):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_manifest_matches_its_schemas() -> None:
    claim, job = documents()
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    check_job(job)


@pytest.mark.parametrize("path", [
    ("spec", "entryPoint"), ("spec", "rayClusterSpec", "headGroupSpec", "templat"),
    ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volume"),
    ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resource"),
], ids=lambda path: path[-1])  # fmt: skip
def test_a_misspelt_field_is_found(path: tuple[Any, ...]) -> None:
    _, job = documents()
    changed = copy.deepcopy(job)
    target: Any = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = {}
    with pytest.raises(jsonschema.ValidationError):
        check_job(changed)


def test_the_manifest_fits_the_recipe_and_itself() -> None:
    recipe = load_recipe(CLUSTER / "recipe.toml")
    assert recipe.backend.use == "ray" and recipe.backend.address == "auto"
    claim, job = documents()
    head, samplers = groups(job)
    assert samplers["replicas"] == samplers["minReplicas"] == samplers["maxReplicas"] == recipe.backend.samplers
    # No sampler is placed beside the learner, and each fits a pod of its group.
    assert head["rayStartParams"]["num-cpus"] == "0"
    limits = samplers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert recipe.backend.cpus == int(limits["cpu"])
    # The driver runs in the head pod: what its command names is mounted there.
    _, script, settings, folder = job["spec"]["entrypoint"].split()
    pod = head["template"]["spec"]
    mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {(CLUSTER / Path(path).name).is_file() for path in (script, settings)} == {True}
    assert mounted[str(Path(script).parent)] == mounted[str(Path(settings).parent)] == "job"
    assert volumes[mounted[str(Path(folder).parent)]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("script", ["ray.sbatch", "run.sh"])
def test_a_script_passes_shellcheck(script: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, CLUSTER / script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert subprocess.run(["bash", "-n", CLUSTER / script]).returncode == 0


def test_the_job_asks_for_a_node_for_each_sampler() -> None:
    recipe, text = load_recipe(CLUSTER / "recipe.toml"), (CLUSTER / "ray.sbatch").read_text(encoding="utf-8")
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in text.splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert int(asked["nodes"]) == 1 + recipe.backend.samplers
    assert int(asked["cpus-per-task"]) == recipe.backend.cpus


COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then printf "a1\\na2\\na3\\n"; else echo "scontrol $*" >>log; fi',
    # Runs the command behind its options.
    "srun": 'echo "srun $*" >>log; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": 'echo "10.0.0.7 fd00::7"',
    "ray": 'if [ "$1" = status ]; then exit 0; fi; exec sleep 60',
    "burnish": (
        'echo "burnish $*, token $(wc -c <"$RAY_AUTH_TOKEN_PATH"), address $RAY_ADDRESS" >>log; '
        "mkdir -p runs/mine; : >runs/mine/recipe.toml; trap 'exit 143' TERM; : >ready; "
        "while :; do sleep 0.05; done"
    ),
}
"""Commands of Slurm, Ray and burnish, as far as the script uses them."""


def start_job(folder: Path) -> subprocess.Popen[str]:
    """Start the script in a folder whose commands are ``COMMANDS``, and wait until the run has begun."""
    (folder / "ready").unlink(missing_ok=True)
    environment = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "a[1-3]", "SLURM_CPUS_PER_TASK": "4", "RUN": "runs/mine", "VENV": "venv",
    }  # fmt: skip
    job = subprocess.Popen(
        ["bash", "examples/cluster/ray.sbatch"], cwd=folder, env=environment, text=True, start_new_session=True
    )
    while not (folder / "ready").exists():
        assert job.poll() is None, "the script ended before the run began"
        time.sleep(0.02)
    return job


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A checkout with commands that stand in for those of a cluster."""
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text("")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "cluster").symlink_to(CLUSTER)
    return tmp_path


def wait_for(folder: Path, *parts: str) -> None:
    """Wait for a line of the log with these parts; a step that Slurm runs in the background writes its own."""
    while not any(all(part in line for part in parts) for line in (folder / "log").read_text().splitlines()):
        time.sleep(0.02)


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_is_queued_again_and_resumes(slurm: Path) -> None:
    jobs = []
    try:
        jobs.append(start_job(slurm))
        jobs[0].send_signal(signal.SIGUSR1)
        assert jobs[0].wait() == 143
        wait_for(slurm, "--nodelist=a1 ray start --head", "--port=22345", "--num-cpus=0")
        wait_for(slurm, "--nodes=2 --ntasks=2 --exclude=a1 ray start --block --address=10.0.0.7:22345")
        wait_for(
            slurm, "burnish train examples/cluster/recipe.toml --run-dir runs/mine, token 64, address 10.0.0.7:22345"
        )
        wait_for(slurm, "scontrol requeue 12345")
        assert not list(slurm.glob(".ray-*")), "the token is left behind"
        jobs.append(start_job(slurm))
        jobs[1].terminate()  # as scancel does: the run saves and ends, and the job stays out of the queue
        assert jobs[1].wait() == 143
        wait_for(slurm, "burnish train --resume runs/mine, token 64")
        assert (slurm / "log").read_text().count("scontrol requeue") == 1
    finally:
        for job in jobs:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
