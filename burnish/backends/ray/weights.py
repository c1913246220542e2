"""Weights on their way from the learner to the samplers: one block of bytes a version, with a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from burnish.errors import BurnishError


@dataclass(frozen=True, slots=True)
class WeightBlock:
    """The trainable parameters of one policy version.

    A block of its own, because the object store would send a slice with its whole storage and a graph with a tensor.

    Attributes:
        data: [bytes] uint8, all parameters one after the other.
        layout: name, type and shape of each, in order.
        checksum: CRC-32 of the data.
    """

    data: np.ndarray
    layout: tuple[tuple[str, str, tuple[int, ...]], ...]
    checksum: int


def pack_weights(parameters: Mapping[str, nn.Parameter]) -> WeightBlock:
    """Copy parameters into a block."""
    sizes = [parameter.nbytes for parameter in parameters.values()]
    data = np.empty(sum(sizes), dtype=np.uint8)
    for end, size, parameter in zip(accumulate(sizes), sizes, parameters.values(), strict=True):
        data[end - size : end] = _bytes(parameter)
    layout = tuple((name, str(one.dtype), tuple(one.shape)) for name, one in parameters.items())
    return WeightBlock(data, layout, zlib.crc32(data.data))


@torch.no_grad()
def load_weights(block: WeightBlock, parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy a block into parameters, in place, and compare the checksum of what they hold then.

    Raises BurnishError if they are other parameters, or a bit is lost on the way.
    """
    own = tuple((name, str(one.dtype), tuple(one.shape)) for name, one in parameters.items())
    if own != block.layout:
        ours, theirs = dict.fromkeys(own), dict.fromkeys(block.layout)
        odd = next((one for one in (*theirs, *ours) if one not in ours or one not in theirs), own[0])
        raise BurnishError(
            f"the sampler's model has other weights than the learner's, such as '{odd[0]}': do both load the same model?"
        )
    begin = checksum = 0
    for parameter in parameters.values():
        part = torch.empty(parameter.shape, dtype=parameter.dtype)
        _bytes(part)[:] = block.data[begin : begin + parameter.nbytes]
        parameter.copy_(part)
        begin += parameter.nbytes
        checksum = zlib.crc32(_bytes(parameter).data, checksum)
    if checksum != block.checksum:
        raise BurnishError("the weights that a sampler received are not those that the learner sent")


def _bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's bytes, [bytes] uint8; those of a contiguous one on the CPU are its own memory."""
    flat: np.ndarray = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return flat
