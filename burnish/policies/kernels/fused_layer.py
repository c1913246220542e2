"""Decoder layers of Llama's kind with fewer, larger operations, for sampling.

A decoding step multiplies a few rows with every weight, and between the products runs some ninety small operations a layer,
whose calls take as long as a third of the products. Here products of the same input are one (queries, keys and values; gate
and up), norms are one operation, and queries and keys are turned together. The order of all arithmetic within a number is
the layer's own, so that the results are, to the bit where oneDNN's products are, those of training's forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from burnish.policies.kernels.attention import dispatch_attention

KNOWN = {"llama": "LlamaDecoderLayer", "qwen2": "Qwen2DecoderLayer"}
"""Architectures whose layers this is, by transformers' names: RMSNorm before attention and before a gated MLP; queries and
keys are turned and not normed. A subclass may do otherwise and is not taken."""

PRODUCTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def known(layer: nn.Module) -> bool:
    """Whether a module is such a layer, and each token sees all before it."""
    kinds = [f"transformers.models.{kind}.modeling_{kind}.{name}" for kind, name in KNOWN.items()]
    name = f"{type(layer).__module__}.{type(layer).__qualname__}"
    return name in kinds and getattr(layer.self_attn, "sliding_window", None) is None


class FusedDecoderLayer(nn.Module):
    """One layer, by its own norms and activation.

    Args:
        layer: of the copy that samples; its norms are used.
        products: of q, k and v in one; o; gate and up in one; down.
    """

    def __init__(self, layer: Any, products: Sequence[nn.Module]) -> None:
        super().__init__()
        self.into, self.out, self.gated, self.down = products
        self.norms = nn.ModuleList([layer.input_layernorm, layer.post_attention_layernorm])
        self.activation = layer.mlp.act_fn
        attention = layer.self_attn
        self.layer_idx, self.scale, self.width = attention.layer_idx, float(attention.scaling), attention.head_dim
        self.groups = attention.num_key_value_groups

    def forward(self, states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> Tensor:
        """States [1, T, d]; cosines and sines [1, T, D]."""
        found = self.into(_norm(self.norms[0], states))[0].view(states.shape[1], -1, self.width)  # [T, H + 2K, D]
        heads = found.shape[1] // (self.groups + 2)
        turned = _turn(found[:, :-heads], *position_embeddings)
        queries, keys = turned[:, :-heads].transpose(0, 1), turned[:, -heads:].transpose(0, 1)
        queries, values = queries.view(heads, self.groups, *queries.shape[1:]), found[:, -heads:].transpose(0, 1)
        attended = dispatch_attention(self.layer_idx, queries, keys, values, self.scale)  # [T, K, g, D]
        states = states + self.out(attended.flatten(1).unsqueeze(0))
        gate, up = self.gated(_norm(self.norms[1], states)).chunk(2, -1)
        return states.add_(self.down(self.activation(gate).mul_(up)))


def _norm(norm: Any, states: Tensor) -> Tensor:
    if states.dtype != torch.float32:  # the layer's own rounds before it multiplies by the weight
        found: Tensor = norm(states)
        return found
    return torch.nn.functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _turn(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions of [T, H, D] (arXiv 2104.09864, in transformers' order: halves, not neighbours)."""
    half = heads.shape[-1] // 2
    turned = torch.cat((-heads[..., half:], heads[..., :half]), -1)
    return (heads * cosines[0].unsqueeze(1)).add_(turned.mul_(sines[0].unsqueeze(1)))
