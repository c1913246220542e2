"""The table as its own sampler: known frequencies, exact log-probabilities, samples independent of the batch."""

from __future__ import annotations

from collections import Counter

import numpy as np

from burnish.policies.tabular import TablePolicy
from burnish.types import Prompt, SamplingParams


class TestSampling:
    def test_a_sample_does_not_depend_on_the_other_prompts(self):
        prompts = [Prompt("a", ""), Prompt("b", "我爱"), Prompt("c", "我")]
        together = TablePolicy().sample(prompts, samples_per_prompt=40, sampling=SamplingParams(4), seed=(5,))
        for prompt, group in zip(prompts, together, strict=True):
            assert TablePolicy().sample([prompt], samples_per_prompt=40, sampling=SamplingParams(4), seed=(5,)) == [
                group
            ]
        lengths = {len(completion.token_ids) for group in together for completion in group.completions}
        assert lengths == {1, 2, 3, 4}

    def test_frequencies_match_the_known_probabilities(self):
        policy = TablePolicy()
        (group,) = policy.sample(
            [Prompt("p", "")], samples_per_prompt=5000, sampling=SamplingParams(4), seed=(5,)
        )  # fmt: skip
        counts = Counter(completion.text for completion in group.completions)
        # P = 0.24: 1200 expected, with a standard deviation of sqrt(5000 0.24 0.76) = 30.2; the bound is four of those.
        assert abs(counts["我爱你。"] - 1200) < 121
        # P(。) = 1/6: 833.3 expected, with a standard deviation of 26.4.
        assert abs(counts["。"] - 833.3) < 106
        assert not any("你我" in text or "你爱" in text for text in counts), "only 。 follows 你"
        for completion in group.completions:
            assert ("。" in completion.text) == (completion.finish_reason == "stop")

    def test_recorded_logprobs_are_exact(self):
        policy = TablePolicy()
        (group,) = policy.sample(
            [Prompt("p", "我")], samples_per_prompt=50, sampling=SamplingParams(4, 0.7, 0.9), seed=(5,)
        )
        stats = policy.logprobs(group.completions, SamplingParams(4, 0.7, 0.9))
        recorded = [logprob for completion in group.completions for logprob in completion.sampler_logprobs]
        np.testing.assert_allclose(stats.logprobs.detach().numpy(), recorded, rtol=0, atol=1e-14)
