"""The sampling distribution, draws from it, and the random numbers of samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.policies.sampling_distribution import (
    draw,
    draw_tokens,
    early_ends,
    is_truncated,
    random_streams,
    sampling_logprobs,
    token_stats,
)
from burnish.types import Prompt, SamplingParams

LARGEST_UNIFORM = 1 - 2**-53


def slow_distribution(logits: list[float], sampling: SamplingParams) -> list[float]:
    """Return the probabilities by their definition, one token at a time, in plain Python."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if sampling.top_k:
        order = order[: sampling.top_k]
    best = logits[order[0]]
    mass = {token: math.exp((logits[token] - best) / sampling.temperature) for token in order}
    whole = math.fsum(mass.values())
    kept, reached = [], 0.0
    for token in order:
        if sampling.top_p < 1 and reached >= sampling.top_p:
            break
        if mass[token] >= sampling.min_p:
            kept.append(token)
        reached += mass[token] / whole
    total = math.fsum(mass[token] for token in kept)
    return [mass[token] / total if token in kept else 0.0 for token in range(len(logits))]


class TestDistribution:
    @settings(max_examples=200, deadline=None)
    @given(
        logits=st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=12),
        temperature=st.sampled_from([0.25, 0.7, 1.0, 2.0]),
        top_k=st.integers(0, 14),
        top_p=st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95, 1.0]),
        min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    )
    def test_equals_the_slow_definition(self, logits, temperature, top_k, top_p, min_p):
        sampling = SamplingParams(1, temperature, top_p, top_k, min_p=min_p)
        found = sampling_logprobs(torch.tensor([logits], dtype=torch.float64), sampling)[0].exp()
        expected = torch.tensor(slow_distribution(logits, sampling), dtype=torch.float64)
        # If the cumulative probability equals top_p up to the last bit, both results are right.
        if (found > 0).tolist() != (expected > 0).tolist():
            odd = ((found > 0) != (expected > 0)).sum()
            masses = np.cumsum(sorted(slow_distribution(logits, SamplingParams(1, temperature, 1.0, top_k)))[::-1])
            assert odd == 1
            assert np.abs(masses - top_p).min() < 1e-12
            return
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_by_hand(self):
        # Probabilities 0.5, 0.3, 0.15, 0.05.
        logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()

        def kept(**options: float) -> list[float]:
            return [round(p, 12) for p in sampling_logprobs(logits, SamplingParams(1, **options)).exp().tolist()]

        assert kept() == [0.5, 0.3, 0.15, 0.05]
        assert kept(top_k=2) == [0.625, 0.375, 0.0, 0.0]
        assert kept(top_p=0.5) == [1.0, 0.0, 0.0, 0.0], "0.5 reaches 0.5 with the first token"
        assert kept(top_p=0.51) == [0.625, 0.375, 0.0, 0.0]
        assert kept(top_p=0.9) == [round(p / 0.95, 12) for p in (0.5, 0.3, 0.15)] + [0.0]
        # top_p applies to the tokens that top_k kept: the first has 0.625 of their mass, enough for 0.6.
        assert kept(top_k=2, top_p=0.6) == [1.0, 0.0, 0.0, 0.0]
        # 0.15 of 0.5 is a share of 0.3, and 0.05 one of 0.1; it is the share after the temperature that counts.
        assert kept(min_p=0.29) == [round(p / 0.95, 12) for p in (0.5, 0.3, 0.15)] + [0.0]
        assert kept(min_p=0.29, temperature=0.5) == [round(p / 0.34, 12) for p in (0.25, 0.09)] + [0.0, 0.0]
        # Temperature 0.5 squares the probabilities: 0.25, 0.09, 0.0225, 0.0025 of 0.365.
        assert kept(temperature=0.5) == [round(p / 0.365, 12) for p in (0.25, 0.09, 0.0225, 0.0025)]

    def test_ties_at_the_cutoff_keep_the_lower_token(self):
        logits = torch.zeros(2, 5)
        assert (sampling_logprobs(logits, SamplingParams(1, top_k=2)).exp() > 0).tolist() == [
            [True, True, False, False, False]
        ] * 2

    def test_a_logit_of_minus_infinity_stays_impossible(self):
        logits = torch.tensor([0.0, -math.inf, 1.0])
        for sampling in (SamplingParams(1), SamplingParams(1, 0.5, 0.99, 3)):
            assert sampling_logprobs(logits, sampling)[1] == -math.inf

    def test_always_keeps_the_sampled_token_and_renormalises(self):
        logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
        found = sampling_logprobs(logits, SamplingParams(1, top_k=1), always=torch.tensor(2)).exp()
        torch.testing.assert_close(found, torch.tensor([5 / 7, 0.0, 2 / 7], dtype=torch.float64))

    def test_gradient_is_that_of_the_truncated_distribution(self):
        # Two kept tokens with probabilities p and 1-p: d log p / d logits = 1-p, -(1-p), and 0 for truncated tokens.
        logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
        sampling_logprobs(logits, SamplingParams(1, temperature=0.5, top_k=2))[0].backward()
        rest = 0.09 / 0.34
        torch.testing.assert_close(logits.grad, torch.tensor([2 * rest, -2 * rest, 0.0], dtype=torch.float64))

    def test_is_truncated(self):
        assert not is_truncated(SamplingParams(1, 0.3, stop=("x",), stop_token_ids=(1,)))
        for options in ({"top_p": 0.999}, {"top_k": 1}, {"min_p": 0.1}, {"min_new_tokens": 1}, {"lagged_top_p": 0.9}):
            assert is_truncated(SamplingParams(1, **options)), options

    def test_log_mass_by_hand(self):
        # Probabilities 0.5, 0.3, 0.15, 0.05: top_k = 2 keeps 0.8 of the full softmax, and an end too early takes 0.5.
        logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]] * 2, dtype=torch.float64).log() - 700
        uniforms = torch.tensor([0.0, 0.99], dtype=torch.float64)
        for sampling, expected in ((SamplingParams(1, top_k=2), [0.8, 0.8]),
                                   (SamplingParams(1, min_new_tokens=1), [0.5, 1.0]),
                                   (SamplingParams(1, top_k=2, min_new_tokens=1), [0.45, 0.8])):  # fmt: skip
            early = early_ends([[0], [1]], [0], sampling, torch.device("cpu"))
            tokens, logprobs, log_mass = draw_tokens(logits.clone(), uniforms, sampling, early=early)
            torch.testing.assert_close(log_mass.exp(), torch.tensor(expected, dtype=torch.float64))
            full = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)[tokens]
            torch.testing.assert_close((logprobs + log_mass).exp(), full)
            stats = token_stats(logits, tokens, sampling, early=early, entropy_gradient=False)
            torch.testing.assert_close(stats.log_mass, log_mass)
        assert draw_tokens(logits.clone(), uniforms, SamplingParams(1))[2] is None


