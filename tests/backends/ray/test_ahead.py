"""Samples in flight in a checkpoint: read back to the bit, and refused in one line where they are something else."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.backends.ray.ahead import IN_FLIGHT, AheadSampler
from burnish.errors import InputError
from burnish.types import Completion, Group, Prompt, SamplingParams

PROMPTS = [Prompt("a", "one"), Prompt("b", "two")]


class Instant:
    """A sampler whose samples are there at once."""

    def begin(self, prompts: list[Prompt], *, policy_version: int, **_: Any) -> list[Group]:
        def completion(prompt: Prompt) -> Completion:
            return Completion(prompt, (1, 2), (3, 4), "text", (-1 / 3, -math.pi), "stop", policy_version)

        return [Group(prompt, (completion(prompt),)) for prompt in prompts]


def ahead(staleness: int) -> AheadSampler:
    return AheadSampler(Instant(), staleness, lambda step: PROMPTS, seed=0, steps=9, done=lambda: 1)  # type: ignore[arg-type]


def saved(folder: Any) -> list[Group]:
    sampler = ahead(2)
    sampler.sample(PROMPTS, samples_per_prompt=1, sampling=SamplingParams(4), seed=(0, 1))
    sampler.write(folder)
    return sampler._groups(3)


def test_samples_are_read_back_to_the_bit(tmp_path):
    groups = saved(tmp_path)
    sampler = ahead(2)
    sampler.restore(SimpleNamespace(folder=tmp_path))  # type: ignore[arg-type]
    assert sampler._groups(3) == groups and set(sampler._begun) == {2, 3}


def test_samples_that_are_too_old_for_a_lower_staleness_are_left_out(tmp_path):
    saved(tmp_path)
    sampler = ahead(1)
    sampler.restore(SimpleNamespace(folder=tmp_path))  # type: ignore[arg-type]
    assert set(sampler._begun) == {2}


def change(rows: dict[str, Any], **values: Any) -> str:
    rows["2"][0][0] |= values
    return json.dumps(rows)


@pytest.mark.parametrize(
    "damage",
    [
        lambda rows: "",
        lambda rows: "[1]",
        lambda rows: '{"2": 5}',
        lambda rows: "[" * 100_000,
        lambda rows: json.dumps({"two": rows["2"]}),
        lambda rows: json.dumps({"2": rows["2"][:1]}),
        lambda rows: change(rows, unknown=1),
        lambda rows: change(rows, token_ids=[3]),
        lambda rows: change(rows, token_ids=[], sampler_logprobs=[]),
        lambda rows: change(rows, sampler_logprobs=None),
        lambda rows: change(rows, policy_version="x"),
    ],
)
def test_other_content_is_refused_in_one_line(tmp_path, damage):
    saved(tmp_path)
    path = tmp_path / IN_FLIGHT
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(InputError, match=r"samples in flight \(.*\); resume from an earlier checkpoint") as refused:
        ahead(2).restore(SimpleNamespace(folder=tmp_path))  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
