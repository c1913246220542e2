"""The KL to the reference under a truncated sampling distribution: both sides are full softmaxes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from burnish.generation.engine import make_sampler
from burnish.generation.equal_length import EqualLengthSampler
from burnish.policies.loading import load_policy
from burnish.policies.tabular import TablePolicy
from burnish.recipe.schema import LoRA
from burnish.training.kl_reference import KLTerm
from burnish.training.policy_loss import PolicyLoss
from burnish.training.step import train_step
from burnish.types import Microbatch, Prompt, SamplingParams
from tests.fakes import FixedScorer, RecordingOptimizer, toy_learner

LIMITS = [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"min_new_tokens": 3}]
PROMPTS = [Prompt("a", "The home team won"), Prompt("b", "Shares fell")]


def policy_learner(policy, sampler, limit, kl: str):
    small = ["sampling.prompts_per_step=2", "sampling.samples_per_prompt=4", "sampling.max_new_tokens=6"]
    one = toy_learner(*small, "sampling.temperature=0.7", kl)
    recipe = one.recipe.model_copy(update={"sampling": one.recipe.sampling.model_copy(update=limit)})
    return replace(
        one, recipe=recipe, policy=policy, sampler=sampler, prompts=PROMPTS, scorer=FixedScorer(range(8)),
        optimizer=RecordingOptimizer(policy),
    )  # fmt: skip


@pytest.mark.parametrize(
    "lora, every",
    [
        pytest.param(None, False, id="full, each limit once"),
        pytest.param(None, True, id="full", marks=pytest.mark.slow),
        pytest.param(LoRA(rank=4), True, id="lora", marks=pytest.mark.slow),
    ],
)
def test_it_is_zero_at_the_first_step(tiny, lora, every):
    policy = load_policy(tiny("llama"), lora=lora)
    samplers = make_sampler(policy), EqualLengthSampler(policy, rows=8)
    ways = list(product((("reward", "k1"), ("loss", "k3")), samplers))
    for limit, ((where, estimator), sampler) in product(LIMITS, ways) if every else zip(LIMITS, ways, strict=True):
        kl = f"algorithm.kl={{coefficient = 0.1, target = 0.5, where = '{where}', estimator = '{estimator}'}}"
        row = train_step(policy_learner(policy, sampler, limit, kl)).metrics
        for name in ("kl", "kl/k1"):
            assert abs(row[name]) < 1e-6, (limit, where, name)
        assert abs(row["kl/completion"]) < 6e-6, "the sum over up to 6 tokens in float32"
        assert abs(row["mismatch_kl"]) < 1e-9
        assert row["kl/coefficient"] == 0.1


@pytest.mark.parametrize("keys", [["sampling.top_k=2"], ["sampling.min_p=0.5"], ["sampling.nlpo_top_p=0.5"]])
def test_it_is_zero_for_a_table_at_the_first_step(keys):
    one = toy_learner(*keys, "algorithm.kl={coefficient = 0.1, where = 'loss', estimator = 'k3'}")
    row = train_step(one).metrics
    assert max(abs(row[name]) for name in ("kl", "kl/k1", "kl/completion")) < 1e-12


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_gradient_of_the_loss_on_a_table(estimator):
    generator = torch.Generator().manual_seed(3)
    logits, moved = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
    policy = TablePolicy(logits)
    with torch.no_grad():
        policy.parameter.copy_(moved)
    sampling = SamplingParams(6, 0.7, top_k=2)
    (group,) = policy.sample([Prompt("p", "")], samples_per_prompt=8, sampling=sampling, seed=(1,))
    one = toy_learner(f"algorithm.kl={{coefficient = 0.3, where = 'loss', estimator = '{estimator}'}}")
    reference = policy.reference.token_logprobs(group.completions, 0.7)
    rows, tokens = policy.states(group.completions)
    zeros = torch.zeros(len(tokens), dtype=torch.float64)
    sampled = torch.tensor([logprob for c in group.completions for logprob in c.sampler_logprobs]).double()
    masses = torch.tensor([mass for c in group.completions for mass in c.sampler_log_masses]).double()
    batch = Microbatch(group.completions, zeros, zeros + 1, sampled, reference)
    loss = PolicyLoss(one.preset, one.recipe.algorithm, KLTerm(one.recipe.algorithm.kl, policy))(
        policy.logprobs(group.completions, sampling), batch
    )
    (found,) = torch.autograd.grad(loss.loss, policy.parameter)

    table = moved.clone().requires_grad_()
    distance = (table / 0.7).log_softmax(-1)[rows, tokens] - (logits / 0.7).log_softmax(-1)[rows, tokens]
    terms = {"k2": distance**2 / 2, "k3": (-distance).exp() - 1 + distance}
    (expected,) = torch.autograd.grad(0.3 * terms[estimator].sum(), table)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.full_logprobs - reference, distance.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(sampled + masses - reference, distance.detach(), rtol=0, atol=1e-6)
