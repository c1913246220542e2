"""A connection to a Ray cluster: one of this machine, for one run, or one that is there already."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from burnish.backends.ray.placement import bundles
from burnish.errors import BurnishError, one_line
from burnish.recipe.backend import BackendSection
from burnish.system.environment import environment_variables
from burnish.system.optional_packages import needed

if TYPE_CHECKING:
    import psutil

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0"}
"""No usage statistics, and no advice about its own versions."""
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""What Ray sets where it supports one machine only: its processes then listen on loopback, on Linux as well."""
PREFIX, LOCK = "burnish-ray-", "lock"
"""The folder of a local cluster, and the file in it that its driver locks."""
NEW = 3600.0
"""Seconds in which a folder without a held lock may be one that is just being made."""
LONGEST_FOLDER = 40
"""Characters. Ray's sockets are inside the folder, and a socket's path has at most 107."""
SPINS = "20000"
"""Times that a thread looks for work before it sleeps. Sleeping at once makes sampling a quarter slower."""
PATIENCE = 5.0
"""Seconds that a host has to answer, and a local cluster's processes to end before they are killed."""


@contextmanager
def connected(backend: BackendSection) -> Iterator[Any]:
    """Connect this process to a cluster and yield the module ``ray``; a cluster that was started is stopped at the end.

    Raises InputError if the extra ``ray`` is not installed, and BurnishError if there is no connection.
    """
    with _own_signals(), environment_variables(QUIET), _ray_quiet():
        ray = needed("ray", "ray", 'backend.use = "ray"')
    if ray.is_initialized():  # the program's own connection, which it may need afterwards
        yield ray
        return
    with _not_printing():
        yield from _started(ray, backend) if backend.address is None else _joined(ray, backend)


def process_environment(backend: BackendSection, offline: bool) -> dict[str, str]:
    """Return what a process of the run has in its environment beyond what every one has."""
    environment = {"HF_HUB_OFFLINE": "1"} if offline else {}
    if not backend.max_staleness:
        # Samplers and learners take turns: a wait between two operations, 0.4 ms at most, takes a core from nobody.
        environment["GOMP_SPINCOUNT"] = SPINS
    return environment


def own_address(ray: Any) -> str:
    """Return this machine's address in the cluster."""
    own = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == own)


def _joined(ray: Any, backend: BackendSection) -> Iterator[Any]:
    _refuse_unreachable(str(backend.address))
    try:
        with _own_signals(), environment_variables(QUIET), _ray_quiet():
            _read_environment()
            ray.init(address=backend.address, **_silent())
    except Exception as error:
        raise BurnishError(
            f"backend.address = '{backend.address}': no connection to this cluster ({type(error).__name__}: "
            f"{one_line(error)[:300]}); if it has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from error
    try:
        yield ray
    finally:
        with _own_signals():
            ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Raise BurnishError if nothing listens where Ray will look for a cluster: Ray itself would wait for minutes."""
    reached = address
    if "://" not in address:
        with suppress(Exception):  # Ray says what is wrong with an address
            # "auto" is the last cluster of this machine, and 127.0.0.1 the machine's outer address.
            found = import_module("ray._private.services").canonicalize_bootstrap_address(address)
            reached = str(found or address)
    host, _, port = reached.rpartition(":")
    if not host or not port.isdecimal() or "://" in reached:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        there = "there" if reached == address else f"at {reached}, where Ray looks for it"
        raise BurnishError(
            f"backend.address = '{address}': nothing answers {there} ({error}): is it `ray start`'s?"
        ) from error


def _started(ray: Any, backend: BackendSection) -> Iterator[Any]:
    """Start a cluster that only this user can reach: on loopback, with a token, in a folder of its own."""
    parent = _short_folder()
    remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire()
        token = folder / "token"
        token.write_text(secrets.token_hex(32), encoding="ascii")
        token.chmod(0o600)
        environment = {**QUIET, **ALONE, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        with environment_variables(environment), _on_loopback():
            try:
                with _own_signals(), _ray_quiet():
                    cpus = sum(one.cpus for one in bundles(backend)[0])
                    ray.init(
                        address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=str(folder), **_silent()
                    )
            except Exception as error:
                raise BurnishError(
                    f"no Ray cluster could be started on this machine ({type(error).__name__}: {one_line(error)[:300]})"
                ) from error
            yield ray
    finally:
        _stop(ray, folder)
        lock.release()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Apply ``ALONE`` and the token to this process, where Ray has read its environment already."""
    constants = import_module("ray._private.ray_constants")
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
    _read_environment()
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before  # type: ignore[attr-defined]


@contextmanager
def _not_printing() -> Iterator[None]:
    """Keep standard output for results: Ray prints on it that a process died, even with ``log_to_driver=False``."""
    worker: Any = import_module("ray._private.worker")
    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *arguments, **options: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _read_environment() -> None:
    """Let Ray's compiled part read its settings and the token again: it keeps those of its import (docs/lessons.md)."""
    compiled = import_module("ray._raylet")
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


def _stop(ray: Any, folder: Path) -> None:
    """Disconnect, end every process of the local cluster, and delete its folder."""
    import psutil

    processes = _processes_of(folder)
    try:
        with _own_signals():
            ray.shutdown()
    finally:
        _, left = psutil.wait_procs(processes, timeout=PATIENCE)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Return this process's children that name the folder, and theirs."""
    import psutil

    found: dict[int, psutil.Process] = {}
    with suppress(psutil.Error):
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if any(str(folder) in part for part in child.cmdline()):
                    found |= {one.pid: one for one in (child, *child.children(recursive=True))}
    return list(found.values())


def remove_abandoned(parent: Path) -> None:
    """Delete the folders of local clusters whose driver was killed: nobody holds their lock, and they are not new.

    Only of this user: another could have put a link in place of the lock.
    """
    for folder in parent.glob(f"{PREFIX}*") if os.name == "posix" else ():
        with suppress(OSError, Timeout):
            held = folder / LOCK
            own = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            if own and held.is_file() and time.time() - held.stat().st_mtime > NEW:
                with FileLock(held, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> Path:
    usual = tempfile.gettempdir()
    return Path(usual if len(f"{usual}/{PREFIX}12345678") <= LONGEST_FOLDER else "/tmp")


def _silent() -> dict[str, Any]:
    return {"namespace": "burnish", "log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this process does at SIGINT and SIGTERM: Ray sets handlers of its own, which would end it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def _ray_quiet() -> Iterator[None]:
    """Let Ray start without its warnings about versions to come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
