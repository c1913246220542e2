"""An update's microbatches, shared out among learners."""

from __future__ import annotations

import torch

from burnish.backends.ray.shares import share_out
from burnish.types import Completion, Microbatch, Prompt


def batch(*lengths: int, prompt: int = 10) -> Microbatch:
    texts = [Completion(Prompt("a", ""), (1,) * prompt, (7,) * length, "", (), "length") for length in lengths]
    none = torch.zeros(sum(lengths))
    return Microbatch(texts, none, none, none, None)


def test_the_largest_go_first_and_shares_keep_their_order():
    # 15, 65, 35, 40 tokens: a prompt counts once for its neighbours.
    batches = [batch(5), batch(25, 30), batch(25), batch(10, 10, 10)]
    assert share_out(batches, 2) == [[0, 1], [2, 3]]
    assert share_out(batches, 1) == [[0, 1, 2, 3]]


def test_more_learners_than_microbatches_leave_some_without():
    assert share_out([batch(5)], 3) == [[0], [], []]
