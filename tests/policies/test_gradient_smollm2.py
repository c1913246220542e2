"""The embedded model's float32 gradient: packed, reused from sampling, and padded."""

from __future__ import annotations

import pytest
import torch

from burnish.catalogue import model_folder
from burnish.generation.engine import make_sampler
from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.kernels.packing import packed_states, padded_states
from burnish.policies.kernels.products import has_onednn_linear
from burnish.policies.loading import load_policy
from burnish.types import Completion, Prompt, SamplingParams

SAMPLING = SamplingParams(12)


def gradient(policy: CausalPolicy, completions: list[Completion]) -> dict[str, torch.Tensor]:
    logprobs = policy.logprobs(completions, SAMPLING).logprobs
    parameters = policy.trainable()
    slopes = torch.linspace(-1, 2, len(logprobs))
    found = torch.autograd.grad((logprobs * slopes).sum(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(not has_onednn_linear(), reason="torch lacks oneDNN's products here")
def test_packed_and_reused_gradients_equal_the_padded_one_to_1e_4():
    policy = load_policy(model_folder("smollm2-135m", offline=True))
    assert policy.layout is packed_states
    prompts = [Prompt("a", "The minister said on Monday that"), Prompt("b", "Shares fell after the company")]
    policy.start_forward_cache()
    groups = make_sampler(policy).sample(prompts, samples_per_prompt=3, sampling=SAMPLING, seed=(1,))
    completions = [completion for group in groups for completion in group.completions]
    reused = gradient(policy, completions)
    policy.stop_forward_cache()
    by_pack = gradient(policy, completions)
    policy.layout = padded_states
    expected = gradient(policy, completions)
    for found in (by_pack, reused):
        # Relative distance per weight, in the Euclidean norm.
        distances = {name: float((found[name] - part).norm() / part.norm()) for name, part in expected.items()}
        assert max(distances.values()) < 1e-4, max(distances, key=distances.__getitem__)
