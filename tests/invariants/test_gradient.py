"""Gradient invariance to padding, microbatches, prompt order and layout, to 1e-10 in float64.

All gradients are those that ``train_step`` passes to its optimizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from burnish.algorithms.presets import PRESETS
from burnish.backends.local import build_critic
from burnish.generation.engine import make_sampler
from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.kernels.packing import packed_states, padded_states
from burnish.policies.loading import load_policy
from burnish.recipe.algorithm import resolve_preset
from burnish.recipe.schema import LoRA, Recipe
from burnish.training.learner import Learner
from burnish.training.step import train_step
from burnish.types import Completion, Group, Prompt
from tests.fakes import FixedSampler, FixedScorer, FunctionScorer, RecordingOptimizer

TOLERANCE = 1e-10
# Unequal lengths, from one token to many, so that every batch of several prompts is padded on both sides.
TEXTS = ["The home team won", "a", "我爱", "Shares fell after the company said that it would cut one thousand jobs"]
PROMPTS = [Prompt(f"p{index}", text) for index, text in enumerate(TEXTS)]
G = 3


SINES = FunctionScorer(lambda one: np.sin(sum(one.token_ids) + 3.0 * one.index))


def recipe(
    algorithm: str = "grpo", *, size: int = 8, aggregation: str | None = None, kl=None, keys=None, **sampling
) -> Recipe:
    return Recipe.model_validate({
        "name": "invariant",
        "reward": [{"use": "repetition"}],
        "sampling": {"prompts_per_step": len(PROMPTS), "samples_per_prompt": G, "max_new_tokens": 12, **sampling},
        "algorithm": {"use": algorithm, "aggregation": aggregation, "kl": kl or {}, **(keys or {})},
        # One completion at a time, or about ``size``.
        "optimizer": {"tokens_per_microbatch": 1 if size == 1 else 12 * size, "max_grad_norm": None},
    })  # fmt: skip


def in_float64(model: torch.nn.Module) -> None:
    """Compute RMSNorm in float64.

    transformers rounds it to float32 for any dtype. That magnifies a difference of 1e-16 between two orders of
    summation to 1e-7 and would hide burnish's own arithmetic.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)


@pytest.fixture(scope="module")
def made(tiny) -> Callable[..., tuple[CausalPolicy, list[Group]]]:
    """Return a function that makes a float64 policy, moved away from its reference, and groups sampled from it."""
    kept: dict[tuple[str, bool], tuple[CausalPolicy, list[Group]]] = {}

    def make(kind: str = "llama", lora: bool = False) -> tuple[CausalPolicy, list[Group]]:
        if (kind, lora) not in kept:
            policy = load_policy(tiny(kind), dtype="float64", lora=LoRA(rank=4) if lora else None)
            in_float64(policy.model)
            in_float64(policy.reference.model if lora else policy.reference.loaded.model)
            assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float64}
            generator = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for parameter in policy.trainable().values():
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(noise, alpha=0.02)
            sampling = recipe().sampling.params
            groups = make_sampler(policy).sample(PROMPTS, samples_per_prompt=G, sampling=sampling, seed=(2, 1))
            kept[kind, lora] = policy, groups
        return kept[kind, lora]

    return make


def gradient(
    policy: CausalPolicy, groups: Sequence[Group], chosen: Recipe, layout=packed_states, scorer=SINES
) -> dict[str, torch.Tensor]:
    policy.layout = layout
    reference = policy.reference if policy.adapter else policy.reference.loaded
    reference.layout = layout
    sampler, recorder = FixedSampler(groups), RecordingOptimizer(policy)
    learner = Learner(chosen, policy, sampler, scorer, PROMPTS, resolve_preset(chosen.algorithm), recorder,
                      critic=build_critic(policy, chosen))  # fmt: skip
    learner.credit.baseline.mean = 0.1
    report = train_step(learner)
    assert report.metrics["grad_norm"] > 1e-3, "there is something to compare"
    return recorder.gradient


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    distance = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert distance <= TOLERANCE


