"""Two hosts on one machine, in network namespaces: a cluster that finishes the news job, and goes on when one is cut off.

``python -m bench.two_hosts``, as root on Linux with ``ip``. Each host has an address of its own on a virtual cable, one
a Ray head with room for two samplers, the other a worker node with room for one; the cluster has a token. The news job
runs twice with two samplers: whole, and with the second host's cable pulled after a step. The samples of both runs must
be equal to the byte.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from burnish.run.folder import read_lines

HOSTS = {"burnish-a": "10.213.7.1", "burnish-b": "10.213.7.2"}
"""Network namespaces and their addresses; the first has the head and the driver."""
HEAD, WORKER = HOSTS
ADDRESS = f"{HOSTS[HEAD]}:6379"
RAY = str(Path(sys.executable).parent / "ray")
STARTED, PATIENCE = "Ray runtime started", 60.0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def network() -> Iterator[None]:
    """Make the two namespaces and the cable between them, and remove them with all that runs in them."""
    for host in HOSTS:
        ip("netns", "add", host)
    try:
        ip("link", "add", "cable", "netns", HEAD, "type", "veth", "peer", "name", "cable", "netns", WORKER)
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", host, "link", "set", device, "up")
            ip("-n", host, "route", "add", "default", "dev", "cable")
        yield
    finally:
        for host in HOSTS:
            for process in inside(host):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            ip("netns", "delete", host)


def inside(host: str) -> list[psutil.Process]:
    """Return the processes of a host."""
    listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=True).stdout
    processes = []
    for number in map(int, listed.split()):
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(number))
    return processes


def start(host: str, command: Sequence[str], environment: dict[str, str], log: IO[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *command], env=environment, stdout=log, stderr=subprocess.STDOUT
    )


def started_node(host: str, folder: Path, environment: dict[str, str], *options: str) -> None:
    """Start a host's part of the cluster, and wait until it says so."""
    path = folder / f"{host}.log"
    command = [
        RAY,
        "start",
        "--block",
        f"--node-ip-address={HOSTS[host]}",
        "--object-store-memory=1500000000",
        *options,
    ]
    with path.open("w") as log:
        node = start(host, command, environment, log)
    deadline = time.monotonic() + PATIENCE
    while STARTED not in path.read_text():
        if node.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{host} did not start:\n{path.read_text()}")
        time.sleep(0.1)


def samplers(host: str) -> int:
    """Return how many samplers a host runs."""
    count = 0
    for process in inside(host):
        with suppress(psutil.Error):
            count += any("SamplerProcess" in part for part in process.cmdline())
    return count


def rows(run: Path) -> list[dict[str, object]]:
    path = run / "metrics.jsonl"
    return list(read_lines(path)) if path.exists() else []


def news(folder: Path, name: str, steps: int, environment: dict[str, str], cut_after: int | None) -> Path:
    """Run the news job, and pull the cable of the second host after a step. Return the run folder."""
    run, path = folder / name, folder / f"{name}.log"
    settings = {
        "steps": steps, "backend.use": "ray", "backend.address": ADDRESS, "backend.samplers": 2, "backend.cpus": 1,
        "backend.placement": "spread",
        "evaluation.prompts": 8,
    }  # fmt: skip
    sets = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    begin = time.monotonic()
    with path.open("w") as log:
        command = [sys.executable, "-m", "burnish", "train", "news", "--run-dir", str(run), "--quiet", *sets]
        driver = start(HEAD, command, environment, log)
    seen = False
    while driver.poll() is None:
        if not seen and rows(run):
            seen = True
            print(f"{name}: samplers on the two hosts: {[samplers(host) for host in HOSTS]}", flush=True)
        if cut_after is not None and len(rows(run)) >= cut_after:
            cut_after = None
            ip("-n", WORKER, "link", "set", "cable", "down")
            print(f"{name}: {WORKER} cut off {time.monotonic() - begin:.0f} s after the start", flush=True)
        time.sleep(0.1)
    if driver.returncode:
        raise SystemExit(f"{name} ended with status {driver.returncode}:\n{path.read_text()}")
    print(f"{name}: {len(rows(run))} steps, {time.monotonic() - begin:.0f} s", flush=True)
    warnings = run / "warnings.jsonl"
    for row in read_lines(warnings) if warnings.exists() else ():
        print(f"{name}: step {row['step']}: {row['text']}", flush=True)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cut-after", type=int, default=2)
    options = parser.parse_args()
    if os.geteuid() or shutil.which("ip") is None:
        raise SystemExit("needs root and the program ip (iproute2)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the namespaces are removed
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="two-") as name, network():
        folder = Path(name)
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        environment = {
            **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        temporary = f"--temp-dir={folder}/ray"
        started_node(
            HEAD, folder, environment, "--head", "--port=6379", "--num-cpus=2", "--include-dashboard=false", temporary
        )
        started_node(WORKER, folder, environment, f"--address={ADDRESS}", "--num-cpus=1")
        check = [sys.executable, "-m", "burnish", "doctor", "--ray", "news", "--set", f"backend.address={ADDRESS}"]
        checked = start(HEAD, [*check, "--set", "backend.samplers=2"], environment, sys.stdout).wait()
        print(f"doctor: status {checked}", flush=True)
        whole = news(folder, "whole", options.steps, environment, None)
        cut = news(folder, "cut", options.steps, environment, options.cut_after)
        same = (whole / "samples.jsonl").read_bytes() == (cut / "samples.jsonl").read_bytes()
        print(f"the samples of both runs are equal to the byte: {same}", flush=True)
        if checked or not same:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
