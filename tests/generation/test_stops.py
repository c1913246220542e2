"""Where a sampled text ends: stop texts, stop tokens, and a smallest number of tokens."""

from __future__ import annotations

import pytest
import torch

from burnish.errors import InputError
from burnish.generation.engine import Engine, make_sampler
from burnish.generation.equal_length import EqualLengthSampler
from burnish.generation.modules import ModuleSampler
from burnish.policies.loading import load_policy
from burnish.policies.lstm import LSTM
from burnish.policies.module import ModulePolicy
from burnish.policies.vocabulary import CharacterVocabulary
from burnish.types import Prompt, SamplingParams

PROMPTS = [Prompt("a", "The home team won"), Prompt("b", "Shares fell"), Prompt("c", "The minister said that")]
KINDS = ("engine", pytest.param("equal length", marks=pytest.mark.slow), "module")


@pytest.fixture(scope="module")
def samplers(tiny):
    """Name -> policy and sampler."""
    policy = load_policy(tiny("llama"))
    engine = make_sampler(policy)
    assert isinstance(engine, Engine)
    torch.manual_seed(5)
    characters = CharacterVocabulary.from_texts(prompt.text for prompt in PROMPTS)
    module = ModulePolicy(LSTM(characters.size, embedding=8, hidden=8), characters, scores="logits")
    return {
        "engine": (policy, engine), "equal length": (policy, EqualLengthSampler(policy, rows=16)),
        "module": (module, ModuleSampler(module)),
    }  # fmt: skip


def sample(sampler, sampling, *, samples: int = 8):
    groups = sampler.sample(PROMPTS, samples_per_prompt=samples, sampling=sampling, seed=(4,))
    return [completion for group in groups for completion in group.completions]


def check_logprobs(policy, completions, sampling) -> None:
    stats = policy.logprobs(completions, sampling)
    sampled = torch.tensor([logprob for c in completions for logprob in c.sampler_logprobs])
    assert len(sampled) == sum(len(c.token_ids) for c in completions)
    torch.testing.assert_close(stats.logprobs.detach(), sampled, rtol=0, atol=1e-4)
    if stats.log_mass is not None:
        masses = torch.tensor([mass for c in completions for mass in c.sampler_log_masses])
        torch.testing.assert_close(stats.log_mass.detach(), masses, rtol=0, atol=1e-4)


def outcome(completion):
    """Return what does not depend on rounding, which depends on the batch."""
    return completion.token_ids, completion.text, completion.finish_reason


def first_end(policy, token_ids, stops, before: int = 0) -> tuple[int, int, int] | None:
    """Return the number of tokens, the start and the end of the first stop text that more than ``before`` tokens complete,
    by decoding the whole text after each token."""
    already = len(policy.decode(token_ids[:before]).rstrip("\ufffd"))
    for count in range(before + 1, len(token_ids) + 1):
        text = policy.decode(token_ids[:count])
        spans = [
            (start + len(stop), start) for stop in stops for start in range(len(text))
            if text.startswith(stop, start) and start + len(stop) > already
        ]  # fmt: skip
        if spans:
            end, start = min(spans)
            return count, start, end
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, 7])
def test_a_stop_text_ends_the_text_at_the_token_that_completes_it(samplers, kind, before):
    policy, sampler = samplers[kind]
    stops = ("e", "om", "th", " s", "lo", "a m", "t t")
    plain = sample(sampler, SamplingParams(16, min_new_tokens=before))
    ends = [first_end(policy, without.token_ids, stops, before) for without in plain]
    assert sum(end is not None for end in ends) > 3
    for keep in (False, True):
        sampling = SamplingParams(16, stop=stops, keep_stop=keep, min_new_tokens=before)
        stopped = sample(sampler, sampling)
        check_logprobs(policy, stopped, sampling)
        for without, with_stop, first in zip(plain, stopped, ends, strict=True):
            if first is None:
                assert outcome(with_stop) == outcome(without)
                continue
            count, start, end = first
            assert with_stop.token_ids == without.token_ids[:count]
            assert with_stop.finish_reason == "stop"
            assert with_stop.text == policy.decode(without.token_ids)[: end if keep else start]


def test_a_long_text_is_searched_at_its_end_only(samplers):
    policy, sampler = samplers["engine"]
    reads: list[int] = []
    decode = policy.decode

    def counting(token_ids, **options):
        reads.append(len(token_ids))
        return decode(token_ids, **options)

    policy.decode = counting
    try:
        completions = sample(sampler, SamplingParams(80, stop=("zq",)), samples=1)
    finally:
        del policy.decode
    assert max(len(completion.token_ids) for completion in completions) > 60
    windows = sorted(reads)[: -len(completions)]  # and each text once, at its end
    assert len(windows) > 80 and windows[-1] <= 40


@pytest.mark.parametrize("kind", KINDS)
def test_stop_tokens_end_the_text(samplers, kind):
    policy, sampler = samplers[kind]
    plain = sample(sampler, SamplingParams(12))
    chosen = plain[0].token_ids[2]
    for keep in (False, True):
        sampling = SamplingParams(12, stop_token_ids=(chosen,), keep_stop=keep)
        stopped = sample(sampler, sampling)
        check_logprobs(policy, stopped, sampling)
        for without, with_stop in zip(plain, stopped, strict=True):
            if chosen not in without.token_ids:
                assert outcome(with_stop) == outcome(without)
                continue
            count = without.token_ids.index(chosen) + 1
            assert (with_stop.token_ids, with_stop.finish_reason) == (without.token_ids[:count], "stop")
            assert with_stop.text == policy.decode(without.token_ids[: count if keep else count - 1])


def test_a_stop_text_that_is_a_special_token_is_a_stop_token(samplers):
    policy, sampler = samplers["engine"]
    assert policy.stop_ids(SamplingParams(1, stop=("<|begin|>", "x"), stop_token_ids=(9,))) == {*policy.end_ids, 0, 9}
    for completion in sample(sampler, SamplingParams(24, 3.0, stop=("<|begin|>",)), samples=20):
        assert 0 not in completion.token_ids[:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_smallest_number_of_tokens(samplers, kind):
    policy, sampler = samplers[kind]
    short = {"module": range(8)}.get(kind, range(80))
    for options in ({}, {"top_p": 0.9, "min_p": 0.02}, {"top_k": 5}):
        sampling = SamplingParams(9, 1.3, min_new_tokens=6, stop_token_ids=tuple(short), **options)
        completions = sample(sampler, sampling)
        check_logprobs(policy, completions, sampling)
        assert not any(token in short for completion in completions for token in completion.token_ids[:6])
        assert {completion.finish_reason for completion in completions} == {"stop", "length"}
        assert min(len(completion.token_ids) for completion in completions) == 7


@pytest.mark.parametrize("kind", ["engine", "module"])
def test_a_stop_token_that_the_model_lacks_is_refused(samplers, kind):
    with pytest.raises(InputError, match=r"sampling.stop_token_ids: the model has no token 900000, its \d+ tokens"):
        sample(samplers[kind][1], SamplingParams(3, stop_token_ids=(900000,)))
