"""The two ends of a remote sampler: shares of the prompts, and calls in order."""

from __future__ import annotations

import os

import pytest

from burnish.backends.ray import sampler as driver
from burnish.backends.ray.cluster import sampler_threads
from burnish.backends.ray.worker import ENVIRONMENT, SamplerProcess
from burnish.recipe.backend import BackendSection
from burnish.types import Prompt


@pytest.mark.parametrize(
    ("prompts", "parts", "sizes"),
    [(8, 2, [4, 4]), (8, 3, [3, 3, 2]), (2, 3, [1, 1]), (1, 1, [1]), (7, 4, [2, 2, 2, 1])],
)
def test_shares_are_even_and_in_order(prompts, parts, sizes):
    every = [Prompt(str(number), "") for number in range(prompts)]
    shares = driver.split_evenly(every, parts)
    assert [len(share) for share in shares] == sizes
    assert [prompt for share in shares for prompt in share] == every


def test_a_process_refuses_an_older_call(monkeypatch):
    for name in (*ENVIRONMENT, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    process = SamplerProcess(3, {"TOKENIZERS_PARALLELISM": "true"})
    assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ["OMP_WAIT_POLICY"] == "passive"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    process._enter(4)
    process._enter(4)
    with pytest.raises(RuntimeError, match="call 3 came after call 4"):
        process._enter(3)


def test_threads_of_a_sampler(monkeypatch):
    from burnish.backends.ray import cluster

    monkeypatch.setattr(cluster, "cores", lambda: 8)
    given = {"use": "ray"}
    assert sampler_threads(BackendSection(**given)) == 8
    assert sampler_threads(BackendSection(**given, samplers=3)) == 2
    assert sampler_threads(BackendSection(**given, samplers=20)) == 1
    assert sampler_threads(BackendSection(**given, address="auto")) == 1
    assert sampler_threads(BackendSection(**given, address="auto", cpus=4)) == 4