def assert_differ(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert max(float((first[name] - second[name]).abs().max()) for name in first) > 1e-4


AGGREGATIONS = ["sequence_sum", "sequence_mean", "token_mean", "constant_length"]
KLS = [
    {"coefficient": 0.1, "estimator": "k3", "where": "loss"},
    {"coefficient": 0.1, "estimator": "k1", "where": "reward"},
]


@pytest.mark.parametrize("kl", KLS, ids=["k3 in loss", "k1 in reward"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("algorithm", list(PRESETS))
def test_every_preset_and_aggregation(made, algorithm, aggregation, kl):
    policy, groups = made()
    whole = gradient(policy, groups, recipe(algorithm, size=12, aggregation=aggregation, kl=kl))
    for size in (3, 8):
        split = gradient(policy, groups, recipe(algorithm, size=size, aggregation=aggregation, kl=kl))
        assert_same(whole, split)
    # Padded, one completion at a time: the slow reference. Packed microbatches are compared per architecture below.
    alone = gradient(policy, groups, recipe(algorithm, size=1, aggregation=aggregation, kl=kl), padded_states)
    assert_same(whole, alone)


KEYS = {
    "entropy": 0.1,
    "minibatches": 2,
    "importance": {"form": "truncate", "level": "sequence", "limit": 1.5},
}


def stale(group: Group) -> Group:
    """Return the group with the log-probabilities that another policy would have recorded."""
    return replace(
        group,
        completions=tuple(
            replace(one, sampler_logprobs=tuple(value - 0.05 * one.index for value in one.sampler_logprobs))
            for one in group.completions
        ),
    )


@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "dapo"])
def test_minibatches_entropy_bonus_and_importance_weights(made, algorithm):
    """Compares the gradient of the second of two minibatches. The recorder leaves the weights at those of pi_old."""
    policy, groups = made()
    groups = [stale(group) for group in groups]
    slowest = gradient(policy, groups, recipe(algorithm, size=1, kl=KLS[0], keys=KEYS), padded_states)
    for size in (3, 8, 12):
        assert_same(slowest, gradient(policy, groups, recipe(algorithm, size=size, kl=KLS[0], keys=KEYS)))
    for key in KEYS:
        fewer = {name: value for name, value in KEYS.items() if name != key}
        assert_differ(slowest, gradient(policy, groups, recipe(algorithm, kl=KLS[0], keys=fewer)))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_every_architecture(made, kind, lora):
    policy, groups = made(kind, lora)
    for kl in ({"coefficient": 0.1, "estimator": "k2", "where": "loss"}, {"coefficient": 0.1, "where": "reward"}):
        found = {
            (size, layout): gradient(policy, groups, recipe(size=size, kl=kl), layout)
            for size, layout in itertools.product((1, 3, 8), (padded_states, packed_states))
        }
        # Padded layout, one completion at a time: no padding at all, the slow reference.
        for other in found.values():
            assert_same(found[1, padded_states], other)


@pytest.mark.parametrize("options", [{"temperature": 0.7, "top_p": 0.8, "top_k": 20}, {"temperature": 1.5}])
def test_under_a_truncated_distribution(made, options):
    policy, _ = made()
    chosen = recipe(kl=KLS[0], **options)
    groups = make_sampler(policy).sample(
        PROMPTS, samples_per_prompt=G, sampling=chosen.sampling.params, seed=(4, 1)
    )  # fmt: skip
    slowest = gradient(policy, groups, recipe(size=1, kl=KLS[0], **options), padded_states)
    assert_same(slowest, gradient(policy, groups, recipe(size=8, kl=KLS[0], **options), packed_states))
    assert_same(slowest, gradient(policy, groups, recipe(size=5, kl=KLS[0], **options), padded_states))


@pytest.mark.parametrize("algorithm", list(PRESETS))
def test_prompt_order(made, algorithm):
    policy, groups = made()
    chosen = recipe(algorithm, size=5, kl=KLS[0])
    expected = gradient(policy, groups, chosen)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        assert_same(expected, gradient(policy, [groups[index] for index in order], chosen))


@pytest.mark.parametrize("layout", [padded_states, packed_states])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_longer_completions_in_the_batch(made, kind, layout):
    policy, groups = made(kind)
    policy.layout = layout
    one = groups[0].completions[0]
    long_prompt = Prompt("long", TEXTS[3] * 2)
    long = Completion(long_prompt, policy.encode_prompt(long_prompt), (5,) * 60, "", (0.0,) * 60, "length")
    sampling = recipe().sampling.params

    def slope(batch: list[Completion], begin: int) -> dict[str, torch.Tensor]:
        policy.model.zero_grad()
        policy.logprobs(batch, sampling).logprobs[begin : begin + len(one.token_ids)].sum().backward()
        return {name: parameter.grad.clone() for name, parameter in policy.trainable().items()}

    alone = slope([one], 0)
    assert_same(alone, slope([one, long], 0))
    assert_same(alone, slope([long, one, long], 60))


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_leaving_out_samples_without_an_advantage(made, monkeypatch, algorithm):
    """A group of equal rewards, and a sample whose reward is its group's mean, need no forward pass."""
    policy, groups = made()
    chosen = recipe(algorithm)
    scorer = FixedScorer(REWARDS)
    seen: list[int] = []
    inner = policy.logprobs
    monkeypatch.setattr(
        policy, "logprobs", lambda batch, *rest, **named: (seen.append(len(batch)), inner(batch, *rest, **named))[1]
    )
    fewer = gradient(policy, groups, chosen, scorer=scorer)
    assert sum(seen) == 3 * G - 1
    monkeypatch.setattr("burnish.training.step.trained_indices", lambda has_gradient, indices: list(indices))
    assert_same(fewer, gradient(policy, groups, chosen, scorer=scorer))
    assert sum(seen) == 3 * G - 1 + 4 * G


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("layout", [padded_states, packed_states])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradient_checkpointing(tiny, kind, layout, lora):
    kept, again = (
        load_policy(tiny(kind), dtype="float64", lora=lora, gradient_checkpointing=on) for on in (False, True)
    )  # fmt: skip
    groups = make_sampler(kept).sample(PROMPTS, samples_per_prompt=G, sampling=recipe().sampling.params, seed=(2, 1))
    chosen = recipe("reinforce")
    assert_same(gradient(kept, groups, chosen, layout), gradient(again, groups, chosen, layout))
    assert again.max_microbatch_tokens > kept.max_microbatch_tokens


REWARDS = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 3.0, 5.0, 2.0])


