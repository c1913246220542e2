"""Weights in a block: the same bits on the other side, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from burnish.backends.ray.weights import load_parts, load_weights, pack_weights
from burnish.errors import BurnishError


def parameters(seed: int) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(40, 6, generator=generator)
    return {
        "slice": nn.Parameter(whole[3:5]),
        "turned": nn.Parameter(whole[:7].T),
        "half": nn.Parameter(whole[0].bfloat16()),
        "number": nn.Parameter(whole[0, 0].double()),
        "none": nn.Parameter(torch.zeros(0, 3)),
    }


def test_the_same_bits_arrive_in_place():
    sent, received = parameters(0), parameters(1)
    places = [one.data_ptr() for one in received.values()]
    block = pack_weights(sent)
    sizes = [part.nbytes for part in pickle.loads(pickle.dumps(block)).data]
    assert sizes == [12 * 4, 42 * 4, 6 * 2, 8, 0], "a slice comes without the rest of its storage"
    load_weights(block, received)
    assert all(torch.equal(sent[name], received[name]) for name in sent)
    assert [one.data_ptr() for one in received.values()] == places


def test_a_lost_bit_is_found():
    block = pack_weights(parameters(0))
    data = [part.copy() for part in block.data]
    data[1][17] ^= np.uint8(1)
    with pytest.raises(BurnishError, match="not those that the learner sent"):
        load_weights(replace(block, data=tuple(data)), parameters(1))


@pytest.mark.parametrize("change", ["other name", "other shape", "other type", "missing"])
def test_other_parameters_are_refused_by_name(change):
    block, own = pack_weights(parameters(0)), parameters(1)
    value = own.pop("half")
    if change == "other name":
        own["halves"] = value
    elif change == "other shape":
        own["half"] = nn.Parameter(value[:3])
    elif change == "other type":
        own["half"] = nn.Parameter(value.float())
    with pytest.raises(BurnishError, match="such as 'half"):
        load_weights(block, own)


def test_parts_come_one_at_a_time_and_together_have_all_parameters():
    sent, received = parameters(0), parameters(1)
    blocks = [pack_weights({name: sent[name] for name in some}) for some in (("slice", "half"), ("turned", "number"))]
    with pytest.raises(BurnishError, match="such as 'none'"):
        load_parts(blocks, received)
    load_parts([*blocks, pack_weights({"none": sent["none"]})], received)
    assert all(torch.equal(sent[name], received[name]) for name in sent)
