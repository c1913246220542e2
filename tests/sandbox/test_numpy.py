"""numpy in the sandbox: off by default, without any file of its packages readable, and within the same limits."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from burnish.errors import BurnishError, InputError
from burnish.rewards.library.code import unit_tests
from burnish.rewards.registry import REWARDS
from burnish.sandbox.answers import Call, run_tests
from burnish.sandbox.layers import Unavailable, get_runner
from burnish.sandbox.names import NONE
from burnish.sandbox.run import Limits, run
from burnish.types import Completion, Prompt

NUMPY = Limits(numpy=True)
USES = """
import numpy as np
from numpy.linalg import solve
from numpy.polynomial import Polynomial
import numpy.fft, numpy.random, numpy.ma

def total(rows):
    return np.array(rows).sum()

def product(rows):
    return np.array(rows) @ np.array(rows)

def root(a, b):
    return {"x": solve(np.array(a, float), np.array(b, float)), "is": np.bool_(True)}

def counts(values):
    return dict(zip(*np.unique(values, return_counts=True)))

def draw():
    return [np.random.randint(1 << 30), int(np.random.default_rng(1).integers(1 << 30))]
"""


def test_programs_use_numpy(layer):
    drawn = numpy.random.RandomState(0).randint(1 << 30), numpy.random.default_rng(1).integers(1 << 30)
    tests = [
        Call("total", ([1, 2, 3],), 6),
        Call("product", ([[1, 2], [3, 4]],), [[7, 10], [15, 22]]),
        Call("root", ([[2, 0], [0, 4]], [2, 4]), {"x": [1.0, 1.0], "is": True}),
        Call("counts", ([3, 1, 3],), {"1": 1, "3": 2}),
        # The seed of every program is that of a fresh numpy with seed 0.
        Call("draw", (), [int(one) for one in drawn]),
    ]
    for _ in range(2):
        outcome = run_tests(USES, tests, limits=NUMPY, layer=layer)
        assert outcome.passed == (True,) * 5, outcome.verdict


def test_without_the_key_there_is_no_numpy(layer):
    assert "No module named 'numpy'" in run("import numpy", layer=layer).stderr
    assert run("import numpy", limits=NUMPY, layer=layer).status == "ok"
    assert "No module named 'numpy'" in run("import numpy", layer=layer).stderr, "its runner is another"


HOSTILE = """
import os, sys, numpy
folder = {folder!r}
print([name for name in sys.path if "packages" in name], [name for name in os.environ if "THREADS" in name])
for attempt in (
    lambda: open(folder + "/numpy/__init__.py").read(),
    lambda: open(folder + "/torch/__init__.py").read(),
    lambda: open("/etc/passwd").read(),
    lambda: numpy.fromfile("/etc/passwd"),
    lambda: numpy.load("/proc/self/maps", allow_pickle=True),
    lambda: numpy.memmap("/etc/passwd", mode="r"),
    lambda: os.fork(),
    lambda: __import__("socket").socket(),
    lambda: __import__("threading").Thread(target=print).start(),
    lambda: __import__("torch"),
):
    try:
        print("LEAK", attempt())
    except (OSError, ImportError, RuntimeError) as error:
        print(type(error).__name__)
"""


def test_numpy_opens_no_path_and_loosens_no_limit(layer):
    verdict = run(HOSTILE.format(folder=str(Path(numpy.__file__).parents[1])), limits=NUMPY, layer=layer)
    assert verdict.status == "ok" and "LEAK" not in verdict.stdout, verdict
    assert verdict.stdout.startswith("[] []\n") and len(verdict.stdout.splitlines()) == 11
    large = run("import numpy\nnumpy.ones(1 << 25)", limits=NUMPY, layer=layer)
    assert large.status in ("memory", "error") and "emory" in large.stderr + large.reason
    slow = Limits(seconds=0.3, numpy=True)
    assert run("import numpy\nwhile True: numpy.ones(9).sum()", limits=slow, layer=layer).status == "timeout"


def test_the_layer_wasm_refuses_numpy():
    with pytest.raises(Unavailable, match=r"^the layer wasm has no numpy$"):
        get_runner("wasm", numpy=True)
    message = r"sandbox = \"wasm\" has no numpy: set \"namespaces\" or \"landlock\", or numpy = false"
    with pytest.raises(InputError, match=message):
        REWARDS.get("unit_tests").check_options({"numpy": True, "sandbox": "wasm"})


def test_without_a_sandbox_there_is_numpy_too():
    assert run("import numpy\nprint(numpy.arange(3).sum())", limits=NUMPY, layer=NONE).stdout == "3\n"


def test_the_reward_takes_the_key(layer):
    prompt = Prompt("p", "", None, {"tests": {"calls": [{"function": "total", "arguments": [[1, 2]], "expected": 3}]}})
    answer = Completion(prompt, (0,), (1,), f"```python\n{USES}\n```", (0.0,), "stop")
    assert unit_tests([answer], numpy=True, sandbox=layer) == [1.0]
    assert unit_tests([answer], sandbox=layer) == [0.0]
    reward = REWARDS.get("unit_tests")
    assert reward.preflight({"numpy": True, "sandbox": layer})[0].endswith("seccomp, with numpy")
    with pytest.raises(BurnishError, match=r"numpy does not work with memory = 64 .*: set a larger one"):
        reward.preflight({"numpy": True, "memory": 64, "sandbox": layer})
