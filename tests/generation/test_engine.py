"""The batched engine on tiny models."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch

from burnish.algorithms.kl import k3
from burnish.errors import InputError
from burnish.generation.engine import Engine, make_sampler
from burnish.generation.equal_length import EqualLengthSampler
from burnish.policies.loading import load_model, load_policy
from burnish.types import Group, Prompt, SamplingParams

TEXTS = ["The home team", "Shares fell after the company said that it would", "我爱", "a"]
ASKED = [Prompt(f"p{index}", text) for index, text in enumerate(TEXTS)]
SLOW = pytest.mark.slow
KINDS = ["llama", *(pytest.param(kind, marks=SLOW) for kind in ("gpt2", "qwen2", "neox", "qwen3_moe"))]
LONG = SamplingParams(16, 0.9)


@pytest.fixture(scope="module")
def loaded(tiny):
    """Return a function from the kind of model to the model in float64, which tests share and do not change."""
    return cache(lambda kind: load_model(tiny(kind), dtype="float64"))


@pytest.fixture(scope="module")
def alone(loaded):
    """Return a function from the kind of model to groups of six completions of ``ASKED``, sampled prompt by prompt."""

    @cache
    def groups(kind: str) -> list[Group]:
        sampler = make_sampler(loaded(kind))
        return [sampler.sample([prompt], samples_per_prompt=6, sampling=LONG, seed=(3, 1))[0] for prompt in ASKED]

    return groups


class TestSamplers:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "sampler, rows, samples",
        [pytest.param(Engine, 1, 2, marks=SLOW), (Engine, 5, 6), (Engine, 64, 6), (EqualLengthSampler, 7, 6)],
    )
    def test_a_sample_does_not_depend_on_the_batch(self, loaded, alone, kind, sampler, rows, samples):
        """With 1 row, samples are drawn one by one; with 5, waiting samples replace finished ones within groups; with 64,
        all are drawn at once."""
        together = sampler(loaded(kind), rows=rows).sample(
            ASKED, samples_per_prompt=samples, sampling=LONG, seed=(3, 1)
        )
        reasons: Counter[str] = Counter()
        for expected, group in zip(alone(kind), together, strict=True):
            completions = expected.completions[:samples]
            assert [c.token_ids for c in completions] == [c.token_ids for c in group.completions]
            assert [c.text for c in completions] == [c.text for c in group.completions]
            for first, second in zip(completions, group.completions, strict=True):
                np.testing.assert_allclose(first.sampler_logprobs, second.sampler_logprobs, rtol=0, atol=1e-10)
                reasons[first.finish_reason] += 1
        assert kind != "llama" or samples < 6 or min(reasons["stop"], reasons["length"]) > 0, (
            "both kinds of ending were seen"
        )

    @pytest.mark.parametrize("kind", ["gpt2", *KINDS[:1], *KINDS[2:]])
    @pytest.mark.parametrize(
        "options",
        [(0.7, 0.8, 20), *(pytest.param(one, marks=SLOW) for one in [(1.0, 1.0, 0), (1.3, 1.0, 5), (1.0, 0.5, 0)])],
    )
    def test_recorded_logprobs_equal_the_policys(self, tiny, kind, options):
        # With logits this large, sampler and trainer in float32 are each up to 1.2e-5 from the float64 result.
        for dtype, tolerance in (("float64", 1e-10), ("float32", 3e-5)):
            policy = load_policy(tiny(kind), dtype=dtype)
            sampling = SamplingParams(12, *options)
            groups = make_sampler(policy).sample(ASKED, samples_per_prompt=4, sampling=sampling, seed=(1,))
            completions = [completion for group in groups for completion in group.completions]
            recorded = torch.tensor(
                [logprob for c in completions for logprob in c.sampler_logprobs], dtype=torch.float64
            )
            with torch.no_grad():
                stats = policy.logprobs(completions, sampling)
            torch.testing.assert_close(stats.logprobs.double(), recorded, rtol=0, atol=tolerance)
            assert float(k3(recorded, stats.logprobs.double()).mean()) < tolerance**2
        assert float(recorded.std()) > 0.1, "the distributions are not all alike"
        assert stats.entropy.min() >= 0

    def test_how_a_completion_ends(self, loaded):
        model = loaded("llama")
        groups = make_sampler(model).sample(ASKED, samples_per_prompt=16, sampling=SamplingParams(24), seed=(3, 1))
        seen: Counter[str] = Counter()
        for completion in (completion for group in groups for completion in group.completions):
            seen[completion.finish_reason] += 1
            assert len(completion.token_ids) == len(completion.sampler_logprobs) >= 1
            assert 1 not in completion.token_ids[:-1], "nothing follows the end-of-text token"
            assert "<|end|>" not in completion.text
            if completion.finish_reason == "stop":
                assert completion.token_ids[-1] == 1
                assert completion.text == model.decode(completion.token_ids[:-1])
            else:
                assert completion.token_ids[-1] != 1
                assert len(completion.token_ids) == 24
        assert min(seen["stop"], seen["length"]) > 3

    def test_truncation_at_one_token(self, loaded):
        model = loaded("llama")
        (group,) = make_sampler(model).sample(ASKED[:1], samples_per_prompt=64, sampling=SamplingParams(1), seed=(0,))
        assert {len(completion.token_ids) for completion in group.completions} == {1}
        assert [completion.index for completion in group.completions] == list(range(64))

    def test_an_end_token_as_the_last_that_fits_is_a_stop(self, tiny):
        model = load_model(tiny("llama"))
        with torch.no_grad():
            # The end is certain after any text.
            model.model.lm_head.weight.zero_()
            model.model.model.norm.weight.zero_()
        model.model.lm_head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(1), 300).float() * 1e4)
        (group,) = make_sampler(model).sample(ASKED[:1], samples_per_prompt=2, sampling=SamplingParams(1), seed=(0,))
        for completion in group.completions:
            assert (completion.token_ids, completion.text, completion.finish_reason) == ((1,), "", "stop")
            assert completion.sampler_logprobs == (0.0,)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_temperature_near_zero_equals_greedy_generation_of_transformers(self, loaded, kind):
        model = loaded(kind)
        sampling = SamplingParams(12, temperature=1e-6)
        for prompt in ASKED:
            (group,) = make_sampler(model).sample([prompt], samples_per_prompt=1, sampling=sampling, seed=(0,))
            ids = torch.tensor([model.encode_prompt(prompt)])
            expected = model.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
            )
            assert list(group.completions[0].token_ids) == expected[0, ids.shape[1] :].tolist()

    def test_the_same_seed_gives_the_same_bits_and_another_does_not(self, loaded):
        sampler = make_sampler(loaded("llama"))
        options = {"samples_per_prompt": 3, "sampling": SamplingParams(12)}
        first, again, other = (sampler.sample(ASKED, seed=seed, **options) for seed in ((1, 1), (1, 1), (1, 2)))
        assert first == again
        assert [g.completions[0].token_ids for g in first] != [g.completions[0].token_ids for g in other]

    def test_the_policy_version_is_recorded(self, loaded):
        sampler = make_sampler(loaded("llama"))
        (group,) = sampler.sample(
            ASKED[:1], samples_per_prompt=2, sampling=SamplingParams(2), seed=(0,), policy_version=17
        )
        assert [completion.policy_version for completion in group.completions] == [17, 17]

    @pytest.mark.parametrize("kind", ["mamba", "lfm2"])
    def test_a_recurrent_model_is_sampled_without_the_engine(self, tiny, kind):
        policy = load_policy(tiny(kind))
        sampler = make_sampler(policy)
        assert isinstance(sampler, EqualLengthSampler) and policy.padding_reason
        groups = sampler.sample(ASKED, samples_per_prompt=3, sampling=SamplingParams(9), seed=(4,))
        completions = [completion for group in groups for completion in group.completions]
        recorded = torch.tensor([logprob for c in completions for logprob in c.sampler_logprobs])
        torch.testing.assert_close(policy.token_logprobs(completions), recorded, rtol=0, atol=2e-5)

    def test_texts_longer_than_the_attention_window_are_sampled_without_the_engine(self, tiny):
        policy = load_policy(tiny("mistral"), dtype="float64")
        sampler = make_sampler(policy)
        assert isinstance(sampler, Engine), "short texts fit into the window of 16"
        short, long = SamplingParams(4), SamplingParams(30)
        for sampling in (short, long):
            groups = sampler.sample(ASKED[2:], samples_per_prompt=3, sampling=sampling, seed=(4,))
            completions = [completion for group in groups for completion in group.completions]
            recorded = torch.tensor(
                [logprob for c in completions for logprob in c.sampler_logprobs], dtype=torch.float64
            )
            torch.testing.assert_close(policy.token_logprobs(completions), recorded, rtol=0, atol=1e-9)

    def test_first_tokens_follow_the_models_own_softmax(self, loaded):
        model = loaded("llama")
        count = 4000
        (group,) = make_sampler(model).sample(
            ASKED[:1], samples_per_prompt=count, sampling=SamplingParams(1), seed=(8,)
        )
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([model.encode_prompt(ASKED[0])])).logits[0, -1]
        expected = logits.softmax(-1) * count
        seen = torch.bincount(
            torch.tensor([c.token_ids[0] for c in group.completions]), minlength=len(expected)
        ).double()
        # Tokens expected fewer than 8 times form one category: the statistic is chi square for large counts only.
        common = expected >= 8
        expected = torch.cat([expected[common], expected[~common].sum()[None]])
        seen = torch.cat([seen[common], seen[~common].sum()[None]])
        statistic = ((seen - expected).square() / expected).sum()
        freedom = torch.tensor(len(expected) - 1, dtype=torch.float64)
        assert freedom > 10
        assert 0.001 < float(torch.special.gammaincc(freedom / 2, statistic / 2)) < 0.999

    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(self, loaded, kind):
        model = loaded(kind)
        sampler = make_sampler(model)
        text = "a" * 250
        length = len(model.encode_prompt(Prompt("long", text)))
        prompts = [*ASKED, Prompt("long", text)]
        fits = SamplingParams(256 - length)
        groups = sampler.sample(prompts, samples_per_prompt=1, sampling=fits, seed=(0,))
        assert len(groups[-1].completions[0].token_ids) <= 256 - length
        one_more = SamplingParams(257 - length)
        with pytest.raises(
            InputError, match=f"'long' has {length} tokens.*256 positions: lower sampling.max_new_tokens"
        ):
            sampler.sample(prompts, samples_per_prompt=1, sampling=one_more, seed=(0,))

    def test_no_prompts(self, loaded):
        sampler = make_sampler(loaded("llama"))
        assert sampler.sample([], samples_per_prompt=2, sampling=SamplingParams(2), seed=(0,)) == []
