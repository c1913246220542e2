"""Fused decoder layers of the Llama family, for sampling.

Problem: between the products of a decoding step, a layer runs about ninety small operations, whose call overhead is a
third of the products' time.

Idea: one product for linear layers with a common input (q, k and v; gate and up), and one compiled loop (``loops``) for
each norm, the rotation of queries and keys, and the gate. The results equal the training forward pass but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from burnish.policies.kernels.attention import dispatch_attention
from burnish.policies.kernels.loops import compiled_loops, fits_rotation

SUPPORTED_LAYERS = {"llama": "LlamaDecoderLayer", "qwen2": "Qwen2DecoderLayer"}
"""Model type -> layer class in transformers: RMSNorm before attention and a gated MLP, rotary positions, no query norm.

Subclasses may differ and are not supported."""

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def is_supported(layer: nn.Module) -> bool:
    """Return whether a module is a supported layer without a sliding window."""
    kinds = [f"transformers.models.{kind}.modeling_{kind}.{name}" for kind, name in SUPPORTED_LAYERS.items()]
    name = f"{type(layer).__module__}.{type(layer).__qualname__}"
    return name in kinds and getattr(layer.self_attn, "sliding_window", None) is None


class FusedDecoderLayer(nn.Module):
    """Decoder layer of the projections qkv, output, gate and up, down; norms and activation are those of ``layer``."""

    def __init__(self, layer: Any, projections: Sequence[nn.Module]) -> None:
        super().__init__()
        self.qkv, self.out, self.gate_up, self.down = projections
        self.norms = nn.ModuleList([layer.input_layernorm, layer.post_attention_layernorm])
        self.activation = layer.mlp.act_fn
        attention = layer.self_attn
        self.scale, self.width = float(attention.scaling), attention.head_dim
        self.groups = attention.num_key_value_groups

    def forward(self, states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> Tensor:
        """Return the next states [1, T, d]; the position embeddings are cosines and sines, [1, T, D] each."""
        projected = self.qkv(_norm(self.norms[0], states))[0].view(states.shape[1], -1, self.width)  # [T, H + 2K, D]
        heads = projected.shape[1] // (self.groups + 2)
        rotated = _rotate(projected[:, :-heads], *position_embeddings)
        queries, keys = rotated[:, :-heads].transpose(0, 1), rotated[:, -heads:].transpose(0, 1)
        queries, values = queries.view(heads, self.groups, *queries.shape[1:]), projected[:, -heads:].transpose(0, 1)
        attended = dispatch_attention(queries, keys, values, self.scale)  # [T, K, g, D]
        states = states + self.out(attended.flatten(1).unsqueeze(0))
        gated = _gate(self.activation, self.gate_up(_norm(self.norms[1], states)))
        return states.add_(self.down(gated))


def _norm(norm: Any, states: Tensor) -> Tensor:
    if states.dtype != torch.float32:  # the model's own norm rounds before it multiplies by the weight
        normed: Tensor = norm(states)
        return normed
    loops = compiled_loops(states, norm.weight)
    if loops is not None and norm.weight.shape == states.shape[-1:]:
        states = states.contiguous()
        normed = torch.empty_like(states)
        loops.rms_norm(states.shape[1], states, states.shape[2], norm.weight, normed, norm.variance_epsilon)
        return normed
    return torch.nn.functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Apply rotary position embeddings (arXiv 2104.09864) to [T, H, D], with transformers' halves instead of pairs.

    The compiled loop works in place.
    """
    loops = compiled_loops(heads, cosines, sines)
    if loops is not None and fits_rotation(heads, cosines, sines):
        turns = cosines.contiguous(), sines.contiguous()
        loops.rotate(*heads.shape, heads, heads.stride(0), heads, heads.stride(0), *turns, False)
        return heads
    half = heads.shape[-1] // 2
    rotated = torch.cat((-heads[..., half:], heads[..., :half]), -1)
    return (heads * cosines[0].unsqueeze(1)).add_(rotated.mul_(sines[0].unsqueeze(1)))


def _gate(activation: Any, projected: Tensor) -> Tensor:
    """Return the activation of the first half of [1, T, 2 f], times the second half."""
    if type(activation).__name__ in ("SiLU", "SiLUActivation") and (loops := compiled_loops(projected)) is not None:
        gated = projected.new_empty(1, projected.shape[1], projected.shape[2] // 2)
        gate, up = projected.chunk(2, -1)
        loops.gate(projected.shape[1], gate, gate.stride(1), up, up.stride(1), gated, gated.shape[2])
        return gated
    gate, up = projected.chunk(2, -1)
    result: Tensor = activation(gate).mul_(up)
    return result