class TestDraw:
    PROBABILITIES = torch.tensor([0.0, 0.4, 0.0, 0.25, 0.2, 0.1, 0.05, 0.0], dtype=torch.float64)

    def test_frequencies_follow_the_probabilities(self):
        count = 20_000
        uniforms = torch.from_numpy(np.random.Generator(np.random.Philox(11)).random(count))
        found = draw(self.PROBABILITIES.log().expand(count, -1), uniforms)
        seen = torch.bincount(found, minlength=8).double()
        possible = self.PROBABILITIES > 0
        assert seen[~possible].sum() == 0
        expected = count * self.PROBABILITIES[possible]
        statistic = ((seen[possible] - expected).square() / expected).sum()
        # Chi square with 5 categories: for 4 degrees of freedom, P(X > x) is the regularised upper gamma Q(2, x/2).
        p_value = float(torch.special.gammaincc(torch.tensor(2.0, dtype=torch.float64), statistic / 2))
        assert 0.01 < p_value < 0.9999

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_extreme_uniforms_never_draw_an_impossible_token(self, dtype):
        logprobs = self.PROBABILITIES.log().to(dtype).expand(2, -1)
        assert draw(logprobs, torch.tensor([0.0, LARGEST_UNIFORM], dtype=torch.float64)).tolist() == [1, 6]

    def test_a_certain_token(self):
        logprobs = torch.full((3, 4), -math.inf)
        logprobs[:, 2] = 0.0
        uniforms = torch.tensor([0.0, 0.5, LARGEST_UNIFORM], dtype=torch.float64)
        assert draw(logprobs, uniforms).tolist() == [2, 2, 2]

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.sampled_from([0.0, 1e-30, 1e-7, 0.1, 1.0, 3.0]), min_size=1, max_size=9),
        st.floats(0, LARGEST_UNIFORM),
    )
    def test_never_a_token_of_probability_zero(self, weights, uniform):
        if not any(weights):
            return
        probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        token = int(draw(probabilities.log()[None].float(), torch.tensor([uniform], dtype=torch.float64)))
        assert weights[token] > 0

    def test_inverts_the_cumulative_distribution(self):
        # Cumulative: 0.4 at token 1, 0.65 at 3, 0.85 at 4, 0.95 at 5, 1 at 6.
        uniforms = torch.tensor([0.39, 0.41, 0.64, 0.66, 0.84, 0.86, 0.94, 0.96], dtype=torch.float64)
        found = draw(self.PROBABILITIES.log().expand(8, -1), uniforms)
        assert found.tolist() == [1, 3, 3, 4, 4, 5, 5, 6]


