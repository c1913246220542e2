"""The learners' process group, with one member: what it adds up, and what it leaves as it was."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from burnish.backends.ray.group import LearnerGroup, Meeting, listening_at
from burnish.errors import BurnishError


def alone() -> LearnerGroup:
    with listening_at("127.0.0.1") as listening:
        meeting = Meeting("127.0.0.1", listening.getsockname()[1], 1, 30.0)
        return LearnerGroup(0, meeting, "127.0.0.1", cuda=False, listening=listening)


def test_the_hook_for_errors_stays_the_programs():
    before = sys.excepthook
    for _ in range(2):
        group = alone()
        assert sys.excepthook is before
        group.leave()
    assert sys.excepthook is before and not dist.is_initialized()


def test_a_second_group_is_refused_and_the_first_stays():
    group = alone()
    try:
        with pytest.raises(BurnishError, match=r"uses torch\.distributed already"):
            alone()
        assert dist.is_initialized()
    finally:
        group.leave()


def test_a_parameter_that_no_member_has_used_has_no_gradient():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    used.grad = torch.tensor([1.0, 2.0, 3.0])
    group = alone()
    try:
        group.add_up([used, unused])
    finally:
        group.leave()
    assert used.grad.tolist() == [1.0, 2.0, 3.0] and unused.grad is None
