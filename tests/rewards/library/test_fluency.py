"""Perplexity under the reference policy: values derived by hand, chunks, and models that lose tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch

from burnish.errors import BurnishError, InputError
from burnish.rewards.library.fluency import COMPLETIONS_AT_ONCE, negative_log_likelihoods, perplexity
from burnish.types import Completion
from tests.fakes import TokenValueModel
from tests.rewards.completions import answer


def test_perplexity_by_hand() -> None:
    # Mean NLL (1 + 2 + 3) / 3 = 2.
    completions = [answer(tokens=(1, 2, 3)), answer(tokens=(0, 0)), answer(tokens=(50,))]
    assert perplexity(completions, TokenValueModel(), form="raw") == pytest.approx([-math.exp(2), -1.0, -math.exp(50)])
    assert perplexity(completions, TokenValueModel()) == pytest.approx([1 - 2 / math.log(1000), 1.0, 0.0])
    assert perplexity(completions, TokenValueModel(), worst=math.exp(4)) == pytest.approx([0.5, 1.0, 0.0])


def test_no_token_counts_as_the_worst() -> None:
    assert perplexity([answer("", tokens=())], TokenValueModel()) == [0.0]
    assert perplexity([answer("", tokens=())], TokenValueModel(), form="raw", worst=20.0) == pytest.approx([-20.0])
    assert perplexity([], TokenValueModel()) == []


def test_chunks_change_nothing_and_bound_the_batch() -> None:
    rng = random.Random(0)
    completions = [answer(tokens=tuple(rng.randrange(9) for _ in range(rng.randrange(7)))) for _ in range(50)]
    sizes: list[int] = []

    class Watching(TokenValueModel):
        def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> torch.Tensor:
            sizes.append(len(completions))
            return super().token_logprobs(completions, temperature)

    assert negative_log_likelihoods(completions, Watching()) == [float(sum(c.token_ids)) for c in completions]
    assert max(sizes) == COMPLETIONS_AT_ONCE and sum(sizes) == sum(bool(c.token_ids) for c in completions) < 50


@pytest.mark.parametrize(
    ("options", "message"),
    [({"form": "lgo"}, "unknown form = 'lgo' .*'log'"), ({"worst": 1.0}, "above 1"), ({"worst": math.nan}, "above 1")],
)
def test_perplexity_refuses(options, message) -> None:
    with pytest.raises(InputError, match=message):
        perplexity([answer()], TokenValueModel(), **options)


def test_a_model_that_loses_tokens_is_caught() -> None:
    class Short(TokenValueModel):
        def token_logprobs(self, completions: Sequence[Completion], temperature: float = 1.0) -> torch.Tensor:
            return super().token_logprobs(completions)[:-1]

    with pytest.raises(BurnishError, match="Short returned 2 values for 3 tokens"):
        perplexity([answer(tokens=(1, 2, 3))], Short())
