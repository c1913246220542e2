"""The gradient of the embedded model by the three ways to run it, in float32."""

from __future__ import annotations

import pytest
import torch

from burnish.catalogue import model_folder
from burnish.generation.engine import sampler_for
from burnish.policies.causal_lm import CausalLM
from burnish.policies.kernels.linear import can_multiply
from burnish.policies.kernels.packing import packed, plain
from burnish.policies.loading import load_policy
from burnish.types import Completion, Prompt, SamplingParams

SAMPLING = SamplingParams(12)


def gradient(policy: CausalLM, completions: list[Completion]) -> dict[str, torch.Tensor]:
    logprobs = policy.logprobs(completions, SAMPLING).logprobs
    parameters = policy.trainable()
    slopes = torch.linspace(-1, 2, len(logprobs))
    found = torch.autograd.grad((logprobs * slopes).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(not can_multiply(), reason="torch lacks oneDNN's products here")
def test_packed_and_reused_equal_the_plain_way_to_1e_4():
    policy = load_policy(model_folder("smollm2-135m", offline=True))
    assert policy.layout is packed
    prompts = [Prompt("a", "The minister said on Monday that"), Prompt("b", "Shares fell after the company")]
    policy.start_forward_cache()
    groups = sampler_for(policy).sample(prompts, samples_per_prompt=3, sampling=SAMPLING, seed=(1,))
    completions = [completion for group in groups for completion in group.completions]
    reused = gradient(policy, completions)
    policy.stop_forward_cache()
    by_pack = gradient(policy, completions)
    policy.layout = plain
    expected = gradient(policy, completions)
    for found in (by_pack, reused):
        # Of each weight's gradient, in the Euclidean norm.
        distances = {name: float((found[name] - part).norm() / part.norm()) for name, part in expected.items()}
        assert max(distances.values()) < 1e-4, max(distances, key=distances.__getitem__)
