"""``burnish doctor --ray`` on real clusters: one of its own, one without a token, and what a machine cannot do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from ray._common.network_utils import is_localhost
from ray._private.services import resolve_ip_for_localhost

from burnish.backends.ray.cluster import ALONE, QUIET
from burnish.backends.ray.cluster_check import _token
from tests.end_to_end.test_ray import left_behind

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]


def report(text: str) -> list[tuple[str, str, bool]]:
    return [(line["subject"], line["text"], line["fault"]) for line in json.loads(text)]


def test_a_cluster_of_its_own_is_checked_and_nothing_is_left(workspace, tiny):
    mark = uuid4().hex
    sets = ["--set", f"policy.model={tiny('llama')}", "--set", "backend.samplers=2", "--set", "backend.cpus=1"]
    done = workspace.ask("doctor", "--ray", "news", *sets, "--json", BURNISH_TEST_MARK=mark)
    assert (done.status, done.err) == (0, "")
    lines = report(done.out)
    assert not any(fault for _, _, fault in lines)
    texts = {subject: " | ".join(text for name, text, _ in lines if name == subject) for subject, _, _ in lines}
    assert "1 node, 0 lost, started on this machine" in texts["cluster"]
    assert texts["token"] == "a program without the cluster's token is refused"
    assert texts["samplers"].endswith("the cluster has room for them")
    here = texts["node 127.0.0.1"]
    assert f"python {sys.version.split()[0]}, ray " in here and "can be read" in here and "MB/s" in here
    assert left_behind(mark) == []


def test_a_model_that_is_not_there_is_a_problem(workspace):
    done = workspace.ask("doctor", "--ray", "--set", "policy.model=/nowhere", "--set", "backend.cpus=1")
    assert done.status == 1 and done.lines == ["burnish: the cluster has 1 problem"]
    assert "PROBLEM: model '/nowhere' cannot be read" in done.out


def test_an_address_where_nothing_answers(workspace):
    done = workspace.ask("doctor", "--ray", "--set", "backend.address=127.0.0.1:9")
    assert done.status == 1 and len(done.lines) == 1
    assert "backend.address = '127.0.0.1:9': nothing answers" in done.err


def test_a_recipe_belongs_to_ray(workspace):
    done = workspace.ask("doctor", "news")
    assert done.status == 2 and "burnish doctor --ray RECIPE" in done.err


@pytest.fixture(scope="module")
def open_cluster() -> Iterator[str]:
    """Yield the address of a cluster on loopback that asks for no token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # short, since the paths of Ray's sockets are
    command = [
        Path(sys.executable).parent / "ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=1",
        "--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}/ray",
    ]  # fmt: skip
    environment = {**os.environ, **QUIET, **ALONE, "RAY_AUTH_MODE": "disabled", "HOME": str(folder)}
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
    try:
        while "Ray runtime started" not in (folder / "log").read_text():
            assert head.poll() is None, (folder / "log").read_text()
        yield f"127.0.0.1:{port}"
    finally:
        children = psutil.Process(head.pid).children(recursive=True)
        head.kill()
        head.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):  # it may notice by itself
                child.kill()
        psutil.wait_procs(children)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_cluster_without_a_token_is_found_out_by_asking_it(open_cluster):
    line = _token(open_cluster, 60.0)
    assert line.fault and "the cluster answers programs without a token" in line.text


def test_a_cluster_on_loopback_is_not_waited_for_by_its_outer_address(workspace, open_cluster):
    if is_localhost(resolve_ip_for_localhost("127.0.0.1")):
        pytest.skip("NO OUTER ADDRESS HERE: Ray keeps 127.0.0.1")
    done = workspace.ask("doctor", "--ray", "--set", f"backend.address={open_cluster}")
    assert done.status == 1 and len(done.lines) == 1
    assert f"backend.address = '{open_cluster}': nothing answers at " in done.err and "where Ray looks" in done.err
