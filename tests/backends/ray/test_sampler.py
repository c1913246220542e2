"""The two ends of a remote sampler: shares of the prompts, and calls in order."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from burnish.backends.ray import sampler as driver
from burnish.backends.ray.worker import ENVIRONMENT, SampledShare, SamplerProcess
from burnish.errors import BurnishError
from burnish.recipe.backend import BackendSection
from burnish.types import Completion, Group, Prompt, SamplingParams


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


class Recorder:
    """Samplers that keep what they are asked, and answer with what a table says."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, []

    def __len__(self) -> int:
        return self.count

    def prepare(self, setup):
        pass

    def put(self, value, step=0):
        return value

    def begin(self, setup, weights, requests, step):
        self.asked.append(requests)
        return requests

    def shares(self, requests):
        return [SampledShare(self.groups(one), 0.0, self.longer(one)) for one in requests]

    def groups(self, request):
        def completion(prompt, index):
            return Completion(
                prompt, (1,), (2, 3), f"{prompt.id}{index}", (-1.0, -1.0), "length", request.version, index
            )

        return tuple(
            Group(prompt, tuple(completion(prompt, index) for index in range(request.samples_per_prompt)))
            for prompt in request.prompts
        )

    def longer(self, request):
        some = zip(request.completions, request.numbers, strict=True)
        return tuple(replace(one, token_ids=(2, 3, 4), text=f"{one.text} {number}") for one, number in some)


@pytest.mark.parametrize("samplers", [1, 2, 3, 9])
def test_a_prompt_that_comes_again_stays_with_its_sampler_and_texts_go_on_with_their_own_numbers(samplers):
    class Nothing:
        def trainable(self):
            return {}

    prompts = [Prompt(name, name, position=str(place)) for place, name in enumerate("abacab")]
    recorder = Recorder(samplers)
    sampler = driver.RemoteSampler(recorder, Nothing(), None)
    options = {"sampling": SamplingParams(3), "seed": (0, 1), "policy_version": 0}
    groups = sampler.groups(sampler.begin(prompts, samples_per_prompt=2, limit=2, **options))
    assert [group.prompt.position for group in groups] == list("012345")
    assert all(one.prompt is group.prompt for group in groups for one in group.completions)
    assert [group.completions[1].text for group in groups] == ["a1", "b1", "a1", "c1", "a1", "b1"]
    holders = [[prompt.id for prompt in request.prompts] for request in recorder.asked[-1]]
    assert sorted(itertools.chain(*holders)) == sorted("abacab") and len(holders) == min(samplers, 3)
    assert all(not set(one) & set(other) for place, one in enumerate(holders) for other in holders[:place])

    done = replace(groups[1].completions[0], finish_reason="stop")
    groups[1] = Group(groups[1].prompt, (done, groups[1].completions[1]))
    longer = sampler.groups(sampler.extend(groups, limit=1, **options))
    assert [[one.text for one in group.completions] for group in longer] == [
        ["a0 0", "a1 1"], ["b0", "b1 1"], ["a0 2", "a1 3"], ["c0 0", "c1 1"], ["a0 4", "a1 5"], ["b0 2", "b1 3"],
    ]  # fmt: skip
    assert [group.prompt.position for group in longer] == list("012345")
    assert sum(len(request.completions) for request in recorder.asked[-1]) == 11 and len(recorder.asked[-1]) == samplers


@pytest.mark.parametrize("kind", ["ObjectStoreFullError", "OutOfDiskError", "ObjectLostError"])
def test_a_store_that_stays_full_is_one_line(kind):
    ray = pytest.importorskip("ray")
    error = getattr(ray.exceptions, kind)(*(["0" * 56, None, ""] if kind == "ObjectLostError" else ["full"]))
    told, backend = [], BackendSection(use="ray", cpus=1, time_limit=1e-9)

    def put(value):
        raise error

    samplers = driver.Samplers.__new__(driver.Samplers)
    samplers._ray, samplers._backend = SimpleNamespace(put=put, exceptions=ray.exceptions), backend
    samplers._report = lambda step, text: told.append((step, text))
    with pytest.raises(BurnishError) as refused:
        samplers.put("weights", 3)
    lost = kind == "ObjectLostError"
    assert ("did not take the weights" if lost else "has had no room for the weights") in str(refused.value)
    assert "\n" not in str(refused.value) and told == []
