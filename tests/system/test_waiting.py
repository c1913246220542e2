"""Threads sleep while they wait where other programs are busy, and spin elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from burnish.system import clock, waiting


@pytest.fixture
def decide(monkeypatch):
    """Return a function that decides beside programs that use so many cores, and returns the choice and the message."""

    def run(used, *, loaded=False, machine=2, threads=2, **environment):
        monkeypatch.setattr(waiting, "cores", lambda: machine)
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
            monkeypatch.setenv(name, "")  # so that the end of the test restores it
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        modules = {name: module for name, module in sys.modules.items() if name != waiting.LIBRARY}
        monkeypatch.setattr(waiting.sys, "modules", modules | ({waiting.LIBRARY: None} if loaded else {}))
        messages: list[str] = []
        waiting.sleep_beside_busy_programs(messages.append, threads, lambda seconds: used)
        return os.environ.get("OMP_WAIT_POLICY"), messages

    return run


def test_a_busy_machine(decide) -> None:
    policy, messages = decide(1.04)
    assert policy == "passive" and len(messages) == 1 and "other programs use 1.0 cores" in messages[0]


@pytest.mark.parametrize(
    ("used", "machine", "threads", "policy"),
    [
        (3.0, 16, 8, None),  # eight cores are free for eight threads
        (8.4, 16, 8, None),
        (8.5, 16, 8, "passive"),
        (0.5, 16, 16, "passive"),
        (1.4, 2, 1, None),
    ],
)
def test_only_what_the_threads_want_counts(decide, used, machine, threads, policy) -> None:
    assert decide(used, machine=machine, threads=threads)[0] == policy


def test_without_a_number_in_the_recipe_it_is_torchs_own(decide, monkeypatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 16 if logical else 8)
    assert decide(4.0, machine=16, threads=None)[0] is None
    assert decide(4.0, machine=8, threads=None)[0] == "passive"
    assert decide(4.0, machine=8, threads=None, OMP_NUM_THREADS="3")[0] is None


@pytest.mark.parametrize("used", [0.0, 0.49, None])
def test_a_quiet_or_unknown_machine(decide, used) -> None:
    assert decide(used) == (None, [])


@pytest.mark.parametrize(
    ("options", "policy"),
    [({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "10"}, None), ({"loaded": True}, None)],
)
def test_a_users_choice_and_a_loaded_torch_are_left_alone(decide, options, policy) -> None:
    assert decide(2.0, **options) == (policy, [])


def test_a_busy_loop_is_seen() -> None:
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert (clock.busy_cores(1.0) or 0) > 0.3
    finally:
        loop.kill()
        loop.wait()
