"""Texts that are drawn in parts: the same tokens as at once, wherever they are interrupted."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from burnish.generation.engine import Engine
from burnish.generation.equal_length import EqualLengthSampler
from burnish.generation.modules import ModuleSampler
from burnish.generation.rows import RowSampler, unfinished
from burnish.policies.loading import load_model
from burnish.policies.lstm import LSTM
from burnish.policies.module import ModulePolicy
from burnish.policies.vocabulary import build_vocabulary
from burnish.types import Completion, Prompt, SamplingParams

ASKED = [Prompt("a", "The home team"), Prompt("b", "我爱"), Prompt("a", "The home team"), Prompt("c", "")]
SAMPLES = 3
SAMPLING = {
    "plain": SamplingParams(14, 0.9),
    "truncated": SamplingParams(14, 1.0, top_p=0.8, top_k=20),
    "stop texts": SamplingParams(14, 1.0, stop=("e", "t s", "\u7231"), min_new_tokens=3),
    "no early end": SamplingParams(14, 1.2, min_new_tokens=9),
}


@pytest.fixture(scope="module")
def sampler(tiny):
    """Return a function from a kind of sampler to one with weights in float64, which tests share."""

    def module() -> ModulePolicy:
        vocabulary = build_vocabulary("character", [prompt.text for prompt in ASKED], 64)
        lstm = LSTM(vocabulary.size, embedding=8, hidden=8, layers=1).double()
        return ModulePolicy(lstm, vocabulary, scores="logits", name="lstm")

    @cache
    def make(kind: str) -> RowSampler:
        if kind in ("lstm", "recomputed lstm"):
            return ModuleSampler(module(), recompute=kind != "lstm")
        loaded = load_model(tiny(kind), dtype="float64")
        return EqualLengthSampler(loaded, rows=5) if kind == "gpt2" else Engine(loaded, rows=5)

    return make


def in_parts(
    sampler: RowSampler, prompts: list[Prompt], sampling: SamplingParams, parts: list[int]
) -> list[Completion]:
    first, *more = parts
    groups = sampler.sample(prompts, samples_per_prompt=SAMPLES, sampling=sampling, seed=(4, 2), limit=first)
    done = [one for group in groups for one in group.completions]
    numbers = [index + SAMPLES * sum(other.id == one.id for other in prompts[:place])
               for place, one in enumerate(prompts) for index in range(SAMPLES)]  # fmt: skip
    for limit in [*more, None]:
        left = [place for place, one in enumerate(done) if unfinished(one, sampling)]
        longer = sampler.extend(
            [done[place] for place in left], numbers=[numbers[place] for place in left], sampling=sampling, seed=(4, 2),
            limit=limit,
        )  # fmt: skip
        for place, one in zip(left, longer, strict=True):
            assert limit is None or len(one.token_ids) <= len(done[place].token_ids) + limit
            assert one.token_ids[: len(done[place].token_ids)] == done[place].token_ids
            done[place] = one
    return done


@pytest.mark.parametrize("parts", [[1], [5], [3, 2, 4], [13, 1], [14], [40, 1]])
@pytest.mark.parametrize("options", SAMPLING)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "lstm", "recomputed lstm"])
def test_interrupted_texts_are_those_drawn_at_once(sampler, kind, options, parts):
    prompts, sampling = (ASKED if kind == "llama" else ASKED[:3]), SAMPLING[options]
    groups = sampler(kind).sample(prompts, samples_per_prompt=SAMPLES, sampling=sampling, seed=(4, 2))
    whole = [one for group in groups for one in group.completions]
    found = in_parts(sampler(kind), prompts, sampling, parts)
    for ours, theirs in zip(found, whole, strict=True):
        assert (ours.token_ids, ours.text, ours.finish_reason, ours.index) == (
            theirs.token_ids, theirs.text, theirs.finish_reason, theirs.index,
        )  # fmt: skip
        np.testing.assert_allclose(ours.sampler_logprobs, theirs.sampler_logprobs, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ours.sampler_log_masses, theirs.sampler_log_masses, rtol=0, atol=1e-9)


def test_what_was_drawn_stays_and_the_version_is_that_of_the_first_token(sampler):
    sampling = SAMPLING["plain"]
    (group,) = sampler("llama").sample(
        ASKED[:1], samples_per_prompt=2, sampling=sampling, seed=(1,), policy_version=7, limit=4
    )
    longer = sampler("llama").extend(group.completions, numbers=[0, 1], sampling=sampling, seed=(1,), limit=3)
    for before, after in zip(group.completions, longer, strict=True):
        assert after.policy_version == 7 and after.sampler_logprobs[: len(before.token_ids)] == before.sampler_logprobs
        assert not unfinished(after, sampling) or len(after.token_ids) == 7
