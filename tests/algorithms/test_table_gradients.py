"""Embedding and head gradients that are added directly to ``grad`` equal those of autograd."""

from __future__ import annotations

import pytest
import torch

from burnish.algorithms.table_gradients import adding_to_grad, embedding
from burnish.policies.kernels import fused_head as head
from burnish.policies.kernels import linear, products
from burnish.policies.kernels.fused_head import fused_logprobs
from burnish.policies.loading import load_policy
from burnish.policies.sampling_distribution import sampling_logprobs
from burnish.types import Completion, Prompt, SamplingParams

COMPLETIONS = [
    Completion(Prompt("a", "x"), (5, 6, 7), (8, 9, 5, 1), "", (), "length"),
    Completion(Prompt("a", "x"), (5, 6, 7), (4, 8), "", (), "stop"),
    Completion(Prompt("b", "y"), (3, 3), (6, 6, 2), "", (), "stop"),
]


def close(found: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        scale = float(expected.abs().max()) or 1.0
        assert float((found - expected).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize(
    "kind", ["qwen2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "gpt2", "mamba"))]
)
@pytest.mark.parametrize("onednn", [True, False])
def test_two_microbatches_add_up_to_autograds_gradient(tiny, kind, onednn, monkeypatch) -> None:
    # Both kinds of matrix product, on every machine.
    usual = "onednn" if onednn and products.has_onednn_linear() else "torch"
    monkeypatch.setattr(products, "usual_library", lambda: usual)
    policy = load_policy(tiny(kind))
    sampling, slopes = SamplingParams(4, temperature=0.7), torch.linspace(-1, 2, 9)
    parameters = policy.trainable()
    expected = torch.autograd.grad(
        (policy.logprobs(COMPLETIONS, sampling).logprobs * slopes).sum(), parameters.values()
    )
    for some, part in ((COMPLETIONS[:2], slopes[:6]), (COMPLETIONS[2:], slopes[6:])):
        with adding_to_grad():
            stats = policy.logprobs(some, sampling)
        (stats.logprobs * part).sum().backward()
    for parameter, wanted in zip(parameters.values(), expected, strict=True):
        close(parameter.grad, wanted)


@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding_rows(padding) -> None:
    ids, slopes = torch.tensor([[0, 2, 2, 4], [4, 1, 0, 0]]), torch.randn(2, 4, 3)
    table, other = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    (expected,) = torch.autograd.grad((torch.nn.functional.embedding(ids, table, padding) * slopes).sum(), table)
    table.grad = other.clone()
    with adding_to_grad():
        rows = embedding(ids, table, padding)
    (rows * slopes).sum().backward()
    close(table.grad, other + expected)


def test_autograd_keeps_the_gradient_outside_the_context_and_of_tensors_that_are_not_leaves() -> None:
    table = torch.randn(5, 3, requires_grad=True)
    assert torch.autograd.grad(embedding(torch.tensor([1]), table).sum(), table)[0].sum() == 3
    with adding_to_grad():
        moved = table * 2
        found = embedding(torch.tensor([1]), moved)
        logprobs = fused_logprobs(torch.randn(2, 3), moved, None, torch.tensor([0, 1]), SamplingParams(1)).logprobs
    (grad,) = torch.autograd.grad(found.sum() + logprobs.sum(), table)
    assert table.grad is None
    assert grad[1].abs().sum() > 0


def test_a_frozen_table_gets_no_gradient() -> None:
    table, hidden = torch.randn(5, 3), torch.randn(2, 3, requires_grad=True)
    with adding_to_grad():
        logprobs = fused_logprobs(hidden, table, None, torch.tensor([0, 1]), SamplingParams(1)).logprobs
    logprobs.sum().backward()
    assert table.grad is None
    assert hidden.grad is not None


@pytest.mark.parametrize(
    "sampling", [SamplingParams(1), SamplingParams(1, temperature=0.5, top_k=7), SamplingParams(1, top_p=0.6)]
)
@pytest.mark.parametrize("onednn", [True, False])
def test_the_head_in_pieces(sampling, onednn, monkeypatch) -> None:
    # 23 columns in pieces of 5; 70 rows in chunks of 8, processed 3 at a time; the first two chunks are kept.
    for name, value in {
        "CHUNK_ELEMENTS": 8 * 23,
        "CACHED_ELEMENTS": 3 * 23,
        "COLUMNS": 5,
        "KEPT_ELEMENTS": 16 * 23,
    }.items():
        monkeypatch.setattr(head, name, value)
    usual = "onednn" if onednn and products.has_onednn_linear() else "torch"
    monkeypatch.setattr(products, "usual_library", lambda: usual)
    monkeypatch.setattr(linear, "MIN_ROWS", 4)
    generator = torch.Generator().manual_seed(1)
    hidden, weight, bias = (
        torch.randn(*size, generator=generator).requires_grad_() for size in ((70, 6), (23, 6), (23,))
    )
    tokens = torch.randint(23, (70,), generator=generator)
    by_logprob, by_entropy = torch.randn(2, 70, generator=generator)
    every = sampling_logprobs(torch.nn.functional.linear(hidden, weight, bias), sampling, always=tokens)
    entropy = -(every.exp() * torch.where(every.isfinite(), every, 0.0)).sum(-1)
    chosen = every.gather(-1, tokens[:, None]).squeeze(-1)
    for share in (0.0, 1.0):
        found = fused_logprobs(hidden, weight, bias, tokens, sampling, entropy_gradient=True)
        close(found.logprobs.detach(), chosen.detach())
        close(found.entropy.detach(), entropy.detach())
        leaves = (hidden, weight, bias)
        expected = torch.autograd.grad(
            (chosen * by_logprob + share * entropy * by_entropy).sum(), leaves, retain_graph=True
        )
        grads = torch.autograd.grad((found.logprobs * by_logprob + share * found.entropy * by_entropy).sum(), leaves)
        for one, wanted in zip(grads, expected, strict=True):
            close(one, wanted)


def test_sums_of_many_pieces_in_bfloat16_keep_their_precision(monkeypatch) -> None:
    # 600 pieces of one column each: a sum kept in bfloat16 would be off by 1 %.
    monkeypatch.setattr(head, "COLUMNS", 1)
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(*size, generator=generator).bfloat16() for size in ((8, 16), (600, 16)))
    tokens = torch.randint(600, (8,), generator=generator)
    found, expected = hidden.clone().requires_grad_(), hidden.float().requires_grad_()
    fused_logprobs(found, weight, None, tokens, SamplingParams(1)).logprobs.sum().backward()
    torch.nn.functional.linear(expected, weight.float()).log_softmax(-1).gather(-1, tokens[:, None]).sum().backward()
    assert found.grad is not None and expected.grad is not None
    assert float((found.grad.float() - expected.grad).abs().max()) <= 0.006 * float(expected.grad.abs().max())