def test_different_settings_give_different_gradients(made):
    """Negative control: the gradients compared above do depend on the settings."""
    policy, groups = made()
    base = gradient(policy, groups, recipe("grpo", kl=KLS[0]))
    for other in (
        recipe("rloo", kl=KLS[0]),
        recipe("grpo", kl=KLS[1]),
        recipe("grpo", kl={**KLS[0], "coefficient": 0.2}),
        recipe("grpo", kl={**KLS[0], "estimator": "k2"}),
        recipe("grpo", kl=KLS[0], aggregation="token_mean"),
        recipe("grpo", kl=KLS[0], aggregation="sequence_sum"),
        recipe("grpo", kl=KLS[0], temperature=0.5),
    ):
        assert_differ(base, gradient(policy, groups, other))
    assert_differ(base, gradient(policy, groups[:3], recipe("grpo", kl=KLS[0])))
    weak, strong = (gradient(policy, groups, recipe("online_dpo", keys={"beta": beta})) for beta in (0.1, 0.2))
    assert_differ(weak, strong)


def test_the_gradient_equals_the_policy_gradient_written_out(made):
    """REINFORCE without burnish's code: the mean over completions of R times the gradient of log p(text)."""
    policy, groups = made()
    found = gradient(policy, groups, recipe("reinforce", size=5))
    completions = [completion for group in groups for completion in group.completions]
    rewards = SINES.score(completions).total
    policy.model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for completion, reward in zip(completions, rewards, strict=True):
        ids = torch.tensor([completion.prompt_ids + completion.token_ids])
        logprobs = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        first = len(completion.prompt_ids) - 1
        for index, token in enumerate(completion.token_ids):
            total = total - reward * logprobs[first + index, token] / len(completions)
    total.backward()
    assert_same(found, {name: parameter.grad for name, parameter in policy.trainable().items()})