def prompts(*names: str) -> list[Prompt]:
    return [Prompt(name, f"text of {name}") for name in names]


class TestStreams:
    def test_numbers_of_a_sample_do_not_depend_on_the_batch(self):
        alone = random_streams(prompts("b"), 3, (7, 1), 5)
        together = random_streams(prompts("a", "b", "c"), 3, (7, 1), 5)
        for first, second in zip(alone, together[3:6], strict=True):
            assert first.tolist() == second.tolist()

    def test_more_and_longer_samples_begin_with_the_same_numbers(self):
        few, many = random_streams(prompts("b"), 2, (7, 1), 5), random_streams(prompts("b"), 4, (7, 1), 9)
        assert [stream.tolist() for stream in few] == [stream[:5].tolist() for stream in many[:2]]

    def test_a_repeated_prompt_gets_different_numbers(self):
        found = random_streams(prompts("a", "b", "a"), 2, (7, 1), 4)
        assert len({tuple(stream) for stream in found}) == 6

    def test_seed_step_prompt_and_index_all_matter(self):
        base = random_streams(prompts("a"), 1, (7, 1), 4)[0].tolist()
        others = [
            random_streams(prompts("a"), 1, (8, 1), 4)[0],
            random_streams(prompts("a"), 1, (7, 2), 4)[0],
            random_streams(prompts("a "), 1, (7, 1), 4)[0],
            random_streams(prompts("a"), 2, (7, 1), 4)[1],
            random_streams(prompts("a"), 1, (1, 7), 4)[0],
        ]
        assert all(other.tolist() != base for other in others)

    def test_uniform(self):
        numbers = np.concatenate(random_streams(prompts("a", "b"), 50, (0,), 200))
        assert numbers.min() >= 0
        assert numbers.max() < 1
        # 20,000 numbers: mean 0.5 with a standard error of 0.00204; the bound is 4 of those.
        assert abs(numbers.mean() - 0.5) < 0.0082
        counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
        # Chi square, 9 degrees of freedom: 27.9 is the 99.9% point.
        assert float(((counts - 2000) ** 2 / 2000).sum()) < 27.9

    def test_the_numbers_are_fixed(self):
        # Other numbers change the result of every recipe and seed, so a change of the generator must be deliberate.
        found = random_streams(prompts("a"), 1, (0, 1), 2)[0]
        # sha256("a") = ca978112 ca1bbdca fac231b3 9a23dc4d a7...: four little-endian words of its first 16 bytes.
        digest = bytes.fromhex("ca978112ca1bbdcafac231b39a23dc4d")
        words = [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 16, 4)]
        sequence = np.random.SeedSequence([0, 1, *words, 0])
        assert found.tolist() == np.random.Generator(np.random.Philox(sequence)).random(2).tolist()
