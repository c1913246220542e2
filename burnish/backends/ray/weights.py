"""Weights on their way from the learner to the samplers: the bytes of one version, with a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from burnish.errors import BurnishError


@dataclass(frozen=True, slots=True)
class WeightBlock:
    """The trainable parameters of one policy version, as bytes: of a slice only its own, and without a graph.

    Attributes:
        data: of each parameter its bytes, [bytes] uint8. In the learner they are its own memory: the object store makes
            the only copy.
        layout: name, type and shape of each, in order.
        checksums: CRC-32 of each parameter's bytes.
    """

    data: tuple[np.ndarray, ...]
    layout: tuple[tuple[str, str, tuple[int, ...]], ...]
    checksums: tuple[int, ...]


def pack_weights(parameters: Mapping[str, Tensor]) -> WeightBlock:
    """Return parameters as a block, to be sent before they change."""
    data = tuple(map(_bytes, parameters.values()))
    return WeightBlock(data, _layout(parameters), _checksums(data))


def load_parts(blocks: Iterable[WeightBlock], parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy blocks, which together have all parameters, into them; as ``load_weights``, one block at a time."""
    left = dict(parameters)
    for block in blocks:
        load_weights(block, {name: left.pop(name) for name, _, _ in block.layout if name in left})
    if left:
        load_weights(WeightBlock((), (), ()), left)  # which refuses them


@torch.no_grad()
def load_weights(block: WeightBlock, parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy a block into parameters, in place, and compare the checksum of what they hold then.

    Raises BurnishError if they are other parameters, or a bit is lost on the way.
    """
    own = _layout(parameters)
    if own != block.layout:
        ours, theirs = dict.fromkeys(own), dict.fromkeys(block.layout)
        odd = next((one for one in (*theirs, *ours) if one not in ours or one not in theirs), own[0])
        raise BurnishError(
            f"the sampler's model has other weights than the learner's, such as '{odd[0]}': do both load the same model?"
        )
    for parameter, data in zip(parameters.values(), block.data, strict=True):
        if parameter.device.type == "cpu" and parameter.is_contiguous():
            _bytes(parameter)[:] = data
        else:
            part = torch.empty(parameter.shape, dtype=parameter.dtype)
            _bytes(part)[:] = data
            parameter.copy_(part)
    held = _checksums([_bytes(one) for one in parameters.values()])
    lost = [name for name, ours, sent in zip(parameters, held, block.checksums, strict=True) if ours != sent]
    if lost:
        raise BurnishError(
            f"the weights that a sampler received are not those that the learner sent: '{lost[0]}' has another checksum"
        )


def _layout(parameters: Mapping[str, Tensor]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    return tuple((name, str(one.dtype), tuple(one.shape)) for name, one in parameters.items())


def _bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's bytes, [bytes] uint8; those of a contiguous one on the CPU are its own memory."""
    flat: np.ndarray = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return flat


def _checksums(parts: Sequence[np.ndarray]) -> tuple[int, ...]:
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # zlib lets other threads run meanwhile
        return tuple(threads.map(zlib.crc32, [part.data for part in parts]))
