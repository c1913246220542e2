"""Packed attention and the fused head, compared with plain formulas in float64."""

from __future__ import annotations

import gc

import pytest
import torch

from burnish.policies.kernels import fused_head as head
from burnish.policies.kernels.attention import (
    GroupSpan,
    PackedAttention,
    _attend,
    _attend_backward,
    eager_attention,
    eager_attention_backward,
)
from burnish.policies.kernels.fused_head import fused_logprobs
from burnish.policies.kernels.packing import _stored_bytes, activation_bytes_per_token, pack
from burnish.policies.loading import load_policy
from burnish.policies.sampling_distribution import early_ends, token_stats
from burnish.recipe.schema import LoRA
from burnish.types import Completion, Prompt, SamplingParams


def numbers(*shape: int, seed: int = 0, grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def one(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Completion:
    return Completion(Prompt("", ""), prompt, answer, "", (), "length")


class TestPack:
    def test_each_prompt_is_packed_once_for_any_order_of_completions(self):
        row = pack([one((1, 2), (3, 4, 5)), one((6,), (7,)), one((1, 2), (8, 9)), one((6,), ())])
        # The last token of a completion is not an input.
        assert row.ids.tolist() == [[1, 2, 3, 4, 8, 6]]
        assert row.positions.tolist() == [[0, 1, 2, 3, 2, 0]]
        assert row.attention.spans == (GroupSpan(0, 2, ((2, 4), (4, 5))), GroupSpan(5, 6, ()))
        assert row.tokens.tolist() == [3, 4, 5, 7, 8, 9]
        # 3 is drawn after 2 (index 1), 4 after 3 (2), 5 after 4 (3), 7 after 6 (5), 8 after 2 (1), 9 after 8 (4).
        assert row.sources.tolist() == [1, 2, 3, 5, 1, 4]
        assert row.attention.max_text_length == 4


class TestAttention:
    # Adjacent completions of equal length, no completions, and completions of different lengths.
    SPANS = (
        GroupSpan(0, 4, ((4, 6), (6, 8), (8, 10))),
        GroupSpan(10, 11, ()),
        GroupSpan(11, 14, ((14, 17), (17, 18), (18, 20))),
    )

    @pytest.mark.parametrize("heads, group", [(2, 3), (4, 1), (1, 2)])
    def test_equals_a_softmax_over_the_visible_tokens(self, heads, group):
        query, key, value = (numbers(heads, n, 20, 8, seed=n, grad=True) for n in (group, 1, 2))
        key, value = key[:, 0], value[:, 1]
        sees = torch.zeros(20, 20, dtype=torch.bool)
        for span in self.SPANS:
            for start, stop in ((span.start, span.stop), *span.completions):
                sees[start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
                if start != span.start:
                    sees[start:stop, span.start : span.stop] = True
        scores = (query @ key[:, None].mT * 0.3).masked_fill(~sees, float("-inf"))
        expected = (scores.softmax(-1) @ value[:, None]).movedim(2, 0)
        found = PackedAttention(self.SPANS).attend(query, key, value, 0.3)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        weights = numbers(*expected.shape, seed=9)
        for first, second in zip(
            torch.autograd.grad((found * weights).sum(), (query, key, value)),
            torch.autograd.grad((expected * weights).sum(), (query, key, value)),
            strict=True,
        ):
            torch.testing.assert_close(first, second, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("causal", [False, True])
    def test_eager_attention_equals_the_kernel(self, causal):
        query, key, value = numbers(2, 3, 6, 8), numbers(2, 6, 8, seed=1), numbers(2, 6, 8, seed=2)
        out, normaliser = _attend(query, key, value, causal, 0.3)
        by_hand = eager_attention(query, key, value, causal, 0.3)
        grad = numbers(2, 3, 6, 8, seed=3)
        kernel = _attend_backward(grad, query, key, value, out, normaliser, causal, 0.3)
        slow = eager_attention_backward(grad, query, key, value, *by_hand, causal, 0.3)
        for first, second in zip((out, normaliser, *kernel), (*by_hand, *slow), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


class TestFusedHead:
    @pytest.mark.parametrize(
        "options",
        [{}, {"temperature": 0.7, "top_p": 0.8, "top_k": 9}, {"temperature": 2.0, "top_p": 0.6}, {"top_k": 3},
         {"min_p": 0.2}, {"min_new_tokens": 4}, {"temperature": 0.7, "top_p": 0.8, "min_p": 0.1, "min_new_tokens": 4}],
    )  # fmt: skip
    @pytest.mark.parametrize("with_bias", [False, True])
    @pytest.mark.parametrize("elements", [1, 50, 1 << 20])
    def test_equals_the_result_from_all_logits(self, options, with_bias, elements, monkeypatch):
        monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
        sampling = SamplingParams(1, **options)
        hidden, weight = numbers(11, 6, grad=True), numbers(23, 6, seed=1, grad=True)
        bias = numbers(23, seed=2, grad=True) if with_bias else None
        tokens = torch.arange(11) % 23
        leaves = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
        early = early_ends([range(11)], (20, 22), sampling, torch.device("cpu"))
        fused = fused_logprobs(hidden, weight, bias, tokens, sampling, early=early, entropy_gradient=True)
        logits = torch.nn.functional.linear(hidden, weight, bias)
        plain = token_stats(logits, tokens, sampling, early=early, entropy_gradient=True)
        weights = numbers(3, 11, seed=3)
        pairs = [(fused.logprobs, plain.logprobs), (fused.entropy, plain.entropy)]
        assert (fused.log_mass is None) == (plain.log_mass is None) == (not options)
        if options:
            pairs.append((fused.log_mass, plain.log_mass))
        for first, second in pairs:
            torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
        for parts in ((1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)):
            slopes = [
                torch.autograd.grad(
                    sum(on * (row * value).sum() for on, row, value in zip(parts, weights, values, strict=False)),
                    leaves, retain_graph=True,
                )
                for values in zip(*pairs, strict=True)
            ]  # fmt: skip
            for first, second in zip(*slopes, strict=True):
                torch.testing.assert_close(first, second, rtol=0, atol=1e-11)

    def test_entropies_have_a_gradient_only_on_request(self):
        hidden, weight = numbers(3, 6, grad=True), numbers(5, 6, seed=1)
        stats = fused_logprobs(hidden, weight, None, torch.tensor([0, 1, 2]), SamplingParams(1))
        assert stats.logprobs.requires_grad and not stats.entropy.requires_grad

    def test_a_frozen_head_gets_no_gradient(self):
        hidden, weight = numbers(3, 6, grad=True), numbers(5, 6, seed=1)
        fused_logprobs(hidden, weight, None, torch.tensor([0, 1, 2]), SamplingParams(1)).logprobs.sum().backward()
        assert hidden.grad is not None and weight.grad is None


def test_frozen_weights_keep_less_for_the_backward_pass(tiny):
    whole, adapted = (load_policy(tiny("llama"), lora=lora) for lora in (None, LoRA(rank=1, targets=["q_proj"])))
    assert activation_bytes_per_token(adapted.model, packed=True) > 0
    assert activation_bytes_per_token(adapted.model, packed=True) < activation_bytes_per_token(whole.model, packed=True)
    assert whole.max_microbatch_tokens > 1024


def test_measuring_leaves_no_graph_behind(tiny):
    """A graph would keep the weights of a policy that is split (FSDP) in memory."""
    model = load_policy(tiny("llama")).model

    def results() -> int:
        gc.collect()
        return sum(type(one) is torch.Tensor and one.grad_fn is not None for one in gc.get_objects())

    before = results()
    activation_bytes_per_token(model, packed=True)
    assert results() == before


def test_copies_of_the_weights_are_no_activations(tiny):
    """Autocast copies each weight once per pass, however many tokens there are."""
    model = load_policy(tiny("llama"), dtype="bfloat16").model
    few, many = (_stored_bytes(model, tokens, packed=True) for tokens in (8, 24))
    assert activation_bytes_per_token(model, packed=True) == (many - few) / 16 < few / 8


def test_the_gradient_does_not_depend_on_the_order_of_threads(tiny):
    """The backward pass of ``tensor[indices]`` adds atomically, so the sum for an index that occurs more than twice
    varies between calls. On a busy machine, two runs of one seed once drew different samples because of it."""
    policy = load_policy(tiny("llama"))
    group = [one((1, 2, 3), (number, 5)) for number in range(8)]
    waiting, found = [policy.logprobs(group, SamplingParams(2)).logprobs.sum().grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    names = {node.name() for node in found}
    assert "IndexSelectBackward0" in names and not any(name.startswith("IndexBackward") for name in names)


@pytest.mark.slow
def test_the_backward_pass_of_index_select_is_deterministic_with_two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        states = torch.randn(400, 576, requires_grad=True)
        indices = torch.arange(400).repeat_interleave(6)
        slope = torch.randn(2400, 576)
        first, *others = (torch.autograd.grad(states.index_select(0, indices), states, slope)[0] for _ in range(100))
        assert all(torch.equal(first, other) for other in others)
    finally:
        torch.set_num_threads(threads)
