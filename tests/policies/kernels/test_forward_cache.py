"""Products computed while sampling replace those of the training forward pass, and only while they are valid."""

from __future__ import annotations

import pytest
import torch

from burnish.generation.engine import Engine, make_sampler
from burnish.policies import causal_lm
from burnish.policies.causal_lm import CausalPolicy
from burnish.policies.kernels.forward_cache import ForwardCache
from burnish.policies.kernels.products import has_onednn_linear
from burnish.policies.loading import load_policy
from burnish.recipe.schema import LoRA
from burnish.types import Completion, Prompt, SamplingParams

PROMPTS = [Prompt("a", "the cat sat"), Prompt("b", "a dog"), Prompt("c", "the")]
SAMPLING = SamplingParams(7)

pytestmark = pytest.mark.skipif(not has_onednn_linear(), reason="torch lacks oneDNN's products here")


def sampled(policy: CausalPolicy, *, rows: int = 64, seed: int = 0) -> list[Completion]:
    sampler = make_sampler(policy, rows=rows)
    assert isinstance(sampler, Engine)
    groups = sampler.sample(PROMPTS, samples_per_prompt=3, sampling=SAMPLING, seed=(seed,))
    return [completion for group in groups for completion in group.completions]


def gradient(policy: CausalPolicy, completions: list[Completion]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    stats = policy.logprobs(completions, SAMPLING)
    slopes = torch.linspace(-1, 2, len(stats.logprobs))
    parameters = policy.trainable()
    found = torch.autograd.grad((stats.logprobs * slopes).sum(), list(parameters.values()), allow_unused=True)
    named = zip(parameters, found, strict=True)
    return stats.logprobs.detach(), {name: part for name, part in named if part is not None}


def adapted(policy: CausalPolicy) -> CausalPolicy:
    """Set the adapters to random values: peft initialises one of the two factors to zero."""
    with torch.no_grad():
        for number, parameter in enumerate(policy.trainable().values()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 10)
    return policy


MORE = [("llama", 2), ("gpt2", 2), ("lora", 64), ("qwen2", 64), ("qwen2", 2)]


class TestGradient:
    @pytest.mark.parametrize(
        "kind, rows",
        [("llama", 64), ("gpt2", 64), ("lora", 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)],
    )
    def test_equals_the_recomputed_one(self, tiny, kind, rows, monkeypatch):
        if kind == "lora":
            lora = LoRA(rank=2, targets=["q_proj", "down_proj"])
            policy = adapted(load_policy(tiny("llama"), lora=lora))
        else:
            policy = load_policy(tiny(kind))
        policy.start_forward_cache()
        completions = sampled(policy, rows=rows)
        looked_up = []
        find = ForwardCache._find

        def spy(self, indices, weight, given):
            found = find(self, indices, weight, given)
            looked_up.append(found is not None)
            return found

        monkeypatch.setattr(ForwardCache, "_find", spy)
        logprobs, parts = gradient(policy, completions)
        assert sum(looked_up) == (0 if kind == "gpt2" else 14)  # seven products in each of two layers
        policy.stop_forward_cache()
        expected_logprobs, expected = gradient(policy, completions)
        torch.testing.assert_close(logprobs, expected_logprobs, rtol=0, atol=1e-5)
        assert parts.keys() == expected.keys()
        scale = max(float(part.abs().max()) for part in expected.values())
        for name, part in parts.items():
            torch.testing.assert_close(part / scale, expected[name] / scale, rtol=0, atol=1e-5)

    def test_cached_products_are_used(self, tiny):
        # Corrupted products change the log-probabilities, so the test above does not compare a result with itself.
        policy = load_policy(tiny("llama"))
        policy.start_forward_cache()
        completions = sampled(policy)
        for layer in policy.forward_cache._layers.values():
            layer.buffer.mul_(1.5)
        wrong, _ = gradient(policy, completions)
        policy.stop_forward_cache()
        right, _ = gradient(policy, completions)
        assert (wrong - right).abs().max() > 1e-2


class TestValidity:
    def lookup(self, policy: CausalPolicy, completion: Completion):
        slots = policy.forward_cache.get_slots(completion)
        return None if slots is None else policy.forward_cache.lookup([*slots[0], *slots[1]])

    def test_not_after_an_update(self, tiny):
        policy = load_policy(tiny("llama"))
        policy.start_forward_cache()
        completions = sampled(policy)
        assert self.lookup(policy, completions[0]) is not None
        optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-6, fused=True)
        policy.logprobs(completions, SAMPLING).logprobs.sum().backward()
        optimizer.step()
        assert self.lookup(policy, completions[0]) is None
        found, _ = gradient(policy, completions)
        policy.stop_forward_cache()
        torch.testing.assert_close(found, gradient(policy, completions)[0], rtol=0, atol=0)

    def test_not_after_an_adapter_has_changed(self, tiny):
        policy = adapted(load_policy(tiny("llama"), lora=LoRA(rank=2, targets=["q_proj"])))
        policy.start_forward_cache()
        completions = sampled(policy)
        assert self.lookup(policy, completions[0]) is not None
        with torch.no_grad():
            next(iter(policy.trainable().values())).mul_(1.001)
        assert self.lookup(policy, completions[0]) is None

    def test_not_for_another_completion_of_the_same_tokens(self, tiny):
        policy = load_policy(tiny("llama"))
        policy.start_forward_cache()
        first = sampled(policy)[0]
        copied = Completion(first.prompt, first.prompt_ids, first.token_ids, first.text, (), first.finish_reason)
        assert policy.forward_cache.get_slots(copied) is None

    def test_two_rollouts_of_one_step_share_a_cache(self, tiny):
        policy = load_policy(tiny("llama"))
        policy.start_forward_cache()
        completions = [*sampled(policy), *sampled(policy, seed=1)]
        found, _ = gradient(policy, completions)
        assert self.lookup(policy, completions[0]) is not None and self.lookup(policy, completions[-1]) is not None
        policy.stop_forward_cache()
        torch.testing.assert_close(found, gradient(policy, completions)[0], rtol=0, atol=1e-5)

    def test_the_widest_layers_are_cached_first(self, tiny):
        policy = load_policy(tiny("llama"))
        policy.start_forward_cache()
        sampled(policy)
        widest = policy.model.config.intermediate_size
        assert widest > policy.model.config.hidden_size
        everything = policy.forward_cache.bytes_per_token
        policy.forward_cache = ForwardCache(policy.forward_cache.used_bytes // 2)
        completions = sampled(policy)
        assert all(policy.forward_cache.get_slots(completion) is not None for completion in completions)
        assert 0 < policy.forward_cache.bytes_per_token <= everything // 2
        chosen = policy.forward_cache._stored
        others = [layer for layer in policy.forward_cache._layers.values() if layer not in chosen]
        assert min(one.inputs for one in chosen) >= max(one.inputs for one in others)
        assert all(one.buffer is None for one in others)
        assert max(one.inputs for one in chosen) == widest
        gradient(policy, completions)

    def test_layers_are_given_up_while_sampling_and_come_back_in_the_next_step(self, tiny):
        policy = load_policy(tiny("llama"))
        policy.start_forward_cache()
        sampled(policy)
        everything, tokens = policy.forward_cache.bytes_per_token, policy.forward_cache._tokens
        cache = policy.forward_cache = ForwardCache(everything * tokens - 1)
        for _ in range(2):
            cache.clear()
            sampled(policy)
            layers = sorted(cache._layers.values(), key=lambda layer: -layer.inputs)
            assert cache.used_bytes <= cache.max_bytes and cache._stored == layers[:-1]
            assert layers[-1].buffer is None
            assert all(layer.filled == tokens for layer in cache._stored)

    def test_buffers_never_take_more_than_the_limit(self):
        # Three layers of 4 bytes each a token; up to 100 tokens, of which 9 fit with all layers.
        weights = [torch.ones(1, inputs) for inputs in (5, 6, 7)]
        cache = ForwardCache(9 * 12)
        layers = [cache.layer_outputs(weight) for weight in weights]
        cache.reserve(100)
        kept = []
        for _ in range(30):
            cache.allocate(1)
            for layer in layers:
                layer.add(torch.ones(1, 1))
            buffers = [layer.buffer for layer in layers if layer.buffer is not None]
            assert sum(buffer.nbytes for buffer in buffers) <= cache.max_bytes
            kept.append(len(buffers))
        assert kept == [3] * 9 + [2] * 4 + [1] * 17
        assert cache._tokens == 27 and layers[2].filled == 27  # the best layer alone

    def test_released_buffers_are_made_anew(self, tiny):
        policy = load_policy(tiny("llama"))
        policy.start_forward_cache()
        cache = policy.forward_cache
        expected = gradient(policy, sampled(policy))[0]
        cache.release()
        assert all(layer.buffer is None for layer in cache._layers.values()) and cache.used_bytes == 0
        torch.testing.assert_close(gradient(policy, sampled(policy))[0], expected, rtol=0, atol=0)

    def test_a_large_share_of_the_memory_leaves_room_for_training(self, tiny, monkeypatch):
        policy = load_policy(tiny("llama"))
        weights = sum(one.nbytes for one in policy.model.parameters())
        total = 60 * weights  # five times the weights for training, a twentieth for a microbatch
        monkeypatch.setattr(causal_lm, "device_memory_bytes", lambda device: total)
        for share, expected in ((0.1, 6 * weights), (0.5, 52 / 2 * weights), (0.0125, 0.75 * weights)):
            policy.start_forward_cache(share)
            # A quarter is for reordered weights.
            assert policy.forward_cache.max_bytes == pytest.approx(expected * 3 / 4, rel=1e-5)
            assert policy._packed.room == pytest.approx(expected / 4, rel=1e-5)
        total = 5 * weights
        policy.start_forward_cache(0.5)
        assert policy.forward_cache.max_bytes + policy._packed.room == pytest.approx(0.0125 * total, abs=1)

    def test_buffers_are_kept_for_the_next_step_unless_memory_is_scarce(self, tiny, monkeypatch):
        policy = load_policy(tiny("llama"))
        for available, kept in ((2, True), (0.9, False)):
            monkeypatch.setattr(causal_lm, "memory", lambda available=available: (16, available))
            policy.start_forward_cache()
            cache = policy.forward_cache
            sampled(policy)
            policy.stop_forward_cache()
            assert policy.forward_cache is None
            assert any(layer.buffer is not None for layer in cache._layers.values()) == kept

    def test_completions_that_do_not_fit_are_recomputed(self, tiny):
        policy = load_policy(tiny("llama"))
        policy.start_forward_cache()
        sampled(policy)
        one = max(policy.forward_cache._layers.values(), key=lambda layer: layer.inputs)
        needed = one.bytes * policy.forward_cache._tokens
        policy.forward_cache = ForwardCache(needed // 2)
        completions = sampled(policy, rows=3)  # prompt by prompt, so that the first prompts fit
        known = [policy.forward_cache.get_slots(completion) is not None for completion in completions]
        assert any(known) and not all(known)
        assert 0 < policy.forward_cache.used_bytes <= needed // 2
        found, _ = gradient(policy, completions)
        policy.stop_forward_cache()
        torch.testing.assert_close(found, gradient(policy, completions)[0], rtol=0, atol=1e-5)

    def test_nothing_is_cached_without_a_request_or_under_gradient_checkpointing(self, tiny):
        policy = load_policy(tiny("llama"))
        sampled(policy)
        assert policy.forward_cache is None
        short = load_policy(tiny("llama"), gradient_checkpointing=True)
        short.start_forward_cache()
        assert short.forward_cache is None


class TestPartialProducts:
    """Products of some of the tokens only, as of an expert, which sees the tokens routed to it."""

    @pytest.mark.parametrize("rows", [1, 2, 5])
    def test_are_not_looked_up_and_do_not_affect_others(self, rows):
        cache = ForwardCache(1 << 20)
        weight, other = torch.ones(4, 3), torch.ones(6, 3)
        expert, whole = cache.layer_outputs(weight), cache.layer_outputs(other)
        cache.reserve(10)
        cache.allocate(3)
        expert.add(torch.ones(1, rows, 4))
        whole.add(torch.full((1, 3, 6), 7.0))
        find = cache.lookup([2, 0])
        assert find is not None
        assert find(weight, torch.ones(2, 3)) is None
        assert torch.equal(find(other, torch.ones(2, 3)), torch.full((2, 6), 7.0))

    def test_neither_are_products_that_a_pass_computes_twice(self):
        cache = ForwardCache(1 << 20)
        weight = torch.ones(4, 3)
        layer = cache.layer_outputs(weight)
        cache.reserve(10)
        cache.allocate(3)
        layer.add(torch.ones(1, 3, 4))
        layer.add(torch.zeros(1, 3, 4))
        assert cache.lookup([0])(weight, torch.ones(1, 3)) is None
        # Still not after a pass without the layer, where the total number of rows is right again.
        cache.allocate(3)
        assert cache.lookup([0])(weight, torch.ones(1, 3)) is None
