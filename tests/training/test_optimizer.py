"""AdamW: the bits of torch's own, and its quick start."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from burnish.recipe.schema import Optimizer
from burnish.training.optimizer import build_optimizer, set_learning_rate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_has_the_bits_of_torchs_own(dtype):
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 7), (3,), (), (4, 2))]
    ours, theirs = ([nn.Parameter(one.clone()) for one in start] for _ in range(2))
    settings = Optimizer(learning_rate=3e-3, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.05)
    model = SimpleNamespace(trainable=lambda: {f"p{index}": one for index, one in enumerate(ours)})
    optimizer = build_optimizer(model, settings, {"p1": 6e-3})
    groups = [{"params": [theirs[0], theirs[2], theirs[3]]}, {"params": [theirs[1]], "factor": 2.0}]
    expected = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.05, fused=True)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator).to(dtype)
            other.grad = one.grad.clone()
        if step < 2:  # a parameter without a gradient is left alone, and counts its own steps
            ours[3].grad = theirs[3].grad = None
        for each in (optimizer, expected):
            set_learning_rate(each, 1e-3 * (step + 1))
            each.step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        state = expected.state[other]
        assert optimizer.state[one].keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in optimizer.state[one].items())
    optimizer.zero_grad()
    assert all(one.grad is None for one in ours)


@pytest.mark.slow
def test_a_step_does_not_import_torchs_compiler():
    code = """
import sys, torch
from types import SimpleNamespace
from burnish.recipe.schema import Optimizer
from burnish.training.optimizer import build_optimizer
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
optimizer = build_optimizer(SimpleNamespace(trainable=lambda: {"weight": weight}), Optimizer(learning_rate=0.1))
optimizer.step()
assert weight.max() < 1 and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
